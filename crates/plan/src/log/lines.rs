//! Lines about memory in the logs of several engines and releases, as data.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;

use crate::EngineKind;

/// A line that is looked for.
pub(super) struct Line {
    /// Whose.
    pub engine: EngineKind,
    /// Text that the line has, checked before the expression.
    pub contains: &'static str,
    /// Its figures by group; a group `on` says on which device or in which buffer.
    pub pattern: &'static str,
    /// Group, name, meaning.
    pub figures: &'static [(&'static str, &'static str, &'static str)],
}

static COMPILED: LazyLock<HashMap<&'static str, Regex>> = LazyLock::new(|| {
    LINES
        .iter()
        .filter_map(|line| Some((line.pattern, Regex::new(line.pattern).ok()?)))
        .collect()
});

impl Line {
    pub(super) fn regex(&self) -> Option<&'static Regex> {
        COMPILED.get(self.pattern)
    }
}

pub(super) fn engine_name(engine: EngineKind) -> &'static str {
    match engine {
        EngineKind::Sglang => "sglang",
        EngineKind::LlamaCpp => "llama.cpp",
        EngineKind::TrtLlm => "trtllm",
        EngineKind::Scrimp => "scrimp",
        EngineKind::Vllm => "vllm",
    }
}

const WEIGHTS: &str = "weights as the allocator holds them, on one rank";
const BUDGET: &str = "what one rank may use: total times utilization";
const PEAK: &str = "the profile run's peak besides weights: forward pass or sampler";
const NON_TORCH: &str = "context, libraries and communicators, which torch does not count";
const KV: &str = "what is left for the KV cache on one rank";
const TOKENS: &str = "tokens that the KV cache holds";
const GRAPHS: &str = "captured CUDA graphs";
const BLOCKS: &str = "blocks of the KV cache";
const CONCURRENCY: &str = "sequences of the longest length that fit at once";

const V: EngineKind = EngineKind::Vllm;
const S: EngineKind = EngineKind::Sglang;
const L: EngineKind = EngineKind::LlamaCpp;

macro_rules! line {
    ($engine:expr, $contains:literal, $pattern:literal, $([$group:literal, $name:literal, $meaning:expr]),+) => {
        Line {
            engine: $engine,
            contains: $contains,
            pattern: $pattern,
            figures: &[$(($group, $name, $meaning)),+],
        }
    };
}

/// Every line, by engine, oldest wording first.
#[rustfmt::skip]
pub(super) const LINES: &[Line] = &[
    line!(V, "Loading model weights took", r"Loading model weights took (?<w>[\d.]+) Gi?B", ["w", "weights_gib", WEIGHTS]),
    line!(V, "Model loading took", r"Model loading took (?<w>[\d.]+) Gi?B", ["w", "weights_gib", WEIGHTS]),
    line!(V, "the current vLLM instance can use", r"the current vLLM instance can use total_gpu_memory \((?<t>[\d.]+)GiB\) x gpu_memory_utilization \([\d.]+\) = (?<b>[\d.]+)GiB", ["t", "total_gpu_gib", "memory of the device"], ["b", "budget_gib", BUDGET]),
    line!(V, "the current vLLM instance can use", r"the current vLLM instance can use\s+(?<b>[\d.]+)GiB", ["b", "budget_gib", BUDGET]),
    line!(V, "total_gpu_memory", r"total_gpu_memory\s+(?<t>[\d.]+)GiB", ["t", "total_gpu_gib", "memory of the device"]),
    line!(V, "model weights take", r"model weights take\s+(?<w>[\d.]+)GiB", ["w", "weights_gib", WEIGHTS]),
    line!(V, "non_torch_memory", r"non_torch_memory (?:takes )?\s*(?<n>-?[\d.]+)GiB", ["n", "non_torch_gib", NON_TORCH]),
    line!(V, "PyTorch activation peak memory", r"PyTorch activation peak memory (?:takes )?\s*(?<p>[\d.]+)GiB", ["p", "activation_peak_gib", PEAK]),
    line!(V, "reserved for KV Cache is", r"reserved for KV Cache is (?<k>-?[\d.]+)GiB", ["k", "kv_gib", KV]),
    line!(V, "available_kv_cache_memory", r"available_kv_cache_memory\s+(?<k>-?[\d.]+)GiB", ["k", "kv_gib", KV]),
    line!(V, "Initial free memory", r"Initial free memory:? (?<f>[\d.]+) GiB[;,] (?:Requested|requested) memory:? [\d.]+ \(util\), (?<b>[\d.]+) GiB", ["f", "free_at_start_gib", "free before loading"], ["b", "budget_gib", BUDGET]),
    line!(V, "torch peak memory increase", r"torch peak memory increase: (?<p>[\d.]+)GiB", ["p", "activation_peak_gib", PEAK]),
    line!(V, "non-torch forward increase", r"non-torch forward increase memory: (?<n>-?[\d.]+)GiB", ["n", "non_torch_gib", NON_TORCH]),
    line!(V, "Total non KV cache memory", r"Total non KV cache memory: (?<t>[\d.]+)GiB", ["t", "non_kv_gib", "weights, peak and libraries together"]),
    line!(V, "Available KV cache memory", r"Available KV cache memory: (?<k>-?[\d.]+) GiB", ["k", "kv_gib", KV]),
    line!(V, "# GPU blocks", r"# GPU blocks: (?<b>\d+)", ["b", "gpu_blocks", BLOCKS]),
    line!(V, "# cuda blocks", r"# cuda blocks: (?<b>\d+)", ["b", "gpu_blocks", BLOCKS]),
    line!(V, "# CUDA blocks", r"# CUDA blocks: (?<b>\d+)", ["b", "gpu_blocks", BLOCKS]),
    line!(V, "GPU KV cache size", r"GPU KV cache size: (?<t>[\d,]+) tokens", ["t", "kv_tokens", TOKENS]),
    line!(V, "Maximum concurrency for", r"Maximum concurrency for (?<l>[\d,]+) tokens per request: (?<c>[\d.]+)x", ["l", "max_model_len", "longest sequence served"], ["c", "max_concurrency", CONCURRENCY]),
    line!(V, "Graph capturing finished", r"Graph capturing finished in \d+ secs?, took (?<g>-?[\d.]+) GiB", ["g", "cuda_graph_gib", GRAPHS]),
    line!(V, "Estimated CUDA graph memory", r"Estimated CUDA graph memory: (?<g>[\d.]+) GiB", ["g", "cuda_graph_estimated_gib", "captured graphs, as estimated before the pool is sized"]),

    line!(V, "Free memory on device", r"Free memory on device \((?<f>[\d.]+)/(?<t>[\d.]+) GiB\) on startup\. Desired GPU memory utilization is \([\d.]+, (?<b>[\d.]+) GiB\)", ["f", "free_at_start_gib", "free before loading"], ["t", "total_gpu_gib", "memory of the device"], ["b", "budget_gib", BUDGET]),
    line!(V, "GiB for weight,", r"Actual usage is (?<w>[\d.]+) GiB for weight,", ["w", "weights_gib", WEIGHTS]),
    line!(V, "consumed memory (weights + non-torch)", r"Actual usage is (?<w>[\d.]+) GiB for consumed memory", ["w", "weights_and_non_torch_gib", "weights, libraries and communicators together"]),
    line!(V, "GiB for peak activation", r"(?<p>[\d.]+) GiB for peak activation", ["p", "activation_peak_gib", PEAK]),
    line!(V, "GiB for non-torch memory", r"(?<n>-?[\d.]+) GiB for non-torch memory", ["n", "non_torch_gib", NON_TORCH]),
    line!(V, "GiB for CUDAGraph memory", r"(?<g>-?[\d.]+) GiB for CUDAGraph memory", ["g", "cuda_graph_gib", GRAPHS]),
    line!(V, "Current kv cache memory in use", r"Current kv cache memory in use is (?<k>[\d.]+) GiB", ["k", "kv_gib", KV]),
    line!(V, "CUDA graph pool memory", r"CUDA graph pool memory: (?<a>[\d.]+) GiB \(actual\), (?<e>[\d.]+) GiB \(estimated\)", ["a", "cuda_graph_actual_gib", GRAPHS], ["e", "cuda_graph_estimated_gib", "captured graphs, as estimated before the pool is sized"]),

    line!(S, "Load weight begin", r"Load weight begin\. avail mem=(?<a>[\d.]+) GB", ["a", "avail_before_load_gb", "free before loading, of the rank with the least"]),
    line!(S, "Load weight end", r"Load weight end\..*avail mem=(?<a>[\d.]+) GB", ["a", "avail_after_load_gb", "free after loading"]),
    line!(S, "Load weight end", r"Load weight end\..*mem usage=(?<w>[\d.]+) GB", ["w", "weights_gb", "weights as the driver sees them, in segments of 2 MiB"]),
    line!(S, "KV Cache is allocated", r"KV Cache is allocated\..*#tokens: (?<t>\d+)", ["t", "kv_tokens", TOKENS]),
    line!(S, "KV Cache is allocated", r"KV Cache is allocated\..*, K size: (?<k>[\d.]+) GB, V size: (?<v>[\d.]+) GB", ["k", "k_gb", "keys of the KV cache"], ["v", "v_gb", "values of the KV cache"]),
    line!(S, "KV Cache is allocated", r"KV Cache is allocated\..*, KV size: (?<k>[\d.]+) GB", ["k", "kv_gb", "the KV cache (latent rows)"]),
    line!(S, "Memory pool end", r"Memory pool end\. avail mem=(?<a>[\d.]+) GB", ["a", "avail_after_pool_gb", "free once the KV cache and the table of requests are there"]),
    line!(S, "Capture cuda graph end", r"Capture cuda graph end\..*mem usage=(?<g>[\d.]+) GB", ["g", "cuda_graph_gb", GRAPHS]),
    line!(S, "Capture cuda graph end", r"Capture cuda graph end\..*avail mem=(?<a>[\d.]+) GB", ["a", "avail_after_graph_gb", "free once graphs are captured"]),
    line!(S, "max_total_num_tokens=", r"max_total_num_tokens=(?<t>\d+)", ["t", "max_total_num_tokens", TOKENS]),
    line!(S, "context_len=", r"\bcontext_len=(?<l>\d+)", ["l", "max_model_len", "longest sequence served"]),
    line!(S, "available_gpu_mem=", r"available_gpu_mem=(?<a>[\d.]+) GB", ["a", "avail_final_gb", "free when serving begins"]),

    line!(L, "model buffer size", r"load_tensors:\s+(?<on>\S+) model buffer size =\s+(?<m>[\d.]+) MiB", ["m", "model_buffer_mib", "weights on this device"]),
    line!(L, "model buffer size", r"llm_load_tensors:\s+(?<on>\S+) buffer size =\s+(?<m>[\d.]+) MiB", ["m", "model_buffer_mib", "weights on this device"]),
    line!(L, "KV buffer size", r"llama_kv_cache\w*:\s+(?<on>\S+) KV buffer size =\s+(?<m>[\d.]+) MiB", ["m", "kv_buffer_mib", "cells of all sequences' contexts on this device"]),
    line!(L, "RS buffer size", r"llama_memory_recurrent:\s+(?<on>\S+) RS buffer size =\s+(?<m>[\d.]+) MiB", ["m", "recurrent_state_mib", "recurrent states of all sequences on this device"]),
    line!(L, "compute buffer size", r":\s+(?<on>\S+) compute buffer size (?:=|of)\s+(?<m>[\d.]+) MiB", ["m", "compute_buffer_mib", "scratch of the largest batch on this device"]),
    line!(L, "output buffer size", r":\s+(?<on>\S+)\s+output buffer size =\s+(?<m>[\d.]+) MiB", ["m", "output_buffer_mib", "logits of the tokens that are sampled at once"]),
    line!(L, "llama_kv_cache", r"llama_kv_cache\w*: size =\s+(?<m>[\d.]+) MiB \(\s*(?<c>\d+) cells,\s+(?<n>\d+) layers", ["m", "kv_mib", "a cache of these cells and layers"], ["c", "kv_cells", "cells of one sequence"], ["n", "kv_layers", "layers in this cache"]),
    line!(L, "file size", r"print_info: file size\s+= (?<m>[\d.]+) MiB", ["m", "file_mib", "tensors in the file"]),
    line!(L, "file size", r"print_info: file size\s+= (?<g>[\d.]+) GiB", ["g", "file_gib", "tensors in the file"]),
];

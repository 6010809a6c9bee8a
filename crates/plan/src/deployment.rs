//! On what, by which engine and how split: everything about a run but the model and the traffic.

use std::fmt;

use crate::Storage;

/// A kind of device, as its driver reports it.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Name in the catalogue: `H200`, `RTX4090`, `cpu`.
    pub name: String,
    /// Bytes the driver reports as the total.
    pub total_bytes: u64,
    /// Bytes free on an idle device, before the engine's own context.
    pub free_bytes: u64,
    /// Read bandwidth of its memory, bytes a second.
    pub bandwidth: f64,
    /// Dense matrix rate in BF16, operations a second.
    pub bf16_flops: f64,
    /// Dense matrix rate in FP8 or INT8, operations a second (BF16's where there is none).
    pub fp8_flops: f64,
    /// Bytes a second between two devices of a node, one direction; 0 where there is no link.
    pub link_bandwidth: f64,
    /// Whether it is the host itself.
    pub is_cpu: bool,
}

/// Engines whose rules are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are the engines' own
pub enum EngineKind {
    Scrimp,
    Vllm,
    Sglang,
    LlamaCpp,
    TrtLlm,
}

/// `major.minor.patch`; missing parts are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// An engine, and which version of it; `None` is the newest one known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Engine {
    /// Which.
    pub kind: EngineKind,
    /// Its version.
    pub version: Option<Version>,
}

/// How the model is divided over devices. All at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Parallel {
    /// Tensor parallel ranks.
    pub tp: u32,
    /// Pipeline stages.
    pub pp: u32,
    /// Replicas (of attention, with `expert`).
    pub dp: u32,
    /// Decode context parallel ranks: a token's KV is on one of them.
    pub dcp: u32,
    /// Whole experts on ranks, instead of slices of every expert.
    pub expert: bool,
}

impl Parallel {
    /// Devices it takes.
    pub fn devices(&self) -> u64 {
        u64::from(self.tp) * u64::from(self.pp) * u64::from(self.dp)
    }
}

/// How weights are stored for the run.
#[derive(Clone, Debug, PartialEq)]
pub enum WeightScheme {
    /// As released.
    Released,
    /// Every linear matrix in this form; embedding, head, router and norms as in `dtype`.
    Linear(Storage),
    /// The routed experts in this form, the rest as released.
    Experts(Storage),
    /// A GGUF mix by llama.cpp's name, such as `Q4_K_M`.
    Gguf(String),
}

/// How KV values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    F16,
    /// 2 bytes.
    Bf16,
    /// 1 byte.
    Fp8,
    /// DeepSeek's packed FP8 latent: 656 bytes a token and layer.
    Fp8DsMla,
    /// 1 byte.
    Int8,
    /// 34 bytes for 32 values (llama.cpp's `q8_0`).
    Q8_0,
    /// 18 bytes for 32 values (llama.cpp's `q4_0`).
    Q4_0,
    /// Half a byte, and a 16-bit scale and zero for each 64 values.
    Int4,
}

/// Which memory an engine may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MemoryRule {
    /// This fraction of the device's total, for everything (vLLM's `--gpu-memory-utilization`).
    OfTotal(f64),
    /// Weights and KV in this fraction of what is free at the start (SGLang's
    /// `--mem-fraction-static`).
    Static(f64),
    /// KV in this fraction of what is free after loading (TensorRT-LLM).
    OfFreeAfterLoad(f64),
    /// This many bytes for everything (scrimp's `--memory`; llama.cpp has all that is free).
    Bytes(u64),
}

/// A run, but for the model and the traffic.
#[derive(Clone, Debug, PartialEq)]
pub struct Deployment {
    /// Who runs it.
    pub engine: Engine,
    /// On what.
    pub device: Device,
    /// How many of them are there, over all nodes.
    pub device_count: u32,
    /// Devices in one node.
    pub devices_per_node: u32,
    /// Host memory of a node, bytes, where known.
    pub host_memory: Option<u64>,
    /// Disk of a node, bytes, where known.
    pub disk: Option<u64>,
    /// How it is divided.
    pub parallel: Parallel,
    /// Weights.
    pub weights: WeightScheme,
    /// KV cache; `None` is the engine's own choice.
    pub kv_dtype: Option<KvDtype>,
    /// Memory it may use; `None` is the engine's default.
    pub memory: Option<MemoryRule>,
    /// Longest sequence; `None` is the model's own.
    pub max_model_len: Option<u64>,
    /// Tokens of one forward pass; `None` is the engine's default.
    pub max_num_batched_tokens: Option<u64>,
    /// Sequences at once; `None` is the engine's default.
    pub max_num_seqs: Option<u64>,
    /// Tokens a block; `None` is the engine's default.
    pub block_size: Option<u64>,
    /// Captures CUDA graphs (false is vLLM's `--enforce-eager`).
    pub cuda_graphs: bool,
    /// Free bytes at the start, where measured; else the device's usual.
    pub free_at_start: Option<u64>,
    /// Host memory of a node that holds experts or layers in the devices' place (0: none).
    pub offload_bytes: u64,
}

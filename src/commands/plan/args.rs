//! `scrimp plan`'s arguments. Later flags win over earlier ones, so that a remedy's flags can be
//! appended to the command it is for.

use std::path::PathBuf;

use clap::Args;
use scrimp_memory::bytes::parse_bytes;

/// `scrimp plan`.
#[derive(Args, Clone, Debug)]
#[command(
    args_override_self = true,
    arg_required_else_help = true,
    after_help = "\
MODEL is a model folder, a GGUF or safetensors file, a config.json, a name of the built-in catalogue
(--list models), or a hub id, of which only config.json is fetched. No weights are needed.

The verdict says whether the workload fits and what binds it, in capacity and in bandwidth; the
remedies are changed plans, predicted again, and their flags can be appended to the command.

Examples:
  scrimp plan deepseek-ai/DeepSeek-R1 --device H200:8 --context 65536 --concurrency 32
  scrimp plan DeepSeek-R1 --device H200:8 --context 65536 --concurrency 32 \\
    --prompt-tokens 2000 --output-tokens 6000,20000 --html plan.html
  scrimp plan Qwen/QwQ-32B --device RTX4090:2 --engine vllm@0.19 --weights int4-g128 --json
  scrimp plan gpt-oss-20b --device RTX4090 --engine llama.cpp --emit llama.cpp
  scrimp plan DeepSeek-R1 --device H100:16 --context 32768 --concurrency 16 --emit kubernetes
  scrimp plan ./model.gguf --device cpu --memory 8GiB --context 8192
  scrimp plan --check cases.json
  scrimp plan --check-log vllm.log"
)]
pub struct PlanArgs {
    /// What is to be served.
    #[arg(required_unless_present_any = ["check", "check_log", "list"])]
    pub model: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub workload: WorkloadArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub machine: MachineArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub engine: EngineArgs,
    /// Print the command or manifest that runs the plan: vllm, sglang, llama.cpp, ktransformers,
    /// scrimp, kubernetes.
    #[arg(long, value_name = "TARGET")]
    pub emit: Option<String>,
    /// Write the report as a page of its own into this file.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Predict recorded cases and show how far off the predictions are.
    #[arg(long, value_name = "CASES.json", conflicts_with = "model")]
    pub check: Option<PathBuf>,
    /// Take the cases' configs as they are: keys that they lack make a case skipped, instead of
    /// coming from the published config of the model that the case names.
    #[arg(long, requires = "check")]
    pub as_given: bool,
    /// Explain each GiB of a vLLM, SGLang or llama.cpp log.
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    pub check_log: Option<PathBuf>,
    /// List the models, devices or weight formats that are known by name.
    #[arg(long, value_name = "WHAT")]
    pub list: Option<ListArg>,
}

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ListArg {
    /// Models of the catalogue.
    Models,
    /// Devices of the catalogue.
    Devices,
    /// Formats for --weights.
    Weights,
}

/// The traffic.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Workload")]
pub struct WorkloadArgs {
    /// Longest sequence, prompt and output [default: the model's].
    #[arg(long, visible_alias = "max-model-len", value_name = "TOKENS")]
    pub context: Option<u64>,
    /// Sequences at once.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub concurrency: u64,
    /// Tokens of a prompt.
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    pub prompt_tokens: u64,
    /// Lengths of outputs: their mean, or median and 95th percentile (log-normal). Without it
    /// every sequence is planned at its longest.
    #[arg(long, value_name = "MEAN|P50,P95", allow_negative_numbers = true)]
    pub output_tokens: Option<String>,
    /// The part of a prompt that all have in common, 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub prefix_share: f64,
    /// Whether the engine keeps a common prefix once.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub prefix_caching: bool,
    /// The part of an output that is thinking, 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.8)]
    pub thinking_share: f64,
    /// Whether thinking leaves the cache when its turn ends.
    #[arg(long, value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set)]
    pub drop_thinking: bool,
}

/// The machine.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    /// Devices by name and number, such as H200:8 or RTX4090; cpu; or auto, this machine's.
    #[arg(long, value_name = "NAME[:N]", default_value = "auto")]
    pub device: String,
    /// Memory of one device, where it is not the catalogue's.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub device_memory: Option<usize>,
    /// Memory bandwidth of one device in GB/s, where it is not the catalogue's [default for cpu:
    /// measured here].
    #[arg(long, value_name = "GB/S")]
    pub device_bandwidth: Option<f64>,
    /// Devices in one node.
    #[arg(long, value_name = "N", default_value_t = 8,
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub devices_per_node: u32,
    /// Host memory of a node, for experts or layers that the devices do not hold.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub host_memory: Option<usize>,
    /// Free disk of a node, for the weights' files.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub disk: Option<usize>,
}

/// The engine and how it runs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// scrimp, vllm, sglang, llama.cpp or trtllm, with @VERSION where it matters [default: scrimp
    /// on a cpu, else vllm].
    #[arg(long, value_name = "NAME[@VERSION]")]
    pub engine: Option<String>,
    /// How weights are stored: released, bf16, fp8, int8, int4-g128, experts-int4, gguf:Q4_K_M, ….
    #[arg(long, value_name = "FORMAT", default_value = "released")]
    pub weights: String,
    /// How the KV cache is stored: bf16, f16, fp8, int8, int4, q8_0, q4_0 [default: the engine's].
    #[arg(long, visible_alias = "kv-cache-dtype", value_name = "TYPE")]
    pub kv_dtype: Option<String>,
    /// Tensor-parallel ranks [default: the devices that are left].
    #[arg(long, visible_alias = "tensor-parallel-size", value_name = "N")]
    pub tp: Option<u32>,
    /// Pipeline stages [default: as many as nodes].
    #[arg(long, visible_alias = "pipeline-parallel-size", value_name = "N")]
    pub pp: Option<u32>,
    /// Replicas; of attention only, with --ep.
    #[arg(long, visible_alias = "data-parallel-size", value_name = "N")]
    pub dp: Option<u32>,
    /// Decode context parallel ranks.
    #[arg(long, visible_alias = "decode-context-parallel-size", value_name = "N")]
    pub dcp: Option<u32>,
    /// Whole experts on ranks, instead of a slice of each.
    #[arg(long, visible_alias = "enable-expert-parallel", value_name = "BOOL",
        default_value_t = false, num_args = 0..=1, default_missing_value = "true",
        action = clap::ArgAction::Set)]
    pub ep: bool,
    /// vLLM: the fraction of the device's memory that it may use.
    #[arg(long, value_name = "FRACTION")]
    pub gpu_memory_utilization: Option<f64>,
    /// SGLang: the fraction of memory for weights and KV cache.
    #[arg(long, value_name = "FRACTION")]
    pub mem_fraction_static: Option<f64>,
    /// TensorRT-LLM: the fraction for the KV cache of what is free after loading.
    #[arg(long, value_name = "FRACTION")]
    pub free_gpu_memory_fraction: Option<f64>,
    /// Bytes that the engine may use on a device, for everything.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub memory: Option<usize>,
    /// Most sequences computed together [default: the engine's].
    #[arg(long, value_name = "N")]
    pub max_num_seqs: Option<u64>,
    /// Most tokens computed in one step [default: the engine's].
    #[arg(long, visible_alias = "chunked-prefill-size", value_name = "TOKENS")]
    pub max_num_batched_tokens: Option<u64>,
    /// Tokens in a block of the KV cache [default: the engine's].
    #[arg(long, value_name = "TOKENS")]
    pub block_size: Option<u64>,
    /// Whether CUDA graphs are captured.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub cuda_graphs: bool,
    /// Weights that each node leaves in host memory, experts first.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "0")]
    pub offload: usize,
    /// Which layer classes stay on the device under pressure, such as
    /// expert_layers=host_if_pressure,late_layers=prefer_device (classes: embedding, early_layers,
    /// expert_layers, late_layers, lm_head; also always_device).
    #[arg(long, value_name = "CLASS=WISH,…", default_value = "")]
    pub placement: String,
}

//! One change to a deployment or a workload, and how a command line says it.

use crate::{
    Deployment, Device, EngineKind, KvDtype, MemoryRule, Parallel, WeightScheme, Workload,
};

/// A deployment and the workload that is asked of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    /// On what, by which engine, how split.
    pub deployment: Deployment,
    /// The traffic.
    pub workload: Workload,
}

/// One thing that can be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Store weights so.
    Weights(WeightScheme),
    /// Store the KV cache so.
    Kv(KvDtype),
    /// Divide the model so over the devices that there are.
    Split(Parallel),
    /// Let the engine use this much.
    Memory(MemoryRule),
    /// Compute at most this many tokens in a step.
    BatchedTokens(u64),
    /// Run without captured graphs.
    NoCudaGraphs,
    /// Allow this many sequences at once.
    Sequences(u64),
    /// Leave experts in this much host memory of each node.
    Offload(u64),
    /// Keep a common prefix once.
    PrefixCaching,
    /// Let thinking leave the cache when the turn ends.
    DropThinking,
    /// End sequences at this many tokens.
    Context(u64),
    /// Serve fewer sequences at once.
    Concurrency(u64),
    /// Run on these devices.
    Devices(Box<Devices>),
}

/// Devices, and how the model is divided over them.
#[derive(Clone, Debug, PartialEq)]
pub struct Devices {
    /// Which.
    pub device: Device,
    /// How many, over all nodes.
    pub count: u32,
    /// In one node.
    pub per_node: u32,
    /// How the model is divided.
    pub parallel: Parallel,
}

/// What a change is about; a combination has at most one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // as in `Change`
pub enum Topic {
    Weights,
    Kv,
    Machine,
    Memory,
    BatchedTokens,
    CudaGraphs,
    Sequences,
    Offload,
    Prefix,
    Thinking,
    Context,
    Concurrency,
}

impl Change {
    /// What it is about.
    pub fn topic(&self) -> Topic {
        match self {
            Change::Weights(_) => Topic::Weights,
            Change::Kv(_) => Topic::Kv,
            Change::Split(_) | Change::Devices(_) => Topic::Machine,
            Change::Memory(_) => Topic::Memory,
            Change::BatchedTokens(_) => Topic::BatchedTokens,
            Change::NoCudaGraphs => Topic::CudaGraphs,
            Change::Sequences(_) => Topic::Sequences,
            Change::Offload(_) => Topic::Offload,
            Change::PrefixCaching => Topic::Prefix,
            Change::DropThinking => Topic::Thinking,
            Change::Context(_) => Topic::Context,
            Change::Concurrency(_) => Topic::Concurrency,
        }
    }

    /// Whether it asks for less, or for other machines, instead of doing better with what is there.
    pub fn is_concession(&self) -> bool {
        matches!(
            self,
            Change::Context(_) | Change::Concurrency(_) | Change::Devices(_)
        )
    }

    /// A few words for a list.
    pub fn name(&self) -> String {
        match self {
            Change::Weights(scheme) => format!("weights {}", scheme.label()),
            Change::Kv(dtype) => format!("KV cache {}", dtype.name()),
            Change::Split(parallel) => split_name(parallel),
            Change::Memory(rule) => match rule {
                MemoryRule::OfTotal(f) => format!("use {:.0} % of the device", f * 100.0),
                MemoryRule::Static(f) => format!("static memory {:.0} %", f * 100.0),
                MemoryRule::OfFreeAfterLoad(f) => format!("KV in {:.0} % of the rest", f * 100.0),
                MemoryRule::Bytes(bytes) => format!("budget {}", gib(*bytes)),
            },
            Change::BatchedTokens(n) => format!("steps of {n} tokens"),
            Change::NoCudaGraphs => "no CUDA graphs".to_owned(),
            Change::Sequences(n) => format!("allow {n} sequences"),
            Change::Offload(_) => "experts in host memory".to_owned(),
            Change::PrefixCaching => "prefix caching".to_owned(),
            Change::DropThinking => "drop thinking after the turn".to_owned(),
            Change::Context(n) => format!("context {n}"),
            Change::Concurrency(n) => format!("{n} sequences"),
            Change::Devices(d) => format!("{} × {}", d.count, d.device.name),
        }
    }

    /// From what to what.
    pub fn describe(&self, setup: &Setup) -> String {
        let Setup {
            deployment,
            workload,
        } = setup;
        match self {
            Change::Weights(scheme) => {
                format!(
                    "weights {} → {}",
                    deployment.weights.label(),
                    scheme.label()
                )
            }
            Change::Kv(dtype) => {
                let before = deployment
                    .kv_dtype
                    .map_or("the model's type", KvDtype::name);
                format!("KV cache {before} → {}", dtype.name())
            }
            Change::Split(parallel) => format!(
                "{} → {}",
                split_name(&deployment.parallel),
                split_name(parallel)
            ),
            Change::Memory(_) => format!("the engine may {}", self.name()),
            Change::BatchedTokens(n) => format!("at most {n} tokens computed in a step"),
            Change::NoCudaGraphs => "CUDA graphs → eager".to_owned(),
            Change::Sequences(n) => format!("at most {n} sequences at once"),
            Change::Offload(bytes) => {
                format!(
                    "up to {} of weights in each node's host memory",
                    gib(*bytes)
                )
            }
            Change::PrefixCaching => format!(
                "the common {:.0} tokens of prompts held once",
                workload.prompt_tokens as f64 * workload.prefix_share
            ),
            Change::DropThinking => {
                "finished turns keep prompt and answer in the cache, not thinking".to_owned()
            }
            Change::Context(n) => format!("context {} → {n} tokens", workload.context),
            Change::Concurrency(n) => {
                format!("sequences at once {} → {n}", workload.concurrency)
            }
            Change::Devices(d) => format!(
                "{} × {} → {} × {}, {}",
                deployment.device_count,
                deployment.device.name,
                d.count,
                d.device.name,
                split_name(&d.parallel)
            ),
        }
    }

    /// Makes it.
    pub fn apply(&self, setup: &mut Setup) {
        let Setup {
            deployment,
            workload,
        } = setup;
        match self {
            Change::Weights(scheme) => deployment.weights = scheme.clone(),
            Change::Kv(dtype) => deployment.kv_dtype = Some(*dtype),
            Change::Split(parallel) => deployment.parallel = *parallel,
            Change::Memory(rule) => deployment.memory = Some(*rule),
            Change::BatchedTokens(n) => deployment.max_num_batched_tokens = Some(*n),
            Change::NoCudaGraphs => deployment.cuda_graphs = false,
            Change::Sequences(n) => deployment.max_num_seqs = Some(*n),
            Change::Offload(bytes) => deployment.offload_bytes = *bytes,
            Change::PrefixCaching => workload.prefix_caching = true,
            Change::DropThinking => workload.drops_thinking = true,
            Change::Context(n) => {
                workload.context = *n;
                deployment.max_model_len = Some(*n);
            }
            Change::Concurrency(n) => workload.concurrency = *n,
            Change::Devices(d) => {
                deployment.device = d.device.clone();
                deployment.device_count = d.count;
                deployment.devices_per_node = d.per_node;
                deployment.parallel = d.parallel;
                deployment.free_at_start = None;
            }
        }
    }

    /// `scrimp plan`'s own flags for it; later flags win over earlier ones there.
    pub fn flags(&self) -> Vec<String> {
        let words = |text: String| text.split(' ').map(str::to_owned).collect();
        match self {
            Change::Weights(scheme) => words(format!("--weights {}", scheme.label())),
            Change::Kv(dtype) => words(format!("--kv-dtype {}", dtype.name())),
            Change::Split(parallel) => words(split_flags(parallel)),
            Change::Memory(rule) => words(match rule {
                MemoryRule::OfTotal(f) => format!("--gpu-memory-utilization {f}"),
                MemoryRule::Static(f) => format!("--mem-fraction-static {f}"),
                MemoryRule::OfFreeAfterLoad(f) => format!("--free-gpu-memory-fraction {f}"),
                MemoryRule::Bytes(bytes) => format!("--memory {}", exact(*bytes)),
            }),
            Change::BatchedTokens(n) => words(format!("--max-num-batched-tokens {n}")),
            Change::NoCudaGraphs => words("--cuda-graphs false".to_owned()),
            Change::Sequences(n) => words(format!("--max-num-seqs {n}")),
            Change::Offload(bytes) => words(format!("--offload {}", exact(*bytes))),
            Change::PrefixCaching => words("--prefix-caching true".to_owned()),
            Change::DropThinking => words("--drop-thinking true".to_owned()),
            Change::Context(n) => words(format!("--context {n}")),
            Change::Concurrency(n) => words(format!("--concurrency {n}")),
            Change::Devices(d) if d.device.is_cpu => words(format!(
                "--device cpu --device-memory {}",
                exact(d.device.total_bytes)
            )),
            Change::Devices(d) => {
                let mut flags = vec![
                    "--device".to_owned(),
                    format!("{}:{}", d.device.name, d.count),
                ];
                flags.extend(split_flags(&d.parallel).split(' ').map(str::to_owned));
                flags
            }
        }
    }
}

/// Every part of a split, so that it overrides another one.
fn split_flags(p: &Parallel) -> String {
    format!(
        "--tp {} --pp {} --dp {} --dcp {} --ep {}",
        p.tp, p.pp, p.dp, p.dcp, p.expert
    )
}

/// A split in a few words: `TP 8`, `DP attention 8 + EP`, `TP 8 × PP 2`.
pub fn split_name(p: &Parallel) -> String {
    let mut parts = Vec::new();
    if p.dp > 1 {
        let what = if p.expert { "DP attention" } else { "DP" };
        parts.push(format!("{what} {}", p.dp));
    }
    if p.tp > 1 || p.dp == 1 && p.pp == 1 {
        parts.push(format!("TP {}", p.tp));
    }
    if p.pp > 1 {
        parts.push(format!("PP {}", p.pp));
    }
    if p.dcp > 1 {
        parts.push(format!("DCP {}", p.dcp));
    }
    let mut name = parts.join(" × ");
    if p.expert {
        name += " + EP";
    }
    name
}

/// Bytes for a flag: whole GiB as such.
fn exact(bytes: u64) -> String {
    match bytes % (1 << 30) {
        0 => format!("{}GiB", bytes >> 30),
        _ => bytes.to_string(),
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

/// Fractions, KV types and splits that an engine has; used to propose only what it can do.
pub(super) struct Abilities {
    pub kv: &'static [KvDtype],
    pub tensor_parallel: bool,
    pub context_parallel: bool,
    pub attention_parallel: bool,
    pub gguf: bool,
    pub offload: bool,
    pub graphs: bool,
}

pub(super) fn abilities(engine: EngineKind) -> Abilities {
    let none = Abilities {
        kv: &[],
        tensor_parallel: false,
        context_parallel: false,
        attention_parallel: false,
        gguf: false,
        offload: false,
        graphs: false,
    };
    match engine {
        EngineKind::Vllm => Abilities {
            kv: &[KvDtype::Fp8],
            tensor_parallel: true,
            context_parallel: true,
            attention_parallel: true,
            graphs: true,
            offload: true,
            ..none
        },
        EngineKind::Sglang => Abilities {
            kv: &[KvDtype::Fp8],
            tensor_parallel: true,
            attention_parallel: true,
            graphs: true,
            offload: true,
            ..none
        },
        EngineKind::TrtLlm => Abilities {
            kv: &[KvDtype::Fp8, KvDtype::Int8],
            tensor_parallel: true,
            attention_parallel: true,
            graphs: true,
            ..none
        },
        EngineKind::LlamaCpp => Abilities {
            kv: &[KvDtype::Q8_0, KvDtype::Q4_0],
            gguf: true,
            offload: true,
            ..none
        },
        EngineKind::Scrimp => Abilities {
            kv: &[KvDtype::F16],
            gguf: true,
            ..none
        },
    }
}

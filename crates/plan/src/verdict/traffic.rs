//! Bytes, operations and messages of a decode step, and the rates they allow.
//!
//! All rates are bounds: memory read at the device's full rate, matrices multiplied at its full
//! rate, the two overlapped perfectly, links as an estimate on top. Real engines reach part of it;
//! which term is the largest does not depend on that part.

use serde::Serialize;

use crate::{
    Component, Deployment, KvDtype, LayerCache, ModelShape, Prediction, RankPlan, Role, Storage,
    WeightScheme,
};

/// Start-up time of one collective, seconds: an estimate for one node of directly linked devices.
pub const COLLECTIVE_LATENCY: f64 = 10e-6;
/// Bytes a second between devices that have no link of their own (PCIe 4.0 through the host).
pub const UNLINKED_BANDWIDTH: f64 = 25e9;
/// Bytes a second and device between nodes: one 400 Gb/s adapter each.
pub const NODE_BANDWIDTH: f64 = 50e9;
/// Bytes a second at which a server's processor reads experts from its own memory (12 channels of
/// DDR5-4800 have 460 GB/s on paper).
pub const HOST_BANDWIDTH: f64 = 200e9;
/// Tokens that a sparse-attention indexer picks (`index_topk` of DeepSeek-V3.2).
const INDEX_TOPK: f64 = 2048.0;
/// Heads of that indexer (`index_n_heads` of DeepSeek-V3.2).
const INDEX_HEADS: f64 = 64.0;

/// What takes the most time of a decode step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DecodeBound {
    /// Reading weights.
    Weights,
    /// Reading the KV cache.
    KvCache,
    /// Multiplying.
    Compute,
    /// Exchanging activations between devices.
    Link,
    /// Reading experts that the host holds.
    HostMemory,
}

impl DecodeBound {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            DecodeBound::Weights => "reading weights",
            DecodeBound::KvCache => "reading the KV cache",
            DecodeBound::Compute => "compute",
            DecodeBound::Link => "the links between devices",
            DecodeBound::HostMemory => "reading experts from host memory",
        }
    }
}

/// One decode step of a batch, on the critical path through all pipeline stages.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DecodeStep {
    /// Sequences decoded together, over the whole deployment.
    pub batch: f64,
    /// Tokens of context that each one reads.
    pub context: f64,
    /// Bytes of weights that the busiest rank of each stage reads.
    pub weight_bytes: f64,
    /// Bytes of KV cache that it reads.
    pub kv_bytes: f64,
    /// Bytes of experts that its host reads.
    pub host_bytes: f64,
    /// Operations that it does.
    pub flops: f64,
    /// Seconds of memory reads, device and host.
    pub memory_seconds: f64,
    /// Seconds of operations.
    pub compute_seconds: f64,
    /// Seconds of messages (an estimate).
    pub link_seconds: f64,
    /// Seconds of the step.
    pub seconds: f64,
    /// Tokens a second of all sequences together.
    pub tokens_per_s: f64,
    /// What takes the most of it.
    pub bound: DecodeBound,
}

/// A model on a deployment, ready to be asked about batches.
pub struct Traffic<'a> {
    shape: &'a ModelShape,
    deployment: &'a Deployment,
    /// The rank with the most weights of each stage.
    stages: Vec<&'a RankPlan>,
    /// The head is the embedding.
    tied: bool,
    /// Replicas of attention share one set of routed experts.
    shared_experts: bool,
}

impl<'a> Traffic<'a> {
    /// Traffic of a predicted deployment.
    pub fn new(
        shape: &'a ModelShape,
        deployment: &'a Deployment,
        prediction: &'a Prediction,
    ) -> Traffic<'a> {
        let mut stages: Vec<&RankPlan> = Vec::new();
        for rank in &prediction.ranks {
            match stages.iter_mut().find(|s| s.rank.1 == rank.rank.1) {
                Some(stage) if stage.weights_bytes() < rank.weights_bytes() => *stage = rank,
                Some(_) => {}
                None => stages.push(rank),
            }
        }
        let tied = !shape.tensors.iter().any(|t| t.component == Component::Head);
        let shared_experts = deployment.parallel.dp > 1 && {
            let routed = |r: &&RankPlan| part(r, Component::RoutedExperts) + r.offloaded_bytes;
            let each: u64 = stages.iter().map(routed).sum();
            let bytes = shape.bytes_under(&deployment.weights);
            let groups = shape.tensors.iter().zip(bytes);
            let all: u64 = groups
                .filter(|(group, _)| group.component == Component::RoutedExperts)
                .map(|(_, bytes)| bytes.total())
                .sum();
            // A replica with experts of its own would hold them all over its ranks.
            all > 0 && each * u64::from(deployment.parallel.tp.max(1)) < all / 4 * 3
        };
        Traffic {
            shape,
            deployment,
            stages,
            tied,
            shared_experts,
        }
    }

    /// The expected part of a layer's routed experts that `tokens` tokens use together:
    /// 1 − (1 − k/E)^tokens.
    pub fn experts_touched(&self, tokens: f64) -> f64 {
        if self.shape.num_experts == 0 {
            return 1.0;
        }
        let used = self.shape.experts_per_token as f64 / self.shape.num_experts as f64;
        1.0 - (1.0 - used.min(1.0)).powf(tokens.max(0.0))
    }

    /// One step of `batch` sequences at `context` tokens each.
    pub fn decode(&self, batch: f64, context: f64) -> DecodeStep {
        let parallel = &self.deployment.parallel;
        let batch = batch.max(1.0);
        // Sequences of one replica that one stage computes at a time.
        let pp = f64::from(parallel.pp.max(1));
        let replica = (batch / f64::from(parallel.dp.max(1))).max(1.0);
        let micro = (replica / pp).max(1.0);
        let expert_tokens = if self.shared_experts {
            micro * f64::from(parallel.dp.max(1)).min(batch)
        } else {
            micro
        };
        let mut sum = Totals::default();
        let mut slowest = 0.0f64;
        let stages = self.stages.len().max(1) as f64;
        let link = self.link_seconds(micro) / stages;
        for (at, stage) in self.stages.iter().enumerate() {
            let one = self.stage(at, stage, micro, expert_tokens, context);
            let seconds = one.memory.max(one.compute) + link;
            slowest = slowest.max(seconds);
            sum.add(&one);
        }
        // Stages work on different micro-batches; a lone sequence waits for each in turn.
        let through = sum.memory.max(sum.compute) + link * stages;
        let rounds = (replica / micro).min(pp);
        let seconds = through.max(slowest * rounds);
        let parts = [
            (DecodeBound::Weights, sum.weight_seconds),
            (DecodeBound::KvCache, sum.kv_seconds),
            (DecodeBound::HostMemory, sum.host_seconds),
            (DecodeBound::Link, link * stages),
        ];
        let largest = parts.into_iter().fold(parts[0], largest_of);
        let bound = if sum.compute > sum.memory && sum.compute > largest.1 {
            DecodeBound::Compute
        } else {
            largest.0
        };
        DecodeStep {
            batch,
            context,
            weight_bytes: sum.weight_bytes,
            kv_bytes: sum.kv_bytes,
            host_bytes: sum.host_bytes,
            flops: sum.flops,
            memory_seconds: sum.memory,
            compute_seconds: sum.compute,
            link_seconds: link * stages,
            seconds,
            tokens_per_s: if seconds > 0.0 { batch / seconds } else { 0.0 },
            bound,
        }
    }

    fn stage(
        &self,
        at: usize,
        rank: &RankPlan,
        tokens: f64,
        expert_tokens: f64,
        context: f64,
    ) -> Totals {
        let parallel = &self.deployment.parallel;
        let touched = self.experts_touched(expert_tokens);
        let share = |component: Component| match component {
            Component::Embedding if !self.tied => 0.0,
            Component::RoutedExperts => touched,
            Component::Mtp | Component::Vision => 0.0,
            _ => 1.0,
        };
        let weights = rank.weights.iter();
        let weight_bytes: f64 = weights.map(|(c, bytes)| *bytes as f64 * share(*c)).sum();
        let host_bytes = rank.offloaded_bytes as f64 * touched;
        let kv_bytes = tokens * self.kv_read(context) * self.cache_share(at);
        let flops = tokens * self.flops_per_token(context) * self.weight_share(rank)
            / f64::from(parallel.tp.max(1));
        let bandwidth = rank.device.bandwidth.max(1.0);
        let one = Totals {
            weight_bytes,
            kv_bytes,
            host_bytes,
            flops,
            weight_seconds: weight_bytes / bandwidth,
            kv_seconds: kv_bytes / bandwidth,
            host_seconds: host_bytes / self.host_rate(),
            memory: 0.0,
            // A device of unknown rate is not held up by it.
            compute: match self.flop_rate() {
                rate if rate > 0.0 => flops / rate,
                _ => 0.0,
            },
        };
        Totals {
            memory: one.weight_seconds + one.kv_seconds + one.host_seconds,
            ..one
        }
    }

    /// Host memory is shared by the devices of a node.
    fn host_rate(&self) -> f64 {
        let sharing = self
            .deployment
            .parallel
            .devices()
            .min(u64::from(self.deployment.devices_per_node.max(1)));
        HOST_BANDWIDTH / sharing.max(1) as f64
    }

    /// A stage's part of all caches.
    fn cache_share(&self, at: usize) -> f64 {
        let all: f64 = self.stages.iter().map(|s| s.kv_bytes_per_token).sum();
        match self.stages.get(at) {
            Some(stage) if all > 0.0 => stage.kv_bytes_per_token / all,
            _ => 1.0 / self.stages.len().max(1) as f64,
        }
    }

    /// A stage's part of all layers' weights.
    fn weight_share(&self, rank: &RankPlan) -> f64 {
        let size = |r: &RankPlan| (r.weights_bytes() + r.offloaded_bytes) as f64;
        let all: f64 = self.stages.iter().map(|s| size(s)).sum();
        if all > 0.0 { size(rank) / all } else { 1.0 }
    }

    /// Bytes of KV cache that one rank of every stage reads for one token of one sequence.
    pub fn kv_read(&self, context: f64) -> f64 {
        let parallel = &self.deployment.parallel;
        let tp = f64::from(parallel.tp.max(1));
        let dcp = f64::from(parallel.dcp.max(1));
        let byte = self.kv_value_bytes();
        let heads = |heads: u32| (f64::from(heads) * dcp / tp).max(1.0).min(f64::from(heads));
        let layer = |cache: &LayerCache| match *cache {
            LayerCache::Full {
                heads: h,
                key,
                value,
            } => heads(h) * f64::from(key + value) * context / dcp * byte,
            LayerCache::Sliding {
                heads: h,
                key,
                value,
                window,
            } => heads(h) * f64::from(key + value) * context.min(f64::from(window)) / dcp * byte,
            LayerCache::Latent { rank, rope } => f64::from(rank + rope) * context / dcp * byte,
            LayerCache::IndexedLatent { rank, rope, index } => {
                let picked = f64::from(rank + rope) * context.min(INDEX_TOPK) * byte;
                (picked + f64::from(index) * context) / dcp
            }
            // Read and written back, whatever the length.
            LayerCache::State { conv, recurrent } => 2.0 * 2.0 * (conv + recurrent) as f64 / tp,
            LayerCache::None => 0.0,
        };
        self.shape.caches.iter().map(layer).sum()
    }

    fn kv_value_bytes(&self) -> f64 {
        match self.deployment.kv_dtype {
            None => 2.0,
            Some(dtype) => value_bytes(dtype),
        }
    }

    /// Weights that one token multiplies with, the head included, look-ups not.
    pub fn active_values(&self) -> f64 {
        active_values(self.shape)
    }

    /// Operations for one token that attends to `context` tokens.
    pub fn flops_per_token(&self, context: f64) -> f64 {
        let query_heads = self.shape.num_attention_heads as f64;
        let attention = |cache: &LayerCache| match *cache {
            LayerCache::Full { key, value, .. } => query_heads * f64::from(key + value) * context,
            LayerCache::Sliding {
                key, value, window, ..
            } => query_heads * f64::from(key + value) * context.min(f64::from(window)),
            LayerCache::Latent { rank, rope } => query_heads * f64::from(2 * rank + rope) * context,
            LayerCache::IndexedLatent { rank, rope, index } => {
                query_heads * f64::from(2 * rank + rope) * context.min(INDEX_TOPK)
                    + INDEX_HEADS * f64::from(index) * context
            }
            LayerCache::State { recurrent, .. } => 3.0 * recurrent as f64,
            LayerCache::None => 0.0,
        };
        let attended: f64 = self.shape.caches.iter().map(attention).sum();
        2.0 * (self.active_values() + attended)
    }

    /// Operations a second of one device on these weights.
    fn flop_rate(&self) -> f64 {
        let device = &self.deployment.device;
        let eight_bits = |storage: &Storage| {
            matches!(
                storage,
                Storage::Fp8 | Storage::Fp8Tiles(..) | Storage::Int8Rows
            )
        };
        let fast = match &self.deployment.weights {
            WeightScheme::Linear(storage) => eight_bits(storage),
            WeightScheme::Released => {
                let linear = self.shape.tensors.iter().filter(|t| t.role == Role::Linear);
                let sum = linear.fold((0u128, 0u128), |(fast, all), t| {
                    let n = u128::from(t.values());
                    (fast + if eight_bits(&t.storage) { n } else { 0 }, all + n)
                });
                sum.0 * 2 > sum.1
            }
            _ => false,
        };
        if fast {
            device.fp8_flops.max(device.bf16_flops)
        } else {
            device.bf16_flops
        }
    }

    /// Seconds of messages for one token of each of `tokens` sequences of a replica through all
    /// layers: two ring all-reduces a layer over tensor-parallel ranks, dispatch to shared experts
    /// and back, a hand-over between stages.
    pub fn link_seconds(&self, tokens: f64) -> f64 {
        let parallel = &self.deployment.parallel;
        let row = self.shape.hidden_size as f64 * 2.0;
        let layers = self.shape.caches.len() as f64;
        let bytes = tokens * row;
        let mut seconds = 0.0;
        if parallel.tp > 1 {
            let ranks = f64::from(parallel.tp);
            let each = 2.0 * (ranks - 1.0) / ranks * bytes / self.link_rate(parallel.tp);
            seconds += layers * 2.0 * (each + COLLECTIVE_LATENCY);
        }
        if self.shared_experts {
            let ranks = parallel.tp.saturating_mul(parallel.dp);
            // Whole experts get the tokens that chose them; slices get all tokens of all.
            let copies = match parallel.expert {
                true => (self.shape.experts_per_token as f64).min(f64::from(ranks)),
                false => f64::from(ranks),
            };
            let routed = bytes / f64::from(parallel.tp) * copies;
            seconds += layers * 2.0 * (routed / self.link_rate(ranks) + COLLECTIVE_LATENCY);
        }
        let hops = f64::from(parallel.pp.saturating_sub(1));
        let stage = parallel.tp.saturating_mul(parallel.pp);
        seconds + hops * (bytes / self.link_rate(stage) + COLLECTIVE_LATENCY)
    }

    /// Bytes a second among `ranks` devices.
    fn link_rate(&self, ranks: u32) -> f64 {
        let linked = match self.deployment.device.link_bandwidth {
            rate if rate > 0.0 => rate,
            _ => UNLINKED_BANDWIDTH,
        };
        if ranks > self.deployment.devices_per_node.max(1) {
            linked.min(NODE_BANDWIDTH)
        } else {
            linked
        }
    }

    /// Tokens of prompts a second that the devices can multiply, at prompts of this length.
    pub fn prefill_tokens_per_s(&self, prompt: f64) -> f64 {
        // A token of a prompt attends to half of it on average.
        let devices = self.deployment.parallel.devices() as f64;
        devices * self.flop_rate() / self.flops_per_token(prompt / 2.0).max(1.0)
    }

    /// The smallest batch whose decoding multiplies longer than it reads; `None` where reading the
    /// KV cache alone always takes longer.
    pub fn compute_bound_batch(&self, context: f64) -> Option<u64> {
        const LARGEST: u64 = 1 << 20;
        let bound = |batch: u64| {
            let step = self.decode(batch as f64, context);
            step.compute_seconds >= step.memory_seconds
        };
        if self.flop_rate() <= 0.0 || !bound(LARGEST) {
            return None;
        }
        let (mut low, mut high) = (0, LARGEST);
        while high - low > 1 {
            let mid = low + (high - low) / 2;
            if bound(mid) {
                high = mid;
            } else {
                low = mid;
            }
        }
        Some(high)
    }
}

/// Weights of a model that one token multiplies with: active experts, the head (or the embedding
/// where it is the head), no look-ups.
pub fn active_values(shape: &ModelShape) -> f64 {
    let tied = !shape.tensors.iter().any(|t| t.component == Component::Head);
    let multiplied = |c: Component| match c {
        Component::Embedding => tied,
        Component::Mtp | Component::Vision => false,
        _ => true,
    };
    let tensors = shape.tensors.iter().filter(|t| multiplied(t.component));
    tensors
        .map(|t| t.active as f64 * t.rows as f64 * t.columns as f64)
        .sum()
}

/// Bytes of one KV value, scales included.
pub fn value_bytes(dtype: KvDtype) -> f64 {
    match dtype {
        KvDtype::F32 => 4.0,
        KvDtype::F16 | KvDtype::Bf16 => 2.0,
        KvDtype::Fp8 | KvDtype::Int8 => 1.0,
        KvDtype::Fp8DsMla => 656.0 / 576.0,
        KvDtype::Q8_0 => 34.0 / 32.0,
        KvDtype::Q4_0 => 18.0 / 32.0,
        KvDtype::Int4 => 0.5 + 4.0 / 64.0,
    }
}

/// Bytes of a component on a rank.
fn part(rank: &RankPlan, component: Component) -> u64 {
    let parts = rank.weights.iter().filter(|(c, _)| *c == component);
    parts.map(|(_, bytes)| bytes).sum()
}

fn largest_of(a: (DecodeBound, f64), b: (DecodeBound, f64)) -> (DecodeBound, f64) {
    if b.1 > a.1 { b } else { a }
}

#[derive(Clone, Copy, Default)]
struct Totals {
    weight_bytes: f64,
    kv_bytes: f64,
    host_bytes: f64,
    flops: f64,
    weight_seconds: f64,
    kv_seconds: f64,
    host_seconds: f64,
    memory: f64,
    compute: f64,
}

impl Totals {
    fn add(&mut self, other: &Totals) {
        self.weight_bytes += other.weight_bytes;
        self.kv_bytes += other.kv_bytes;
        self.host_bytes += other.host_bytes;
        self.flops += other.flops;
        self.weight_seconds += other.weight_seconds;
        self.kv_seconds += other.kv_seconds;
        self.host_seconds += other.host_seconds;
        self.memory += other.memory;
        self.compute += other.compute;
    }
}

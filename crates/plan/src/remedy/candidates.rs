//! Which changes are worth trying on a setup: what the engine can do, and nothing already done.

use super::change::{Change, abilities};
use super::{Evaluated, Setup};
use crate::{
    Component, EngineKind, KvDtype, LayerCache, MemoryRule, ModelShape, Parallel, WeightScheme,
};

/// Weight formats of engines that read safetensors, and those of GGUF readers.
const FORMATS: [&str; 4] = ["fp8", "int8", "int4-g128", "experts-int4"];
const MIXES: [&str; 6] = [
    "gguf:Q8_0",
    "gguf:Q6_K",
    "gguf:Q5_K_M",
    "gguf:Q4_K_M",
    "gguf:IQ4_XS",
    "gguf:Q2_K",
];
/// As much of a device as engines can be trusted with.
const MOST_OF_TOTAL: f64 = 0.95;
const MOST_STATIC: f64 = 0.9;
const MOST_OF_FREE: f64 = 0.95;
/// The part of a host's memory that weights may fill.
const HOST_SHARE: f64 = 0.85;
/// Lengths are proposed in multiples of this.
const LENGTH_STEP: u64 = 1024;

/// Changes that keep the workload and the devices as they are.
pub(super) fn settings(shape: &ModelShape, now: &Evaluated) -> Vec<Change> {
    let setup = &now.setup;
    let able = abilities(setup.deployment.engine.kind);
    let mut changes = Vec::new();
    changes.extend(weights(shape, setup, able.gguf));
    changes.extend(kv(setup, able.kv));
    changes.extend(splits(shape, setup));
    changes.extend(memory(setup));
    changes.extend(steps(now));
    if able.graphs && setup.deployment.cuda_graphs {
        changes.push(Change::NoCudaGraphs);
    }
    if now.prediction.max_num_seqs < setup.workload.concurrency {
        changes.push(Change::Sequences(setup.workload.concurrency));
    }
    if able.offload && !setup.deployment.device.is_cpu {
        changes.extend(offload(now));
    }
    let workload = &setup.workload;
    if !workload.prefix_caching && workload.prefix_share > 0.0 && workload.concurrency > 1 {
        changes.push(Change::PrefixCaching);
    }
    let strips = setup.deployment.engine.kind == EngineKind::Sglang;
    if strips && !workload.drops_thinking && workload.output.is_some() {
        changes.push(Change::DropThinking);
    }
    changes
}

/// Changes that ask for less.
pub(super) fn concessions(now: &Evaluated) -> Vec<Change> {
    let workload = &now.setup.workload;
    let mut changes = Vec::new();
    let room = now.prediction.kv_tokens / workload.concurrency.max(1);
    let fitting = room.min(now.outcome.max_context) / LENGTH_STEP * LENGTH_STEP;
    if fitting > workload.prompt_tokens && fitting < workload.context && fitting > 0 {
        changes.push(Change::Context(fitting));
    }
    let replicas = u64::from(now.setup.deployment.parallel.dp.max(1));
    let sequences = now.outcome.sequences.floor() as u64 / replicas * replicas;
    if sequences > 0 && sequences < workload.concurrency {
        changes.push(Change::Concurrency(sequences));
    }
    changes
}

fn weights(shape: &ModelShape, setup: &Setup, gguf: bool) -> Vec<Change> {
    let bytes = |scheme: &WeightScheme| -> u64 {
        shape.bytes_under(scheme).iter().map(|b| b.total()).sum()
    };
    let now = bytes(&setup.deployment.weights);
    let moe = shape
        .tensors
        .iter()
        .any(|t| t.component == Component::RoutedExperts);
    let names: &[&str] = if gguf { &MIXES } else { &FORMATS };
    names
        .iter()
        .filter(|name| moe || !name.starts_with("experts"))
        .filter_map(|name| WeightScheme::parse(name).ok())
        .filter(|scheme| bytes(scheme) < now / 100 * 97)
        .map(Change::Weights)
        .collect()
}

fn kv(setup: &Setup, able: &[KvDtype]) -> Vec<Change> {
    let now = setup.deployment.kv_dtype.unwrap_or(KvDtype::Bf16);
    let smaller = able
        .iter()
        .filter(|d| d.row_bytes(512) < now.row_bytes(512));
    smaller.map(|d| Change::Kv(*d)).collect()
}

/// Every division of the devices that there are.
fn splits(shape: &ModelShape, setup: &Setup) -> Vec<Change> {
    let deployment = &setup.deployment;
    all_splits(
        shape,
        deployment.engine.kind,
        deployment.device_count,
        deployment.devices_per_node,
    )
    .into_iter()
    .filter(|p| *p != deployment.parallel)
    .map(Change::Split)
    .collect()
}

/// Divisions of a model over `count` devices that an engine can run: tensor parallelism within a
/// node, stages over nodes, attention replicated with experts spread, context over ranks.
pub(super) fn all_splits(
    shape: &ModelShape,
    engine: EngineKind,
    count: u32,
    per_node: u32,
) -> Vec<Parallel> {
    let able = abilities(engine);
    if count <= 1 || !able.tensor_parallel {
        return Vec::new();
    }
    let moe = shape.num_experts > 0;
    let mut found = Vec::new();
    for pp in divisors(count).filter(|pp| *pp == 1 || count > per_node && *pp <= 8) {
        for dp in divisors(count / pp) {
            let tp = count / pp / dp;
            let heads = shape.num_attention_heads;
            if tp > per_node.max(1) || heads == 0 || !heads.is_multiple_of(u64::from(tp)) {
                continue;
            }
            let spread = moe && able.attention_parallel && pp == 1;
            for expert in [false, true] {
                if expert && !(spread && shape.num_experts.is_multiple_of(u64::from(tp * dp))) {
                    continue;
                }
                for dcp in divisors(tp) {
                    if dcp > 1
                        && !(able.context_parallel && dp == 1 && divides_caches(shape, tp, dcp))
                    {
                        continue;
                    }
                    found.push(Parallel {
                        tp,
                        pp,
                        dp,
                        dcp,
                        expert,
                    });
                }
            }
        }
    }
    found
}

/// Whether ranks hold copies of caches that context parallelism could divide.
fn divides_caches(shape: &ModelShape, tp: u32, dcp: u32) -> bool {
    let copies = |cache: &LayerCache| match cache {
        LayerCache::Latent { .. } | LayerCache::IndexedLatent { .. } => Some(tp),
        LayerCache::Full { heads, .. } => Some(tp / heads.max(&1)),
        LayerCache::Sliding { .. } | LayerCache::State { .. } => Some(1),
        LayerCache::None => None,
    };
    let least = shape.caches.iter().filter_map(copies).min();
    least.is_some_and(|copies| copies >= dcp)
}

fn divisors(n: u32) -> impl Iterator<Item = u32> {
    (1..=n.min(64)).filter(move |d| n.is_multiple_of(*d))
}

fn memory(setup: &Setup) -> Option<Change> {
    let deployment = &setup.deployment;
    let rule = match (deployment.engine.kind, deployment.memory) {
        (EngineKind::Vllm, Some(MemoryRule::OfTotal(f))) if f >= MOST_OF_TOTAL => return None,
        (EngineKind::Vllm, None | Some(MemoryRule::OfTotal(_))) => {
            MemoryRule::OfTotal(MOST_OF_TOTAL)
        }
        (EngineKind::Sglang, Some(MemoryRule::Static(f))) if f >= MOST_STATIC => return None,
        (EngineKind::Sglang, None | Some(MemoryRule::Static(_))) => MemoryRule::Static(MOST_STATIC),
        (EngineKind::TrtLlm, None) => MemoryRule::OfFreeAfterLoad(MOST_OF_FREE),
        _ => return None,
    };
    Some(Change::Memory(rule))
}

/// Smaller steps have smaller activations.
fn steps(now: &Evaluated) -> Option<Change> {
    const LEAST: u64 = 2048;
    let rank = now.prediction.ranks.first()?;
    let large = rank.activation_peak_bytes > rank.budget_bytes / 100;
    let steps = now.setup.deployment.max_num_batched_tokens;
    let can = steps.is_none_or(|steps| steps > LEAST);
    (large && can).then_some(Change::BatchedTokens(LEAST))
}

/// As much of the weights in host memory as the device is short of.
fn offload(now: &Evaluated) -> Option<Change> {
    let deployment = &now.setup.deployment;
    let short = now.verdict.capacity.short_bytes;
    if short == 0 {
        return None;
    }
    let in_node = deployment
        .devices_per_node
        .min(deployment.device_count)
        .max(1);
    let most = (deployment.host_memory? as f64 * HOST_SHARE) as u64;
    // A little more: pools are whole blocks.
    let wanted = (short + short / 50).saturating_mul(u64::from(in_node));
    let bytes = (deployment.offload_bytes + wanted).next_multiple_of(1 << 30);
    (bytes <= most).then_some(Change::Offload(bytes))
}

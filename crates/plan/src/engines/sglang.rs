//! SGLang's rules: weights and KV cache in a fraction of what is free at the start.
//!
//! `rest = free after loading - free before loading x (1 - mem_fraction_static)` goes to the KV
//! cache, a token at a time; the forward pass and captured graphs live in the other part.

use super::allocations::{Counting, weights};
use super::pool::{PoolRules, lay_out, smallest};
use super::sharding::stages;
use super::{caches, free_at_start, gib, part_of, vllm};
use crate::{Deployment, Device, Error, MemoryRule, ModelShape, Prediction, RankPlan, Version};

/// Bytes in a GiB.
const GIB: f64 = (1u64 << 30) as f64;
/// From here on the default fraction follows from what the run needs.
const COMPUTED_FRACTION: Version = Version(0, 4, 9);
/// What matrix libraries take while loading; SGLang counts it as weights, since it reads what is
/// free.
pub(crate) const LIBRARY_BYTES: u64 = 62 << 20;
/// What a captured batch takes, fitted to one start-up: 0.93 GiB for batches of up to 80.
const GRAPH_GIB: f64 = 0.45;
/// The same for each sequence of the largest batch and layer.
const GRAPH_SEQUENCE_GIB: f64 = 9.4e-5;

/// What each stage's ranks hold, and the pool that is left.
pub(super) fn predict(shape: &ModelShape, deployment: &Deployment) -> Result<Prediction, Error> {
    let device = &deployment.device;
    let parallel = &deployment.parallel;
    let max_model_len = deployment
        .max_model_len
        .unwrap_or(shape.max_position_embeddings.max(1));
    let chunk = deployment
        .max_num_batched_tokens
        .unwrap_or_else(|| chunked_prefill(device));
    let batch = deployment
        .max_num_seqs
        .unwrap_or_else(|| graph_batch(device, parallel.tp));
    let fraction = match deployment.memory {
        Some(MemoryRule::Static(fraction)) => fraction,
        _ => default_fraction(deployment, chunk, batch),
    };
    let free = match deployment.memory {
        Some(MemoryRule::Bytes(bytes)) => bytes.min(device.total_bytes.max(bytes)),
        _ => free_at_start(deployment).saturating_sub(communicators(deployment)),
    };
    let budget = part_of(free, fraction);
    let dtype = deployment
        .kv_dtype
        .unwrap_or_else(|| caches::default_dtype(shape));
    let mut ranks = Vec::new();
    for stage in stages(shape.caches.len() as u32, parallel.pp) {
        let mut held = weights(shape, deployment, &stage, Counting::Reserved, &|_| {});
        let offloaded = super::offload(&mut held, 0, deployment);
        let loaded = held.iter().map(|(_, bytes)| bytes).sum::<u64>() + LIBRARY_BYTES;
        let available = budget.saturating_sub(loaded);
        let layers = caches::on_rank(shape, &stage.layers, parallel, dtype, 1, 4);
        let rules = PoolRules {
            available,
            block_size: deployment.block_size.unwrap_or(1),
            max_model_len,
            batched_tokens: chunk,
            dcp: u64::from(parallel.dcp),
            hybrid: layers
                .iter()
                .any(|l| matches!(l, caches::RankCache::State { .. })),
            state_blocks: 1,
            prints_sequences: false,
        };
        let pool = lay_out(&layers, &rules);
        let graphs = if deployment.cuda_graphs {
            let sequences = batch as f64 * stage.layers.len() as f64;
            gib(GRAPH_GIB + GRAPH_SEQUENCE_GIB * sequences)
        } else {
            0
        };
        ranks.push((
            RankPlan {
                device: device.clone(),
                rank: (0, stage.index),
                budget_bytes: budget,
                weights: held,
                offloaded_bytes: offloaded,
                overhead_bytes: device.total_bytes.saturating_sub(free) + LIBRARY_BYTES,
                activation_peak_bytes: vllm::forward_bytes(shape, deployment, &stage, chunk),
                cuda_graph_bytes: graphs,
                kv_pool_bytes: available,
                kv_blocks: pool.blocks,
                kv_tokens: pool.tokens,
                kv_bytes_per_token: pool.bytes_per_token,
                missing_bytes: loaded.saturating_sub(budget),
            },
            pool,
        ));
    }
    let (ranks, pools): (Vec<_>, Vec<_>) = ranks.into_iter().unzip();
    let smallest = smallest(&pools);
    let replicas = u64::from(parallel.dp);
    Ok(Prediction {
        ranks,
        kv_tokens: smallest.tokens.saturating_mul(replicas),
        block_size: smallest.block_size,
        max_model_len,
        max_num_seqs: batch.saturating_mul(replicas),
        max_concurrency: smallest.concurrency * replicas as f64,
        notes: vec![format!(
            "SGLang: weights and KV cache in {fraction:.3} of the {:.2} GiB that are free at the \
             start; the rest is for a forward pass of {chunk} tokens and captured graphs",
            free as f64 / GIB
        )],
    })
}

/// What NCCL takes before anything is loaded, where the free memory was not measured after it:
/// what two ranks of H100 were seen to have less than one, and for each further rank what vLLM
/// loses to it.
fn communicators(deployment: &Deployment) -> u64 {
    let linked = deployment.parallel.tp > 1 && deployment.device.has_fast_links();
    match deployment.free_at_start {
        None if linked => gib(1.02 + 0.24 * f64::from(deployment.parallel.tp - 2)),
        _ => 0,
    }
}

/// `--mem-fraction-static` when it is not given.
fn default_fraction(deployment: &Deployment, chunk: u64, batch: u64) -> f64 {
    let tp = deployment.parallel.tp;
    if deployment
        .engine
        .version
        .is_some_and(|v| v < COMPUTED_FRACTION)
    {
        return match tp {
            16.. => 0.79,
            8.. => 0.81,
            4.. => 0.85,
            2.. => 0.87,
            _ => 0.88,
        };
    }
    // In MiB: libraries, the forward pass by its tokens, graphs by the largest batch.
    let ranks = f64::from(tp * deployment.parallel.pp);
    let reserved = 512.0 + 1.5 * chunk as f64 + 2.0 * batch as f64 + ranks / 8.0 * 1024.0;
    let total = deployment.device.total_bytes as f64 / f64::from(1 << 20);
    ((total - reserved) / total).clamp(0.1, 0.95)
}

/// `--chunked-prefill-size` when it is not given.
fn chunked_prefill(device: &Device) -> u64 {
    match device.total_bytes as f64 / GIB {
        gib if gib < 35.0 => 2048,
        gib if gib < 60.0 => 4096,
        gib if gib < 160.0 => 8192,
        _ => 16_384,
    }
}

/// `--cuda-graph-max-bs` when it is not given.
fn graph_batch(device: &Device, tp: u32) -> u64 {
    match (device.total_bytes as f64 / GIB, tp >= 4) {
        (gib, _) if gib < 20.0 => 8,
        (gib, false) if gib < 35.0 => 24,
        (gib, true) if gib < 35.0 => 80,
        (gib, false) if gib < 60.0 => 32,
        (gib, true) if gib < 60.0 => 160,
        (gib, false) if gib < 90.0 => 256,
        _ => 512,
    }
}

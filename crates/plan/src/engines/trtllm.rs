//! TensorRT-LLM's rules: KV cache in a fraction of what is free once everything else is there.
//!
//! `tokens = fraction x (total - context - weights - forward pass - graphs) / bytes a token`. What
//! is there besides weights is fitted to thirteen capacities measured by aiconfigurator's authors
//! (see `docs/accuracy.md`).

use super::pool::{PoolRules, lay_out, smallest};
use super::sharding::{stages, weights};
use super::{caches, gib, part_of};
use crate::{Deployment, Error, MemoryRule, ModelShape, Prediction, RankPlan};

/// `free_gpu_memory_fraction` when none is given.
const FRACTION: f64 = 0.9;
/// Tokens a block.
const BLOCK: u64 = 32;
/// Context, libraries and workspaces on any device, GiB.
const FIXED_GIB: f64 = 2.24;
/// The part of a device's memory that its context takes in proportion (page tables).
const TOTAL_SHARE: f64 = 0.0046;
/// Graphs and buffers of a layer, GiB.
const LAYER_GIB: f64 = 0.03;
/// Communicators' buffers for each doubling of ranks, GiB, and their fixed part.
const RANKS_GIB: (f64, f64) = (0.4, 0.4);

/// What each stage's ranks hold, and the pool that is left.
pub(super) fn predict(shape: &ModelShape, deployment: &Deployment) -> Result<Prediction, Error> {
    let device = &deployment.device;
    let parallel = &deployment.parallel;
    let fraction = match deployment.memory {
        Some(MemoryRule::OfFreeAfterLoad(f) | MemoryRule::Static(f) | MemoryRule::OfTotal(f)) => f,
        _ => FRACTION,
    };
    let total = match deployment.memory {
        Some(MemoryRule::Bytes(bytes)) => bytes,
        _ => device.total_bytes,
    };
    let max_model_len = deployment
        .max_model_len
        .unwrap_or(shape.max_position_embeddings.max(1));
    let tokens = deployment.max_num_batched_tokens.unwrap_or(8192);
    let dtype = deployment
        .kv_dtype
        .unwrap_or_else(|| caches::default_dtype(shape));
    let mut ranks = Vec::new();
    for stage in stages(shape.caches.len() as u32, parallel.pp) {
        let mut held = weights(shape, deployment, &stage, &|_| {});
        let overhead = gib(FIXED_GIB) + part_of(total, TOTAL_SHARE) + communicators(parallel.tp);
        let graphs = gib(LAYER_GIB * stage.layers.len() as f64);
        let fixed = overhead + graphs;
        let offloaded = super::offload(&mut held, 0, deployment);
        let loaded: u64 = held.iter().map(|(_, bytes)| bytes).sum();
        let available = part_of(total.saturating_sub(loaded + fixed), fraction);
        let layers = caches::on_rank(shape, &stage.layers, parallel, dtype, 1, 2);
        let pool = lay_out(
            &layers,
            &PoolRules {
                available,
                block_size: deployment.block_size.unwrap_or(BLOCK),
                max_model_len,
                batched_tokens: tokens,
                dcp: u64::from(parallel.dcp),
                hybrid: true,
                state_blocks: 1,
                prints_sequences: false,
            },
        );
        let rank = RankPlan {
            device: device.clone(),
            rank: (0, stage.index),
            budget_bytes: total,
            weights: held,
            offloaded_bytes: offloaded,
            overhead_bytes: overhead,
            activation_peak_bytes: 0,
            cuda_graph_bytes: graphs,
            kv_pool_bytes: available,
            kv_blocks: pool.blocks,
            kv_tokens: pool.tokens,
            kv_bytes_per_token: pool.bytes_per_token,
            missing_bytes: (loaded + fixed).saturating_sub(total),
        };
        ranks.push((rank, pool));
    }
    let (ranks, pools): (Vec<_>, Vec<_>) = ranks.into_iter().unzip();
    let smallest = smallest(&pools);
    let replicas = u64::from(parallel.dp);
    Ok(Prediction {
        ranks,
        kv_tokens: smallest.tokens.saturating_mul(replicas),
        block_size: smallest.block_size,
        max_model_len,
        max_num_seqs: deployment.max_num_seqs.unwrap_or(2048),
        max_concurrency: smallest.tokens as f64 / max_model_len as f64 * replicas as f64,
        notes: vec![format!(
            "TensorRT-LLM: KV cache in {fraction} of what is free after loading; the forward pass \
             lives in the other {:.2}",
            1.0 - fraction
        )],
    })
}

fn communicators(tp: u32) -> u64 {
    match tp {
        0 | 1 => 0,
        ranks => gib(RANKS_GIB.0 + RANKS_GIB.1 * f64::from(ranks).log2()),
    }
}

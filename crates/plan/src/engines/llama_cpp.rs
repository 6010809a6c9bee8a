//! llama.cpp's rules: no pool but contexts, allocated whole at the start.
//!
//! `--parallel` contexts of `max_model_len` cells each; layers with a window get their own, smaller
//! cache; states are in 32 bits. The compute buffer is that of the largest batch (512 tokens).

use super::sharding::{stages, tied, weights};
use super::{free_at_start, vllm};
use crate::{Component, Deployment, Error, KvDtype, MemoryRule, ModelShape, Prediction, RankPlan};

/// `--ubatch-size`.
const UBATCH: u64 = 512;
/// What CUDA and cuBLAS take once a device is used.
const CONTEXT_BYTES: u64 = 420 << 20;

/// What each device holds; layers are divided over devices, whole.
pub(super) fn predict(shape: &ModelShape, deployment: &Deployment) -> Result<Prediction, Error> {
    let parallel = &deployment.parallel;
    let max_model_len = deployment
        .max_model_len
        .unwrap_or(shape.max_position_embeddings.max(1));
    let sequences = deployment.max_num_seqs.unwrap_or(1);
    let batch = deployment.max_num_batched_tokens.unwrap_or(UBATCH);
    let dtype = deployment.kv_dtype.unwrap_or(KvDtype::F16);
    let device = &deployment.device;
    let budget = match deployment.memory {
        Some(MemoryRule::Bytes(bytes)) => bytes,
        _ => free_at_start(deployment),
    };
    let mut layered = deployment.clone();
    let split = parallel.tp * parallel.pp;
    layered.parallel.tp = 1;
    layered.parallel.pp = split.min(shape.caches.len() as u32);
    let mut ranks = Vec::new();
    let mut fits = f64::INFINITY;
    for stage in stages(shape.caches.len() as u32, layered.parallel.pp) {
        let mut held = weights(shape, &layered, &stage, &|_| {});
        // The table that is looked up stays in the host; a tied head needs it on the device.
        let tied = tied(shape);
        let on_host = device.is_cpu || (stage.last && tied);
        if !on_host {
            held.retain(|(component, _)| *component != Component::Embedding);
        }
        let mut own = shape.clone();
        own.caches = shape.caches[stage.layers.start as usize..stage.layers.end as usize].to_vec();
        let cache = own.llama_cpp_cache(max_model_len, sequences, None, (dtype, dtype));
        let one = own
            .llama_cpp_cache(max_model_len, 1, None, (dtype, dtype))
            .total();
        let compute = compute_buffer(shape, &layered, &stage, batch, max_model_len);
        let overhead = if device.is_cpu { 0 } else { CONTEXT_BYTES };
        let room = budget.saturating_sub(cache.total() + compute + overhead);
        let offloaded = super::offload(&mut held, room, deployment);
        let loaded: u64 = held.iter().map(|(_, bytes)| bytes).sum();
        let fixed = loaded + compute + overhead;
        if one > 0 {
            fits = fits.min(budget.saturating_sub(fixed) as f64 / one as f64);
        }
        let cells = max_model_len.saturating_mul(sequences);
        ranks.push(RankPlan {
            device: device.clone(),
            rank: (0, stage.index),
            budget_bytes: budget,
            weights: held,
            offloaded_bytes: offloaded,
            overhead_bytes: overhead,
            activation_peak_bytes: compute,
            cuda_graph_bytes: 0,
            kv_pool_bytes: cache.total(),
            kv_blocks: cells,
            kv_tokens: cells,
            kv_bytes_per_token: own.kv_bytes_per_token(dtype) as f64,
            missing_bytes: (fixed + cache.total()).saturating_sub(budget),
        });
    }
    let replicas = u64::from(parallel.dp);
    Ok(Prediction {
        kv_tokens: max_model_len
            .saturating_mul(sequences)
            .saturating_mul(replicas),
        block_size: 1,
        max_model_len,
        max_num_seqs: sequences * replicas,
        max_concurrency: if fits.is_finite() {
            fits * replicas as f64
        } else {
            0.0
        },
        notes: vec![format!(
            "llama.cpp: {sequences} contexts of {max_model_len} cells are allocated at the start, \
             used or not"
        )],
        ranks,
    })
}

/// The scheduler's buffer for a batch: four copies of the residual stream and the feed-forward in
/// 32 bits, the mask over one sequence's cells in 16. Checked on SmolLM2-135M, where it prints
/// 13.51 MiB and 2 MiB for each 2048 cells; releases before 2026 keep a batch of logits besides.
fn compute_buffer(
    shape: &ModelShape,
    deployment: &Deployment,
    stage: &super::sharding::Stage,
    batch: u64,
    cells: u64,
) -> u64 {
    let stream = batch * shape.hidden_size * 4;
    let forward = 2 * vllm::feed_forward_bytes(shape, deployment, stage, batch);
    let mask = batch.saturating_mul(cells).saturating_mul(2);
    (4 * stream + forward).saturating_add(mask)
}

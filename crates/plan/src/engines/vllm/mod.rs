//! vLLM's rules: a fraction of the device's total for everything, a profile run, a paged pool.
//!
//! What differs between releases is in `releases`; the peak of the profile run in `activation`;
//! what its 4-bit kernels add to weights in `mxfp4`.

mod activation;
mod derived;
mod graphs;
mod mxfp4;
pub mod releases;

pub(super) use activation::{feed_forward_bytes, forward_bytes};

use super::allocations::{Counting, weights};
use super::pool::{Pool, PoolRules, lay_out, smallest};
use super::sharding::{Stage, stages};
use super::{caches, part_of};
use crate::{
    Component, Deployment, Error, LayerCache, MemoryRule, ModelShape, Prediction, RankPlan,
};
use activation::Run;
use releases::Rules;

/// Tokens a block.
const BLOCK: u64 = 16;

/// What each stage's ranks hold, and the pool that is left.
pub(super) fn predict(shape: &ModelShape, deployment: &Deployment) -> Result<Prediction, Error> {
    let rules = Rules::of(deployment);
    let run = settings(shape, deployment, &rules);
    let layers = shape.caches.len() as u32;
    let mut ranks = Vec::new();
    let mut pools = Vec::new();
    for stage in stages(layers, deployment.parallel.pp) {
        let (rank, pool) = of_stage(shape, deployment, &rules, &run, &stage);
        ranks.push(rank);
        pools.push(pool);
    }
    let smallest = smallest(&pools);
    let replicas = u64::from(deployment.parallel.dp);
    Ok(Prediction {
        kv_tokens: usable_tokens(&smallest, run.max_model_len).saturating_mul(replicas),
        block_size: smallest.block_size,
        max_model_len: run.max_model_len,
        max_num_seqs: run.sequences.saturating_mul(replicas),
        max_concurrency: smallest.concurrency * replicas as f64,
        notes: notes(shape, deployment, &rules, &run),
        ranks,
    })
}

fn settings(shape: &ModelShape, deployment: &Deployment, rules: &Rules) -> Run {
    let own = shape.max_position_embeddings.max(1);
    let max_model_len = deployment.max_model_len.unwrap_or(own);
    let device = &deployment.device;
    let tokens = deployment.max_num_batched_tokens.unwrap_or_else(|| {
        rules.batched_tokens(device, max_model_len, shape.caches.iter().any(is_latent))
    });
    let sequences = deployment
        .max_num_seqs
        .unwrap_or_else(|| rules.max_num_seqs(device));
    Run {
        tokens,
        sequences: sequences.min(tokens),
        // All four logs of the first engine that split prompts show a forward pass alone.
        samples: !(rules.v0 && tokens < max_model_len),
        max_model_len,
        block_size: deployment.block_size.unwrap_or(BLOCK),
    }
}

/// What one rank may use.
fn budget(deployment: &Deployment, rules: &Rules) -> u64 {
    let total = deployment.device.total_bytes;
    match deployment.memory {
        Some(MemoryRule::OfTotal(fraction)) => part_of(total, fraction),
        Some(MemoryRule::Bytes(bytes)) => bytes,
        _ => part_of(total, rules.utilization),
    }
}

fn of_stage(
    shape: &ModelShape,
    deployment: &Deployment,
    rules: &Rules,
    run: &Run,
    stage: &Stage,
) -> (RankPlan, Pool) {
    let device = &deployment.device;
    let budget = budget(deployment, rules);
    let padding = mxfp4::padding(deployment, rules.version);
    let mut held = weights(shape, deployment, stage, Counting::Allocated, &padding);
    let derived = [
        (Component::Norms, derived::rotations(shape)),
        (
            Component::Attention,
            derived::absorbed(shape, deployment, stage, rules),
        ),
    ];
    for (component, bytes) in derived {
        if let Some((_, sum)) = held.iter_mut().find(|(c, _)| *c == component) {
            *sum += bytes;
        }
    }
    let activations = activation::peak(shape, deployment, stage, rules, run);
    let overhead = rules.non_torch_bytes(shape, deployment);
    let graphs = match deployment.cuda_graphs {
        true => graphs::bytes(shape, stage, run.sequences, rules),
        false => 0,
    };
    let fixed = activations + overhead + if rules.graphs_subtracted { graphs } else { 0 };
    let offloaded = super::offload(&mut held, 0, deployment);
    let taken = held.iter().map(|(_, bytes)| bytes).sum::<u64>() + fixed;
    let available = budget.saturating_sub(taken);
    let dtype = deployment
        .kv_dtype
        .unwrap_or_else(|| caches::default_dtype(shape));
    let parallel = &deployment.parallel;
    let layers = caches::on_rank(
        shape,
        &stage.layers,
        parallel,
        dtype,
        rules.latent_align,
        state_value(shape),
    );
    let pool = lay_out(
        &layers,
        &PoolRules {
            available,
            block_size: run.block_size,
            max_model_len: run.max_model_len,
            batched_tokens: run.tokens,
            dcp: u64::from(parallel.dcp),
            hybrid: rules.hybrid,
            state_blocks: if rules.keeps_states { 2 } else { 1 },
            prints_sequences: rules.keeps_states,
        },
    );
    let rank = RankPlan {
        device: device.clone(),
        rank: (0, stage.index),
        budget_bytes: budget,
        weights: held,
        offloaded_bytes: offloaded,
        overhead_bytes: overhead,
        activation_peak_bytes: activations,
        cuda_graph_bytes: graphs,
        kv_pool_bytes: available,
        kv_blocks: pool.blocks,
        kv_tokens: pool.tokens,
        kv_bytes_per_token: pool.bytes_per_token,
        missing_bytes: taken.saturating_sub(budget),
    };
    (rank, pool)
}

fn notes(shape: &ModelShape, deployment: &Deployment, rules: &Rules, run: &Run) -> Vec<String> {
    let mut notes = vec![format!(
        "vLLM {}: profiled with {} tokens and {} sequences of logits, {} copies of them in 32 bits",
        rules.version, run.tokens, run.sequences, rules.logit_copies
    )];
    let free = super::free_at_start(deployment);
    let asked = budget(deployment, rules);
    if asked > free && !rules.v0 {
        const GIB: f64 = (1u64 << 30) as f64;
        notes.push(format!(
            "vLLM does not start where less is free than asked for: {:.2} GiB are asked for, {:.2} \
             are usually free",
            asked as f64 / GIB,
            free as f64 / GIB
        ));
    }
    if !rules.graphs_subtracted && deployment.cuda_graphs {
        notes.push(
            "captured graphs come on top of the budget before vLLM 0.21: leave room for them"
                .to_owned(),
        );
    }
    if rules.latent_align > 1 && shape.caches.iter().any(is_latent) {
        notes.push(format!(
            "latent rows are rounded up to {} bytes in this release",
            rules.latent_align
        ));
    }
    let hybrid = shape.caches.iter().any(|c| !c.is_full());
    if hybrid && !rules.hybrid {
        notes.push("this release stores layers with a window in full".to_owned());
    }
    notes
}

/// Tokens in sequences of the longest length. The engine prints fewer for models with windows or
/// states (every group of layers counted alike), and that is what ranks list.
fn usable_tokens(pool: &Pool, max_model_len: u64) -> u64 {
    pool.tokens
        .max((pool.concurrency * max_model_len as f64) as u64)
}

/// Bytes of a recurrent state's value: the model's own type, but for Qwen3.5, whose configs ask for
/// 32 bits (`mamba_ssm_dtype`).
fn state_value(shape: &ModelShape) -> u64 {
    if shape.model_type.starts_with("qwen3_5") {
        4
    } else {
        2
    }
}

fn is_latent(cache: &LayerCache) -> bool {
    matches!(
        cache,
        LayerCache::Latent { .. } | LayerCache::IndexedLatent { .. }
    )
}

//! scrimp's own rules: the same [`MemoryPlan`] that `run` and `serve` reserve from.
//!
//! This file only translates: a shape and a deployment into a [`PlanInput`], the plan that comes
//! back into ranks. What fits, how many blocks, and what would fit are decided in `scrimp-memory`.

use scrimp_memory::{MemoryPlan, PlanError, PlanInput};
use scrimp_model::KvLayout;
use scrimp_tensor::DType;

use super::free_at_start;
use super::sharding::{stages, weights};
use crate::{
    Component, Deployment, Error, KvDtype, LayerCache, MemoryRule, ModelShape, Prediction,
    RankPlan, Split,
};

/// Tokens a block, sequences at once and tokens of a step when none are asked for.
const BLOCK: u64 = 16;
const SEQUENCES: u64 = 64;
const STEP_TOKENS: u64 = 512;
/// The process itself: program, tokenizer, tables, queues. `run` and `serve` measure it instead.
const PROCESS_BYTES: usize = 32 << 20;
/// What `run` and `serve` keep free for what cannot be foretold.
const RESERVE_BYTES: usize = 8 << 20;
/// Values to which the kernels' cache rounds the width of a key and a value.
const KV_LANES: usize = 16;
/// Tokens of one segment of attention, and values of its running state besides its output.
const SEGMENT: u64 = 512;
const SEGMENT_STATE: u64 = 2;

/// What the process holds.
pub(super) fn predict(shape: &ModelShape, deployment: &Deployment) -> Result<Prediction, Error> {
    if deployment.parallel.devices() > 1 {
        return Err(Error::Setting {
            setting: "--engine",
            what: "scrimp runs on one machine without a cluster: use one rank, or --emit the plan \
                   for vllm or sglang"
                .to_owned(),
        });
    }
    let stage = &stages(shape.caches.len() as u32, 1)[0];
    let held = weights(shape, deployment, stage, &|_| {});
    let input = plan_input(shape, deployment, &held)?;
    let budget = input.budget_bytes as u64;
    let mut notes = vec![format!(
        "scrimp: weights, scratch, staging and blocks of {} tokens in one budget",
        input.kv.block_size
    )];
    let loaded: u64 = held.iter().map(|(_, bytes)| bytes).sum();
    let process = input.other_bytes + input.reserve_bytes;
    let fixed = input.activations_bytes + process;
    let per_token = (input.kv_block_bytes / input.kv.block_size.max(1)) as u64;
    let mut rank = RankPlan {
        device: deployment.device.clone(),
        rank: (0, 0),
        budget_bytes: budget,
        weights: held,
        offloaded_bytes: 0,
        overhead_bytes: process as u64,
        activation_peak_bytes: input.activations_bytes as u64,
        cuda_graph_bytes: 0,
        kv_pool_bytes: 0,
        kv_blocks: 0,
        kv_tokens: 0,
        kv_bytes_per_token: per_token as f64,
        missing_bytes: (loaded + fixed as u64).saturating_sub(budget),
    };
    let mut max_model_len = input.max_model_len as u64;
    match MemoryPlan::new(&input) {
        Ok(plan) => {
            rank.kv_pool_bytes = plan.kv_cache_bytes() as u64;
            rank.kv_blocks = plan.num_blocks as u64;
            rank.kv_tokens = plan.kv_tokens() as u64;
            max_model_len = plan.max_model_len as u64;
        }
        Err(PlanError::DoesNotFit(short)) => {
            rank.kv_tokens = short.kv_tokens_left as u64;
            rank.kv_blocks = rank.kv_tokens / input.kv.block_size as u64;
            rank.kv_pool_bytes = rank.kv_tokens * per_token;
            if rank.missing_bytes == 0 {
                rank.missing_bytes =
                    (short.kv_cache_bytes as u64).saturating_sub(rank.kv_pool_bytes);
            }
            notes.push(short.to_string());
        }
        Err(other) => {
            return Err(Error::Setting {
                setting: "--max-model-len",
                what: other.to_string(),
            });
        }
    }
    let block = input.kv.block_size as u64;
    let blocks_of_longest = max_model_len.div_ceil(block).max(1);
    Ok(Prediction {
        kv_tokens: rank.kv_tokens,
        block_size: block,
        max_model_len,
        max_num_seqs: input.max_num_seqs as u64,
        max_concurrency: rank.kv_blocks as f64 / blocks_of_longest as f64,
        notes,
        ranks: vec![rank],
    })
}

/// What the plan is made from.
fn plan_input(
    shape: &ModelShape,
    deployment: &Deployment,
    held: &[(Component, u64)],
) -> Result<PlanInput, Error> {
    let budget = match deployment.memory {
        Some(MemoryRule::Bytes(bytes)) => bytes,
        Some(MemoryRule::OfTotal(f) | MemoryRule::Static(f) | MemoryRule::OfFreeAfterLoad(f)) => {
            super::part_of(deployment.device.total_bytes, f)
        }
        None => free_at_start(deployment),
    };
    let rows = deployment.max_num_batched_tokens.unwrap_or(STEP_TOKENS);
    let sequences = deployment.max_num_seqs.unwrap_or(SEQUENCES).min(rows);
    let block_size = deployment.block_size.unwrap_or(BLOCK);
    let table = (PlanInput::DEFAULT_MAX_BLOCKS_PER_SEQ as u64).saturating_mul(block_size);
    let own = shape.max_position_embeddings.max(1).min(table);
    let longest = deployment.max_model_len.unwrap_or(own);
    let staging = shape
        .tensors
        .iter()
        .map(|t| t.bytes() / t.count.max(1))
        .max()
        .unwrap_or(0);
    let kv = kv_layout(shape, deployment, size(block_size))?;
    Ok(PlanInput {
        budget_bytes: size(budget),
        weights: held
            .iter()
            .map(|(c, bytes)| (format!("{c:?}"), size(*bytes)))
            .collect(),
        activations_bytes: size(forward_pass_bytes(shape, rows, sequences, longest)),
        bytes_per_seq: 0,
        staging_bytes: size(staging),
        loading_bytes: size(loading_bytes(shape, held)),
        opening_bytes: 0,
        other_bytes: PROCESS_BYTES,
        reserve_bytes: RESERVE_BYTES,
        kv,
        kv_block_bytes: KvLayout {
            key_dim: kv.key_dim.next_multiple_of(KV_LANES),
            value_dim: kv.value_dim.next_multiple_of(KV_LANES),
            ..kv
        }
        .bytes_per_block(),
        kv_page_bytes: 1,
        max_model_len: size(longest),
        shrink_to_fit: deployment.max_model_len.is_none(),
        max_num_seqs: size(sequences),
        max_blocks_per_seq: size(longest.div_ceil(block_size))
            .max(PlanInput::DEFAULT_MAX_BLOCKS_PER_SEQ),
        num_blocks: None,
        kv_cache_bytes: None,
        max_kv_cache_bytes: Some(PlanInput::DEFAULT_MAX_KV_CACHE_BYTES),
    })
}

/// Most bytes that loading holds at one time: tensors come largest first, and each is there in its
/// stored form, too, while it comes. Other formats than the released one scale all alike.
fn loading_bytes(shape: &ModelShape, held: &[(Component, u64)]) -> u64 {
    let each = |t: &crate::TensorGroup| t.bytes() / t.count.max(1);
    let mut groups: Vec<_> = shape.tensors.iter().map(|t| (each(t), t.bytes())).collect();
    groups.sort_unstable_by(|a, b| b.cmp(a));
    let mut resident = 0;
    let mut most = 0;
    for (each, all) in groups {
        resident += all;
        most = most.max(resident + each);
    }
    let loaded: u64 = held.iter().map(|(_, bytes)| bytes).sum();
    let scaled = u128::from(most) * u128::from(loaded) / u128::from(resident.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// The cache that scrimp's kernels read: the same for every layer.
fn kv_layout(
    shape: &ModelShape,
    deployment: &Deployment,
    block_size: usize,
) -> Result<KvLayout, Error> {
    let dtype = match deployment.kv_dtype.unwrap_or(KvDtype::F16) {
        KvDtype::F32 => DType::F32,
        KvDtype::F16 => DType::F16,
        KvDtype::Bf16 => DType::BF16,
        other => {
            return Err(Error::Setting {
                setting: "--kv-dtype",
                what: format!("scrimp keeps keys and values in f32, f16 or bf16, not {other:?}"),
            });
        }
    };
    let first = shape.caches.first().copied().unwrap_or(LayerCache::None);
    let (heads, key_dim, value_dim, value_in_key) = match first {
        LayerCache::Full { heads, key, value } => (heads, key, value, false),
        LayerCache::Latent { rank, rope } => (1, rank + rope, rank, true),
        _ => return Err(unsupported(shape)),
    };
    if shape.caches.iter().any(|cache| *cache != first) {
        return Err(unsupported(shape));
    }
    Ok(KvLayout {
        num_layers: shape.caches.len(),
        num_kv_heads: heads as usize,
        key_dim: key_dim as usize,
        value_dim: value_dim as usize,
        value_in_key,
        dtype,
        block_size,
    })
}

fn unsupported(shape: &ModelShape) -> Error {
    Error::Setting {
        setting: "--engine",
        what: format!(
            "scrimp serves models whose layers all keep keys and values, or all a latent; {} ({}) \
             has layers with windows or states: plan it for vllm or llama.cpp",
            shape.name, shape.model_type
        ),
    }
}

/// Scratch of a step of `rows` tokens, of which `logit_rows` are sampled, at `context` tokens:
/// each buffer of the decoder once, in 32 bits, and the kernels' copies of their inputs.
pub fn forward_pass_bytes(shape: &ModelShape, rows: u64, logit_rows: u64, context: u64) -> u64 {
    let widths = Widths::of(shape);
    let hidden = shape.hidden_size;
    let normed = if shape.num_experts > 0 { hidden } else { 0 };
    let row_values = hidden
        + normed
        + widths.attention
        + widths.feed_forward
        + shape.num_experts
        + widths.widest_input.max(hidden);
    let sampled = logit_rows * (hidden + shape.vocab_size);
    // Kernels keep an input in 8 bits with a scale for each block, and in 16 bits.
    let copies = rows * widths.widest_input.max(hidden) * 25 / 8;
    let slots = rows * shape.experts_per_token * (widths.expert + hidden);
    let states = shape.num_attention_heads
        * context.div_ceil(SEGMENT)
        * (SEGMENT_STATE + widths.value.next_multiple_of(16));
    4 * (rows * row_values + sampled + slots + states) + copies
}

/// Values in the buffers of one row.
#[derive(Default)]
struct Widths {
    /// Queries, keys, values, latents and attention's output together.
    attention: u64,
    /// Between the projections of a dense feed-forward or the shared experts.
    feed_forward: u64,
    /// Of one routed expert.
    expert: u64,
    /// Columns of the widest matrix.
    widest_input: u64,
    /// Of one head's output.
    value: u64,
}

impl Widths {
    fn of(shape: &ModelShape) -> Widths {
        let mut widths = Widths::default();
        let Some(first) = shape.tensors.iter().find_map(|t| t.layer) else {
            return widths;
        };
        let heads = shape.num_attention_heads;
        for group in shape
            .tensors
            .iter()
            .filter(|t| t.rows > 1 && t.layer.is_some())
        {
            let own = match group.component {
                Component::Attention if group.layer == Some(first) => {
                    // An output projection reads what attention wrote.
                    let out = group.split == Split::Columns;
                    widths.attention += if out { group.columns } else { group.rows };
                    group.columns
                }
                Component::DenseMlp | Component::SharedExperts => {
                    let width = if group.split == Split::Rows {
                        group.rows
                    } else {
                        0
                    };
                    widths.feed_forward = widths.feed_forward.max(width);
                    group.columns
                }
                Component::RoutedExperts if group.split == Split::Rows => {
                    widths.expert = widths.expert.max(group.rows);
                    group.columns
                }
                _ => 0,
            };
            widths.widest_input = widths.widest_input.max(own);
        }
        match shape.caches.first() {
            Some(LayerCache::Full { value, .. }) => widths.value = u64::from(*value),
            Some(LayerCache::Latent { rank, rope }) => {
                widths.value = u64::from(*rank);
                // Queries and outputs in the space of the latent.
                widths.attention += heads * (2 * u64::from(*rank) + u64::from(*rope));
            }
            _ => {}
        }
        widths
    }
}

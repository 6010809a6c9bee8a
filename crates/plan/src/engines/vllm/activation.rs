//! The peak of vLLM's profile run: which tensors are alive together at its two high points.
//!
//! A profile run passes `max_num_batched_tokens` tokens through the model, then samples from
//! `max_num_seqs` rows of logits. The peak is the larger of
//!
//! - the widest feed-forward: gate and up, their product (and, with 8-bit weights, its quantized
//!   copy), and four copies of the residual stream;
//! - the sampler: copies of the logits in 32 bits, the last hidden states, and what the forward
//!   pass leaves behind (workspace of expert kernels, outputs of a vision tower).
//!
//! Three constants are fitted, to 23 profiles of 0.19 (see `docs/accuracy.md`): the copies of the
//! logits, bytes of libraries that torch counts (64 MB, a cuBLAS workspace), and 80 MB more while
//! the feed-forward runs.

use super::super::gib;
use super::super::sharding::{Stage, slice};
use super::releases::Rules;
use crate::{Component, Deployment, LayerCache, ModelShape, Split, Storage, TensorGroup};

/// Workspaces of matrix kernels at the sampler's peak, GiB.
const SAMPLER_GIB: f64 = 0.060;
/// The same during the feed-forward, GiB.
const FORWARD_GIB: f64 = 0.015;
/// Copies of the residual stream during the feed-forward.
const RESIDUAL_COPIES: u64 = 4;
/// The same in the first engine, which ran without compiling.
const V0_RESIDUAL_COPIES: u64 = 3;
/// Copies that a stage with successors keeps to send.
const SENT_COPIES: u64 = 3;
/// Rows of expert work done at once by kernels that go in chunks.
const EXPERT_CHUNK: u64 = 32_768;

/// What a run was profiled with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Tokens of the forward pass.
    pub tokens: u64,
    /// Rows of logits.
    pub sequences: u64,
    /// Whether the sampler's part shows in the peak.
    pub samples: bool,
    /// Longest sequence.
    pub max_model_len: u64,
    /// Tokens a block.
    pub block_size: u64,
}

/// Bytes at the peak on one rank of `stage`.
pub(super) fn peak(
    shape: &ModelShape,
    deployment: &Deployment,
    stage: &Stage,
    rules: &Rules,
    run: &Run,
) -> u64 {
    let stream = run.tokens * shape.hidden_size * value_bytes(shape);
    let widths = Widths::of(shape, deployment, stage);
    let workspace = expert_workspace(shape, &widths, run);
    let kept = if rules.kept_workspace { workspace } else { 0 };
    let encoder = if stage.first {
        encoder_bytes(shape, run)
    } else {
        0
    };
    let copies = if rules.v0 {
        V0_RESIDUAL_COPIES
    } else {
        RESIDUAL_COPIES
    };
    let sent = if stage.last { 0 } else { SENT_COPIES };
    let experts = if widths.expert_up == 0 {
        0
    } else if rules.kept_workspace {
        workspace
    } else {
        chained_experts(shape, &widths, run)
    };
    let forward = gib(FORWARD_GIB)
        + (copies + sent) * stream
        + encoder
        + experts.max(run.tokens * widths.dense_bytes(value_bytes(shape)) + kept)
        + latent_workspace(shape, deployment, rules, run);
    let sampler = if stage.last && run.samples {
        let logits = (run.sequences * shape.vocab_size * 4) as f64 * rules.logit_copies;
        gib(SAMPLER_GIB) + stream + logits as u64 + kept + encoder
    } else {
        0
    };
    forward.max(sampler)
}

/// Bytes of the widest feed-forward of a pass of `tokens` tokens on one rank.
pub(in super::super) fn feed_forward_bytes(
    shape: &ModelShape,
    deployment: &Deployment,
    stage: &Stage,
    tokens: u64,
) -> u64 {
    let widths = Widths::of(shape, deployment, stage);
    let run = Run {
        tokens,
        sequences: 1,
        samples: false,
        max_model_len: 1,
        block_size: 1,
    };
    let experts = match widths.expert_up {
        0 => 0,
        _ => chained_experts(shape, &widths, &run),
    };
    experts.max(tokens * widths.dense_bytes(value_bytes(shape)))
}

/// Bytes of a compiled forward pass of `tokens` tokens on one rank, whoever runs it.
pub(in super::super) fn forward_bytes(
    shape: &ModelShape,
    deployment: &Deployment,
    stage: &Stage,
    tokens: u64,
) -> u64 {
    let stream = tokens * shape.hidden_size * value_bytes(shape);
    RESIDUAL_COPIES * stream + feed_forward_bytes(shape, deployment, stage, tokens)
}

/// Bytes of an activation.
fn value_bytes(shape: &ModelShape) -> u64 {
    if shape.dtype == Storage::F32 { 4 } else { 2 }
}

/// Widths of the widest layer's feed-forward on one rank, in values.
#[derive(Clone, Copy, Debug, Default)]
struct Widths {
    /// Gate and up of a dense layer (or of shared experts).
    up: u64,
    /// Their product.
    down: u64,
    /// Whether the product is quantized before it is multiplied.
    quantized: bool,
    /// Gate and up of one routed expert.
    expert_up: u64,
    /// Whether experts read 8-bit copies of their inputs.
    expert_quantized: bool,
}

impl Widths {
    fn of(shape: &ModelShape, deployment: &Deployment, stage: &Stage) -> Widths {
        let mut widest = Widths::default();
        let mut layer = (None, Widths::default());
        let storages = shape.storages(&deployment.weights);
        for (group, storage) in shape.tensors.iter().zip(storages) {
            if group.rows == 1 || !group.layer.is_some_and(|l| stage.layers.contains(&l)) {
                continue;
            }
            if layer.0 != group.layer {
                layer = (group.layer, Widths::default());
            }
            let part = slice(group, &deployment.parallel);
            layer.1.add(group, &part, storage);
            widest = widest.max(layer.1);
        }
        widest
    }

    fn add(&mut self, group: &TensorGroup, part: &TensorGroup, storage: Option<Storage>) {
        match (group.component, group.split) {
            (Component::DenseMlp, Split::Rows) => self.up += part.rows,
            (Component::DenseMlp, Split::Columns) => {
                self.down = part.columns;
                self.quantized = storage.is_some_and(is_eight_bit);
            }
            (Component::RoutedExperts, Split::Rows) => {
                self.expert_up += part.rows;
                self.expert_quantized = storage.is_some_and(is_eight_bit);
            }
            _ => {}
        }
    }

    fn max(self, other: Widths) -> Widths {
        let dense = if other.dense_bytes(2) > self.dense_bytes(2) {
            other
        } else {
            self
        };
        let experts = if other.expert_up > self.expert_up {
            other
        } else {
            self
        };
        Widths {
            expert_up: experts.expert_up,
            expert_quantized: experts.expert_quantized,
            ..dense
        }
    }

    /// Bytes a token of the dense feed-forward.
    fn dense_bytes(&self, value: u64) -> u64 {
        let copy = if self.quantized { self.down } else { 0 };
        value * (self.up + self.down) + copy
    }
}

/// What modular expert kernels keep: two buffers with a row for each token and expert of it, as
/// wide as the stream or the expert, whichever is wider.
fn expert_workspace(shape: &ModelShape, widths: &Widths, run: &Run) -> u64 {
    // MXFP4 kernels bring their own buffers.
    let own = shape
        .quantization
        .as_deref()
        .is_some_and(|q| q.starts_with("mxfp4"));
    if widths.expert_up == 0 || own {
        return 0;
    }
    let rows = run.tokens * shape.experts_per_token;
    let first = (widths.expert_up / 2).max(shape.hidden_size);
    let second = widths.expert_up.max(shape.hidden_size);
    rows * (first + second) * value_bytes(shape)
}

/// What earlier expert kernels hold at once: both products, the output by expert, and the sum.
fn chained_experts(shape: &ModelShape, widths: &Widths, run: &Run) -> u64 {
    let tokens = run.tokens.min(EXPERT_CHUNK);
    let rows = tokens * shape.experts_per_token;
    let widest = widths.expert_up + widths.expert_up / 2 + shape.hidden_size;
    // 8-bit copies of what goes into both products.
    let copies = match widths.expert_quantized {
        true => tokens * shape.hidden_size + rows * widths.expert_up / 2,
        false => 0,
    };
    rows * widest * value_bytes(shape)
        + run.tokens * shape.hidden_size * value_bytes(shape)
        + copies
}

/// Whether inputs of a matrix in this storage are quantized too.
fn is_eight_bit(storage: Storage) -> bool {
    matches!(
        storage,
        Storage::Fp8 | Storage::Fp8Rows | Storage::Fp8Tiles(..) | Storage::Int8Rows
    )
}

/// Keys and values that latent attention expands for a prompt, held for the longest chunk.
fn latent_workspace(shape: &ModelShape, deployment: &Deployment, rules: &Rules, run: &Run) -> u64 {
    let latent = shape.caches.iter().any(|c| {
        matches!(
            c,
            LayerCache::Latent { .. } | LayerCache::IndexedLatent { .. }
        )
    });
    if !latent || rules.v0 {
        return 0;
    }
    let expanded = shape
        .tensors
        .iter()
        .find(|t| t.name.ends_with("kv_b_proj"))
        .map_or(0, |t| slice(t, &deployment.parallel).rows);
    let wanted = (8 * run.max_model_len).max(4 * run.sequences * run.block_size);
    wanted.min(65_536) * expanded * value_bytes(shape)
}

/// What stays of a vision tower's profile: its outputs for as many tokens as a step may have, and
/// the pixels they came from.
fn encoder_bytes(shape: &ModelShape, run: &Run) -> u64 {
    let Some(pixels) = shape.pixels_per_token() else {
        return 0;
    };
    run.tokens * (shape.hidden_size + pixels) * value_bytes(shape)
}

impl ModelShape {
    /// Pixel values behind one token of an image; `None` without a vision tower. A token is four
    /// patches, as in the towers that merge two by two.
    fn pixels_per_token(&self) -> Option<u64> {
        let vision = self
            .tensors
            .iter()
            .filter(|t| t.component == Component::Vision);
        let patch = vision
            .filter(|t| t.name.contains("patch_embed"))
            .map(|t| t.columns)
            .max()?;
        Some(4 * patch)
    }
}

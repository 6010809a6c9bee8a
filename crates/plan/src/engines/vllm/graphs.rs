//! What captured CUDA graphs take: fitted to 31 start-ups of 0.19, where it is printed.
//!
//! A graph is captured for each batch size up to 512, in pieces between attentions and whole for
//! decoding, so it grows with the layers and with what a layer passes on.

use super::super::gib;
use super::super::sharding::Stage;
use super::releases::Rules;
use crate::ModelShape;

/// Whatever the model, GiB.
const FIXED_GIB: f64 = 0.54;
/// A layer, GiB.
const LAYER_GIB: f64 = 0.0064;
/// A layer and value of the residual stream, GiB.
const WIDTH_GIB: f64 = 1.06e-6;
/// Kernels of routed experts, GiB for each expert of a token, up to five.
const EXPERT_GIB: f64 = 0.1;
/// Sequences up to which batches are captured.
const LARGEST_BATCH: u64 = 512;

/// Bytes of the graphs of one stage when up to `sequences` run at once.
pub(super) fn bytes(shape: &ModelShape, stage: &Stage, sequences: u64, rules: &Rules) -> u64 {
    let layers = stage.layers.len() as f64;
    let experts = EXPERT_GIB * shape.experts_per_token.min(5) as f64;
    let whole = FIXED_GIB + experts + layers * (LAYER_GIB + WIDTH_GIB * shape.hidden_size as f64);
    let share = sequences.min(LARGEST_BATCH) as f64 / LARGEST_BATCH as f64;
    gib(whole * share * rules.graph_share)
}

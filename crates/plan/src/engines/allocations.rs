//! Weights as a caching allocator holds them: which tensors an engine fuses, and what an
//! allocation of their size really takes.
//!
//! PyTorch's allocator asks the driver for segments of whole 2 MiB when a tensor has 10 MiB or
//! more, and splits what is left over off only when that is more than 1 MiB; smaller rests stay
//! with the tensor and are counted as allocated. With a few hundred large matrices that is 0.1 to
//! 1.5 % of a model: Qwen2.5-7B's 14.19 GiB print as 14.25.

use std::collections::BTreeMap;

use super::sharding::{Stage, on_stage, slice, tied};
use crate::weights::stored_bytes;
use crate::{Component, Deployment, ModelShape, TensorGroup};

const MIB: u64 = 1 << 20;
/// Tensors from here on get segments of their own.
const OWN_SEGMENT: u64 = 10 * MIB;
/// What such segments are a multiple of.
const SEGMENT: u64 = 2 * MIB;
/// A rest up to here is not split off.
const SMALLEST_REST: u64 = MIB;
/// What small tensors are a multiple of.
const GRAIN: u64 = 512;

/// Projections that engines keep as one matrix, by the last part of their names, and a name for it.
const FUSED: [(&str, &str); 8] = [
    ("q_proj", "qkv"),
    ("k_proj", "qkv"),
    ("v_proj", "qkv"),
    ("q_a_proj", "qkv_a"),
    ("kv_a_proj_with_mqa", "qkv_a"),
    ("gate_proj", "gate_up"),
    ("up_proj", "gate_up"),
    ("gate_up_proj", "gate_up"),
];

/// How an engine counts what it loaded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Counting {
    /// Bytes that the allocator gave out (vLLM).
    Allocated,
    /// Bytes that the allocator took from the driver (SGLang, which reads what is free).
    Reserved,
}

/// Bytes of a stage's weights on one rank, by component; `pad` may widen a slice to what a kernel
/// wants. Experts of a layer are one tensor.
pub(crate) fn weights(
    shape: &ModelShape,
    deployment: &Deployment,
    stage: &Stage,
    counting: Counting,
    pad: &dyn Fn(&mut TensorGroup),
) -> Vec<(Component, u64)> {
    let tied = tied(shape);
    let mut tensors: BTreeMap<(Component, Option<u32>, &str, bool), u64> = BTreeMap::new();
    let mut add = |key, bytes: u64| {
        let sum = tensors.entry(key).or_insert(0u64);
        *sum = sum.saturating_add(bytes);
    };
    for (group, storage) in shape
        .tensors
        .iter()
        .zip(shape.storages(&deployment.weights))
    {
        let Some(storage) = storage.filter(|_| on_stage(group, stage, tied)) else {
            continue;
        };
        let mut part = slice(group, &deployment.parallel);
        part.storage = storage;
        pad(&mut part);
        let stored = stored_bytes(&part, storage);
        let name = match group.rows {
            1 => group.name.as_str(),
            _ => fused(&group.name),
        };
        add((group.component, group.layer, name, false), stored.values);
        add((group.component, group.layer, name, true), stored.scales);
    }
    let mut sums: BTreeMap<Component, u64> = BTreeMap::new();
    for ((component, ..), bytes) in tensors {
        *sums.entry(component).or_insert(0) += held(bytes, counting);
    }
    sums.into_iter().filter(|(_, bytes)| *bytes > 0).collect()
}

/// The matrix that a projection is part of.
fn fused(name: &str) -> &str {
    let last = name.rsplit('.').next().unwrap_or(name);
    let found = FUSED.iter().find(|(part, _)| *part == last);
    found.map_or(name, |(_, whole)| whole)
}

/// What a tensor of `bytes` takes.
pub(crate) fn held(bytes: u64, counting: Counting) -> u64 {
    if bytes < OWN_SEGMENT {
        return bytes.next_multiple_of(GRAIN);
    }
    let segment = bytes.next_multiple_of(SEGMENT);
    match counting {
        Counting::Reserved => segment,
        Counting::Allocated if segment - bytes <= SMALLEST_REST => segment,
        Counting::Allocated => bytes.next_multiple_of(GRAIN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_rests_stay_with_large_tensors() {
        let allocated = |bytes| held(bytes, Counting::Allocated);
        assert_eq!(allocated(100), 512);
        assert_eq!(allocated(9 * MIB + 100), 9 * MIB + 512);
        assert_eq!(allocated(31 * MIB + MIB / 2), 32 * MIB);
        assert_eq!(allocated(259 * MIB), 260 * MIB);
        assert_eq!(allocated(24 * MIB + MIB / 2), 24 * MIB + MIB / 2);
        assert_eq!(held(24 * MIB + MIB / 2, Counting::Reserved), 26 * MIB);
    }

    #[test]
    fn projections_of_one_input_are_one_tensor() {
        assert_eq!(fused("q_proj"), fused("self_attn.v_proj"));
        assert_eq!(fused("mlp.gate_proj"), fused("mlp.up_proj"));
        assert_ne!(fused("mlp.down_proj"), fused("mlp.up_proj"));
        assert_ne!(fused("self_attn.q_b_proj"), fused("self_attn.q_a_proj"));
    }
}

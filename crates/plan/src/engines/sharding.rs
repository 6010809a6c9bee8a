//! Which tensors are on which rank, and how many bytes of each.
//!
//! Ranks of one pipeline stage are alike, so a stage is what is counted. Engines differ only in
//! how they pad what they load: that comes in as a function of the slice.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::{Component, Deployment, ModelShape, Parallel, Split, TensorGroup};

/// Rows of a vocabulary matrix are padded to a multiple of this before it is divided.
const VOCAB_PAD: u64 = 64;

/// Layers that one pipeline stage runs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stage {
    /// From 0.
    pub index: u32,
    /// Layer indexes.
    pub layers: Range<u32>,
    /// Holds the embedding.
    pub first: bool,
    /// Holds the final norm and the head.
    pub last: bool,
}

/// Divides `layers` over `pp` stages: what does not divide goes to the stages before the last, one
/// each, since the last one has the head (vLLM's `get_pp_indices`).
pub(crate) fn stages(layers: u32, pp: u32) -> Vec<Stage> {
    let pp = pp.max(1);
    let (each, left) = (layers / pp, layers % pp);
    let mut start = 0;
    (0..pp)
        .map(|index| {
            let from_last = pp - index;
            let extra = u32::from(from_last >= 2 && from_last < left + 2);
            let end = start + each + extra;
            let stage = Stage {
                index,
                layers: start..end,
                first: index == 0,
                last: index + 1 == pp,
            };
            start = end;
            stage
        })
        .collect()
}

/// Over how many ranks routed experts are divided.
pub(crate) fn expert_ranks(parallel: &Parallel) -> u64 {
    u64::from(parallel.tp) * u64::from(parallel.dp)
}

/// The part of `group` that one tensor-parallel rank holds.
pub(crate) fn slice(group: &TensorGroup, parallel: &Parallel) -> TensorGroup {
    let mut part = group.clone();
    let mut ranks = u64::from(parallel.tp);
    if group.component == Component::RoutedExperts {
        ranks = expert_ranks(parallel);
        if parallel.expert {
            part.count = group.count.div_ceil(ranks);
            return part;
        }
    }
    // A vector is one row: what matrices divide by rows, it divides by columns.
    let side = |part: &mut TensorGroup, divide: &dyn Fn(u64) -> u64| {
        if group.rows == 1 {
            part.columns = divide(group.columns);
        } else {
            part.rows = divide(group.rows);
        }
    };
    match group.split {
        Split::Replicated => {}
        Split::Rows => side(&mut part, &|n| n.div_ceil(ranks)),
        Split::Columns => part.columns = group.columns.div_ceil(ranks),
        Split::KvHeads(heads) => {
            let heads = u64::from(heads).max(1);
            let own = heads.div_ceil(ranks).max(1);
            side(&mut part, &|n| n / heads * own);
        }
        Split::Vocab => {
            let pad = if ranks > 1 { VOCAB_PAD } else { 1 };
            side(&mut part, &|n| n.next_multiple_of(pad).div_ceil(ranks));
        }
    }
    part
}

/// Bytes of a stage's weights on one rank, by component, as the engine loads them: `pad` may widen
/// a slice to what a kernel wants. Prediction layers are not loaded.
pub(crate) fn weights(
    shape: &ModelShape,
    deployment: &Deployment,
    stage: &Stage,
    pad: &dyn Fn(&mut TensorGroup),
) -> Vec<(Component, u64)> {
    let tied = tied(shape);
    let mut sums: BTreeMap<Component, u64> = BTreeMap::new();
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
        let sum = sums.entry(part.component).or_insert(0);
        *sum = sum.saturating_add(part.bytes());
    }
    sums.into_iter().filter(|(_, bytes)| *bytes > 0).collect()
}

/// Whether the head is the embedding.
pub(super) fn tied(shape: &ModelShape) -> bool {
    let head = |t: &TensorGroup| t.component == Component::Head && t.rows > 1;
    !shape.tensors.iter().any(head)
}

/// Whether a stage holds a tensor. A tied head is the embedding, so the last stage holds that too.
pub(super) fn on_stage(group: &TensorGroup, stage: &Stage, tied: bool) -> bool {
    match (group.component, group.layer) {
        (Component::Mtp, _) => false,
        (_, Some(layer)) => stage.layers.contains(&layer),
        (Component::Embedding, None) => stage.first || (stage.last && tied),
        (Component::Vision, None) => stage.first,
        (_, None) => stage.last,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Role, Storage};

    fn matrix(rows: u64, columns: u64, split: Split) -> TensorGroup {
        TensorGroup {
            component: Component::Attention,
            name: "m".to_owned(),
            layer: Some(0),
            count: 1,
            active: 1,
            rows,
            columns,
            storage: Storage::Bf16,
            role: Role::Linear,
            split,
        }
    }

    fn over(tp: u32) -> Parallel {
        Parallel {
            tp,
            pp: 1,
            dp: 1,
            dcp: 1,
            expert: false,
        }
    }

    #[test]
    fn what_does_not_divide_goes_before_the_last_stage() {
        let sizes = |layers, pp| -> Vec<usize> {
            stages(layers, pp)
                .iter()
                .map(|stage| stage.layers.len())
                .collect()
        };
        assert_eq!(sizes(32, 2), [16, 16]);
        assert_eq!(sizes(61, 4), [15, 15, 16, 15]);
        assert_eq!(sizes(62, 4), [15, 16, 16, 15]);
        assert_eq!(sizes(3, 5).iter().sum::<usize>(), 3);
        assert_eq!(sizes(61, 1), [61]);
    }

    #[test]
    fn kv_heads_are_replicated_when_ranks_outnumber_them() {
        let group = matrix(4 * 128, 64, Split::KvHeads(4));
        assert_eq!(slice(&group, &over(2)).rows, 256);
        assert_eq!(slice(&group, &over(4)).rows, 128);
        assert_eq!(slice(&group, &over(16)).rows, 128);
    }

    #[test]
    fn vectors_divide_by_columns_and_vocabularies_are_padded() {
        assert_eq!(slice(&matrix(1, 96, Split::Rows), &over(4)).columns, 24);
        assert_eq!(
            slice(&matrix(49_155, 8, Split::Vocab), &over(2)).rows,
            24_608
        );
        assert_eq!(slice(&matrix(96, 10, Split::Replicated), &over(4)).rows, 96);
        assert_eq!(slice(&matrix(96, 10, Split::Columns), &over(4)).columns, 3);
    }
}

//! What vLLM adds to a checkpoint's weights while loading: tables of rotations, and copies of the
//! matrices that latent attention absorbs.

use super::super::sharding::{Stage, slice};
use super::releases::Rules;
use crate::weights::stored_bytes;
use crate::{Deployment, LayerCache, ModelShape, TensorGroup, Version};

/// Bytes of a value in the model's own type.
const VALUE: u64 = 2;
/// Families whose releases of this length and more stretch positions linearly, by this factor:
/// the table is as much longer, and layers with a window have one of their own.
const STRETCHED: [(&str, u64, u64); 1] = [("gemma3", 131_072, 8)];

/// Bytes of the cosines and sines of every position: one table for the layers that share it.
pub(super) fn rotations(shape: &ModelShape) -> u64 {
    let rotated = shape.caches.iter().map(|cache| match *cache {
        LayerCache::Full { key, .. } | LayerCache::Sliding { key, .. } => u64::from(key),
        LayerCache::Latent { rope, .. } | LayerCache::IndexedLatent { rope, .. } => u64::from(rope),
        LayerCache::State { .. } | LayerCache::None => 0,
    });
    let positions = shape.max_position_embeddings;
    let table = positions * rotated.max().unwrap_or(0) * VALUE;
    let stretched = STRETCHED
        .iter()
        .find(|(family, from, _)| shape.model_type.starts_with(family) && positions >= *from);
    match stretched {
        Some((_, _, factor)) => table * factor + table,
        None => table,
    }
}

/// Bytes of what latent attention multiplies out in advance on one rank: from 0.8 the two halves
/// of `kv_b_proj` in the model's own type; in 0.7 the products with query and output projections
/// too, as the checkpoint stores those.
pub(super) fn absorbed(
    shape: &ModelShape,
    deployment: &Deployment,
    stage: &Stage,
    rules: &Rules,
) -> u64 {
    let of = |layer: u32, names: &[&str]| {
        let own = |t: &&TensorGroup| {
            t.layer == Some(layer)
                && t.rows > 1
                && names.contains(&t.name.rsplit('.').next().unwrap_or_default())
        };
        shape.tensors.iter().find(own)
    };
    let heads = shape.num_attention_heads.max(1);
    stage
        .layers
        .clone()
        .filter_map(|layer| {
            let kv_b = of(layer, &["kv_b_proj"])?;
            let own = slice(kv_b, &deployment.parallel);
            let halves = own.rows * own.columns * VALUE;
            if !rules.v0 || rules.version < Version(0, 7, 0) {
                return Some(halves);
            }
            let query = of(layer, &["q_b_proj", "q_proj"])?;
            let output = of(layer, &["o_proj"])?;
            let head_rows = kv_b.columns * heads / u64::from(deployment.parallel.tp);
            let rotated = match shape.caches.get(layer as usize)? {
                LayerCache::Latent { rope, .. } => u64::from(*rope) * heads,
                _ => 0,
            };
            let mut products = query.clone();
            products.rows = 1;
            products.columns = query.columns
                * (head_rows + rotated / u64::from(deployment.parallel.tp))
                + output.rows * head_rows;
            let storage = shape.storages(&deployment.weights);
            let at = shape.tensors.iter().position(|t| std::ptr::eq(t, query))?;
            let stored = storage.get(at).copied().flatten().unwrap_or(query.storage);
            Some(halves + stored_bytes(&products, stored).values)
        })
        .sum()
}

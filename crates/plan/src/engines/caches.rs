//! What a cached token, or a sequence's state, takes on one rank.

use std::ops::Range;

use crate::{KvDtype, LayerCache, ModelShape, Parallel, Storage};

/// One layer's cache on a rank. All in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RankCache {
    /// Every token.
    Full {
        /// Of a token.
        token: u64,
    },
    /// The last `window` tokens.
    Sliding {
        /// Of a token.
        token: u64,
        /// Tokens kept.
        window: u64,
    },
    /// A state a sequence.
    State {
        /// Of a sequence.
        sequence: u64,
    },
}

/// The engine's own choice of a KV type: the model's, in 2 bytes unless it is in 4.
pub(crate) fn default_dtype(shape: &ModelShape) -> KvDtype {
    match shape.dtype {
        Storage::F32 => KvDtype::F32,
        Storage::F16 => KvDtype::F16,
        _ => KvDtype::Bf16,
    }
}

/// Caches of these layers on one rank: heads are divided over ranks and replicated where ranks
/// outnumber them, a latent is on every rank, a state is divided. Latent rows are rounded up to
/// `latent_align` bytes; a recurrent state has `state_value` bytes a value.
pub(crate) fn on_rank(
    shape: &ModelShape,
    layers: &Range<u32>,
    parallel: &Parallel,
    dtype: KvDtype,
    latent_align: u64,
    state_value: u64,
) -> Vec<RankCache> {
    let tp = parallel.tp.max(1);
    let own = |heads: u32| heads.div_ceil(tp).max(1);
    let range = layers.start as usize..(layers.end as usize).min(shape.caches.len());
    let of_layer = |cache: &LayerCache| match *cache {
        LayerCache::Full { heads, key, value } => Some(RankCache::Full {
            token: LayerCache::Full {
                heads: own(heads),
                key,
                value,
            }
            .token_bytes(dtype),
        }),
        LayerCache::Sliding {
            heads,
            key,
            value,
            window,
        } => Some(RankCache::Sliding {
            token: LayerCache::Full {
                heads: own(heads),
                key,
                value,
            }
            .token_bytes(dtype),
            window: u64::from(window),
        }),
        LayerCache::Latent { .. } => Some(RankCache::Full {
            token: cache
                .token_bytes(dtype)
                .next_multiple_of(latent_align.max(1)),
        }),
        LayerCache::IndexedLatent { .. } => Some(RankCache::Full {
            token: cache.token_bytes(dtype),
        }),
        LayerCache::State { conv, recurrent } => Some(RankCache::State {
            sequence: (2 * conv + state_value * recurrent).div_ceil(u64::from(tp)),
        }),
        LayerCache::None => None,
    };
    shape
        .caches
        .get(range)
        .unwrap_or_default()
        .iter()
        .filter_map(of_layer)
        .collect()
}

//! Bytes of caches: what grows with every token, what a window caps, what a state fixes.

use super::{LayerCache, ModelShape, TensorGroup};
use crate::KvDtype;

/// How `ik_llama.cpp` keeps the cache of a latent model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlaCacheMode {
    /// `-mla 0`: keys and values of every head, as if it were multi-head attention.
    PerHead,
    /// `-mla 1`: the latent with its rotated part, and the latent transposed.
    LatentAndTransposed,
    /// `-mla 2` and `3`, and llama.cpp: the latent with its rotated part.
    Latent,
}

/// What llama.cpp allocates for its contexts, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LlamaCppCache {
    /// Layers that keep every token.
    pub full: u64,
    /// Layers with a window.
    pub sliding: u64,
    /// Recurrent and convolution states, in 32 bits.
    pub recurrent: u64,
}

impl LlamaCppCache {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.full + self.sliding + self.recurrent
    }
}

impl KvDtype {
    /// Bytes of one row of `values`, blocks and scales rounded up.
    pub fn row_bytes(self, values: u64) -> u64 {
        match self {
            KvDtype::F32 => 4 * values,
            KvDtype::F16 | KvDtype::Bf16 => 2 * values,
            KvDtype::Fp8 | KvDtype::Fp8DsMla | KvDtype::Int8 => values,
            KvDtype::Q8_0 => values.div_ceil(32) * 34,
            KvDtype::Q4_0 => values.div_ceil(32) * 18,
            KvDtype::Int4 => values.div_ceil(2) + values.div_ceil(64) * 4,
        }
    }
}

impl LayerCache {
    /// Bytes of one token in this layer while it is kept; 0 for states.
    pub fn token_bytes(&self, dtype: KvDtype) -> u64 {
        match *self {
            LayerCache::Full { heads, key, value }
            | LayerCache::Sliding {
                heads, key, value, ..
            } => {
                let heads = u64::from(heads);
                dtype.row_bytes(heads * u64::from(key)) + dtype.row_bytes(heads * u64::from(value))
            }
            LayerCache::Latent { rank, rope } => latent_bytes(rank, rope, dtype),
            // Indexer keys are FP8 with a 32-bit scale for each 128 values, whatever the cache.
            LayerCache::IndexedLatent { rank, rope, index } => {
                let index = u64::from(index);
                latent_bytes(rank, rope, dtype) + index + index.div_ceil(128) * 4
            }
            LayerCache::State { .. } | LayerCache::None => 0,
        }
    }

    /// How many of `tokens` tokens it keeps.
    pub fn kept(&self, tokens: u64) -> u64 {
        match *self {
            LayerCache::Sliding { window, .. } => tokens.min(u64::from(window)),
            LayerCache::State { .. } | LayerCache::None => 0,
            _ => tokens,
        }
    }

    /// Bytes of a state: the convolution in the cache's type (2 bytes), the recurrent part in 32
    /// bits.
    pub fn state_bytes(&self) -> u64 {
        match *self {
            LayerCache::State { conv, recurrent } => 2 * conv + 4 * recurrent,
            _ => 0,
        }
    }

    /// Whether it keeps every token.
    pub fn is_full(&self) -> bool {
        matches!(
            self,
            LayerCache::Full { .. } | LayerCache::Latent { .. } | LayerCache::IndexedLatent { .. }
        )
    }
}

/// DeepSeek's packed row: FP8 latent, a 32-bit scale for each 128 of it, BF16 rotated part.
fn latent_bytes(rank: u32, rope: u32, dtype: KvDtype) -> u64 {
    let (rank, rope) = (u64::from(rank), u64::from(rope));
    match dtype {
        KvDtype::Fp8DsMla => rank + rank.div_ceil(128) * 4 + 2 * rope,
        _ => dtype.row_bytes(rank + rope),
    }
}

impl ModelShape {
    /// Bytes that one more token takes once every window is full: the layers that keep all.
    pub fn kv_bytes_per_token(&self, dtype: KvDtype) -> u64 {
        self.sum(|c| if c.is_full() { c.token_bytes(dtype) } else { 0 })
    }

    /// Bytes a token while no window is full: what an allocator reserves that gives layers with a
    /// window as many pages as the others.
    pub fn kv_bytes_per_token_unwindowed(&self, dtype: KvDtype) -> u64 {
        self.sum(|c| c.token_bytes(dtype))
    }

    /// Bytes of one sequence of `tokens` tokens: windows capped, states counted.
    pub fn kv_bytes(&self, tokens: u64, dtype: KvDtype) -> u64 {
        self.sum(|c| {
            let kept = c.kept(tokens).saturating_mul(c.token_bytes(dtype));
            kept.saturating_add(c.state_bytes())
        })
    }

    /// Bytes of one sequence where layers with a window keep all tokens too.
    pub fn kv_bytes_unwindowed(&self, tokens: u64, dtype: KvDtype) -> u64 {
        self.sum(|c| {
            let kept = tokens.saturating_mul(c.token_bytes(dtype));
            kept.saturating_add(c.state_bytes())
        })
    }

    /// Bytes of the states of one sequence.
    pub fn state_bytes(&self) -> u64 {
        self.sum(LayerCache::state_bytes)
    }

    /// Bytes a token where each row of the latent is padded to a multiple of `align` values (vLLM
    /// 0.7's `VLLM_MLA_CUDA_MEM_ALIGN_KV_CACHE` aligned to 256 bytes, 128 values of BF16).
    pub fn kv_bytes_per_token_aligned(&self, dtype: KvDtype, align: u64) -> u64 {
        self.sum(|c| match *c {
            LayerCache::Latent { rank, rope } | LayerCache::IndexedLatent { rank, rope, .. } => {
                let values = u64::from(rank) + u64::from(rope);
                dtype.row_bytes(values.next_multiple_of(align.max(1)))
            }
            _ => c.token_bytes(dtype),
        })
    }

    /// Bytes a token of a latent model in one of `ik_llama.cpp`'s modes; other models' caches do
    /// not depend on it.
    pub fn mla_bytes_per_token(&self, mode: MlaCacheMode, dtype: KvDtype) -> u64 {
        let width = |names: &[&str], size: fn(&TensorGroup) -> u64| {
            let found = self
                .tensors
                .iter()
                .find(|t| names.contains(&t.name.as_str()));
            found.map_or(0, size)
        };
        let keys = width(&["q_b_proj", "q_proj"], |t| t.rows);
        let values = width(&["o_proj"], |t| t.columns);
        self.sum(|c| match (*c, mode) {
            (LayerCache::Latent { .. }, MlaCacheMode::PerHead) => {
                dtype.row_bytes(keys) + dtype.row_bytes(values)
            }
            (LayerCache::Latent { rank, rope }, MlaCacheMode::LatentAndTransposed) => {
                latent_bytes(rank, rope, dtype) + dtype.row_bytes(u64::from(rank))
            }
            _ => c.token_bytes(dtype),
        })
    }

    /// What llama.cpp allocates for `sequences` contexts of `context` cells each, keys and values
    /// in their own types; layers with a window get `window_cells` cells a sequence where given,
    /// else window and batch (512) rounded up to 256.
    pub fn llama_cpp_cache(
        &self,
        context: u64,
        sequences: u64,
        window_cells: Option<u64>,
        (key_type, value_type): (KvDtype, KvDtype),
    ) -> LlamaCppCache {
        let mut cache = LlamaCppCache {
            full: 0,
            sliding: 0,
            recurrent: 0,
        };
        let rows = |heads: u32, key: u32, value: u32| {
            let heads = u64::from(heads);
            key_type.row_bytes(heads * u64::from(key))
                + value_type.row_bytes(heads * u64::from(value))
        };
        let add = |sum: &mut u64, cells: u64, row: u64| {
            *sum = sum.saturating_add(cells.saturating_mul(row));
        };
        for layer in &self.caches {
            match *layer {
                LayerCache::Full { heads, key, value } => {
                    let cells = context.saturating_mul(sequences);
                    add(&mut cache.full, cells, rows(heads, key, value));
                }
                LayerCache::Sliding {
                    heads,
                    key,
                    value,
                    window,
                } => {
                    let own = (u64::from(window) + 512).next_multiple_of(256);
                    let cells = window_cells.unwrap_or(own).min(context);
                    let cells = cells.saturating_mul(sequences);
                    add(&mut cache.sliding, cells, rows(heads, key, value));
                }
                LayerCache::Latent { rank, rope }
                | LayerCache::IndexedLatent { rank, rope, .. } => {
                    let row = key_type.row_bytes(u64::from(rank) + u64::from(rope));
                    add(&mut cache.full, context.saturating_mul(sequences), row);
                }
                LayerCache::State { conv, recurrent } => {
                    add(&mut cache.recurrent, sequences, 4 * (conv + recurrent));
                }
                LayerCache::None => {}
            }
        }
        cache
    }

    fn sum(&self, bytes: impl Fn(&LayerCache) -> u64) -> u64 {
        self.caches
            .iter()
            .fold(0, |sum: u64, cache| sum.saturating_add(bytes(cache)))
    }
}

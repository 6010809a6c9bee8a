//! The paged KV cache: blocks, and within each the layers and heads.
//!
//! ```text
//! cache  [num_blocks]
//! block  [num_layers][num_kv_heads]
//! head   keys [key_dim][block_size], then values [block_size][value_dim]
//! ```
//!
//! Keys lie side by side, a vector being sixteen positions of one dimension, so that scores need no
//! sums across lanes. They are `[block_size][key_dim]` where values are the front of keys (latent
//! attention), and where a block is no multiple of sixteen positions.
//!
//! Widths are padded with zeros to whole vectors (16 values), which the usual 64, 80, 96, 112, 128
//! and 576 already are. A block lies in one piece over all layers, so that copying it is one move.

use scrimp_backend::BackendError;
use scrimp_model::KvLayout;

use crate::kernels::attention::{KvHead, padded};
use crate::memory::Aligned;
use crate::simd::LANES;

/// Bytes from which a cache asks for huge pages: 32 of them. Plans of memory go by the same number.
const LARGE: usize = 64 << 20;

/// A paged KV cache.
#[derive(Debug)]
pub struct CpuKvCache {
    pub(crate) layout: KvLayout,
    pub(crate) num_blocks: usize,
    pub(crate) bytes: Aligned<u8>,
}

/// Values a position takes in one layer and head: key and value, padded.
fn head_widths(layout: &KvLayout) -> (usize, usize) {
    let value = if layout.value_in_key {
        0
    } else {
        padded(layout.value_dim)
    };
    (padded(layout.key_dim), value)
}

/// From a key to the next in a block, and from a dimension of it to the next.
fn key_steps(layout: &KvLayout) -> (usize, usize) {
    match layout.value_in_key || !layout.block_size.is_multiple_of(LANES) {
        true => (padded(layout.key_dim), 1),
        false => (1, layout.block_size),
    }
}

/// Values in a block.
fn block_len(layout: &KvLayout) -> usize {
    let (key, value) = head_widths(layout);
    layout.num_layers * layout.num_kv_heads * layout.block_size * (key + value)
}

/// Bytes of a cache.
pub(crate) fn cache_bytes(layout: &KvLayout, num_blocks: usize) -> usize {
    num_blocks * block_len(layout) * layout.dtype.block_bytes()
}

impl CpuKvCache {
    pub(crate) fn new(layout: &KvLayout, num_blocks: usize) -> Result<CpuKvCache, BackendError> {
        let mut bytes = Aligned::zeroed(cache_bytes(layout, num_blocks), "KV cache")?;
        // A head's part of a block is a page or so: each would take a look-up of its own.
        // A small cache is small for a reason: pages that come whole would be much of it.
        if cache_bytes(layout, num_blocks) >= LARGE {
            bytes.advise_huge();
        }
        Ok(CpuKvCache {
            layout: *layout,
            num_blocks,
            bytes,
        })
    }

    /// Where a layer's KV head lies.
    pub(crate) fn head(&self, layer: usize, head: usize) -> KvHead {
        let layout = &self.layout;
        assert!(layer < layout.num_layers && head < layout.num_kv_heads);
        let (key, value) = head_widths(layout);
        let first = (layer * layout.num_kv_heads + head) * layout.block_size * (key + value);
        let size = layout.dtype.block_bytes();
        let keys = self.bytes.as_slice().as_ptr().wrapping_add(first * size);
        let (key_step, dim_step) = key_steps(layout);
        let (values, value_step) = if layout.value_in_key {
            (keys, key)
        } else {
            (keys.wrapping_add(layout.block_size * key * size), value)
        };
        KvHead {
            keys,
            values,
            block_stride: block_len(layout),
            key_step,
            dim_step,
            value_step,
            block_size: layout.block_size,
        }
    }

    /// What slots are found with, apart from the bytes.
    pub(crate) fn slots(&self) -> Slots {
        Slots {
            layout: self.layout,
            num_blocks: self.num_blocks,
        }
    }

    /// Copies whole blocks, one after another.
    pub(crate) fn copy_blocks(&mut self, copies: &[(u32, u32)]) {
        let len = block_len(&self.layout) * self.layout.dtype.block_bytes();
        for &(source, destination) in copies {
            let (from, to) = (source as usize * len, destination as usize * len);
            self.bytes.as_mut_slice().copy_within(from..from + len, to);
        }
    }
}

/// Finds slots in a cache.
#[derive(Clone, Copy)]
pub(crate) struct Slots {
    layout: KvLayout,
    num_blocks: usize,
}

impl Slots {
    /// Values from a dimension of a key to the next.
    pub(crate) fn dim_step(&self) -> usize {
        key_steps(&self.layout).1
    }

    /// Byte offsets of a slot's key and value in a layer and head.
    pub(crate) fn find(&self, layer: usize, head: usize, slot: usize) -> (usize, usize) {
        let layout = &self.layout;
        assert!(layer < layout.num_layers && head < layout.num_kv_heads);
        assert!(
            slot < self.num_blocks * layout.block_size,
            "slot {slot} of {} blocks of {}",
            self.num_blocks,
            layout.block_size
        );
        let (block, within) = (slot / layout.block_size, slot % layout.block_size);
        let (key, value) = head_widths(layout);
        let first = (layer * layout.num_kv_heads + head) * layout.block_size * (key + value);
        let start = block * block_len(layout) + first;
        let size = layout.dtype.block_bytes();
        (
            (start + within * key_steps(layout).0) * size,
            (start + layout.block_size * key + within * value) * size,
        )
    }
}

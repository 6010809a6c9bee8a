//! Attention of a few query vectors that share a KV head, through a block table.
//!
//! ```text
//! for segments of 512 positions                         merged in order
//!   m, l, acc = -inf, 0, 0                               per query
//!   for chunks of 32 positions
//!     score[q][t] = q · key[t], -inf past the query's own position
//!     m' = max(m, score); p = exp(score - m'); c = exp(m - m')
//!     l = l·c + Σ p;  acc = acc·c + Σ_t p[t] · value[t]
//! ```
//!
//! Segments and chunks begin at multiples of positions, whatever the blocks, the batch and the
//! other queries are; a query past its own position adds zeros. So a query's bits depend on its
//! own context alone, and one segment may be computed apart from the next and merged later.
//!
//! Scores of grouped-query attention have a lane for each position, so that no sum crosses lanes:
//! the cache keeps the keys of sixteen positions side by side, dimension by dimension. Where a
//! block is no multiple of sixteen they are turned a chunk at a time, into the same sums.
//!
//! In latent attention the value is the front of the key, which so lies along its dimensions: lanes
//! are dimensions, and sums over lanes follow one tree.

#![allow(clippy::needless_range_loop)] // tiles index several arrays at once

mod chunk;
mod state;
mod tile;

use std::marker::PhantomData;

use self::chunk::{Chunk, ask_ahead};
use self::state::{clear, merge, write};
use self::tile::tiles;
use crate::kernels::element::Element;
use crate::kernels::load_up_to;
use crate::simd::{Kernel, LANES, Simd};

pub(crate) use self::state::{Merge, MergeArgs};

/// Positions whose partial result is merged as one.
pub(crate) const SEGMENT: usize = 512;
/// Positions that share a rescaling.
pub(crate) const CHUNK: usize = 32;
/// Queries up to which keys and values are read as they are; for more a copy in f32 pays.
const FEW: usize = 4;
/// Chunks between the one at work and the one that is asked for.
const AHEAD: usize = 2;
/// Query vectors that a call may have.
pub(crate) const MAX_QUERIES: usize = 32;

/// Where the keys and values of one layer and KV head lie, in elements.
#[derive(Clone, Copy)]
pub(crate) struct KvHead {
    /// Key of slot 0.
    pub(crate) keys: *const u8,
    /// Value of slot 0.
    pub(crate) values: *const u8,
    /// From a block to the next.
    pub(crate) block_stride: usize,
    /// From a key to the next within a block: 1 where sixteen lie side by side.
    pub(crate) key_step: usize,
    /// From a dimension of a key to the next: 1 unless keys lie side by side.
    pub(crate) dim_step: usize,
    /// From a value to the next.
    pub(crate) value_step: usize,
    /// Positions in a block.
    pub(crate) block_size: usize,
}

impl KvHead {
    /// Whether values are the front of keys.
    fn inside(&self) -> bool {
        std::ptr::eq(self.keys, self.values)
    }
}

/// Query vectors of one sequence that share a KV head.
pub(crate) struct Attention {
    pub(crate) kv: KvHead,
    /// The sequence's blocks.
    pub(crate) blocks: *const u32,
    /// Query vector of the first row's first head.
    pub(crate) q: *const f32,
    /// Values from a row of queries to the next.
    pub(crate) q_stride: usize,
    /// Rows, and heads of each: at most [`MAX_QUERIES`] vectors.
    pub(crate) rows: usize,
    pub(crate) heads: usize,
    /// Position of the first row.
    pub(crate) position: usize,
    pub(crate) key_dim: usize,
    pub(crate) value_dim: usize,
    pub(crate) scale: f32,
    /// Positions to look at: from a multiple of [`SEGMENT`] on.
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// Where results go: `[row][head][value_dim]`, or states when `partial`.
    pub(crate) out: *mut f32,
    /// Values from a row (when `partial`: a head) of `out` to the next.
    pub(crate) out_stride: usize,
    /// Whether `out` takes unmerged states of one segment.
    pub(crate) partial: bool,
    /// What the same thread looks at afterwards: its first chunk is asked for during the last.
    pub(crate) next: Option<Upcoming>,
    /// [`scratch_len`] values.
    pub(crate) scratch: *mut f32,
}

/// Positions that a later call looks at.
#[derive(Clone, Copy)]
pub(crate) struct Upcoming {
    pub(crate) kv: KvHead,
    pub(crate) blocks: *const u32,
    pub(crate) key_dim: usize,
    pub(crate) from: usize,
    pub(crate) to: usize,
}

impl Attention {
    /// What a call before this one is to ask for.
    pub(crate) fn upcoming(&self) -> Upcoming {
        Upcoming {
            kv: self.kv,
            blocks: self.blocks,
            key_dim: self.key_dim,
            from: self.from,
            to: self.to,
        }
    }
}

/// Values of scratch for heads of these widths.
pub(crate) const fn scratch_len(key_dim: usize, value_dim: usize) -> usize {
    let (key, value) = (padded(key_dim), padded(value_dim));
    MAX_QUERIES * (key + 2 * (value + STATE)) + CHUNK * (key + value)
}

/// Values of a state ahead of its `acc`: `m`, `l`, and padding.
pub(crate) const STATE: usize = LANES;

/// `n` rounded up to whole lanes.
pub(crate) const fn padded(n: usize) -> usize {
    n.next_multiple_of(LANES)
}

/// Attention over a cache of one type.
pub(crate) struct Attend<E>(PhantomData<E>);

impl<E: Element> Kernel for Attend<E> {
    type Args = Attention;

    #[inline(always)]
    unsafe fn run<S: Simd>(s: S, a: &Attention) {
        let (key, state) = (padded(a.key_dim), padded(a.value_dim) + STATE);
        let n = a.rows * a.heads;
        // SAFETY: scratch is laid out as `scratch_len` says; queries and outputs as in `a`.
        unsafe {
            let q = a.scratch;
            let total = q.add(MAX_QUERIES * key);
            let part = total.add(MAX_QUERIES * state);
            let chunk = part.add(MAX_QUERIES * state);
            for i in 0..n {
                let from = a.q.add(i / a.heads * a.q_stride + i % a.heads * a.key_dim);
                for d in (0..a.key_dim).step_by(LANES) {
                    let v = load_up_to(s, from.add(d), a.key_dim - d);
                    s.store(q.add(i * key + d), s.mul(v, s.splat(a.scale)));
                }
                clear(s, total.add(i * state), state);
            }
            let mut from = a.from;
            while from < a.to {
                let to = (from + SEGMENT).min(a.to);
                for i in 0..n {
                    clear(s, part.add(i * state), state);
                }
                segment::<S, E>(s, a, from, to, q, part, chunk);
                for i in 0..n {
                    merge(s, total.add(i * state), part.add(i * state), state - STATE);
                }
                from = to;
            }
            for i in 0..n {
                let state_of = total.add(i * state);
                if a.partial {
                    let out = a.out.add(i * a.out_stride);
                    std::ptr::copy_nonoverlapping(part.add(i * state), out, state);
                } else {
                    let out = a
                        .out
                        .add(i / a.heads * a.out_stride + i % a.heads * a.value_dim);
                    write(s, state_of, out, a.value_dim);
                }
            }
        }
    }
}

/// All queries over one segment.
///
/// # Safety
/// As the kernel's operands say.
#[inline(always)]
unsafe fn segment<S: Simd, E: Element>(
    s: S,
    a: &Attention,
    from: usize,
    to: usize,
    q: *const f32,
    states: *mut f32,
    scratch: *mut f32,
) {
    let as_they_are = E::IS_F32 || a.rows * a.heads <= FEW;
    for start in (from..to).step_by(CHUNK) {
        let count = (to - start).min(CHUNK);
        // SAFETY: positions below `to` are in the cache, and so in the block table.
        unsafe {
            ask_ahead::<S, E>(s, a, start + AHEAD * CHUNK);
            let here = Chunk::<E>::locate(a, start, count);
            if a.kv.inside() {
                if as_they_are {
                    tiles::<S, E, false>(s, a, start, count, &here, q, states);
                } else {
                    let wide = here.widened(s, a, count, scratch);
                    tiles::<S, f32, false>(s, a, start, count, &wide, q, states);
                }
            } else if as_they_are && a.kv.dim_step > 1 {
                tiles::<S, E, true>(s, a, start, count, &here, q, states);
            } else {
                let wide = here.widened_across(s, a, count, scratch);
                tiles::<S, f32, true>(s, a, start, count, &wide, q, states);
            }
        }
    }
}

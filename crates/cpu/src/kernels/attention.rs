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
//! Dot products run along the head: lanes are dimensions, and sums over lanes follow one tree.
//! Grouped-query and latent attention differ in numbers only: for the latter the value is the
//! front of the key.

#![allow(clippy::needless_range_loop)] // tiles index several arrays at once

use std::marker::PhantomData;

use crate::kernels::element::Element;
use crate::kernels::{load_up_to, store_up_to};
use crate::simd::math::exp;
use crate::simd::{Kernel, LANES, Simd};

/// Positions whose partial result is merged as one.
pub(crate) const SEGMENT: usize = 512;
/// Positions that share a rescaling.
pub(crate) const CHUNK: usize = 32;
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
    /// From a key to the next within a block.
    pub(crate) key_stride: usize,
    /// From a value to the next.
    pub(crate) value_stride: usize,
    /// Positions in a block.
    pub(crate) block_size: usize,
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
    pub(crate) from: usize,
    pub(crate) to: usize,
}

impl Attention {
    /// What a call before this one is to ask for.
    pub(crate) fn upcoming(&self) -> Upcoming {
        Upcoming {
            kv: self.kv,
            blocks: self.blocks,
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

/// Merges one head's partial states, in order, and writes its result.
pub(crate) struct Merge;

/// Operands of [`Merge`].
pub(crate) struct MergeArgs {
    /// States of the head's segments.
    pub(crate) states: *const f32,
    /// Values from a segment's state to the next.
    pub(crate) stride: usize,
    pub(crate) segments: usize,
    pub(crate) value_dim: usize,
    pub(crate) out: *mut f32,
    /// Room for one state.
    pub(crate) scratch: *mut f32,
}

impl Kernel for Merge {
    type Args = MergeArgs;

    #[inline(always)]
    unsafe fn run<S: Simd>(s: S, a: &MergeArgs) {
        let width = padded(a.value_dim);
        // SAFETY: states and scratch are as the operands say.
        unsafe {
            clear(s, a.scratch, width + STATE);
            for i in 0..a.segments {
                merge(s, a.scratch, a.states.add(i * a.stride), width);
            }
            write(s, a.scratch, a.out, a.value_dim);
        }
    }
}

/// An empty state: `m = -inf`, the rest 0.
///
/// # Safety
/// `state` has `len` values.
#[inline(always)]
unsafe fn clear<S: Simd>(s: S, state: *mut f32, len: usize) {
    // SAFETY: by contract.
    unsafe {
        for i in (0..len).step_by(LANES) {
            s.store(state.add(i), s.splat(0.0));
        }
        *state = f32::NEG_INFINITY;
    }
}

/// `exp` of one value, by the same arithmetic as of many.
#[inline(always)]
fn exp_one<S: Simd>(s: S, x: f32) -> f32 {
    s.max_lane(exp(s, s.splat(x)))
}

/// Adds a segment's state to the total of those before it.
///
/// # Safety
/// Both states have `width` values of `acc`.
#[inline(always)]
unsafe fn merge<S: Simd>(s: S, total: *mut f32, part: *const f32, width: usize) {
    // SAFETY: by contract.
    unsafe {
        let (m, part_m) = (*total, *part);
        if part_m == f32::NEG_INFINITY {
            return; // nothing of the segment is visible
        }
        let new = if part_m > m { part_m } else { m };
        let (keep, take) = (exp_one(s, m - new), exp_one(s, part_m - new));
        *total = new;
        *total.add(1) = *total.add(1) * keep + *part.add(1) * take;
        let (keep, take) = (s.splat(keep), s.splat(take));
        for i in (STATE..STATE + width).step_by(LANES) {
            let old = s.mul(s.load(total.add(i)), keep);
            s.store(total.add(i), s.fma(s.load(part.add(i)), take, old));
        }
    }
}

/// `out = acc / l`.
///
/// # Safety
/// The state has `dim` values rounded up, `out` has `dim`.
#[inline(always)]
unsafe fn write<S: Simd>(s: S, state: *const f32, out: *mut f32, dim: usize) {
    // SAFETY: by contract.
    unsafe {
        let l = s.splat(*state.add(1));
        for i in (0..dim).step_by(LANES) {
            let v = s.div(s.load(state.add(STATE + i)), l);
            store_up_to(s, out.add(i), dim - i, v);
        }
    }
}

/// Keys and values of a chunk's positions.
struct Tokens<E> {
    keys: [*const E; CHUNK],
    values: [*const E; CHUNK],
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
    chunk: *mut f32,
) {
    let n = a.rows * a.heads;
    let mut start = from;
    while start < to {
        let count = (to - start).min(CHUNK);
        // SAFETY: positions below `to` are in the cache, and so in the block table.
        unsafe {
            ask_ahead::<S, E>(s, a, start + CHUNK);
            let tokens = locate::<E>(a, start, count);
            if E::IS_F32 || n <= 4 {
                tiles::<S, E>(s, a, start, count, &tokens, q, states);
            } else {
                let tokens = widen(s, a, &tokens, count, chunk);
                tiles::<S, f32>(s, a, start, count, &tokens, q, states);
            }
        }
        start += CHUNK;
    }
}

/// Bytes of a chunk's keys up to which the next chunk is asked into the first cache.
const NEAR: usize = 8 << 10;

/// Asks for the chunk at `start`, or where the call ends there for the next call's first, to come
/// while the one before is at work: blocks lie far apart, and no machine guesses where the next
/// one is.
///
/// # Safety
/// The positions of the call and of the next one are in their block tables.
#[inline(always)]
unsafe fn ask_ahead<S: Simd, E: Element>(s: S, a: &Attention, start: usize) {
    let here = Upcoming {
        from: start,
        ..a.upcoming()
    };
    let next = if start < a.to { Some(here) } else { a.next };
    if let Some(next) = next {
        // SAFETY: by contract.
        unsafe { ask::<S, E>(s, &next) }
    }
}

/// Asks for the first chunk of some positions.
///
/// # Safety
/// They are in the block table.
#[inline(always)]
unsafe fn ask<S: Simd, E: Element>(s: S, at: &Upcoming) {
    let kv = &at.kv;
    let inside = std::ptr::eq(kv.keys, kv.values);
    let near = CHUNK * kv.key_stride * size_of::<E>() <= NEAR;
    let (mut t, end) = (at.from, (at.from + CHUNK).min(at.to));
    while t < end {
        let (entry, within) = (t / kv.block_size, t % kv.block_size);
        let count = (kv.block_size - within).min(end - t);
        // SAFETY: by contract.
        let block = unsafe { *at.blocks.add(entry) } as usize * kv.block_stride;
        let both = [(kv.keys, kv.key_stride), (kv.values, kv.value_stride)];
        for &(first, stride) in &both[..if inside { 1 } else { 2 }] {
            let from = first.cast::<E>().wrapping_add(block + within * stride);
            for line in (0..count * stride * size_of::<E>()).step_by(64) {
                let line = from.cast::<u8>().wrapping_add(line);
                if near {
                    s.prefetch(line);
                } else {
                    s.prefetch_far(line);
                }
            }
        }
        t += count;
    }
}

/// Addresses of a chunk's keys and values; positions past `count` repeat the last.
///
/// # Safety
/// `count >= 1` positions from `start` on are in the block table.
#[inline(always)]
unsafe fn locate<E: Element>(a: &Attention, start: usize, count: usize) -> Tokens<E> {
    let mut tokens = Tokens {
        keys: [std::ptr::null(); CHUNK],
        values: [std::ptr::null(); CHUNK],
    };
    let kv = &a.kv;
    let (mut entry, mut within) = (start / kv.block_size, start % kv.block_size);
    for t in 0..CHUNK {
        // SAFETY: by contract; a block id in the table is one of the cache.
        unsafe {
            let block = *a.blocks.add(entry) as usize * kv.block_stride;
            tokens.keys[t] = kv.keys.cast::<E>().add(block + within * kv.key_stride);
            tokens.values[t] = kv.values.cast::<E>().add(block + within * kv.value_stride);
        }
        if t + 1 < count {
            within += 1;
            if within == kv.block_size {
                (entry, within) = (entry + 1, 0);
            }
        }
    }
    tokens
}

/// Copies a chunk as f32, for several tiles of queries to read.
///
/// # Safety
/// `chunk` has room for 32 keys and values.
#[inline(always)]
unsafe fn widen<S: Simd, E: Element>(
    s: S,
    a: &Attention,
    tokens: &Tokens<E>,
    count: usize,
    chunk: *mut f32,
) -> Tokens<f32> {
    let (key, value) = (padded(a.key_dim), padded(a.value_dim));
    let inside = std::ptr::eq(tokens.keys[0], tokens.values[0]);
    let mut wide = Tokens {
        keys: [std::ptr::null(); CHUNK],
        values: [std::ptr::null(); CHUNK],
    };
    for t in 0..CHUNK {
        // SAFETY: keys and values are padded to whole lanes.
        unsafe {
            let to = chunk.add(t.min(count - 1) * (key + value));
            wide.keys[t] = to;
            wide.values[t] = if inside { to } else { to.add(key) };
            if t < count {
                for d in (0..key).step_by(LANES) {
                    s.store(to.add(d), E::load(s, tokens.keys[t].add(d)));
                }
                for d in (0..value).step_by(LANES) {
                    if !inside {
                        s.store(to.add(key + d), E::load(s, tokens.values[t].add(d)));
                    }
                }
            }
        }
    }
    wide
}

/// All queries over one chunk, a few at a time.
///
/// # Safety
/// As the kernel's operands say.
#[inline(always)]
unsafe fn tiles<S: Simd, E: Element>(
    s: S,
    a: &Attention,
    start: usize,
    count: usize,
    tokens: &Tokens<E>,
    q: *const f32,
    states: *mut f32,
) {
    let n = a.rows * a.heads;
    let mut i = 0;
    while i < n {
        // SAFETY: queries `i ..` are among the `n`.
        i += unsafe {
            match n - i {
                4.. if S::MANY_REGISTERS => {
                    tile::<S, E, 4, 4>(s, a, start, count, tokens, q, states, i)
                }
                3 if S::MANY_REGISTERS => {
                    tile::<S, E, 3, 4>(s, a, start, count, tokens, q, states, i)
                }
                2.. => tile::<S, E, 2, 2>(s, a, start, count, tokens, q, states, i),
                _ => tile::<S, E, 1, 4>(s, a, start, count, tokens, q, states, i),
            }
        };
    }
}

/// `Q` queries from `first` on over one chunk, `T` positions at a time; returns `Q`.
///
/// # Safety
/// As the kernel's operands say.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // one inlined step of a loop nest
unsafe fn tile<S: Simd, E: Element, const Q: usize, const T: usize>(
    s: S,
    a: &Attention,
    start: usize,
    count: usize,
    tokens: &Tokens<E>,
    q: *const f32,
    states: *mut f32,
    first: usize,
) -> usize {
    let (key, state) = (padded(a.key_dim), padded(a.value_dim) + STATE);
    // Positions of the chunk that each query sees.
    let mut visible = [0; Q];
    let mut most = 0;
    for (i, visible) in visible.iter_mut().enumerate() {
        let position = a.position + (first + i) / a.heads;
        *visible = (position + 1).saturating_sub(start).min(count);
        most = most.max(*visible);
    }
    if most == 0 {
        return Q;
    }
    let mut p = [[f32::NEG_INFINITY; CHUNK]; Q];
    // SAFETY: queries `first .. first + Q` exist; chunk positions are addressed by `tokens`.
    unsafe {
        let q = q.add(first * key);
        for t in (0..most).step_by(T) {
            scores::<S, E, Q, T>(s, q, key, tokens, t, &mut p);
        }
        let mut keep = [s.splat(1.0); Q];
        for i in 0..Q {
            let state = states.add((first + i) * state);
            keep[i] = s.splat(soften(s, &mut p[i], visible[i], state));
        }
        let acc = states.add(first * state + STATE);
        let width = state - STATE;
        let mut d = 0;
        while d < width {
            if d + 4 * LANES <= width && (S::MANY_REGISTERS || Q == 1) {
                weigh::<S, E, Q, 4>(s, &p, &keep, tokens, most, acc.add(d), state, d);
                d += 4 * LANES;
            } else {
                weigh::<S, E, Q, 1>(s, &p, &keep, tokens, most, acc.add(d), state, d);
                d += LANES;
            }
        }
    }
    Q
}

/// Scores of `Q` queries against positions `t .. t + T` of the chunk.
///
/// # Safety
/// `q` holds `Q` queries of `key` values, whole lanes; `t + T <= 32`.
#[inline(always)]
unsafe fn scores<S: Simd, E: Element, const Q: usize, const T: usize>(
    s: S,
    q: *const f32,
    key: usize,
    tokens: &Tokens<E>,
    t: usize,
    out: &mut [[f32; CHUNK]; Q],
) {
    let mut sums = [[s.splat(0.0); T]; Q];
    for d in (0..key).step_by(LANES) {
        let mut k = [s.splat(0.0); T];
        for (j, k) in k.iter_mut().enumerate() {
            // SAFETY: by contract.
            *k = unsafe { E::load(s, tokens.keys[t + j].add(d)) };
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: by contract.
            let q = unsafe { s.load(q.add(i * key + d)) };
            for (sum, &k) in sums.iter_mut().zip(&k) {
                *sum = s.fma(q, k, *sum);
            }
        }
    }
    let mut each = [s.splat(0.0); LANES];
    for i in 0..Q {
        for j in 0..T {
            each[i * T + j] = sums[i][j];
        }
    }
    let mut lanes = [0.0f32; LANES];
    // SAFETY: sixteen lanes.
    unsafe { s.store(lanes.as_mut_ptr(), s.sum_each(each)) }
    for (i, out) in out.iter_mut().enumerate() {
        out[t..t + T].copy_from_slice(&lanes[i * T..(i + 1) * T]);
    }
}

/// Turns a query's scores into weights and updates its `m` and `l`; returns what `acc` is to be
/// multiplied with.
///
/// # Safety
/// `state` has `m` and `l`.
#[inline(always)]
unsafe fn soften<S: Simd>(s: S, scores: &mut [f32; CHUNK], visible: usize, state: *mut f32) -> f32 {
    if visible == 0 {
        scores.fill(0.0);
        return 1.0;
    }
    scores[visible..].fill(f32::NEG_INFINITY);
    let at = scores.as_mut_ptr();
    // SAFETY: two vectors of scores; the state by contract.
    unsafe {
        let (a, b) = (s.load(at), s.load(at.add(LANES)));
        let m = *state;
        let top = s.max_lane(s.max(a, b));
        let new = if top > m { top } else { m };
        let keep = exp_one(s, m - new);
        let (a, b) = (
            exp(s, s.sub(a, s.splat(new))),
            exp(s, s.sub(b, s.splat(new))),
        );
        s.store(at, a);
        s.store(at.add(LANES), b);
        *state = new;
        *state.add(1) = *state.add(1) * keep + s.sum(s.add(a, b));
        keep
    }
}

/// `acc = acc · keep + Σ_t p[t] · value[t]` over `D` vectors of dimensions from `d` on.
///
/// # Safety
/// `acc` is the first query's, `state` values from one query's to the next.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // one inlined step of a loop nest
unsafe fn weigh<S: Simd, E: Element, const Q: usize, const D: usize>(
    s: S,
    p: &[[f32; CHUNK]; Q],
    keep: &[S::F; Q],
    tokens: &Tokens<E>,
    count: usize,
    acc: *mut f32,
    state: usize,
    d: usize,
) {
    let mut sums = [[s.splat(0.0); D]; Q];
    // SAFETY: by contract.
    unsafe {
        for i in 0..Q {
            for j in 0..D {
                sums[i][j] = s.mul(s.load(acc.add(i * state + j * LANES)), keep[i]);
            }
        }
        for t in 0..count {
            let mut v = [s.splat(0.0); D];
            for (j, v) in v.iter_mut().enumerate() {
                *v = E::load(s, tokens.values[t].add(d + j * LANES));
            }
            for i in 0..Q {
                let p = s.splat(p[i][t]);
                for j in 0..D {
                    sums[i][j] = s.fma(p, v[j], sums[i][j]);
                }
            }
        }
        for i in 0..Q {
            for j in 0..D {
                s.store(acc.add(i * state + j * LANES), sums[i][j]);
            }
        }
    }
}

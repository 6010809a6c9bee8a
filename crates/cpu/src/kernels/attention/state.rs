//! A query's running softmax: its greatest score, the sum of its weights, the weighted values.

use super::{CHUNK, STATE, padded};
use crate::kernels::store_up_to;
use crate::simd::math::exp;
use crate::simd::{Kernel, LANES, Simd};

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
pub(super) unsafe fn clear<S: Simd>(s: S, state: *mut f32, len: usize) {
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
pub(super) unsafe fn merge<S: Simd>(s: S, total: *mut f32, part: *const f32, width: usize) {
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
pub(super) unsafe fn write<S: Simd>(s: S, state: *const f32, out: *mut f32, dim: usize) {
    // SAFETY: by contract.
    unsafe {
        let l = s.splat(*state.add(1));
        for i in (0..dim).step_by(LANES) {
            let v = s.div(s.load(state.add(STATE + i)), l);
            store_up_to(s, out.add(i), dim - i, v);
        }
    }
}

/// Turns a query's scores into weights and updates its `m` and `l`; returns what `acc` is to be
/// multiplied with.
///
/// # Safety
/// `state` has `m` and `l`.
#[inline(always)]
pub(super) unsafe fn soften<S: Simd>(
    s: S,
    scores: &mut [f32; CHUNK],
    visible: usize,
    state: *mut f32,
) -> f32 {
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
        // Most chunks have no greater score than those before.
        let keep = if new == m { 1.0 } else { exp_one(s, m - new) };
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

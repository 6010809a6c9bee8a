//! What is computed, once for all levels: every kernel is generic over [`crate::simd::Simd`].
//!
//! Kernels take raw operands (pointers and extents) and do one thread's share of an operation.
//! How an operation is shared out, and what its operands are, is [`crate::ops`]' business.

pub(crate) mod activations;
pub(crate) mod attention;
pub(crate) mod element;
pub(crate) mod elementwise;
pub(crate) mod gemm;
pub(crate) mod gemm_bf16;
pub(crate) mod gemm_float;
pub(crate) mod gemm_group;
pub(crate) mod gemm_int;
pub(crate) mod heads;
pub(crate) mod table;

use crate::simd::{LANES, Simd};

/// The `n < 16` values at `p`, zeros behind them.
///
/// # Safety
/// `p` is readable for `n` values.
#[inline(always)]
pub(crate) unsafe fn load_front<S: Simd>(s: S, p: *const f32, n: usize) -> S::F {
    let mut lanes = [0.0f32; LANES];
    // SAFETY: `n` values are read and fit.
    unsafe {
        std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n.min(LANES));
        s.load(lanes.as_ptr())
    }
}

/// Writes the first `n < 16` lanes.
///
/// # Safety
/// `p` is writable for `n` values.
#[inline(always)]
pub(crate) unsafe fn store_front<S: Simd>(s: S, p: *mut f32, n: usize, v: S::F) {
    let mut lanes = [0.0f32; LANES];
    // SAFETY: `n` values are written and there are that many.
    unsafe {
        s.store(lanes.as_mut_ptr(), v);
        std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n.min(LANES));
    }
}

/// [`load_front`] or a whole load, whichever `left` values allow.
///
/// # Safety
/// `p` is readable for `min(left, 16)` values.
#[inline(always)]
pub(crate) unsafe fn load_up_to<S: Simd>(s: S, p: *const f32, left: usize) -> S::F {
    // SAFETY: by contract.
    unsafe {
        if left >= LANES {
            s.load(p)
        } else {
            load_front(s, p, left)
        }
    }
}

/// [`store_front`] or a whole store, whichever `left` values allow.
///
/// # Safety
/// `p` is writable for `min(left, 16)` values.
#[inline(always)]
pub(crate) unsafe fn store_up_to<S: Simd>(s: S, p: *mut f32, left: usize, v: S::F) {
    // SAFETY: by contract.
    unsafe {
        if left >= LANES {
            s.store(p, v);
        } else {
            store_front(s, p, left, v);
        }
    }
}

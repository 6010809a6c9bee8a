//! Kernels that go over vectors once: norms of segments, rotations, gates, sums, cache writes.

use std::marker::PhantomData;

use scrimp_backend::Segments;

use crate::kernels::activations::inverse_rms;
use crate::kernels::element::Element;
use crate::kernels::{load_up_to, store_up_to};
use crate::simd::math::silu;
use crate::simd::{Kernel, LANES, Simd};

/// RMS norm in place of every segment of some rows.
pub(crate) struct NormSegments;

/// Operands of [`NormSegments`].
pub(crate) struct NormSegmentsArgs {
    pub(crate) x: *mut f32,
    pub(crate) rows: usize,
    pub(crate) segments: Segments,
    pub(crate) weight: *const f32,
    pub(crate) eps: f32,
}

impl Kernel for NormSegments {
    type Args = NormSegmentsArgs;

    #[inline(always)]
    unsafe fn run<S: Simd>(s: S, a: &NormSegmentsArgs) {
        for r in 0..a.rows {
            for i in 0..a.segments.count {
                // SAFETY: segments lie within the rows, the weight has `dim` values.
                unsafe {
                    let x = a.x.add(a.segments.start(r, i));
                    norm_in_place(s, x, a.segments.dim, a.weight, a.eps);
                }
            }
        }
    }
}

/// # Safety
/// `x` and `weight` have `n` values.
#[inline(always)]
unsafe fn norm_in_place<S: Simd>(s: S, x: *mut f32, n: usize, weight: *const f32, eps: f32) {
    // SAFETY: by contract.
    unsafe {
        let inverse = s.splat(inverse_rms(s, x, n, eps));
        for i in (0..n).step_by(LANES) {
            let v = s.mul(load_up_to(s, x.add(i), n - i), inverse);
            let v = s.mul(v, load_up_to(s, weight.add(i), n - i));
            store_up_to(s, x.add(i), n - i, v);
        }
    }
}

/// Rotary embedding in place of every segment of some rows.
pub(crate) struct Rope;

/// Operands of [`Rope`].
pub(crate) struct RopeArgs {
    pub(crate) x: *mut f32,
    pub(crate) rows: usize,
    pub(crate) segments: Segments,
    /// `[rows][dim / 2 cosines, dim / 2 sines]`.
    pub(crate) cos_sin: *const f32,
    pub(crate) interleaved: bool,
}

impl Kernel for Rope {
    type Args = RopeArgs;

    #[inline(always)]
    unsafe fn run<S: Simd>(_s: S, a: &RopeArgs) {
        let half = a.segments.dim / 2;
        for r in 0..a.rows {
            // SAFETY: segments lie within the rows; each row has `dim` cosines and sines.
            unsafe {
                let cos = std::slice::from_raw_parts(a.cos_sin.add(r * 2 * half), half);
                let sin = std::slice::from_raw_parts(a.cos_sin.add((r * 2 + 1) * half), half);
                for i in 0..a.segments.count {
                    let x = a.x.add(a.segments.start(r, i));
                    let x = std::slice::from_raw_parts_mut(x, 2 * half);
                    if a.interleaved {
                        rotate_neighbours(x, cos, sin);
                    } else {
                        rotate_halves(x, cos, sin);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn rotate_halves(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = x.split_at_mut(cos.len());
    for ((a, b), (c, s)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
    }
}

#[inline(always)]
fn rotate_neighbours(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    for (pair, (c, s)) in x.chunks_exact_mut(2).zip(cos.iter().zip(sin)) {
        (pair[0], pair[1]) = (pair[0] * c - pair[1] * s, pair[1] * c + pair[0] * s);
    }
}

/// `out = silu(gate) ⊙ up` over a rectangle.
pub(crate) struct SiluMul;

/// Operands of [`SiluMul`].
pub(crate) struct SiluMulArgs {
    pub(crate) gate: *const f32,
    pub(crate) up: *const f32,
    /// Values from a row of `gate` or `up` to the next.
    pub(crate) stride: usize,
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl Kernel for SiluMul {
    type Args = SiluMulArgs;

    #[inline(always)]
    unsafe fn run<S: Simd>(s: S, a: &SiluMulArgs) {
        for r in 0..a.rows {
            for i in (0..a.cols).step_by(LANES) {
                let left = a.cols - i;
                // SAFETY: all three rectangles have `rows` rows of `cols` values.
                unsafe {
                    let gate = load_up_to(s, a.gate.add(r * a.stride + i), left);
                    let up = load_up_to(s, a.up.add(r * a.stride + i), left);
                    let v = s.mul(silu(s, gate), up);
                    store_up_to(s, a.out.add(r * a.out_stride + i), left, v);
                }
            }
        }
    }
}

/// `out += Σ_k weight_k · x_k` for one row, in the order of `k`.
pub(crate) struct WeightedSum;

/// Operands of [`WeightedSum`].
pub(crate) struct WeightedSumArgs {
    pub(crate) x: *const f32,
    /// Which row of `x` each term is.
    pub(crate) index: *const u32,
    pub(crate) weights: *const f32,
    pub(crate) terms: usize,
    pub(crate) cols: usize,
    pub(crate) out: *mut f32,
}

impl Kernel for WeightedSum {
    type Args = WeightedSumArgs;

    #[inline(always)]
    unsafe fn run<S: Simd>(s: S, a: &WeightedSumArgs) {
        for i in (0..a.cols).step_by(LANES) {
            let left = a.cols - i;
            // SAFETY: `out` and the indexed rows have `cols` values.
            unsafe {
                let mut sum = s.splat(0.0);
                for k in 0..a.terms {
                    let x = a.x.add(*a.index.add(k) as usize * a.cols + i);
                    sum = s.fma(s.splat(*a.weights.add(k)), load_up_to(s, x, left), sum);
                }
                let v = s.add(load_up_to(s, a.out.add(i), left), sum);
                store_up_to(s, a.out.add(i), left, v);
            }
        }
    }
}

/// Values of a cache's type as f32.
pub(crate) struct Load<E>(PhantomData<E>);

/// Operands of [`Load`].
pub(crate) struct LoadArgs {
    /// `dim` values rounded up to whole lanes.
    pub(crate) x: *const u8,
    pub(crate) dim: usize,
    /// As much room.
    pub(crate) out: *mut f32,
}

impl<E: Element> Kernel for Load<E> {
    type Args = LoadArgs;

    #[inline(always)]
    unsafe fn run<S: Simd>(s: S, a: &LoadArgs) {
        for i in (0..a.dim).step_by(LANES) {
            // SAFETY: both have room for whole lanes of `dim` values.
            unsafe { s.store(a.out.add(i), E::load(s, a.x.cast::<E>().add(i))) }
        }
    }
}

/// Vectors into a cache's type: padded with zeros to whole vectors of lanes, or scattered.
pub(crate) struct Store<E>(PhantomData<E>);

/// Operands of [`Store`].
pub(crate) struct StoreArgs {
    pub(crate) x: *const f32,
    pub(crate) dim: usize,
    /// Room for `dim` values, rounded up to whole lanes, `step` apart.
    pub(crate) out: *mut u8,
    pub(crate) step: usize,
}

impl<E: Element> Kernel for Store<E> {
    type Args = StoreArgs;

    #[inline(always)]
    unsafe fn run<S: Simd>(s: S, a: &StoreArgs) {
        let out = a.out.cast::<E>();
        for i in (0..a.dim).step_by(LANES) {
            // SAFETY: `x` has `dim` values, `out` room for whole lanes of them.
            unsafe {
                let v = load_up_to(s, a.x.add(i), a.dim - i);
                if a.step == 1 {
                    E::store(s, out.add(i), v);
                    continue;
                }
                let mut lanes = [E::ZERO; LANES];
                E::store(s, lanes.as_mut_ptr(), v);
                for (lane, &value) in lanes.iter().enumerate() {
                    *out.add((i + lane) * a.step) = value;
                }
            }
        }
    }
}

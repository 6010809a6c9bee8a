//! Transposed products and single rows straight from packed panels.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use crate::formats::{Decode, Panel, Panels};
use crate::kernels::gemm_float::STRETCH;
use crate::kernels::{load_up_to, store_up_to};
use crate::simd::{Kernel, LANES, Simd};

/// A decoded stretch: `[128][16]`.
#[repr(align(64))]
struct Stretch([MaybeUninit<f32>; STRETCH * LANES]);

impl Stretch {
    #[inline(always)]
    fn new() -> Stretch {
        Stretch([MaybeUninit::uninit(); STRETCH * LANES])
    }
}

/// One row of a panel as f32.
pub(crate) struct Row<D>(PhantomData<D>);

/// Operands of [`Row`].
pub(crate) struct RowArgs {
    pub(crate) panel: Panel,
    pub(crate) lane: usize,
    /// Room for the panel's `cols` values.
    pub(crate) out: *mut f32,
}

impl<D: Decode> Kernel for Row<D> {
    type Args = RowArgs;

    #[inline(always)]
    unsafe fn run<S: Simd>(s: S, a: &RowArgs) {
        let mut stretch = Stretch::new();
        let values: *mut f32 = stretch.0.as_mut_ptr().cast();
        let mut from = 0;
        while from < a.panel.cols {
            let to = (from + STRETCH).min(a.panel.cols);
            // SAFETY: a stretch lies within the columns; `lane < 16`.
            unsafe {
                D::decode(s, a.panel, from, to, values);
                for k in from..to {
                    *a.out.add(k) = *values.add((k - from) * LANES + a.lane);
                }
            }
            from = to;
        }
    }
}

/// `out[r, k] = Σ_i W[from + i, k] · x[r, i]` over a stretch of columns, in the order of `i`.
pub(crate) struct Transposed<D>(PhantomData<D>);

/// Operands of [`Transposed`].
pub(crate) struct TransposedArgs {
    pub(crate) weight: Panels,
    /// First weight row.
    pub(crate) from: usize,
    /// Weight rows, and values in a row of `x`.
    pub(crate) count: usize,
    pub(crate) x: *const f32,
    pub(crate) x_stride: usize,
    pub(crate) rows: usize,
    /// Columns to compute; the first is a multiple of 128, and there are at most 128.
    pub(crate) cols: (usize, usize),
    /// Where column `cols.0` of row 0 goes.
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
}

impl<D: Decode> Kernel for Transposed<D> {
    type Args = TransposedArgs;

    #[inline(always)]
    unsafe fn run<S: Simd>(s: S, a: &TransposedArgs) {
        let mut stretch = Stretch::new();
        let mut turned = Stretch::new();
        let (values, by_row) = (stretch.0.as_mut_ptr().cast(), turned.0.as_mut_ptr().cast());
        let cols = a.cols.1 - a.cols.0;
        for p in a.from / LANES..(a.from + a.count).div_ceil(LANES) {
            let first = p * LANES;
            let (start, end) = (a.from.max(first), (a.from + a.count).min(first + LANES));
            // SAFETY: panel `p` holds weight rows of the product; the stretch is within the
            // columns.
            unsafe {
                D::decode(s, a.weight.at(p), a.cols.0, a.cols.1, values);
                turn(s, values, cols, by_row);
                for r in 0..a.rows {
                    let x = a.x.add(r * a.x_stride + start - a.from);
                    let w = by_row.add((start - first) * STRETCH);
                    let out = a.out.add(r * a.out_stride);
                    add_rows(s, w, x, end - start, out, cols, start == a.from);
                }
            }
        }
    }
}

/// `[cols][16]` to `[16][128]`.
///
/// # Safety
/// Both hold 128 columns of sixteen rows.
#[inline(always)]
unsafe fn turn<S: Simd>(s: S, values: *const f32, cols: usize, by_row: *mut f32) {
    for k in (0..cols).step_by(LANES) {
        let mut tile = [s.splat(0.0); LANES];
        // SAFETY: within the 128 columns.
        unsafe {
            for (j, v) in tile.iter_mut().enumerate().take(cols - k) {
                *v = s.load(values.add((k + j) * LANES));
            }
            for (row, v) in s.transpose(tile).into_iter().enumerate() {
                s.store(by_row.add(row * STRETCH + k), v);
            }
        }
    }
}

/// `out = (0 or out) + Σ_i w[i] · x[i]` over `n` rows of 128 values, `cols` of which count.
///
/// # Safety
/// `w` holds `n` rows, `x` `n` values, `out` `cols`.
#[inline(always)]
unsafe fn add_rows<S: Simd>(
    s: S,
    w: *const f32,
    x: *const f32,
    n: usize,
    out: *mut f32,
    cols: usize,
    first: bool,
) {
    const WIDE: usize = 4;
    let mut k = 0;
    // SAFETY: columns stay below `cols`, rows below `n`.
    unsafe {
        while k < cols {
            let count = (cols - k).div_ceil(LANES).min(WIDE);
            let mut sums = [s.splat(0.0); WIDE];
            if !first {
                for (j, sum) in sums.iter_mut().enumerate().take(count) {
                    *sum = load_up_to(s, out.add(k + j * LANES), cols - k - j * LANES);
                }
            }
            for i in 0..n {
                let x = s.splat(*x.add(i));
                for (j, sum) in sums.iter_mut().enumerate() {
                    if j < count {
                        *sum = s.fma(s.load(w.add(i * STRETCH + k + j * LANES)), x, *sum);
                    }
                }
            }
            for (j, &sum) in sums.iter().enumerate().take(count) {
                store_up_to(s, out.add(k + j * LANES), cols - k - j * LANES, sum);
            }
            k += WIDE * LANES;
        }
    }
}

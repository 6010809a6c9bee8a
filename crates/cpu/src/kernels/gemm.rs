//! What all matrix products share: operands, how tiles cover them, how sums end.
//!
//! ```text
//! for panels (two at a time) of weight rows
//!   for tiles of activation rows
//!     sum[row][panel] over the columns, in order       the format's tile
//!     out[row][panel] = sum (+ bias) (+ out)           finish
//! ```
//!
//! A lane of `sum` is one output, and meets the columns in the same order in every tile: the
//! tile's extents are a matter of speed alone.

use crate::formats::Panels;
use crate::kernels::{load_up_to, store_up_to};
use crate::simd::{LANES, Simd};

/// A product of activation rows with a range of weight rows.
#[derive(Clone, Copy)]
pub(crate) struct Gemm {
    /// The matrix.
    pub(crate) weight: Panels,
    /// Weight rows to compute, `from .. to`.
    pub(crate) from: usize,
    /// End of the weight rows.
    pub(crate) to: usize,
    /// Activation rows in the form that the kernel takes.
    pub(crate) acts: *const u8,
    /// Bytes from one activation row to the next.
    pub(crate) act_stride: usize,
    /// Which activation row each of the `rows` is; null for the first ones.
    pub(crate) index: *const u32,
    /// Activation rows to compute.
    pub(crate) rows: usize,
    /// Where weight row `from` of activation row 0 goes.
    pub(crate) out: *mut f32,
    /// Values from one row of `out` to the next.
    pub(crate) out_stride: usize,
    /// Bias of weight row `from`, and those that follow; or null.
    pub(crate) bias: *const f32,
    /// Whether `out` is added to.
    pub(crate) accumulate: bool,
}

impl Gemm {
    /// Columns of the matrix.
    #[inline(always)]
    pub(crate) fn cols(&self) -> usize {
        self.weight.first.cols
    }

    /// Panels that the weight rows touch.
    pub(crate) fn panels(&self) -> std::ops::Range<usize> {
        self.from / LANES..self.to.div_ceil(LANES)
    }

    /// Activation row `row`.
    ///
    /// # Safety
    /// `row < rows`.
    #[inline(always)]
    pub(crate) unsafe fn act(&self, row: usize) -> *const u8 {
        // SAFETY: `index`, where there is one, has `rows` valid entries.
        unsafe {
            let row = if self.index.is_null() {
                row
            } else {
                *self.index.add(row) as usize
            };
            self.acts.add(row * self.act_stride)
        }
    }

    /// Ends the sums of panel `p` and activation row `row`.
    ///
    /// # Safety
    /// Both are part of the product.
    #[inline(always)]
    pub(crate) unsafe fn finish<S: Simd>(&self, s: S, p: usize, row: usize, sum: S::F) {
        let first = p * LANES;
        if first >= self.from && first + LANES <= self.to {
            let at = first - self.from;
            // SAFETY: sixteen outputs from `at` on belong to the product.
            unsafe { self.finish_lanes(s, at, row, LANES, sum) }
        } else {
            // SAFETY: passed on.
            unsafe { self.finish_part(s, p, row, sum) }
        }
    }

    /// [`Gemm::finish`] for a panel that the range cuts.
    ///
    /// # Safety
    /// As for `finish`.
    #[inline(always)]
    unsafe fn finish_part<S: Simd>(&self, s: S, p: usize, row: usize, sum: S::F) {
        let first = p * LANES;
        let (start, end) = (self.from.max(first), self.to.min(first + LANES));
        let mut lanes = [0.0f32; 2 * LANES];
        // SAFETY: the load stays within `lanes`, as `start - first < 16`; outputs `start .. end`
        // belong to the product.
        unsafe {
            s.store(lanes.as_mut_ptr(), sum);
            let sum = s.load(lanes.as_ptr().add(start - first));
            self.finish_lanes(s, start - self.from, row, end - start, sum);
        }
    }

    /// # Safety
    /// Outputs `at .. at + n` belong to the product, `n <= 16`.
    #[inline(always)]
    unsafe fn finish_lanes<S: Simd>(&self, s: S, at: usize, row: usize, n: usize, sum: S::F) {
        // SAFETY: by contract.
        unsafe {
            let out = self.out.add(row * self.out_stride + at);
            let mut v = sum;
            if !self.bias.is_null() {
                v = s.add(v, load_up_to(s, self.bias.add(at), n));
            }
            if self.accumulate {
                v = s.add(load_up_to(s, out, n), v);
            }
            store_up_to(s, out, n, v);
        }
    }
}

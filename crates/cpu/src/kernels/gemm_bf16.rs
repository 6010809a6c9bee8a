//! BF16 weights against BF16 activations, for machines that multiply pairs of them.

use crate::kernels::gemm::Gemm;
use crate::simd::{Kernel, LANES, Simd};

/// The product.
pub(crate) struct GemmBf16;

impl Kernel for GemmBf16 {
    type Args = Gemm;

    #[inline(always)]
    unsafe fn run<S: Simd>(s: S, g: &Gemm) {
        let panels = g.panels();
        let mut p = panels.start;
        while p < panels.end {
            let two = p + 2 <= panels.end;
            let mut row = 0;
            while row < g.rows {
                // SAFETY: rows `row ..` and panels `p ..` are part of the product.
                row += unsafe {
                    match (two, g.rows - row) {
                        (true, 8..) => tile::<S, 8, 2>(s, g, p, row),
                        (true, 2..) => tile::<S, 2, 2>(s, g, p, row),
                        (true, _) => tile::<S, 1, 2>(s, g, p, row),
                        _ => tile::<S, 1, 1>(s, g, p, row),
                    }
                };
            }
            p += if two { 2 } else { 1 };
        }
    }
}

/// `ROWS` activation rows against `PANELS` panels; returns `ROWS`.
///
/// # Safety
/// They are part of the product.
#[inline(always)]
unsafe fn tile<S: Simd, const ROWS: usize, const PANELS: usize>(
    s: S,
    g: &Gemm,
    p: usize,
    row: usize,
) -> usize {
    let mut acts = [std::ptr::null::<i32>(); ROWS];
    let mut panels = [std::ptr::null::<u8>(); PANELS];
    let mut sums = [[s.splat(0.0); PANELS]; ROWS];
    // SAFETY: rows and panels of the product; both hold whole pairs up to the last column.
    unsafe {
        for (r, act) in acts.iter_mut().enumerate() {
            *act = g.act(row + r).cast();
        }
        for (q, panel) in panels.iter_mut().enumerate() {
            *panel = g.weight.at(p + q).bytes;
        }
        for pair in 0..g.cols().div_ceil(2) {
            if row == 0 && ROWS > 1 {
                // The panels that are next in turn, while the first rows meet these.
                for panel in panels {
                    s.prefetch_far(panel.wrapping_add(PANELS * g.weight.stride + pair * LANES * 4));
                }
            }
            let mut w = [s.splat_int(0); PANELS];
            for (w, panel) in w.iter_mut().zip(&panels) {
                *w = s.load_bytes(panel.add(pair * LANES * 4));
            }
            for (sums, act) in sums.iter_mut().zip(&acts) {
                let a = s.splat_int(act.add(pair).read_unaligned());
                for (sum, &w) in sums.iter_mut().zip(&w) {
                    *sum = s.dot_bf16(*sum, w, a);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (q, &sum) in sums.iter().enumerate() {
                g.finish(s, p + q, row + r, sum);
            }
        }
    }
    ROWS
}

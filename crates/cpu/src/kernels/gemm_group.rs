//! Group-quantized weights against int8 activations: integer dot products over blocks of 32
//! columns, one scale for each group of them.
//!
//! ```text
//! for each group of columns
//!   for each block of 32 columns in it
//!     dot[row][panel] = Σ (code - middle) · a             exact, i32
//!     sum[row][panel] += f32(dot) · (scale · d)           d: the activations' step
//!     total[row] += d · Σ a
//!   sum[row][panel] += (middle - zero) · scale · total    where groups have zero points
//! ```
//!
//! Groups are whole blocks, or the whole row.

use crate::formats::grouped::{block_codes, scale, zeros};
use crate::formats::planes::{get, plane_bytes};
use crate::formats::{BLOCK, Panel, each_group};
use crate::kernels::activations::ActBlock;
use crate::kernels::gemm::Gemm;
use crate::simd::{Kernel, Simd};

/// The product for codes of `BITS` bits.
pub(crate) struct GemmGroup<const BITS: usize>;

impl<const BITS: usize> Kernel for GemmGroup<BITS> {
    type Args = Gemm;

    #[inline(always)]
    unsafe fn run<S: Simd>(s: S, g: &Gemm) {
        let panels = g.panels();
        let mut p = panels.start;
        while p < panels.end {
            // A lone row reads the weights as one stream, which memory is best at.
            let two = S::MANY_REGISTERS && g.rows > 1 && p + 2 <= panels.end;
            let mut row = 0;
            while row < g.rows {
                let left = g.rows - row;
                // SAFETY: rows `row ..` and panels `p ..` are part of the product.
                row += unsafe {
                    match (two, left) {
                        (true, 6..) => tile::<S, BITS, 6, 2>(s, g, p, row),
                        (true, 2..) => tile::<S, BITS, 2, 2>(s, g, p, row),
                        (true, _) => tile::<S, BITS, 1, 2>(s, g, p, row),
                        (false, 2..) => tile::<S, BITS, 2, 1>(s, g, p, row),
                        (false, _) => tile::<S, BITS, 1, 1>(s, g, p, row),
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
unsafe fn tile<S: Simd, const BITS: usize, const ROWS: usize, const PANELS: usize>(
    s: S,
    g: &Gemm,
    p: usize,
    row: usize,
) -> usize {
    let mut acts = [std::ptr::null::<ActBlock<1>>(); ROWS];
    let mut panels = [g.weight.first; PANELS];
    let mut sums = [[s.splat(0.0); PANELS]; ROWS];
    let blocks = g.cols().div_ceil(BLOCK);
    let per_group = g.weight.first.tile_cols.div_ceil(BLOCK);
    // SAFETY: rows and panels of the product; blocks and groups below the columns' end.
    unsafe {
        for (r, act) in acts.iter_mut().enumerate() {
            *act = g.act(row + r).cast();
        }
        for (q, panel) in panels.iter_mut().enumerate() {
            *panel = g.weight.at(p + q);
        }
        let (mut block, mut group) = (0, 0);
        while block < blocks {
            let end = blocks.min(block + per_group);
            let mut scales = [s.splat(0.0); PANELS];
            for (scales, panel) in scales.iter_mut().zip(&panels) {
                *scales = scale(s, panel, group);
            }
            let mut negated = [0.0f32; ROWS];
            while block < end {
                for panel in &panels {
                    ahead::<S, BITS>(s, g, panel, block, (ROWS, PANELS, row));
                }
                let dots = block_dots::<S, BITS, ROWS, PANELS>(s, &panels, &acts, block);
                for r in 0..ROWS {
                    let d = (*acts[r]).d;
                    negated[r] += d * (*acts[r]).negated_sum as f32;
                    for q in 0..PANELS {
                        let step = s.mul(scales[q], s.splat(d));
                        sums[r][q] = s.fma(s.to_float(dots[r][q]), step, sums[r][q]);
                    }
                    acts[r] = acts[r].add(1);
                }
                block += 1;
            }
            let middle = s.splat_int(1 << (BITS - 1));
            for q in 0..PANELS {
                if let Some(zeros) = zeros(s, &panels[q], group) {
                    let shift = s.mul(scales[q], s.to_float(s.sub_int(zeros, middle)));
                    for r in 0..ROWS {
                        sums[r][q] = s.fma(shift, s.splat(negated[r]), sums[r][q]);
                    }
                }
            }
            group += 1;
        }
        for (r, sums) in sums.iter().enumerate() {
            for (q, &sum) in sums.iter().enumerate() {
                g.finish(s, p + q, row + r, sum);
            }
        }
    }
    ROWS
}

/// `Σ (code - middle) · a` over one block.
///
/// # Safety
/// Panels and activations have this block.
#[inline(always)]
unsafe fn block_dots<S: Simd, const BITS: usize, const ROWS: usize, const PANELS: usize>(
    s: S,
    panels: &[Panel; PANELS],
    acts: &[*const ActBlock<1>; ROWS],
    block: usize,
) -> [[S::I; PANELS]; ROWS] {
    let bias = if BITS == 8 {
        S::WIDE_BIAS_LOG2
    } else {
        Some(BITS as u32 - 1)
    };
    let mut dots = [[s.splat_int(0); PANELS]; ROWS];
    // SAFETY: by contract; GROUP < 8.
    unsafe {
        if let Some(log2) = bias {
            for (dots, &act) in dots.iter_mut().zip(acts) {
                *dots = [s.shl(s.splat_int((*act).negated_sum), log2); PANELS];
            }
        }
        each_group!(0..8, |GROUP| {
            let mut codes = [s.splat_int(0); PANELS];
            for (codes, panel) in codes.iter_mut().zip(panels) {
                *codes = get::<S, BITS, 0, GROUP>(s, block_codes::<BITS>(panel, block));
            }
            for (dots, &act) in dots.iter_mut().zip(acts) {
                let a = s.splat_int((*act).codes[0][GROUP]);
                for (dot, &codes) in dots.iter_mut().zip(&codes) {
                    *dot = if BITS == 8 {
                        s.dot_wide(*dot, codes, a)
                    } else {
                        s.dot_narrow(*dot, codes, a)
                    };
                }
            }
        });
    }
    dots
}

/// Bytes between the weights in use and those asked for: a few microseconds' worth.
const AHEAD: usize = 4096;

/// Asks for weights to come: of this panel for a lone row, else, while the first rows meet these
/// panels, of those that are next in turn.
#[inline(always)]
fn ahead<S: Simd, const BITS: usize>(
    s: S,
    g: &Gemm,
    panel: &Panel,
    block: usize,
    (rows, panels, row): (usize, usize, usize),
) {
    let size = plane_bytes(BITS, 0);
    // SAFETY: an address within the panel, from which others are only computed.
    let codes = unsafe { block_codes::<BITS>(panel, block) };
    if rows == 1 && panels == 1 {
        for line in (0..size).step_by(64) {
            s.prefetch(codes.wrapping_add(AHEAD + line));
        }
    } else if row == 0 {
        for line in (0..size).step_by(64) {
            s.prefetch_far(codes.wrapping_add(panels * g.weight.stride + line));
        }
    }
}

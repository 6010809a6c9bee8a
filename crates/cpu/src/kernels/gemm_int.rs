//! Block formats against int8 activations: integer dot products, one scale step per block.
//!
//! ```text
//! for each block of 32 columns
//!   dot[row][panel] = -offset · Σ a                     exact, i32
//!   for each group of 4 columns: dot += codes · a       VNNI, or its like
//!   sum[row][panel] += f32(dot) · (scale · d)           d: the activations' scale
//!   sum[row][panel] += min · (d · Σ a)                  where the format has minima
//! ```

use std::marker::PhantomData;

use crate::formats::{QuantFormat, each_group};
use crate::kernels::activations::ActBlock;
use crate::kernels::gemm::Gemm;
use crate::simd::{Kernel, LANES, Simd};

/// The product for one block format.
pub(crate) struct GemmInt<Q>(PhantomData<Q>);

impl<Q: QuantFormat> Kernel for GemmInt<Q> {
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
                        (true, 6..) => tile::<S, Q, 6, 2>(s, g, p, row),
                        (true, 2..) => tile::<S, Q, 2, 2>(s, g, p, row),
                        (true, _) => tile::<S, Q, 1, 2>(s, g, p, row),
                        (false, 2..) => tile::<S, Q, 2, 1>(s, g, p, row),
                        (false, _) => tile::<S, Q, 1, 1>(s, g, p, row),
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
unsafe fn tile<S: Simd, Q: QuantFormat, const ROWS: usize, const PANELS: usize>(
    s: S,
    g: &Gemm,
    p: usize,
    row: usize,
) -> usize {
    let mut acts = [std::ptr::null::<ActBlock>(); ROWS];
    let mut units = [std::ptr::null::<u8>(); PANELS];
    // SAFETY: rows and panels of the product.
    unsafe {
        for (r, act) in acts.iter_mut().enumerate() {
            *act = g.act(row + r).cast();
        }
        for (q, unit) in units.iter_mut().enumerate() {
            *unit = g.weight.at(p + q).bytes;
        }
    }
    let mut sums = [[s.splat(0.0); PANELS]; ROWS];
    for _ in 0..g.cols() / (32 * Q::BLOCKS) {
        for block in 0..Q::BLOCKS {
            if PANELS == 1 && ROWS == 1 {
                ahead::<S, Q>(s, units[0], block);
            } else if row == 0 {
                for unit in units {
                    far_ahead::<S, Q>(s, unit.wrapping_add(PANELS * g.weight.stride), block);
                }
            }
            // SAFETY: units and activation blocks follow one another to the end of the columns.
            unsafe {
                block_step::<S, Q, ROWS, PANELS>(s, &units, &acts, block, &mut sums);
                for act in &mut acts {
                    *act = act.add(1);
                }
            }
        }
        for unit in &mut units {
            // SAFETY: to the next unit, or the panel's end.
            *unit = unsafe { unit.add(Q::UNIT_BYTES) };
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (q, &sum) in sums.iter().enumerate() {
            // SAFETY: as above.
            unsafe { g.finish(s, p + q, row + r, sum) }
        }
    }
    ROWS
}

/// Bytes between the weights in use and those asked for: a few microseconds' worth.
const AHEAD: usize = 4096;

/// Asks for a block's worth of the weights to come, of this panel or the next.
#[inline(always)]
fn ahead<S: Simd, Q: QuantFormat>(s: S, unit: *const u8, block: usize) {
    let size = Q::UNIT_BYTES / Q::BLOCKS;
    let from = unit.wrapping_add(block * size + AHEAD);
    for line in (0..size).step_by(64) {
        s.prefetch(from.wrapping_add(line));
    }
}

/// Asks for the same block of the panels that are next in turn, while the first rows meet these.
#[inline(always)]
fn far_ahead<S: Simd, Q: QuantFormat>(s: S, unit: *const u8, block: usize) {
    let size = Q::UNIT_BYTES / Q::BLOCKS;
    let from = unit.wrapping_add(block * size);
    for line in (0..size).step_by(64) {
        s.prefetch_far(from.wrapping_add(line));
    }
}

/// One block of 32 columns.
///
/// # Safety
/// The pointers are to a whole unit and a whole activation block each; `block < Q::BLOCKS`.
#[inline(always)]
unsafe fn block_step<S: Simd, Q: QuantFormat, const ROWS: usize, const PANELS: usize>(
    s: S,
    units: &[*const u8; PANELS],
    acts: &[*const ActBlock; ROWS],
    block: usize,
    sums: &mut [[S::F; PANELS]; ROWS],
) {
    let mut dots = [[s.splat_int(0); PANELS]; ROWS];
    for (dots, &act) in dots.iter_mut().zip(acts) {
        // SAFETY: by contract.
        *dots = [unsafe { start::<S, Q>(s, act, 0) }; PANELS];
    }
    // SAFETY: by contract.
    unsafe {
        if Q::SUBS == 1 {
            each_group!(0..8, |GROUP| {
                group_step::<S, Q, GROUP, ROWS, PANELS>(s, units, acts, block, &mut dots);
            });
            scale_step::<S, Q, ROWS, PANELS>(s, units, acts, block, 0, &dots, sums);
        } else {
            each_group!(0..4, |GROUP| {
                group_step::<S, Q, GROUP, ROWS, PANELS>(s, units, acts, block, &mut dots);
            });
            scale_step::<S, Q, ROWS, PANELS>(s, units, acts, block, 0, &dots, sums);
            for (dots, &act) in dots.iter_mut().zip(acts) {
                *dots = [start::<S, Q>(s, act, 1); PANELS];
            }
            each_group!(4..8, |GROUP| {
                group_step::<S, Q, GROUP, ROWS, PANELS>(s, units, acts, block, &mut dots);
            });
            scale_step::<S, Q, ROWS, PANELS>(s, units, acts, block, 1, &dots, sums);
        }
    }
}

/// `Σ a` of a sub-block, negated.
///
/// # Safety
/// `act` is readable.
#[inline(always)]
unsafe fn negated_sum<Q: QuantFormat>(act: *const ActBlock, sub: usize) -> i32 {
    // SAFETY: by contract.
    unsafe {
        if Q::SUBS == 1 {
            (*act).negated_sum
        } else {
            (*act).negated_sums[sub]
        }
    }
}

/// What a dot product begins with: the codes' offset taken off beforehand.
///
/// # Safety
/// `act` is readable.
#[inline(always)]
unsafe fn start<S: Simd, Q: QuantFormat>(s: S, act: *const ActBlock, sub: usize) -> S::I {
    let log2 = if Q::WIDE {
        S::WIDE_BIAS_LOG2
    } else {
        Q::OFFSET_LOG2
    };
    match log2 {
        // SAFETY: by contract.
        Some(log2) => s.shl(s.splat_int(unsafe { negated_sum::<Q>(act, sub) }), log2),
        None => s.splat_int(0),
    }
}

/// Four columns.
///
/// # Safety
/// As for [`block_step`].
#[inline(always)]
unsafe fn group_step<
    S: Simd,
    Q: QuantFormat,
    const GROUP: usize,
    const ROWS: usize,
    const PANELS: usize,
>(
    s: S,
    units: &[*const u8; PANELS],
    acts: &[*const ActBlock; ROWS],
    block: usize,
    dots: &mut [[S::I; PANELS]; ROWS],
) {
    let mut codes = [s.splat_int(0); PANELS];
    for (codes, &unit) in codes.iter_mut().zip(units) {
        // SAFETY: by contract.
        *codes = unsafe { Q::codes::<S, GROUP>(s, unit, block) };
    }
    for (dots, &act) in dots.iter_mut().zip(acts) {
        // SAFETY: by contract; GROUP < 8.
        let a = s.splat_int(unsafe { (*act).codes[GROUP] });
        for (dot, &codes) in dots.iter_mut().zip(&codes) {
            *dot = if Q::WIDE {
                s.dot_wide(*dot, codes, a)
            } else {
                s.dot_narrow(*dot, codes, a)
            };
        }
    }
}

/// Adds scaled dot products to the sums.
///
/// # Safety
/// As for [`block_step`].
#[inline(always)]
unsafe fn scale_step<S: Simd, Q: QuantFormat, const ROWS: usize, const PANELS: usize>(
    s: S,
    units: &[*const u8; PANELS],
    acts: &[*const ActBlock; ROWS],
    block: usize,
    sub: usize,
    dots: &[[S::I; PANELS]; ROWS],
    sums: &mut [[S::F; PANELS]; ROWS],
) {
    let mut scales = [s.splat(0.0); PANELS];
    let mut mins = [s.splat(0.0); PANELS];
    for q in 0..PANELS {
        // SAFETY: by contract.
        unsafe {
            scales[q] = Q::scale(s, units[q], block, sub);
            if Q::HAS_MIN {
                mins[q] = Q::min(s, units[q], block, sub);
            }
        }
    }
    for r in 0..ROWS {
        // SAFETY: by contract.
        let (d, negated) = unsafe { ((*acts[r]).d, negated_sum::<Q>(acts[r], sub)) };
        for q in 0..PANELS {
            let scale = s.mul(scales[q], s.splat(d));
            let mut sum = s.fma(s.to_float(dots[r][q]), scale, sums[r][q]);
            if Q::HAS_MIN {
                sum = s.fma(mins[q], s.splat(-d * negated as f32), sum);
            }
            sums[r][q] = sum;
        }
    }
}

/// Bytes of an activation row of `cols` columns.
pub(crate) fn act_row_bytes(cols: usize) -> usize {
    cols.div_ceil(2 * LANES) * size_of::<ActBlock>()
}

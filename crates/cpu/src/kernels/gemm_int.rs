//! Block formats against integer activations: integer dot products, one scale step per block.
//!
//! ```text
//! for each block of 32 columns
//!   dot[row][panel] = -offset · Σ a                     exact, i32
//!   for each group of 4 columns: dot += codes · a       VNNI, or its like
//!   sum[row][panel] += f32(dot) · (scale · d)           d: the activations' scale
//!   sum[row][panel] += min · (d · Σ a)                  where the format has minima
//! ```
//!
//! Activations of two terms, `a = 256 · high + low`, take two dot products with the same codes:
//! twice the arithmetic on weights that are read once, and still exact in i32 (32 products of a
//! byte and sixteen bits stay below 2²⁹).

use std::marker::PhantomData;

use crate::formats::{QuantFormat, each_group};
use crate::kernels::activations::{ActBlock, TERM_LOG2};
use crate::kernels::gemm::Gemm;
use crate::simd::{Kernel, LANES, Simd};

/// The product for one block format and activations of so many terms.
pub(crate) struct GemmInt<Q, const TERMS: usize>(PhantomData<Q>);

/// Tiles of a level. They are chosen by constants, so that the others are not even compiled.
struct Tiles<S, const TERMS: usize>(PhantomData<S>);

impl<S: Simd, const TERMS: usize> Tiles<S, TERMS> {
    /// Whether many rows take two panels at a time.
    const PAIRS: bool = S::MANY_REGISTERS && TERMS == 1;
}

/// Rows that one tile holds beside a single panel.
const FEW_ROWS: usize = 16;

impl<Q: QuantFormat, const TERMS: usize> Kernel for GemmInt<Q, TERMS> {
    type Args = Gemm;

    #[inline(always)]
    unsafe fn run<S: Simd>(s: S, g: &Gemm) {
        let mut panels = g.panels();
        // A few rows read the weights once, as one stream, which memory is best at; many are
        // bound by arithmetic, of which two panels at a time take less.
        if Tiles::<S, TERMS>::PAIRS {
            while g.rows > FEW_ROWS && panels.len() >= 2 {
                // SAFETY: the panels are part of the product.
                unsafe { pair::<S, Q, TERMS>(s, g, panels.start) }
                panels.start += 2;
            }
        }
        for p in panels {
            // SAFETY: as above.
            unsafe { single::<S, Q, TERMS>(s, g, p) }
        }
    }
}

/// All rows against panels `p` and `p + 1`.
///
/// # Safety
/// They are part of the product.
#[inline(always)]
unsafe fn pair<S: Simd, Q: QuantFormat, const TERMS: usize>(s: S, g: &Gemm, p: usize) {
    let mut row = 0;
    while row < g.rows {
        // SAFETY: rows `row ..` are part of the product.
        row += unsafe {
            match g.rows - row {
                6.. => tile::<S, Q, TERMS, 1, 6, 2>(s, g, p, row),
                2.. => tile::<S, Q, TERMS, 1, 2, 2>(s, g, p, row),
                _ => tile::<S, Q, TERMS, 1, 1, 2>(s, g, p, row),
            }
        };
    }
}

/// All rows against panel `p`.
///
/// # Safety
/// It is part of the product.
#[inline(always)]
unsafe fn single<S: Simd, Q: QuantFormat, const TERMS: usize>(s: S, g: &Gemm, p: usize) {
    let mut row = 0;
    while row < g.rows {
        // SAFETY: rows `row ..` are part of the product.
        row += unsafe {
            match (S::MANY_REGISTERS, TERMS, g.rows - row) {
                (true, 1, 13..) => tile::<S, Q, TERMS, 2, 8, 1>(s, g, p, row),
                (true, 1, 9..) => tile::<S, Q, TERMS, 2, 6, 1>(s, g, p, row),
                (true, 2, 13..) => tile::<S, Q, TERMS, 4, 4, 1>(s, g, p, row),
                (true, 2, 9..) => tile::<S, Q, TERMS, 3, 4, 1>(s, g, p, row),
                (true, _, 8..) => tile::<S, Q, TERMS, 1, 8, 1>(s, g, p, row),
                (true, _, 4..) => tile::<S, Q, TERMS, 1, 4, 1>(s, g, p, row),
                (_, _, 2..) => tile::<S, Q, TERMS, 1, 2, 1>(s, g, p, row),
                _ => tile::<S, Q, TERMS, 1, 1, 1>(s, g, p, row),
            }
        };
    }
}

/// `STACKS` times `ROWS` activation rows, or as many as there are, against `PANELS` panels; returns
/// how many.
///
/// Stacks take a block of weights in turn: only their sums are in registers all along. The last
/// one begins early enough to be whole, and computes what another one computed too.
///
/// # Safety
/// They are part of the product; `ROWS` are left.
#[inline(always)]
unsafe fn tile<
    S: Simd,
    Q: QuantFormat,
    const TERMS: usize,
    const STACKS: usize,
    const ROWS: usize,
    const PANELS: usize,
>(
    s: S,
    g: &Gemm,
    p: usize,
    row: usize,
) -> usize {
    let last = g.rows - row - ROWS;
    let first = |stack: usize| row + (stack * ROWS).min(last);
    let mut acts = [[std::ptr::null::<ActBlock<TERMS>>(); ROWS]; STACKS];
    let mut units = [std::ptr::null::<u8>(); PANELS];
    // SAFETY: rows and panels of the product.
    unsafe {
        for (stack, acts) in acts.iter_mut().enumerate() {
            for (r, act) in acts.iter_mut().enumerate() {
                *act = g.act(first(stack) + r).cast();
            }
        }
        for (q, unit) in units.iter_mut().enumerate() {
            *unit = g.weight.at(p + q).bytes;
        }
    }
    let mut sums = [[[s.splat(0.0); PANELS]; ROWS]; STACKS];
    for _ in 0..g.cols() / (32 * Q::BLOCKS) {
        for block in 0..Q::BLOCKS {
            if row == 0 {
                if PANELS == 1 && g.rows <= FEW_ROWS {
                    ahead::<S, Q>(s, units[0], block);
                } else {
                    for unit in units {
                        far_ahead::<S, Q>(s, unit.wrapping_add(PANELS * g.weight.stride), block);
                    }
                }
            }
            for (acts, sums) in acts.iter_mut().zip(&mut sums) {
                // SAFETY: units and activation blocks follow one another to the end of the columns.
                unsafe {
                    block_step::<S, Q, TERMS, ROWS, PANELS>(s, &units, acts, block, sums);
                    for act in acts {
                        *act = act.add(1);
                    }
                }
            }
        }
        for unit in &mut units {
            // SAFETY: to the next unit, or the panel's end.
            *unit = unsafe { unit.add(Q::UNIT_BYTES) };
        }
    }
    let mut done = 0;
    for (stack, sums) in sums.iter().enumerate() {
        for (r, sums) in sums.iter().enumerate() {
            if first(stack) + r < row + done {
                continue;
            }
            for (q, &sum) in sums.iter().enumerate() {
                // SAFETY: as above.
                unsafe { g.finish(s, p + q, first(stack) + r, sum) }
            }
            done += 1;
        }
    }
    done
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
unsafe fn block_step<
    S: Simd,
    Q: QuantFormat,
    const TERMS: usize,
    const ROWS: usize,
    const PANELS: usize,
>(
    s: S,
    units: &[*const u8; PANELS],
    acts: &[*const ActBlock<TERMS>; ROWS],
    block: usize,
    sums: &mut [[S::F; PANELS]; ROWS],
) {
    let mut dots = [[[s.splat_int(0); PANELS]; ROWS]; TERMS];
    // SAFETY: by contract.
    unsafe { start::<S, Q, TERMS, ROWS, PANELS>(s, acts, 0, &mut dots) }
    // SAFETY: by contract.
    unsafe {
        if Q::SUBS == 1 {
            each_group!(0..8, |GROUP| {
                group_step::<S, Q, GROUP, TERMS, ROWS, PANELS>(s, units, acts, block, &mut dots);
            });
            scale_step::<S, Q, TERMS, ROWS, PANELS>(s, units, acts, block, 0, &dots, sums);
        } else {
            each_group!(0..4, |GROUP| {
                group_step::<S, Q, GROUP, TERMS, ROWS, PANELS>(s, units, acts, block, &mut dots);
            });
            scale_step::<S, Q, TERMS, ROWS, PANELS>(s, units, acts, block, 0, &dots, sums);
            start::<S, Q, TERMS, ROWS, PANELS>(s, acts, 1, &mut dots);
            each_group!(4..8, |GROUP| {
                group_step::<S, Q, GROUP, TERMS, ROWS, PANELS>(s, units, acts, block, &mut dots);
            });
            scale_step::<S, Q, TERMS, ROWS, PANELS>(s, units, acts, block, 1, &dots, sums);
        }
    }
}

/// `Σ a` of a sub-block, negated.
///
/// # Safety
/// `act` is readable.
#[inline(always)]
unsafe fn negated_sum<Q: QuantFormat, const TERMS: usize>(
    act: *const ActBlock<TERMS>,
    sub: usize,
) -> i32 {
    // SAFETY: by contract.
    unsafe {
        if Q::SUBS == 1 {
            (*act).negated_sum
        } else {
            (*act).negated_sums[sub]
        }
    }
}

/// What dot products begin with: in the last term the codes' offset, taken off beforehand.
///
/// # Safety
/// The activation blocks are readable.
#[inline(always)]
unsafe fn start<
    S: Simd,
    Q: QuantFormat,
    const TERMS: usize,
    const ROWS: usize,
    const PANELS: usize,
>(
    s: S,
    acts: &[*const ActBlock<TERMS>; ROWS],
    sub: usize,
    dots: &mut [[[S::I; PANELS]; ROWS]; TERMS],
) {
    *dots = [[[s.splat_int(0); PANELS]; ROWS]; TERMS];
    let log2 = if Q::WIDE {
        S::WIDE_BIAS_LOG2
    } else {
        Q::OFFSET_LOG2
    };
    if let Some(log2) = log2 {
        for (dots, &act) in dots[TERMS - 1].iter_mut().zip(acts) {
            // SAFETY: by contract.
            let negated = unsafe { negated_sum::<Q, TERMS>(act, sub) };
            *dots = [s.shl(s.splat_int(negated), log2); PANELS];
        }
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
    const TERMS: usize,
    const ROWS: usize,
    const PANELS: usize,
>(
    s: S,
    units: &[*const u8; PANELS],
    acts: &[*const ActBlock<TERMS>; ROWS],
    block: usize,
    dots: &mut [[[S::I; PANELS]; ROWS]; TERMS],
) {
    let mut codes = [s.splat_int(0); PANELS];
    for (codes, &unit) in codes.iter_mut().zip(units) {
        // SAFETY: by contract.
        *codes = unsafe { Q::codes::<S, GROUP>(s, unit, block) };
    }
    for (term, dots) in dots.iter_mut().enumerate() {
        for (dots, &act) in dots.iter_mut().zip(acts) {
            // SAFETY: by contract; GROUP < 8.
            let a = s.splat_int(unsafe { (*act).codes[term][GROUP] });
            for (dot, &codes) in dots.iter_mut().zip(&codes) {
                *dot = if Q::WIDE {
                    s.dot_wide(*dot, codes, a)
                } else {
                    s.dot_narrow(*dot, codes, a)
                };
            }
        }
    }
}

/// Adds scaled dot products to the sums.
///
/// # Safety
/// As for [`block_step`].
#[inline(always)]
unsafe fn scale_step<
    S: Simd,
    Q: QuantFormat,
    const TERMS: usize,
    const ROWS: usize,
    const PANELS: usize,
>(
    s: S,
    units: &[*const u8; PANELS],
    acts: &[*const ActBlock<TERMS>; ROWS],
    block: usize,
    sub: usize,
    dots: &[[[S::I; PANELS]; ROWS]; TERMS],
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
        let (d, negated) = unsafe { ((*acts[r]).d, negated_sum::<Q, TERMS>(acts[r], sub)) };
        for q in 0..PANELS {
            let scale = s.mul(scales[q], s.splat(d));
            let mut dot = dots[0][r][q];
            for dots in &dots[1..] {
                dot = s.add_int(s.shl(dot, TERM_LOG2), dots[r][q]);
            }
            let mut sum = s.fma(s.to_float(dot), scale, sums[r][q]);
            if Q::HAS_MIN {
                sum = s.fma(mins[q], s.splat(-d * negated as f32), sum);
            }
            sums[r][q] = sum;
        }
    }
}

/// Bytes of an activation row of `cols` columns.
pub(crate) fn act_row_bytes<const TERMS: usize>(cols: usize) -> usize {
    cols.div_ceil(2 * LANES) * size_of::<ActBlock<TERMS>>()
}

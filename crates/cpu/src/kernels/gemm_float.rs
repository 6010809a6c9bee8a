//! Any format against f32 activations: a stretch of the panels is decoded once into the nearest
//! cache, and all activation rows meet it there.
//!
//! ```text
//! for tiles of 48 activation rows
//!   for stretches of 128 columns
//!     w[panel] = decode(stretch)                        [128][16] f32
//!     sum[row][panel] += Σ_k w[k] · a[row][k]           in the order of k
//! ```
//!
//! A row or two by themselves take plain float columns straight from the panels, in the same
//! order.

#![allow(clippy::needless_range_loop)] // tiles index several arrays at once

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use crate::formats::Decode;
use crate::kernels::gemm::Gemm;
use crate::simd::{Kernel, LANES, Simd};

/// Columns decoded at a time: two panels of them leave room beside them in 32 KiB.
pub(crate) const STRETCH: usize = 128;
/// Activation rows that share a decoded stretch.
const TILE_ROWS: usize = 48;

/// Rows up to which plain floats are not copied first.
const DIRECT_ROWS: usize = 2;

/// The product for one format.
pub(crate) struct GemmFloat<D>(PhantomData<D>);

/// Decoded columns of up to two panels: `[2][128][16]`.
#[repr(align(64))]
struct Decoded([MaybeUninit<f32>; 2 * STRETCH * LANES]);

/// Running sums of a tile: `[48][2][16]`.
#[repr(align(64))]
struct Sums([f32; TILE_ROWS * 2 * LANES]);

impl<D: Decode> Kernel for GemmFloat<D> {
    type Args = Gemm;

    #[inline(always)]
    unsafe fn run<S: Simd>(s: S, g: &Gemm) {
        let panels = g.panels();
        if D::COLUMNS && g.rows <= DIRECT_ROWS {
            // SAFETY: passed on.
            return unsafe { direct::<S, D>(s, g) };
        }
        let mut decoded = Decoded([MaybeUninit::uninit(); 2 * STRETCH * LANES]);
        let mut sums = Sums([0.0; TILE_ROWS * 2 * LANES]);
        let mut p = panels.start;
        while p < panels.end {
            let count = (panels.end - p).min(if S::MANY_REGISTERS { 2 } else { 1 });
            let mut row = 0;
            while row < g.rows {
                let rows = (g.rows - row).min(TILE_ROWS);
                // SAFETY: these rows and panels are part of the product.
                unsafe {
                    tile::<S, D>(s, g, (p, count), (row, rows), &mut decoded, &mut sums);
                }
                row += rows;
            }
            p += count;
        }
    }
}

/// The product of a row or two, four panels at a time for want of rows.
///
/// # Safety
/// As for the kernel.
#[inline(always)]
unsafe fn direct<S: Simd, D: Decode>(s: S, g: &Gemm) {
    for row in 0..g.rows {
        let panels = g.panels();
        let mut p = panels.start;
        while p < panels.end {
            // SAFETY: the row and the panels are part of the product.
            p += unsafe {
                if p + 4 <= panels.end {
                    direct_tile::<S, D, 4>(s, g, p, row)
                } else {
                    direct_tile::<S, D, 1>(s, g, p, row)
                }
            };
        }
    }
}

/// One row against `PANELS` panels; returns `PANELS`.
///
/// # Safety
/// They are part of the product.
#[inline(always)]
unsafe fn direct_tile<S: Simd, D: Decode, const PANELS: usize>(
    s: S,
    g: &Gemm,
    p: usize,
    row: usize,
) -> usize {
    let mut panels = [g.weight.first; PANELS];
    let mut sums = [s.splat(0.0); PANELS];
    // SAFETY: columns below `cols` of panels and of the row.
    unsafe {
        for (q, panel) in panels.iter_mut().enumerate() {
            *panel = g.weight.at(p + q);
        }
        let act = g.act(row).cast::<f32>();
        let mut k = 0;
        while k < g.cols() {
            let mut scales = [None; PANELS];
            let mut end = 0;
            for (scale, &panel) in scales.iter_mut().zip(&panels) {
                (*scale, end) = D::column_scale(s, panel, k);
            }
            while k < end {
                let a = s.splat(*act.add(k));
                for q in 0..PANELS {
                    let mut w = D::column(s, panels[q], k);
                    if let Some(scale) = scales[q] {
                        w = s.mul(w, scale);
                    }
                    sums[q] = s.fma(w, a, sums[q]);
                }
                k += 1;
            }
        }
        for (q, &sum) in sums.iter().enumerate() {
            g.finish(s, p + q, row, sum);
        }
    }
    PANELS
}

/// # Safety
/// Panels `p .. p + count` and rows `row .. row + rows` are part of the product, `count <= 2`,
/// `rows <= TILE_ROWS`.
#[inline(always)]
unsafe fn tile<S: Simd, D: Decode>(
    s: S,
    g: &Gemm,
    (p, count): (usize, usize),
    (row, rows): (usize, usize),
    decoded: &mut Decoded,
    sums: &mut Sums,
) {
    let cols = g.cols();
    let stretch: *mut f32 = decoded.0.as_mut_ptr().cast();
    let mut weights = [stretch.cast_const(); 2];
    let sums = sums.0.as_mut_ptr();
    // SAFETY: stretches lie within the columns, sums within the tile's 48 rows of two panels.
    unsafe {
        for i in 0..rows * count {
            s.store(sums.add(i * LANES), s.splat(0.0));
        }
        let mut from = 0;
        while from < cols {
            let to = (from + STRETCH).min(cols);
            for (q, weights) in weights.iter_mut().enumerate().take(count) {
                let panel = g.weight.at(p + q);
                if D::IS_F32 {
                    *weights = panel.bytes.cast::<f32>().add(from * LANES);
                } else {
                    let stretch = stretch.add(q * STRETCH * LANES);
                    D::decode(s, panel, from, to, stretch);
                    *weights = stretch;
                }
            }
            let mut r = 0;
            while r < rows {
                let a = (row + r, from, to - from);
                let sums = sums.add(r * count * LANES);
                r += match (count, rows - r) {
                    (2, 6..) => step::<S, 6, 2>(s, g, a, &weights, sums),
                    (2, _) => step::<S, 1, 2>(s, g, a, &weights, sums),
                    (_, 4..) => step::<S, 4, 1>(s, g, a, &weights, sums),
                    _ => step::<S, 1, 1>(s, g, a, &weights, sums),
                };
            }
            from = to;
        }
        for r in 0..rows {
            for q in 0..count {
                let sum = s.load(sums.add((r * count + q) * LANES));
                g.finish(s, p + q, row + r, sum);
            }
        }
    }
}

/// Adds a stretch of `len` columns to the sums of `ROWS` rows; returns `ROWS`.
///
/// # Safety
/// `weights` begins with `PANELS` decoded stretches, `sums` `ROWS · PANELS` vectors.
#[inline(always)]
unsafe fn step<S: Simd, const ROWS: usize, const PANELS: usize>(
    s: S,
    g: &Gemm,
    (row, from, len): (usize, usize, usize),
    weights: &[*const f32; 2],
    sums: *mut f32,
) -> usize {
    let mut acts = [std::ptr::null::<f32>(); ROWS];
    let mut acc = [[s.splat(0.0); PANELS]; ROWS];
    // SAFETY: by contract, and rows of the product.
    unsafe {
        for r in 0..ROWS {
            acts[r] = g.act(row + r).cast::<f32>().add(from);
            for q in 0..PANELS {
                acc[r][q] = s.load(sums.add((r * PANELS + q) * LANES));
            }
        }
        for k in 0..len {
            let mut w = [s.splat(0.0); PANELS];
            for (q, w) in w.iter_mut().enumerate() {
                *w = s.load(weights[q].add(k * LANES));
            }
            for (acc, act) in acc.iter_mut().zip(&acts) {
                let a = s.splat(*act.add(k));
                for (acc, &w) in acc.iter_mut().zip(&w) {
                    *acc = s.fma(w, a, *acc);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (q, &v) in acc.iter().enumerate() {
                s.store(sums.add((r * PANELS + q) * LANES), v);
            }
        }
    }
    ROWS
}

//! Operations on rows by themselves: embeddings, norms, rotations, copies.

use scrimp_backend::Segments;

use crate::kernels::elementwise::{NormSegmentsArgs, RopeArgs};
use crate::kernels::heads::RowArgs;
use crate::kernels::table::KernelTable;
use crate::matrix::CpuMatrix;
use crate::memory::Shared;
use crate::ops::{check_segments, parts, share};
use crate::pool::Pool;
use crate::simd::LANES;

/// `out[r] = table[ids[r]]`.
pub(crate) fn embed(
    pool: &mut Pool,
    kernels: &KernelTable,
    table: &CpuMatrix,
    ids: &[u32],
    out: &mut [f32],
) {
    let (rows, cols) = (ids.len(), table.cols);
    assert!(
        out.len() >= rows * cols,
        "{rows} embeddings of {cols} in {}",
        out.len()
    );
    let row = kernels.format(table.format).row;
    let out = Shared::new(out);
    let parts = parts(rows, cols * LANES, pool.threads());
    pool.run(parts, &|part, _| {
        for r in share(rows, part, parts) {
            let id = ids[r] as usize;
            assert!(id < table.rows, "token {id} of {}", table.rows);
            // SAFETY: the row exists, and so its panel; rows of `out` are written apart.
            unsafe {
                row(&RowArgs {
                    panel: table.packed().at(id / LANES),
                    lane: id % LANES,
                    out: out.slice(r * cols, cols).as_mut_ptr(),
                });
            }
        }
    });
}

/// RMS norm in place of segments.
pub(crate) fn norm_segments(
    pool: &mut Pool,
    table: &KernelTable,
    x: &mut [f32],
    rows: usize,
    segments: Segments,
    (weight, eps): (&[f32], f32),
) {
    check_segments("norm_segments", x.len(), rows, &segments);
    assert!(weight.len() >= segments.dim, "a weight of {}", segments.dim);
    let x = Shared::new(x);
    let parts = parts(rows, segments.count * segments.dim, pool.threads());
    pool.run(parts, &|part, _| {
        let share = share(rows, part, parts);
        // SAFETY: segments were checked and do not overlap; shares are disjoint rows.
        unsafe {
            (table.norm_segments)(&NormSegmentsArgs {
                x: x.as_mut_ptr().add(share.start * segments.row_stride),
                rows: share.len(),
                segments,
                weight: weight.as_ptr(),
                eps,
            });
        }
    });
}

/// Rotation in place of segments.
pub(crate) fn rope(
    pool: &mut Pool,
    table: &KernelTable,
    x: &mut [f32],
    rows: usize,
    segments: Segments,
    cos_sin: &[f32],
    interleaved: bool,
) {
    check_segments("rope", x.len(), rows, &segments);
    let dim = segments.dim;
    assert!(dim.is_multiple_of(2), "a rotation of {dim} values");
    assert!(
        cos_sin.len() >= rows * dim,
        "{rows} rows of {dim} cosines and sines"
    );
    let x = Shared::new(x);
    let parts = parts(rows, segments.count * dim, pool.threads());
    pool.run(parts, &|part, _| {
        let share = share(rows, part, parts);
        // SAFETY: as above.
        unsafe {
            (table.rope)(&RopeArgs {
                x: x.as_mut_ptr().add(share.start * segments.row_stride),
                rows: share.len(),
                segments,
                cos_sin: cos_sin[share.start * dim..].as_ptr(),
                interleaved,
            });
        }
    });
}

/// Copies segments.
pub(crate) fn copy_segments(x: &[f32], rows: usize, from: Segments, out: &mut [f32], to: Segments) {
    assert_eq!(
        (from.count, from.dim),
        (to.count, to.dim),
        "as much out as in"
    );
    check_segments("copy_segments' input", x.len(), rows, &from);
    check_segments("copy_segments' output", out.len(), rows, &to);
    for r in 0..rows {
        for i in 0..from.count {
            let (a, b) = (from.start(r, i), to.start(r, i));
            out[b..b + to.dim].copy_from_slice(&x[a..a + from.dim]);
        }
    }
}

/// `out[i] = x[rows[i]]`.
pub(crate) fn gather_rows(x: &[f32], cols: usize, rows: &[u32], out: &mut [f32]) {
    for (i, &row) in rows.iter().enumerate() {
        let from = row as usize * cols;
        out[i * cols..(i + 1) * cols].copy_from_slice(&x[from..from + cols]);
    }
}

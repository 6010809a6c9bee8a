//! One tensor: read, quantized or kept, packed, written, reported.

use rayon::prelude::*;
use scrimp_tensor::DType;

use crate::gguf::GgufPlace;
use crate::grid::{GridSpec, rounded};
use crate::job::plan::{FLOATS_ROWS, JobPlan, SLAB};
use crate::job::{Job, JobError};
use crate::pack;
use crate::quantized::Quantized;
use crate::recipe::Scheme;
use crate::report::TensorReport;
use crate::rtn::{self, RangeSearch};
use crate::shards::ShardWriter;
use crate::source::{Source, SourceError};

/// Reads a whole tensor, rows in parallel.
pub(super) fn read(source: &dyn Source, index: usize) -> Result<Vec<f32>, SourceError> {
    let tensor = &source.tensors()[index];
    let cols = tensor.cols();
    let mut values = vec![0.0; tensor.len()];
    let slab = slab_rows(cols);
    for (i, out) in values.chunks_mut(slab * cols.max(1)).enumerate() {
        let parts = out.par_chunks_mut(FLOATS_ROWS * cols.max(1)).enumerate();
        parts.try_for_each(|(j, out)| source.read_rows(index, i * slab + j * FLOATS_ROWS, out))?;
        source.release(index);
    }
    Ok(values)
}

/// Rows that are read before the source's pages are given back.
fn slab_rows(cols: usize) -> usize {
    (SLAB / cols.max(1)).next_multiple_of(FLOATS_ROWS)
}

/// Multiplies column `c` of every row by `scales[c]`.
pub(super) fn scale_columns(values: &mut [f32], scales: &[f32]) {
    let rows = values.par_chunks_exact_mut(scales.len().max(1));
    rows.for_each(|row| row.iter_mut().zip(scales).for_each(|(w, s)| *w *= s));
}

/// How a kept tensor differs from the source's.
#[derive(Clone, Copy, Default)]
pub(super) struct Folded<'a> {
    /// Column factors.
    pub columns: Option<&'a [f32]>,
    /// What each row (or each value of a vector) is divided by.
    pub rows: Option<&'a [f32]>,
}

/// Writes a tensor that stays in floats.
pub(super) fn keep(
    source: &dyn Source,
    place: Option<&GgufPlace>,
    writer: &ShardWriter,
    index: usize,
    folded: Folded<'_>,
) -> Result<TensorReport, JobError> {
    let tensor = &source.tensors()[index];
    let (rows, cols) = (tensor.rows(), tensor.cols());
    let total = tensor.len() * tensor.dtype.block_bytes();
    let unit = place.map_or(1, GgufPlace::unit);
    let rows_at_once = (FLOATS_ROWS * 8).next_multiple_of(unit).min(rows.max(1));
    for first in (0..rows).step_by(rows_at_once) {
        let count = rows_at_once.min(rows - first);
        let mut values = vec![0.0; count * cols];
        source.read_rows(index, first, &mut values)?;
        if let Some(columns) = folded.columns {
            scale_columns(&mut values, columns);
        }
        if let Some(by) = folded.rows {
            match tensor.shape.len() {
                1 => values.iter_mut().zip(by).for_each(|(v, by)| *v /= by),
                _ => {
                    let rows = values.chunks_exact_mut(cols.max(1)).zip(&by[first..]);
                    rows.for_each(|(row, by)| row.iter_mut().for_each(|v| *v /= by));
                }
            }
        }
        let bytes = pack::floats(tensor.dtype, values.into_iter());
        let element = tensor.dtype.block_bytes();
        match (place, tensor.shape.len()) {
            (None, _) => writer.write_part(&tensor.name, first * cols * element, &bytes, total)?,
            (Some(place), 1) => place.write(writer, 0, &bytes, element)?,
            (Some(place), _) => place.write(writer, first, &bytes, cols * element)?,
        }
        source.release(index);
    }
    Ok(TensorReport {
        name: tensor.module().to_owned(),
        scheme: tensor.dtype.name().to_owned(),
        error: 0.0,
        tokens: 0,
        note: None,
    })
}

/// A vector folded as [`keep`] writes it: each value over `scales`, rounded, and what it was
/// really divided by.
pub(super) fn fold_vector(values: &[f32], scales: &mut [f32], dtype: DType) {
    for (value, scale) in values.iter().zip(scales) {
        let stored = rounded(value / *scale, dtype);
        *scale = if *value != 0.0 && stored != 0.0 && stored.is_finite() {
            value / stored
        } else {
            1.0
        };
    }
}

/// Packs and writes a quantized tensor.
pub(super) fn write(
    plan: &JobPlan,
    source: &dyn Source,
    place: Option<&GgufPlace>,
    writer: &ShardWriter,
    index: usize,
    quantized: &Quantized,
) -> Result<(), JobError> {
    let tensor = &source.tensors()[index];
    let (rows, cols) = (tensor.rows(), tensor.cols());
    if let Some(place) = place {
        for bytes in plan.packer.pack(quantized) {
            place.write(writer, 0, &bytes, bytes.len() / rows.max(1))?;
        }
        return Ok(());
    }
    let names = plan
        .packer
        .tensors(tensor.module(), rows, cols, quantized.group);
    for (out, bytes) in names.iter().zip(plan.packer.pack(quantized)) {
        writer.write(&out.name, &bytes)?;
    }
    Ok(())
}

/// The range search of a scheme without a calibration. Eight bits have codes to spare: the whole
/// range serves best.
pub(super) fn search_of(scheme: Scheme) -> RangeSearch {
    match scheme.bits() {
        8 => RangeSearch::NONE,
        _ => RangeSearch::FAST,
    }
}

/// Reads and rounds a tensor a few rows at a time; its relative error comes with it.
pub(super) fn round_streaming(
    job: &Job<'_>,
    plan: &JobPlan,
    spec: GridSpec,
    index: usize,
) -> Result<(Quantized, f64), JobError> {
    let tensor = &job.source.tensors()[index];
    let (rows, cols) = (tensor.rows(), tensor.cols());
    let group = plan.group_of(cols);
    let search = search_of(job.recipe.scheme);
    let mut out = Quantized::empty(rows, cols, group, spec.bits);
    let groups = out.groups();
    let slab = slab_rows(cols);
    let codes = out.codes.chunks_mut(slab * cols);
    let scales = out.scales.chunks_mut(slab * groups);
    let zeros = out.zeros.chunks_mut(slab * groups);
    let source = job.source;
    let mut sums: Vec<(f64, f64)> = Vec::new();
    for (s, ((codes, scales), zeros)) in codes.zip(scales).zip(zeros).enumerate() {
        let codes = codes.par_chunks_mut(FLOATS_ROWS * cols);
        let scales = scales.par_chunks_mut(FLOATS_ROWS * groups);
        let zeros = zeros.par_chunks_mut(FLOATS_ROWS * groups);
        let parts = codes.zip(scales).zip(zeros).enumerate();
        let of_parts = parts.map(|(i, ((codes, scales), zeros))| {
            let mut weights = vec![0.0; codes.len()];
            source.read_rows(index, s * slab + i * FLOATS_ROWS, &mut weights)?;
            let grids = (&mut *codes, &mut *scales, &mut *zeros);
            rtn::quantize_rows(spec, search, group, &weights, None, grids);
            let mut sums = (0.0f64, 0.0f64);
            let groups = weights
                .chunks_exact(group)
                .zip(codes.chunks_exact(group))
                .enumerate();
            for (g, (weights, codes)) in groups {
                let (error, size) = rtn::squares(weights, codes, scales[g], f32::from(zeros[g]));
                sums = (sums.0 + f64::from(error), sums.1 + f64::from(size));
            }
            Ok::<_, SourceError>(sums)
        });
        sums.extend(of_parts.collect::<Result<Vec<_>, _>>()?);
        source.release(index);
    }
    let (error, size) = sums.iter().fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
    Ok((out, relative(error, size)))
}

/// The root of a share of squares; 0 of nothing.
pub(super) fn relative(error: f64, size: f64) -> f64 {
    if size > 0.0 {
        (error.max(0.0) / size).sqrt()
    } else {
        0.0
    }
}

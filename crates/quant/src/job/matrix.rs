//! One tensor: read, quantized or kept, packed, written, reported.

use rayon::prelude::*;
use scrimp_tensor::DType;

use crate::gguf::GgufPlace;
use crate::grid::{GridSpec, rounded};
use crate::job::plan::{FLOATS_ROWS, JobPlan, slab_rows};
use crate::job::{Job, JobError};
use crate::pack::{self, OutTensor};
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
    for (first, count) in slabs(source, index, 1) {
        let out = &mut values[first * cols..(first + count) * cols];
        let parts = out.par_chunks_mut(FLOATS_ROWS * cols.max(1)).enumerate();
        parts.try_for_each(|(j, out)| source.read_rows(index, first + j * FLOATS_ROWS, out))?;
    }
    Ok(values)
}

/// Rows of a tensor that are worked on together, a multiple of `unit`: where they begin and how
/// many they are. The next ones are asked of the disk meanwhile; what came before is given back.
fn slabs(
    source: &dyn Source,
    index: usize,
    unit: usize,
) -> impl Iterator<Item = (usize, usize)> + '_ {
    let tensors = source.tensors();
    let rows = tensors[index].rows();
    let slab = |index: usize| slab_rows(tensors[index].cols());
    let own = slab(index).next_multiple_of(unit);
    let mut first = 0;
    std::iter::from_fn(move || {
        if first > 0 {
            source.release(index);
        }
        if first >= rows {
            return None;
        }
        let (at, end) = (first, rows.min(first + own));
        match end < rows {
            true => source.will_need(index, end, own.min(rows - end)),
            false if index + 1 < tensors.len() => {
                source.will_need(index + 1, 0, slab(index + 1));
            }
            false => {}
        }
        first = end;
        Some((at, end - at))
    })
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
    let cols = tensor.cols();
    let total = tensor.len() * tensor.dtype.block_bytes();
    let unit = place.map_or(1, GgufPlace::unit);
    let rows_at_once = FLOATS_ROWS.next_multiple_of(unit);
    let element = tensor.dtype.block_bytes();
    let one = |first: usize, count: usize| -> Result<(), JobError> {
        let mut values = vec![0.0; count * cols];
        source.read_rows(index, first, &mut values)?;
        if let Some(columns) = folded.columns {
            let rows = values.chunks_exact_mut(cols.max(1));
            rows.for_each(|row| row.iter_mut().zip(columns).for_each(|(w, s)| *w *= s));
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
        let bytes = pack::floats(tensor.dtype, &values);
        match (place, tensor.shape.len()) {
            (None, _) => writer.write_part(&tensor.name, first * cols * element, &bytes, total)?,
            (Some(place), 1) => place.write(writer, 0, &bytes, element)?,
            (Some(place), _) => place.write(writer, first, &bytes, cols * element)?,
        }
        Ok(())
    };
    for (first, count) in slabs(source, index, rows_at_once) {
        let parts = (first..first + count).into_par_iter().step_by(rows_at_once);
        parts.try_for_each(|at| one(at, rows_at_once.min(first + count - at)))?;
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

/// Reads, rounds and writes a tensor a few rows at a time, or all of them where the format does not
/// keep rows apart. Gives its relative error.
pub(super) fn round_streaming(
    job: &Job<'_>,
    plan: &JobPlan,
    spec: GridSpec,
    writer: &ShardWriter,
    index: usize,
) -> Result<f64, JobError> {
    let source = job.source;
    let tensor = &source.tensors()[index];
    let (rows, cols) = (tensor.rows(), tensor.cols());
    let group = plan.group_of(cols);
    let search = search_of(job.recipe.scheme);
    let place = job.gguf.and_then(|gguf| gguf.places.get(index));
    let names = plan.packer.tensors(tensor.module(), rows, cols, group);
    let mut whole = match plan.packer.keeps_rows_apart() {
        true => None,
        false => Some(Quantized::empty(rows, cols, group, spec.bits)),
    };
    let mut sums: Vec<(f64, f64)> = Vec::new();
    for (first, count) in slabs(source, index, 1) {
        let one = |at: usize, codes: &mut [u8], scales: &mut [f32], zeros: &mut [u8]| {
            let mut weights = vec![0.0; codes.len()];
            source.read_rows(index, at, &mut weights)?;
            let grids = (codes, scales, zeros);
            let sums = rtn::quantize_rows(spec, search, group, &weights, None, grids);
            Ok::<_, JobError>(sums)
        };
        let of_parts: Result<Vec<(f64, f64)>, JobError> = match &mut whole {
            None => {
                let starts = (first..first + count).into_par_iter().step_by(FLOATS_ROWS);
                let parts = starts.map(|at| {
                    let height = FLOATS_ROWS.min(first + count - at);
                    let mut part = Quantized::empty(height, cols, group, spec.bits);
                    let sums = one(at, &mut part.codes, &mut part.scales, &mut part.zeros)?;
                    write_part(plan, place, writer, &names, (at, rows), &part)?;
                    Ok(sums)
                });
                parts.collect()
            }
            Some(whole) => {
                let groups = whole.groups();
                let some = first * groups..(first + count) * groups;
                let codes = &mut whole.codes[first * cols..(first + count) * cols];
                let codes = codes.par_chunks_mut(FLOATS_ROWS * cols);
                let scales = whole.scales[some.clone()].par_chunks_mut(FLOATS_ROWS * groups);
                let zeros = whole.zeros[some].par_chunks_mut(FLOATS_ROWS * groups);
                let parts = codes.zip(scales).zip(zeros).enumerate();
                let parts = parts.map(|(i, ((codes, scales), zeros))| {
                    one(first + i * FLOATS_ROWS, codes, scales, zeros)
                });
                parts.collect()
            }
        };
        sums.extend(of_parts?);
    }
    if let Some(whole) = whole {
        write(plan, source, place, writer, index, &whole)?;
    }
    let (error, size) = sums.into_iter().fold((0.0, 0.0), added);
    Ok(relative(error, size))
}

fn added(a: (f64, f64), b: (f64, f64)) -> (f64, f64) {
    (a.0 + b.0, a.1 + b.1)
}

/// Packs and writes rows of a quantized tensor, `first` of `rows` on.
fn write_part(
    plan: &JobPlan,
    place: Option<&GgufPlace>,
    writer: &ShardWriter,
    names: &[OutTensor],
    (first, rows): (usize, usize),
    part: &Quantized,
) -> Result<(), JobError> {
    let packed = plan.packer.pack_rows(part, first, rows);
    for (out, (at, bytes)) in names.iter().zip(packed) {
        match place {
            Some(place) => place.write(writer, first, &bytes, bytes.len() / part.rows.max(1))?,
            None => writer.write_part(&out.name, at, &bytes, out.bytes())?,
        }
    }
    Ok(())
}

/// The root of a share of squares; 0 of nothing.
pub(super) fn relative(error: f64, size: f64) -> f64 {
    if size > 0.0 {
        (error.max(0.0) / size).sqrt()
    } else {
        0.0
    }
}

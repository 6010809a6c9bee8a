//! What a group of matrices with one input shares: moments of that input, channel scales, a factor.

use crate::awq::{self, ChannelScales, SAMPLED_ROWS, ScaleSearch};
use crate::factor::InverseFactor;
use crate::gptq;
use crate::grid::GridSpec;
use crate::hessian::Hessian;
use crate::job::matrix::{self, relative};
use crate::job::plan::JobPlan;
use crate::job::{Job, JobError, add_note};
use crate::quantized::Quantized;
use crate::recipe::Scheme;
use crate::rtn::{self, RangeSearch};
use crate::source::{Role, Source, SourceError};

/// Rows by which a matrix's error is reported.
pub(super) const REPORTED_ROWS: usize = 96;

/// A calibrated input, ready for the matrices that read it.
pub(super) struct Input {
    /// Factors of its channels.
    pub scales: Option<Vec<f32>>,
    /// Calibration tokens.
    pub tokens: usize,
    /// What was out of the ordinary.
    pub note: Option<String>,
    known: Known,
}

enum Known {
    /// For rounding each matrix by itself.
    Moments(Hessian),
    /// For carrying errors on.
    Factor(InverseFactor),
    /// The factor failed: channels' mean squares alone.
    Diagonal(Vec<f32>),
}

/// A quantized matrix and how far off it is.
pub(super) struct Done {
    pub quantized: Quantized,
    pub scheme: Scheme,
    pub error: f64,
}

/// How channel scales are searched for an input.
#[derive(Clone, Copy)]
pub(super) struct Scaling<'a> {
    /// Matrices that read it.
    pub readers: &'a [usize],
    /// Channels that get one scale.
    pub ties: Option<&'a [u32]>,
    /// Whether scales are powers of two.
    pub exact: bool,
}

/// Searches channel scales, on a sample of rows of all readers.
pub(super) fn search_scales(
    job: &Job<'_>,
    plan: &JobPlan,
    spec: GridSpec,
    hessian: &Hessian,
    scaling: Scaling<'_>,
) -> Result<ChannelScales, SourceError> {
    let rows = sample(job.source, scaling.readers, hessian.n)?;
    let search = ScaleSearch {
        spec,
        group: plan.group_of(hessian.n),
        hessian,
        rows: &rows,
        ties: scaling.ties,
        exact: scaling.exact,
    };
    Ok(search.run())
}

/// Rows evenly from all matrices, those from evenly chosen ones where there are many.
fn sample(source: &dyn Source, readers: &[usize], cols: usize) -> Result<Vec<f32>, SourceError> {
    const MATRICES: usize = 32;
    let step = readers.len().div_ceil(MATRICES).max(1);
    let readers: Vec<usize> = readers.iter().copied().step_by(step).collect();
    let all: usize = readers.iter().map(|i| source.tensors()[*i].rows()).sum();
    let stride = all.div_ceil(SAMPLED_ROWS).max(1);
    let mut out = Vec::with_capacity(all.div_ceil(stride) * cols);
    let mut row = vec![0.0; cols];
    for index in readers {
        let rows = (0..source.tensors()[index].rows()).step_by(stride);
        for (i, r) in rows.enumerate() {
            source.read_rows(index, r, &mut row)?;
            out.extend_from_slice(&row);
            if i % 64 == 63 {
                source.release(index); // each row brings its neighbours' pages with it
            }
        }
        source.release(index);
    }
    Ok(out)
}

impl Input {
    /// Prepares a finished Hessian, its channels divided by `scales`, for a scheme.
    pub fn new(
        job: &Job<'_>,
        mut hessian: Hessian,
        scales: Option<Vec<f32>>,
        tokens: usize,
        mut note: Option<String>,
    ) -> Input {
        if let Some(scales) = &scales {
            hessian.divide_channels(scales);
        }
        let known = match job.recipe.scheme.carries_errors() {
            false => Known::Moments(hessian),
            true => {
                let diagonal = hessian.diagonal();
                // Twice the Hessian's bytes again, for double precision.
                let double = job.ledger.free() >= 2 * Hessian::bytes(hessian.n);
                match InverseFactor::new(hessian, double) {
                    Ok(factor) => {
                        add_note(&mut note, factor.note.clone());
                        Known::Factor(factor)
                    }
                    Err(error) => {
                        let said = format!("rounded to nearest instead of gptq: {error}");
                        add_note(&mut note, Some(said));
                        Known::Diagonal(diagonal)
                    }
                }
            }
        };
        Input {
            scales,
            tokens,
            note,
            known,
        }
    }

    /// Quantizes a matrix whose columns have the input's scales.
    pub fn quantize(
        &self,
        job: &Job<'_>,
        spec: GridSpec,
        group: usize,
        role: Role,
        shape: (usize, usize),
        weights: &[f32],
    ) -> Done {
        let scheme = job.recipe.scheme;
        let (quantized, scheme) = match &self.known {
            Known::Factor(factor) => {
                let (q, _) = gptq::quantize(spec, RangeSearch::FINE, group, shape, weights, factor);
                (q, scheme)
            }
            // Clipping queries and keys changes which tokens are looked at: their ranges are
            // searched by their weights' errors alone.
            Known::Moments(hessian) if clips(scheme, role) => (
                awq::quantize_clipped(spec, group, shape, weights, hessian),
                scheme,
            ),
            Known::Moments(hessian) => {
                let diagonal = finite(hessian.diagonal());
                let search = match scheme.bits() {
                    8 => RangeSearch::NONE,
                    _ => RangeSearch::FINE,
                };
                let q = rtn::quantize(spec, search, group, shape, weights, diagonal.as_deref());
                (q, scheme)
            }
            Known::Diagonal(diagonal) => {
                let diagonal = finite(diagonal.clone());
                let search = RangeSearch::FINE;
                let q = rtn::quantize(spec, search, group, shape, weights, diagonal.as_deref());
                (q, Scheme::Int4Rtn)
            }
        };
        let error = self.error(weights, &quantized);
        Done {
            quantized,
            scheme,
            error,
        }
    }

    /// Relative error of the outputs, by some of the rows.
    fn error(&self, weights: &[f32], quantized: &Quantized) -> f64 {
        let cols = quantized.cols;
        let stride = quantized.rows.div_ceil(REPORTED_ROWS).max(1);
        let (mut sample, mut errors) = (Vec::new(), Vec::new());
        let mut row = vec![0.0; cols];
        for r in (0..quantized.rows).step_by(stride) {
            let weights = &weights[r * cols..(r + 1) * cols];
            quantized.dequantize_row(r, &mut row);
            sample.extend_from_slice(weights);
            errors.extend(row.iter().zip(weights).map(|(a, b)| a - b));
        }
        let (error, size) = match &self.known {
            Known::Moments(hessian) => (hessian.quadratic(&errors), hessian.quadratic(&sample)),
            Known::Factor(factor) => (factor.quadratic(&errors), factor.quadratic(&sample)),
            Known::Diagonal(_) => (0.0, 0.0),
        };
        if size > 0.0 && error.is_finite() && size.is_finite() {
            return relative(error, size);
        }
        let squares = |v: &[f32]| v.iter().map(|x| f64::from(x * x)).sum::<f64>();
        relative(squares(&errors), squares(&sample))
    }

    /// Reads a matrix, with the scales on its columns.
    pub fn read(&self, source: &dyn Source, index: usize) -> Result<Vec<f32>, SourceError> {
        let mut weights = matrix::read(source, index)?;
        if let Some(scales) = &self.scales {
            matrix::scale_columns(&mut weights, scales);
        }
        Ok(weights)
    }
}

fn clips(scheme: Scheme, role: Role) -> bool {
    scheme.scales_channels() && !matches!(role, Role::Q | Role::K | Role::QA | Role::QB | Role::KvA)
}

/// Importance that can weigh something.
fn finite(diagonal: Vec<f32>) -> Option<Vec<f32>> {
    let usable = diagonal.iter().all(|d| d.is_finite()) && diagonal.iter().any(|d| *d > 0.0);
    usable.then_some(diagonal)
}

/// Whether scales are to be powers of two: when a norm is folded that matrices in 16 bits read too.
pub(super) fn needs_exact(job: &Job<'_>, plan: &JobPlan, readers: &[usize]) -> bool {
    let tensors = job.source.tensors();
    let kept = |i: &&usize| !plan.chosen[**i] && tensors[**i].dtype != scrimp_tensor::DType::F32;
    readers.iter().any(|i| kept(&i))
}

/// Scales that are written into a vector of `dtype`: what they come to once it is rounded.
pub(super) fn settle(job: &Job<'_>, norm: usize, scales: &mut [f32]) -> Result<(), JobError> {
    let values = matrix::read(job.source, norm)?;
    matrix::fold_vector(&values, scales, job.source.tensors()[norm].dtype);
    Ok(())
}

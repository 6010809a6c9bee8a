//! AWQ (arXiv 2306.00978): input channels are scaled so that those that matter are rounded finer.
//!
//! A channel `c` of the input is divided by `s[c]` (folded into whatever makes it: a norm, or the
//! rows of the projection before), and column `c` of every matrix that reads it is multiplied. In
//! floats nothing changes. `s` is searched over powers of the channel's mean size; a candidate's
//! worth is the mean squared error of the outputs, which the Hessian gives without another look at
//! the tokens: `tr(Δ H Δᵀ)`. Then each group's range is clipped where that helps the outputs.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::grid::GridSpec;
use crate::hessian::Hessian;
use crate::lanes::{self, Kernel};
use crate::quantized::Quantized;
use crate::rtn::{self, RangeSearch};

/// Powers of the channels' size that are told apart, 0 (nothing scaled) included.
const POWERS: usize = 20;
/// Every which of them is tried before those beside the best.
const STRIDE: usize = 3;
/// Rows of all matrices of a group that a candidate is judged by.
pub const SAMPLED_ROWS: usize = 768;
/// Scales are kept between this and its inverse: beyond it, 16-bit floats lose what 4 bits gain.
const MOST: f32 = 256.0;
/// Ranges tried by the clip search, and the least part of a range.
const CLIP: RangeSearch = RangeSearch {
    steps: 11,
    least: 0.5,
};

/// The scales that a search chose.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelScales {
    /// One a channel.
    pub values: Vec<f32>,
    /// Power of the channel's size.
    pub power: f32,
    /// Mean squared error of the sampled outputs, over that without scales.
    pub gain: f64,
}

impl ChannelScales {
    /// Whether nothing is scaled.
    pub fn is_identity(&self) -> bool {
        self.values.iter().all(|s| *s == 1.0)
    }
}

/// What is searched.
pub struct ScaleSearch<'a> {
    /// Grids of the matrices.
    pub spec: GridSpec,
    /// Inputs that share a grid.
    pub group: usize,
    /// Of the matrices' input.
    pub hessian: &'a Hessian,
    /// Rows `[_, n]` of the matrices that read it, a sample.
    pub rows: &'a [f32],
    /// Channels of one number get one scale; `None`: each its own.
    pub ties: Option<&'a [u32]>,
    /// Whether scales are powers of two: exact in every float, for inputs that matrices read
    /// which stay in 16 bits.
    pub exact: bool,
}

impl ScaleSearch<'_> {
    /// The best scales found; the identity where none is better.
    pub fn run(&self) -> ChannelScales {
        let n = self.hessian.n;
        let size = self.tied(&self.hessian.size);
        let heft = self.tied(&self.relative_weights());
        let identity = vec![1.0; n];
        let unscaled = self.error(&identity);
        let mut best = ChannelScales {
            values: identity,
            power: 0.0,
            gain: 1.0,
        };
        if unscaled.is_nan() || unscaled <= 0.0 {
            return best;
        }
        // The error is smooth in the power: a coarse walk finds the valley, a fine one its floor.
        for by_weights in [false, true] {
            let mut lowest = (f64::INFINITY, 0);
            let mut take = |step: usize| {
                let power = step as f32 / POWERS as f32;
                let values = self.candidate(&size, &heft, power, by_weights);
                let gain = self.error(&values) / unscaled;
                if gain < lowest.0 {
                    lowest = (gain, step);
                }
                if gain < best.gain {
                    best = ChannelScales {
                        values,
                        power,
                        gain,
                    };
                }
                lowest.1
            };
            let found = (1..POWERS).step_by(STRIDE).map(&mut take).last();
            let found = found.unwrap_or(1);
            for step in found.saturating_sub(STRIDE - 1).max(1)..(found + STRIDE).min(POWERS) {
                if step != found {
                    take(step);
                }
            }
        }
        best
    }

    /// `size^power`, over `heft^(1 − power)` where weights count too, centred on 1.
    fn candidate(&self, size: &[f32], heft: &[f32], power: f32, by_weights: bool) -> Vec<f32> {
        let scale = |(size, heft): (&f32, &f32)| {
            let weight = if by_weights {
                heft.max(1e-4).powf(1.0 - power)
            } else {
                1.0
            };
            (size.powf(power) / weight).max(1e-4)
        };
        let mut scales: Vec<f32> = size.iter().zip(heft).map(scale).collect();
        // Channels that were never active are left alone.
        let active = || scales.iter().zip(size).filter(|(_, size)| **size > 0.0);
        let least = active().fold(f32::INFINITY, |a, (s, _)| a.min(*s));
        let most = active().fold(0.0f32, |a, (s, _)| a.max(*s));
        let centre = (least * most).sqrt();
        for (scale, size) in scales.iter_mut().zip(size) {
            *scale = if *size > 0.0 && centre.is_finite() && centre > 0.0 {
                (*scale / centre).clamp(1.0 / MOST, MOST)
            } else {
                1.0
            };
            if self.exact {
                *scale = scale.log2().round().exp2();
            }
        }
        scales
    }

    /// Each channel's mean share of its group's largest weight.
    fn relative_weights(&self) -> Vec<f32> {
        let n = self.hessian.n;
        let mut sums = vec![0.0f32; n];
        for row in self.rows.chunks_exact(n) {
            let groups = row
                .chunks_exact(self.group)
                .zip(sums.chunks_exact_mut(self.group));
            for (weights, sums) in groups {
                let largest = weights.iter().fold(1e-12f32, |a, w| a.max(w.abs()));
                sums.iter_mut()
                    .zip(weights)
                    .for_each(|(s, w)| *s += w.abs() / largest);
            }
        }
        let rows = (self.rows.len() / n).max(1) as f32;
        sums.iter_mut().for_each(|s| *s /= rows);
        sums
    }

    /// Means over tied channels.
    fn tied(&self, values: &[f32]) -> Vec<f32> {
        let Some(ties) = self.ties else {
            return values.to_vec();
        };
        let count = ties.iter().max().map_or(0, |t| *t as usize + 1);
        let mut sums = vec![(0.0f32, 0.0f32); count];
        for (tie, value) in ties.iter().zip(values) {
            sums[*tie as usize].0 += value;
            sums[*tie as usize].1 += 1.0;
        }
        let mean = |tie: &u32| sums[*tie as usize].0 / sums[*tie as usize].1;
        ties.iter().map(mean).collect()
    }

    /// Squared error of the sampled outputs under `scales`.
    fn error(&self, scales: &[f32]) -> f64 {
        let n = self.hessian.n;
        let parts = self.rows.par_chunks(ERROR_ROWS * n);
        let sums: Vec<f64> = parts
            .map(|rows| {
                let mut errors = vec![0.0; rows.len()];
                for (row, errors) in rows.chunks_exact(n).zip(errors.chunks_exact_mut(n)) {
                    lanes::run(ScaledError {
                        spec: self.spec,
                        group: self.group,
                        row,
                        scales,
                        errors,
                    });
                }
                self.hessian.quadratic(&errors)
            })
            .collect();
        sums.iter().sum()
    }
}

/// Rows whose errors one thread makes at a time.
const ERROR_ROWS: usize = 32;

/// The error of a row that is scaled, rounded on whole ranges, and scaled back.
struct ScaledError<'a> {
    spec: GridSpec,
    group: usize,
    row: &'a [f32],
    scales: &'a [f32],
    errors: &'a mut [f32],
}

impl Kernel for ScaledError<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let max_code = self.spec.max_code();
        let weights = self.row.chunks_exact(self.group);
        let scales = self.scales.chunks_exact(self.group);
        let errors = self.errors.chunks_exact_mut(self.group);
        for ((weights, scales), errors) in weights.zip(scales).zip(errors) {
            let (mut min, mut max) = (0.0f32, 0.0f32);
            for ((w, s), scaled) in weights.iter().zip(scales).zip(errors.iter_mut()) {
                *scaled = w * s;
                min = min.min(*scaled);
                max = max.max(*scaled);
            }
            let grid = self.spec.over(min, max, 1.0);
            let inverse = 1.0 / grid.scale;
            for ((w, s), error) in weights.iter().zip(scales).zip(errors.iter_mut()) {
                let code = (*error * inverse + grid.zero)
                    .clamp(0.0, max_code)
                    .round_ties_even();
                *error = (code - grid.zero) * grid.scale / s - w;
            }
        }
    }
}

/// Rounds `[rows, cols]` weights to nearest, on the part of each group's range that gives the
/// least error of that group's share of the output.
pub fn quantize_clipped(
    spec: GridSpec,
    group: usize,
    (rows, cols): (usize, usize),
    weights: &[f32],
    hessian: &Hessian,
) -> Quantized {
    let mut out = Quantized::empty(rows, cols, group, spec.bits);
    let groups = out.groups();
    let codes = out.codes.par_chunks_mut(CLIP_ROWS * cols);
    let scales = out.scales.par_chunks_mut(CLIP_ROWS * groups);
    let zeros = out.zeros.par_chunks_mut(CLIP_ROWS * groups);
    let parts = codes
        .zip(scales)
        .zip(zeros)
        .zip(weights.par_chunks(CLIP_ROWS * cols));
    parts.for_each(|(((codes, scales), zeros), weights)| {
        let rows = weights.len() / cols;
        for g in 0..groups {
            let mut own = Vec::with_capacity(rows * group);
            for row in weights.chunks_exact(cols) {
                own.extend_from_slice(&row[g * group..][..group]);
            }
            let parts = clip(spec, &own, hessian, g * group, group);
            for (r, part) in parts.into_iter().enumerate() {
                let weights = &own[r * group..][..group];
                let (min, max) = bounds(weights);
                let grid = spec.over(min, max, part);
                let codes = &mut codes[r * cols + g * group..][..group];
                rtn::round(grid, spec.max_code(), weights, codes);
                scales[r * groups + g] = grid.scale;
                zeros[r * groups + g] = grid.zero as u8;
            }
        }
    });
    out
}

/// Rows that one thread clips at a time.
const CLIP_ROWS: usize = 64;

fn bounds(values: &[f32]) -> (f32, f32) {
    let fold = |(min, max): (f32, f32), w: &f32| (min.min(*w), max.max(*w));
    values.iter().fold((0.0, 0.0), fold)
}

/// The best part of the range of each row's group, the group being the channels from `first` on.
fn clip(spec: GridSpec, rows: &[f32], hessian: &Hessian, first: usize, group: usize) -> Vec<f32> {
    let count = rows.len() / group;
    let n = hessian.n;
    let block = &hessian.values[first * n..(first + group) * n];
    let block = MatRef::from_row_major_slice(block, group, n).subcols(first, group);
    let mut best = vec![(f32::INFINITY, 1.0f32); count];
    let mut errors = vec![0.0f32; rows.len()];
    let mut product = vec![0.0f32; rows.len()];
    for step in 0..CLIP.steps {
        let part = CLIP.part(step);
        for (row, errors) in rows.chunks_exact(group).zip(errors.chunks_exact_mut(group)) {
            lanes::run(RangeError {
                spec,
                part,
                row,
                errors,
            });
        }
        matmul(
            MatMut::from_row_major_slice_mut(&mut product, count, group),
            Accum::Replace,
            MatRef::from_row_major_slice(&errors, count, group),
            block,
            1.0,
            Par::Seq,
        );
        let pairs = product.chunks_exact(group).zip(errors.chunks_exact(group));
        for (best, (product, errors)) in best.iter_mut().zip(pairs) {
            let error: f32 = product.iter().zip(errors).map(|(a, b)| a * b).sum();
            if error < best.0 {
                *best = (error, part);
            }
        }
    }
    best.into_iter().map(|(_, part)| part).collect()
}

/// The error of a group's values, rounded on part of their range.
struct RangeError<'a> {
    spec: GridSpec,
    part: f32,
    row: &'a [f32],
    errors: &'a mut [f32],
}

impl Kernel for RangeError<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (mut min, mut max) = (0.0f32, 0.0f32);
        for w in self.row {
            min = min.min(*w);
            max = max.max(*w);
        }
        let max_code = self.spec.max_code();
        let grid = self.spec.over(min, max, self.part);
        for (error, &w) in self.errors.iter_mut().zip(self.row) {
            *error = grid.value(grid.code(w, max_code)) - w;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hessian::tests::{correlated, hessian_of};
    use scrimp_tensor::DType;

    const SPEC: GridSpec = GridSpec {
        bits: 4,
        symmetric: true,
        signed: false,
        zero_min: 0,
        scale: DType::F32,
    };

    fn search<'a>(hessian: &'a Hessian, rows: &'a [f32]) -> ScaleSearch<'a> {
        ScaleSearch {
            spec: SPEC,
            group: 13,
            hessian,
            rows,
            ties: None,
            exact: false,
        }
    }

    #[test]
    fn loud_channels_get_finer_steps() {
        let n = 52;
        let mut x = correlated(300, n, 31);
        x.chunks_exact_mut(n).for_each(|row| row[5] *= 4.0);
        let h = hessian_of(&x, n);
        // Weights of equal size: what is loud is the input.
        let even = |(i, w): (usize, f32)| if i % n % 13 == 5 { w / 6.0 } else { w };
        let w: Vec<f32> = correlated(24, n, 32)
            .into_iter()
            .enumerate()
            .map(even)
            .collect();
        let search = ScaleSearch {
            group: n,
            ..search(&h, &w)
        };
        let found = search.run();
        assert!(found.gain < 0.8, "{found:?}");
        assert!(found.values[5] > 1.3 * found.values[6], "{found:?}");
    }

    #[test]
    fn ties_and_powers_of_two_hold() {
        let n = 52;
        let h = hessian_of(&correlated(300, n, 33), n);
        let w = correlated(24, n, 34);
        let ties: Vec<u32> = (0..n as u32).map(|c| c % 26).collect();
        let search = ScaleSearch {
            ties: Some(&ties),
            exact: true,
            ..search(&h, &w)
        };
        let found = search.run();
        for c in 0..n {
            assert_eq!(found.values[c], found.values[c % 26]);
            assert_eq!(found.values[c].log2().fract(), 0.0);
        }
    }

    #[test]
    fn silent_inputs_are_left_alone() {
        let n = 26;
        let mut x = correlated(100, n, 35);
        x.chunks_exact_mut(n).for_each(|row| row[..13].fill(0.0));
        let found = search(&hessian_of(&x, n), &correlated(8, n, 36)).run();
        assert!(found.values[..13].iter().all(|s| *s == 1.0));
        let silent = Hessian::new(n);
        assert!(search(&silent, &correlated(8, n, 36)).run().is_identity());
    }

    #[test]
    fn clipping_is_never_worse_for_the_group() {
        let (rows, n, group) = (70, 64, 16);
        let mut h = hessian_of(&correlated(300, n, 37), n);
        let mut w = correlated(rows, n, 38);
        w.iter_mut().step_by(41).for_each(|w| *w *= 2.5);
        // Groups that do not know each other: what each minimises is then the whole.
        for i in 0..n {
            for j in 0..n {
                if i / group != j / group {
                    h.values[i * n + j] = 0.0;
                }
            }
        }
        let error = |q: &Quantized| {
            let mut d = vec![0.0; w.len()];
            q.dequantize_into(None, &mut d);
            d.iter_mut().zip(&w).for_each(|(d, w)| *d -= w);
            h.quadratic(&d)
        };
        let plain = rtn::quantize(SPEC, RangeSearch::NONE, group, (rows, n), &w, None);
        let clipped = quantize_clipped(SPEC, group, (rows, n), &w, &h);
        let (plain, clipped) = (error(&plain), error(&clipped));
        assert!(clipped < 0.9 * plain, "{clipped} of {plain}");
    }
}

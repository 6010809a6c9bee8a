//! Rounding to nearest, on the best of several ranges.
//!
//! The range of a group is searched: clipping its few largest values makes the grid finer for all
//! others. What is minimised is the squared error, each column's weighted by how much its input
//! varies where a calibration says so. Where none does, errors are weighted by the squares of the
//! weights themselves: an error that a large weight shares with all large ones (clipping makes them
//! smaller together) costs outputs more than the same on small ones, which scatters.

use rayon::prelude::*;

use crate::grid::{Grid, GridSpec};
use crate::lanes::{self, Kernel};
use crate::quantized::Quantized;

/// Which parts of a group's range are tried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RangeSearch {
    /// Ranges tried, the whole one included.
    pub steps: usize,
    /// The least part of the range.
    pub least: f32,
}

impl RangeSearch {
    /// The whole range alone.
    pub const NONE: RangeSearch = RangeSearch {
        steps: 1,
        least: 1.0,
    };
    /// For weights that are rounded once and for all.
    pub const FAST: RangeSearch = RangeSearch {
        steps: 11,
        least: 0.6,
    };
    /// For weights that a calibration weighs.
    pub const FINE: RangeSearch = RangeSearch {
        steps: 33,
        least: 0.36,
    };

    /// Part `step` of the range.
    #[inline(always)]
    pub fn part(&self, step: usize) -> f32 {
        match self.steps {
            0 | 1 => 1.0,
            steps => 1.0 - (1.0 - self.least) * step as f32 / (steps - 1) as f32,
        }
    }
}

/// Values that are worked on at once: lanes in which sums are kept, so that their order is the same
/// on every machine.
const BLOCK: usize = 16;
type Lanes = [f32; BLOCK];

/// Lanes brought together by halves.
#[inline(always)]
fn together(mut lanes: Lanes, two: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = BLOCK / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = two(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn total(lanes: Lanes) -> f32 {
    together(lanes, |a, b| a + b)
}

/// The values after the last whole block with zeros behind them, which change no range and no sum.
#[inline(always)]
fn padded(rest: &[f32]) -> Lanes {
    let mut block = [0.0; BLOCK];
    block[..rest.len()].copy_from_slice(rest);
    block
}

/// Sums over pairs, lane by lane.
#[inline(always)]
fn sums(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> Lanes {
    let mut lanes = [0.0; BLOCK];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<BLOCK>(), b.as_chunks::<BLOCK>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..BLOCK {
            lanes[i] += f(a[i], b[i]);
        }
    }
    if !a_rest.is_empty() {
        let (a, b) = (padded(a_rest), padded(b_rest));
        for i in 0..BLOCK {
            lanes[i] += f(a[i], b[i]);
        }
    }
    lanes
}

/// The least and the largest of some values and 0.
#[inline(always)]
fn bounds(values: &[f32]) -> (f32, f32) {
    let less = |a: f32, b: f32| if b < a { b } else { a };
    let more = |a: f32, b: f32| if b > a { b } else { a };
    let (blocks, rest) = values.as_chunks::<BLOCK>();
    let rest = padded(rest);
    let (mut low, mut high): (Lanes, Lanes) = ([0.0; BLOCK], [0.0; BLOCK]);
    for block in blocks.iter().chain([&rest]) {
        for i in 0..BLOCK {
            low[i] = less(low[i], block[i]);
            high[i] = more(high[i], block[i]);
        }
    }
    (together(low, less), together(high, more))
}

/// Part of a group's range, the grid over it, and how far off that is.
#[derive(Clone, Copy)]
struct Trial {
    part: f32,
    grid: Grid,
    /// Weighed squares of errors in steps of the grid. They are summed up once all trials have
    /// theirs, or each would wait for its last addition.
    lanes: Lanes,
}

/// A range search's trials, to be made for group after group.
fn trials(search: RangeSearch) -> Vec<Trial> {
    let (scale, zero) = (1.0, 0.0);
    let trial = |step| Trial {
        part: search.part(step),
        grid: Grid { scale, zero },
        lanes: [0.0; BLOCK],
    };
    (0..search.steps.max(1)).map(trial).collect()
}

/// The best grid for a group of values, the first trial being of the whole range; `importance`
/// weighs their errors, or without it their own squares.
#[inline(always)]
fn fit(spec: GridSpec, trials: &mut [Trial], values: &[f32], importance: Option<&[f32]>) -> Grid {
    let (min, max) = bounds(values);
    let mut best = spec.over(min, max, 1.0);
    if trials.len() < 2 {
        return best;
    }
    for trial in trials.iter_mut() {
        trial.grid = spec.over(min, max, trial.part);
    }
    for trial in trials.iter_mut() {
        trial.lanes = off(trial.grid, spec.max_code(), values, importance);
    }
    let (unit, mut least) = (1.0 / best.scale, f32::INFINITY);
    for trial in trials.iter() {
        let scale = trial.grid.scale * unit;
        let error = scale * scale * total(trial.lanes);
        if error < least {
            (best, least) = (trial.grid, error);
        }
    }
    best
}

/// Weighed sums of squared errors, in steps of the grid.
#[inline(always)]
fn off(grid: Grid, max_code: f32, values: &[f32], importance: Option<&[f32]>) -> Lanes {
    let inverse = 1.0 / grid.scale;
    let (low, high) = (-grid.zero, max_code - grid.zero);
    let off = |w: f32| {
        let exact = w * inverse;
        let code = exact.round_ties_even();
        let code = if code < low { low } else { code };
        (if code > high { high } else { code }) - exact
    };
    match importance {
        Some(importance) => sums(values, importance, |w, h| {
            let d = off(w);
            d * d * h
        }),
        None => sums(values, values, |w, _| {
            let d = off(w) * w;
            d * d
        }),
    }
}

/// Codes of a group on a grid; sums of squares of their errors, and of the values.
#[inline(always)]
fn round_group(grid: Grid, max_code: f32, values: &[f32], codes: &mut [u8]) -> (f32, f32) {
    let (mut errors, mut sizes): (Lanes, Lanes) = ([0.0; BLOCK], [0.0; BLOCK]);
    let (blocks, rest) = values.as_chunks::<BLOCK>();
    let (code_blocks, code_rest) = codes.as_chunks_mut::<BLOCK>();
    for (values, codes) in blocks.iter().zip(code_blocks) {
        round_block(grid, max_code, values, codes, &mut errors, &mut sizes);
    }
    if !rest.is_empty() {
        let (values, mut codes) = (padded(rest), [0; BLOCK]);
        round_block(grid, max_code, &values, &mut codes, &mut errors, &mut sizes);
        code_rest.copy_from_slice(&codes[..rest.len()]);
    }
    (total(errors), total(sizes))
}

#[inline(always)]
fn round_block(
    grid: Grid,
    max_code: f32,
    values: &Lanes,
    codes: &mut [u8; BLOCK],
    errors: &mut Lanes,
    sizes: &mut Lanes,
) {
    for i in 0..BLOCK {
        let (w, code) = (values[i], grid.code(values[i], max_code));
        codes[i] = low_byte(code);
        let d = grid.value(code) - w;
        errors[i] += d * d;
        sizes[i] += w * w;
    }
}

/// A whole number below 256 as a byte: next to 2²³ its bits are a float's last ones.
#[inline(always)]
fn low_byte(code: f32) -> u8 {
    (code + (1 << 23) as f32).to_bits() as u8
}

struct Round<'a> {
    grid: Grid,
    max_code: f32,
    values: &'a [f32],
    codes: &'a mut [u8],
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        round_group(self.grid, self.max_code, self.values, self.codes);
    }
}

/// Codes of a group on a grid.
pub fn round(grid: Grid, max_code: f32, values: &[f32], codes: &mut [u8]) {
    lanes::run(Round {
        grid,
        max_code,
        values,
        codes,
    });
}

/// Whole rows: one entry into compiled loops for all of their groups.
struct Rows<'a> {
    spec: GridSpec,
    trials: &'a mut [Trial],
    group: usize,
    weights: &'a [f32],
    importance: Option<&'a [f32]>,
    codes: &'a mut [u8],
    scales: &'a mut [f32],
    zeros: &'a mut [u8],
}

impl Kernel for Rows<'_> {
    type Output = (f64, f64);

    #[inline(always)]
    fn run(self) -> (f64, f64) {
        let (group, mut sums) = (self.group, (0.0, 0.0));
        let per_row = self.importance.map_or(1, |h| h.len() / group).max(1);
        let codes = self.codes.chunks_exact_mut(group);
        let values = codes.zip(self.weights.chunks_exact(group));
        let grids = self.scales.iter_mut().zip(self.zeros);
        for (g, ((codes, weights), (scale, zero))) in values.zip(grids).enumerate() {
            let grid = match self.importance {
                None => fit(self.spec, self.trials, weights, None),
                Some(h) => {
                    let importance = Some(&h[g % per_row * group..][..group]);
                    fit(self.spec, self.trials, weights, importance)
                }
            };
            let (error, size) = round_group(grid, self.spec.max_code(), weights, codes);
            sums.0 += f64::from(error);
            sums.1 += f64::from(size);
            *scale = grid.scale;
            *zero = low_byte(grid.zero);
        }
        sums
    }
}

/// Rows as they are handed to a thread.
const ROWS: usize = 8;

/// Rounds a matrix `[rows, cols]` to nearest; `importance` has one factor a column. Without it a
/// weight's own square weighs its error.
pub fn quantize(
    spec: GridSpec,
    search: RangeSearch,
    group: usize,
    (rows, cols): (usize, usize),
    weights: &[f32],
    importance: Option<&[f32]>,
) -> Quantized {
    let mut out = Quantized::empty(rows, cols, group, spec.bits);
    let groups = out.groups();
    let codes = out.codes.par_chunks_mut(ROWS * cols);
    let scales = out.scales.par_chunks_mut(ROWS * groups);
    let zeros = out.zeros.par_chunks_mut(ROWS * groups);
    let weights = weights.par_chunks(ROWS * cols);
    let parts = codes.zip(scales).zip(zeros).zip(weights);
    parts.for_each(|(((codes, scales), zeros), weights)| {
        quantize_rows(
            spec,
            search,
            group,
            weights,
            importance,
            (codes, scales, zeros),
        );
    });
    out
}

/// Rounds whole rows into their codes, scales and zeros. Gives the sums of squares of their errors,
/// and of the weights.
pub fn quantize_rows(
    spec: GridSpec,
    search: RangeSearch,
    group: usize,
    weights: &[f32],
    importance: Option<&[f32]>,
    (codes, scales, zeros): (&mut [u8], &mut [f32], &mut [u8]),
) -> (f64, f64) {
    lanes::run(Rows {
        spec,
        trials: &mut trials(search),
        group,
        weights,
        importance,
        codes,
        scales,
        zeros,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use scrimp_tensor::DType;

    fn spec(symmetric: bool, bits: u32) -> GridSpec {
        GridSpec {
            bits,
            symmetric,
            signed: false,
            zero_min: 0,
            scale: DType::F32,
        }
    }

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 - 0.5
        };
        (0..n).map(|_| next() + next() + next()).collect()
    }

    /// The definition, in f64 and one value at a time.
    fn reference(spec: &GridSpec, w: &[f32]) -> (f64, f64, Vec<u8>) {
        let top = f64::from(spec.max_code());
        let min = w.iter().fold(0.0f32, |a, b| a.min(*b));
        let max = w.iter().fold(0.0f32, |a, b| a.max(*b));
        let (scale, zero) = if spec.symmetric {
            (max.max(-min) / (top as f32 / 2.0), f64::from(spec.middle()))
        } else {
            let scale = (max - min) / top as f32;
            (scale, f64::from((-min / scale).round_ties_even()))
        };
        let scale = f64::from(scale);
        let code =
            |w: &f32| ((f64::from(*w) / scale + zero).clamp(0.0, top)).round_ties_even() as u8;
        (scale, zero, w.iter().map(code).collect())
    }

    #[test]
    fn plain_rounding_is_the_definition() {
        for (symmetric, bits) in [(true, 4), (false, 4), (true, 8), (false, 8)] {
            for (group, cols) in [(4, 12), (19, 38), (64, 64)] {
                let (spec, rows) = (spec(symmetric, bits), 11);
                let w = noise(rows * cols, group as u32);
                let q = quantize(spec, RangeSearch::NONE, group, (rows, cols), &w, None);
                for (g, w) in w.chunks_exact(group).enumerate() {
                    let (scale, zero, codes) = reference(&spec, w);
                    assert!((f64::from(q.scales[g]) - scale).abs() < 1e-6 * scale);
                    assert_eq!(f64::from(q.zeros[g]), zero);
                    // The largest value of a symmetric group is a tie, which f32 may break otherwise.
                    let pairs = || codes.iter().zip(&q.codes[g * group..]);
                    assert!(pairs().filter(|(a, b)| a != b).count() <= 1 + group / 32);
                    assert!(pairs().all(|(a, b)| a.abs_diff(*b) <= 1));
                }
            }
        }
    }

    #[test]
    fn a_searched_range_is_never_worse_and_pays_for_outliers() {
        let mut w = noise(64 * 32, 7);
        w.iter_mut().step_by(37).for_each(|w| *w *= 3.0);
        let importance: Vec<f32> = noise(64, 3).iter().map(|x| x.abs() + 0.01).collect();
        let error = |search, weighed: bool| {
            let h = weighed.then_some(importance.as_slice());
            let q = quantize(spec(true, 4), search, 32, (32, 64), &w, h);
            let mut d = vec![0.0; w.len()];
            q.dequantize_into(None, &mut d);
            let sum = d.iter().zip(&w).enumerate();
            sum.map(|(i, (a, b))| f64::from((a - b).powi(2) * importance[i % 64]))
                .sum::<f64>()
        };
        let (plain, fine) = (
            error(RangeSearch::NONE, true),
            error(RangeSearch::FINE, true),
        );
        assert!(fine < 0.9 * plain, "{fine} of {plain}");
        assert!(fine <= error(RangeSearch::FINE, false));
    }
}

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

/// Values of a group are padded to a multiple of this, so that loops have whole vectors.
const BLOCK: usize = 16;

struct Fit<'a> {
    spec: GridSpec,
    search: RangeSearch,
    values: &'a [f32],
    importance: Option<&'a [f32]>,
}

impl Kernel for Fit<'_> {
    type Output = Grid;

    #[inline(always)]
    fn run(self) -> Grid {
        let (min, max) = bounds(self.values);
        let mut best = self.spec.over(min, max, 1.0);
        if self.search.steps <= 1 {
            return best;
        }
        let max_code = self.spec.max_code();
        let mut least = self.error(best, max_code);
        for step in 1..self.search.steps {
            let grid = self.spec.over(min, max, self.search.part(step));
            let error = self.error(grid, max_code);
            if error < least {
                (best, least) = (grid, error);
            }
        }
        best
    }
}

impl Fit<'_> {
    #[inline(always)]
    fn error(&self, grid: Grid, max_code: f32) -> f32 {
        let inverse = 1.0 / grid.scale;
        let round = |w: f32| {
            let code = (w * inverse + grid.zero)
                .clamp(0.0, max_code)
                .round_ties_even();
            (code - grid.zero) * grid.scale - w
        };
        match self.importance {
            Some(importance) => sum(self.values, importance, |w, h| {
                let d = round(w);
                d * d * h
            }),
            None => sum(self.values, self.values, |w, _| {
                let d = round(w) * w;
                d * d
            }),
        }
    }
}

/// Sums over pairs in sixteen lanes, so that the order is the same on every machine.
#[inline(always)]
fn sum(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; BLOCK];
    let whole = a.len() / BLOCK * BLOCK;
    for (a, b) in a[..whole]
        .chunks_exact(BLOCK)
        .zip(b[..whole].chunks_exact(BLOCK))
    {
        for i in 0..BLOCK {
            lanes[i] += f(a[i], b[i]);
        }
    }
    let mut total = 0.0;
    for lane in lanes {
        total += lane;
    }
    for (a, b) in a[whole..].iter().zip(&b[whole..]) {
        total += f(*a, *b);
    }
    total
}

#[inline(always)]
fn bounds(values: &[f32]) -> (f32, f32) {
    let mut low = [0.0f32; BLOCK];
    let mut high = [0.0f32; BLOCK];
    let chunks = values.chunks_exact(BLOCK);
    for value in chunks.remainder() {
        low[0] = low[0].min(*value);
        high[0] = high[0].max(*value);
    }
    for chunk in chunks {
        for i in 0..BLOCK {
            low[i] = low[i].min(chunk[i]);
            high[i] = high[i].max(chunk[i]);
        }
    }
    let min = low.into_iter().fold(0.0, f32::min);
    let max = high.into_iter().fold(0.0, f32::max);
    (min, max)
}

/// The best grid for a group of values, `importance` weighing their errors, or without it their
/// own squares.
pub fn fit(
    spec: GridSpec,
    search: RangeSearch,
    values: &[f32],
    importance: Option<&[f32]>,
) -> Grid {
    lanes::run(Fit {
        spec,
        search,
        values,
        importance,
    })
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
        for (code, &value) in self.codes.iter_mut().zip(self.values) {
            *code = self.grid.code(value, self.max_code) as u8;
        }
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

struct Squares<'a> {
    values: &'a [f32],
    codes: &'a [u8],
    grid: Grid,
}

impl Kernel for Squares<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run(self) -> (f32, f32) {
        let (mut errors, mut sizes) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
        let values = self.values.chunks(BLOCK);
        for (values, codes) in values.zip(self.codes.chunks(BLOCK)) {
            for (i, (w, code)) in values.iter().zip(codes).enumerate() {
                let d = self.grid.value(f32::from(*code)) - w;
                errors[i] += d * d;
                sizes[i] += w * w;
            }
        }
        (errors.iter().sum(), sizes.iter().sum())
    }
}

/// Sums of squares of a group's errors, and of its values.
pub(crate) fn squares(values: &[f32], codes: &[u8], scale: f32, zero: f32) -> (f32, f32) {
    let grid = Grid { scale, zero };
    lanes::run(Squares {
        values,
        codes,
        grid,
    })
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

/// Rounds whole rows into their codes, scales and zeros.
pub fn quantize_rows(
    spec: GridSpec,
    search: RangeSearch,
    group: usize,
    weights: &[f32],
    importance: Option<&[f32]>,
    (codes, scales, zeros): (&mut [u8], &mut [f32], &mut [u8]),
) {
    let per_row = importance.map_or(1, |h| h.len() / group).max(1);
    let parts = codes
        .chunks_exact_mut(group)
        .zip(weights.chunks_exact(group));
    let grids = scales.iter_mut().zip(zeros);
    for (g, ((codes, weights), (scale, zero))) in parts.zip(grids).enumerate() {
        let importance = importance.map(|h| &h[g % per_row * group..][..group]);
        let grid = fit(spec, search, weights, importance);
        round(grid, spec.max_code(), weights, codes);
        *scale = grid.scale;
        *zero = grid.zero as u8;
    }
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

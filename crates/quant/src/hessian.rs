//! What calibration says of a projection's input: `H = E[x xᵀ]`, and each channel's mean size.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Second moments of an input of `n` channels.
#[derive(Clone, Debug)]
pub struct Hessian {
    /// Channels.
    pub n: usize,
    /// `[n, n]`: sums while it is gathered, in the lower triangle; means once it is finished.
    pub values: Vec<f32>,
    /// `[n]`: sums of `|x|`, then means.
    pub size: Vec<f32>,
    /// Weight of the rows seen: their number, where each counts fully.
    pub weight: f64,
}

impl Hessian {
    /// No rows yet.
    pub fn new(n: usize) -> Hessian {
        Hessian {
            n,
            values: vec![0.0; n * n],
            size: vec![0.0; n],
            weight: 0.0,
        }
    }

    /// Bytes of one over `n` channels.
    pub fn bytes(n: usize) -> usize {
        (n * n + n) * size_of::<f32>()
    }

    /// Takes in rows `[_, n]`, each counted `weight` times.
    pub fn add(&mut self, rows: &[f32], weight: f32) {
        let n = self.n;
        let count = rows.len() / n;
        if count == 0 {
            return;
        }
        let x = MatRef::from_row_major_slice(rows, count, n);
        // Strips of the lower triangle: threads that meet at barriers inside of one product wait
        // longer than they compute.
        let strips = self.values.par_chunks_mut(STRIP * n);
        strips.enumerate().for_each(|(i, strip)| {
            let (first, height) = (i * STRIP, strip.len() / n);
            let strip = MatMut::from_row_major_slice_mut(strip, height, n);
            matmul(
                strip.subcols_mut(0, first + height),
                Accum::Add,
                x.subcols(first, height).transpose(),
                x.subcols(0, first + height),
                weight,
                Par::Seq,
            );
        });
        for row in rows.chunks_exact(n) {
            for (size, x) in self.size.iter_mut().zip(row) {
                *size += x.abs() * weight;
            }
        }
        self.weight += count as f64 * f64::from(weight);
    }

    /// Turns sums into means, and fills the upper triangle.
    pub fn finish(&mut self) {
        let by = if self.weight > 0.0 {
            (1.0 / self.weight) as f32
        } else {
            0.0
        };
        let n = self.n;
        self.size.iter_mut().for_each(|s| *s *= by);
        for i in 0..n {
            for j in 0..=i {
                let value = self.values[i * n + j] * by;
                self.values[i * n + j] = value;
                self.values[j * n + i] = value;
            }
        }
    }

    /// Moves a finished Hessian towards another of the same channels: `share` of it is kept.
    pub fn blend(&mut self, other: &Hessian, share: f32) {
        let pairs = self.values.iter_mut().zip(&other.values);
        pairs.for_each(|(a, b)| *a = *a * share + b * (1.0 - share));
        let pairs = self.size.iter_mut().zip(&other.size);
        pairs.for_each(|(a, b)| *a = *a * share + b * (1.0 - share));
    }

    /// The mean square of every channel.
    pub fn diagonal(&self) -> Vec<f32> {
        (0..self.n).map(|i| self.values[i * self.n + i]).collect()
    }

    /// The Hessian of inputs whose channel `c` is divided by `scales[c]`.
    pub fn divide_channels(&mut self, scales: &[f32]) {
        let rows = self.values.par_chunks_exact_mut(self.n.max(1)).zip(scales);
        rows.for_each(|(row, a)| {
            row.iter_mut().zip(scales).for_each(|(h, b)| *h /= a * b);
        });
        let pairs = self.size.iter_mut().zip(scales);
        pairs.for_each(|(size, s)| *size /= s);
    }

    /// `Σ d H dᵀ` over rows `d` of a matrix `[_, n]`: the mean squared output of these weights.
    pub fn quadratic(&self, rows: &[f32]) -> f64 {
        let n = self.n;
        let parts = rows.par_chunks(QUADRATIC_ROWS * n.max(1));
        let sums: Vec<f64> = parts.map(|rows| self.quadratic_part(rows)).collect();
        sums.iter().sum()
    }

    fn quadratic_part(&self, rows: &[f32]) -> f64 {
        let n = self.n;
        let count = rows.len() / n;
        let mut product = vec![0.0f32; rows.len()];
        matmul(
            MatMut::from_row_major_slice_mut(&mut product, count, n),
            Accum::Replace,
            MatRef::from_row_major_slice(rows, count, n),
            MatRef::from_row_major_slice(&self.values, n, n),
            1.0,
            Par::Seq,
        );
        let pairs = product.chunks_exact(n).zip(rows.chunks_exact(n));
        let dot = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        pairs.map(|pair| f64::from(dot(pair))).sum()
    }
}

/// Rows of the matrix of moments that one thread adds to at a time.
const STRIP: usize = 96;
/// Rows that one thread multiplies at a time.
const QUADRATIC_ROWS: usize = 32;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Rows of `n` channels that lean on each other, a few of them much larger.
    pub(crate) fn correlated(rows: usize, n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 - 0.5
        };
        let mut out = Vec::with_capacity(rows * n);
        for _ in 0..rows {
            let (mut carry, common) = (0.0, next());
            for c in 0..n {
                carry = 0.7 * carry + next();
                out.push((carry + 0.5 * common) * if c % 13 == 5 { 6.0 } else { 1.0 });
            }
        }
        out
    }

    pub(crate) fn hessian_of(rows: &[f32], n: usize) -> Hessian {
        let mut hessian = Hessian::new(n);
        for part in rows.chunks(5 * n) {
            hessian.add(part, 1.0);
        }
        hessian.finish();
        hessian
    }

    #[test]
    fn moments_are_means_of_products() {
        let (rows, n) = (37, 23);
        let x = correlated(rows, n, 1);
        let h = hessian_of(&x, n);
        for (i, j) in [(0, 0), (3, 20), (20, 3), (22, 22)] {
            let sum: f64 = (0..rows)
                .map(|r| f64::from(x[r * n + i]) * f64::from(x[r * n + j]))
                .sum();
            let mean = sum / rows as f64;
            assert!((f64::from(h.values[i * n + j]) - mean).abs() < 1e-4 * (1.0 + mean.abs()));
        }
        let size = (0..rows).map(|r| x[r * n + 4].abs()).sum::<f32>() / rows as f32;
        assert!((h.size[4] - size).abs() < 1e-5);
    }

    #[test]
    fn the_quadratic_form_is_the_mean_squared_output() {
        let (rows, n) = (64, 19);
        let x = correlated(rows, n, 2);
        let w = correlated(41, n, 3);
        let mut sum = 0.0f64;
        for x in x.chunks_exact(n) {
            for w in w.chunks_exact(n) {
                let y: f64 = x
                    .iter()
                    .zip(w)
                    .map(|(a, b)| f64::from(*a) * f64::from(*b))
                    .sum();
                sum += y * y;
            }
        }
        let mut h = hessian_of(&x, n);
        let wanted = sum / rows as f64;
        assert!((h.quadratic(&w) / wanted - 1.0).abs() < 1e-4);
        let scales: Vec<f32> = (0..n).map(|i| 0.5 + i as f32 / 7.0).collect();
        let scaled: Vec<f32> = w
            .iter()
            .enumerate()
            .map(|(i, w)| w * scales[i % n])
            .collect();
        h.divide_channels(&scales);
        assert!((h.quadratic(&scaled) / wanted - 1.0).abs() < 1e-4);
    }

    #[test]
    fn no_rows_are_no_numbers_that_are_not() {
        let mut h = Hessian::new(4);
        h.add(&[], 1.0);
        h.finish();
        assert!(h.values.iter().chain(&h.size).all(|v| *v == 0.0));
    }
}

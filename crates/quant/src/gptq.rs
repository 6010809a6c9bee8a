//! GPTQ (arXiv 2210.17323): each column's rounding error is carried on to the columns after it.
//!
//! ```text
//! for position p, most important column first:
//!     q = nearest code of w[p] on its group's grid
//!     e = (w[p] − value(q)) / L⁻¹[p, p]
//!     w[k] −= e · L⁻¹[p, k]        for every later position k   (k < p: see `factor`)
//! ```
//!
//! Rows do not know each other, so threads take rows. Within a row, updates inside a block of 128
//! columns are made at once and those of all later columns once a block is done, as one product.
//! Columns are ordered by importance and grids belong to groups of the original order (static
//! act-order), so that nothing about the order is stored.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::factor::InverseFactor;
use crate::grid::GridSpec;
use crate::lanes::{self, Kernel};
use crate::quantized::Quantized;
use crate::rtn::{self, RangeSearch};

/// Columns whose updates are made at once.
const BLOCK: usize = 128;
/// Rows that one thread works on at a time.
const ROWS: usize = 64;

/// Quantizes `[rows, cols]` weights along an inverse factor. Gives the codes, and the sum of
/// squared errors of the outputs on the (damped) calibration.
pub fn quantize(
    spec: GridSpec,
    search: RangeSearch,
    group: usize,
    (rows, cols): (usize, usize),
    weights: &[f32],
    factor: &InverseFactor,
) -> (Quantized, f64) {
    let mut out = Quantized::empty(rows, cols, group, spec.bits);
    let groups = out.groups();
    let codes = out.codes.par_chunks_mut(ROWS * cols);
    let scales = out.scales.par_chunks_mut(ROWS * groups);
    let zeros = out.zeros.par_chunks_mut(ROWS * groups);
    let parts = codes
        .zip(scales)
        .zip(zeros)
        .zip(weights.par_chunks(ROWS * cols));
    let losses: Vec<f64> = parts
        .map(|(((codes, scales), zeros), weights)| {
            let importance = Some(factor.diagonal.as_slice());
            let grids = (&mut *codes, &mut *scales, &mut *zeros);
            rtn::quantize_rows(spec, search, group, weights, importance, grids);
            let mut part = Part::new(spec, group, weights, scales, zeros, factor);
            part.run();
            part.take_codes(codes);
            part.loss
        })
        .collect();
    (out, losses.iter().sum())
}

/// A few rows, transposed, so that a column of them lies together.
struct Part<'a> {
    factor: &'a InverseFactor,
    max_code: f32,
    group: usize,
    rows: usize,
    /// `[position, row]`.
    weights: Vec<f32>,
    /// `[position, row]`.
    codes: Vec<u8>,
    /// `[group, row]`.
    scales: Vec<f32>,
    /// `[group, row]`.
    zeros: Vec<f32>,
    /// `[position in the block, row]`.
    errors: Vec<f32>,
    loss: f64,
}

impl<'a> Part<'a> {
    fn new(
        spec: GridSpec,
        group: usize,
        weights: &[f32],
        scales: &[f32],
        zeros: &[u8],
        factor: &'a InverseFactor,
    ) -> Part<'a> {
        let cols = factor.n;
        let (rows, groups) = (weights.len() / cols, cols / group);
        let mut ordered = vec![0.0; weights.len()];
        for (r, row) in weights.chunks_exact(cols).enumerate() {
            for (p, &c) in factor.order.iter().enumerate() {
                ordered[p * rows + r] = row[c as usize];
            }
        }
        let by_group = |at: &dyn Fn(usize) -> f32| {
            let mut out = vec![0.0; rows * groups];
            for r in 0..rows {
                for g in 0..groups {
                    out[g * rows + r] = at(r * groups + g);
                }
            }
            out
        };
        Part {
            factor,
            max_code: spec.max_code(),
            group,
            rows,
            weights: ordered,
            codes: vec![0; weights.len()],
            scales: by_group(&|i| scales[i]),
            zeros: by_group(&|i| f32::from(zeros[i])),
            errors: vec![0.0; BLOCK.min(cols) * rows],
            loss: 0.0,
        }
    }

    fn run(&mut self) {
        let n = self.factor.n;
        let mut end = n;
        while end > 0 {
            let start = end.saturating_sub(BLOCK);
            self.loss += lanes::run(Block {
                part: self,
                start,
                end,
            });
            let errors = &self.errors[..(end - start) * self.rows];
            // Positions before `start` take all of the block's errors at once.
            let rows_of_block = &self.factor.values[start * n..end * n];
            let carry = MatRef::from_row_major_slice(rows_of_block, end - start, n);
            let later = &mut self.weights[..start * self.rows];
            matmul(
                MatMut::from_row_major_slice_mut(later, start, self.rows),
                Accum::Add,
                carry.subcols(0, start).transpose(),
                MatRef::from_row_major_slice(errors, end - start, self.rows),
                -1.0,
                Par::Seq,
            );
            end = start;
        }
    }

    fn take_codes(&self, out: &mut [u8]) {
        let n = self.factor.n;
        for (r, row) in out.chunks_exact_mut(n).enumerate() {
            for (p, &c) in self.factor.order.iter().enumerate() {
                row[c as usize] = self.codes[p * self.rows + r];
            }
        }
    }
}

/// The positions `start .. end` of a part, last first.
struct Block<'a, 'b> {
    part: &'a mut Part<'b>,
    start: usize,
    end: usize,
}

impl Kernel for Block<'_, '_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let Block { part, start, end } = self;
        let (n, rows) = (part.factor.n, part.rows);
        let mut loss = 0.0;
        for p in (start..end).rev() {
            let factors = &part.factor.values[p * n..p * n + p + 1];
            let group = part.factor.order[p] as usize / part.group;
            let scales = &part.scales[group * rows..(group + 1) * rows];
            let zeros = &part.zeros[group * rows..(group + 1) * rows];
            let codes = &mut part.codes[p * rows..(p + 1) * rows];
            let errors = &mut part.errors[(p - start) * rows..(p - start + 1) * rows];
            let (before, own) = part.weights.split_at_mut(p * rows);
            let by = 1.0 / factors[p];
            for r in 0..rows {
                let w = own[r];
                let code = (w / scales[r] + zeros[r])
                    .clamp(0.0, part.max_code)
                    .round_ties_even();
                codes[r] = code as u8;
                errors[r] = (w - (code - zeros[r]) * scales[r]) * by;
            }
            let mut squares = 0.0f32;
            for e in errors.iter() {
                squares += e * e;
            }
            loss += f64::from(squares);
            for (k, w) in before[start * rows..].chunks_exact_mut(rows).enumerate() {
                let factor = factors[start + k];
                for (w, e) in w.iter_mut().zip(errors.iter()) {
                    *w -= e * factor;
                }
            }
        }
        loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hessian::tests::{correlated, hessian_of};
    use scrimp_tensor::DType;

    fn spec(symmetric: bool) -> GridSpec {
        GridSpec {
            bits: 4,
            symmetric,
            signed: false,
            zero_min: 0,
            scale: DType::F32,
        }
    }

    /// The algorithm as the paper writes it, in f64: the whole inverse, columns in order of
    /// importance, one row at a time.
    fn reference(w: &[f32], h: &[f32], n: usize, grids: &Quantized) -> Vec<u8> {
        let d: Vec<f64> = (0..n).map(|i| f64::from(h[i * n + i])).collect();
        let mean = d.iter().sum::<f64>() / n as f64;
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| d[b].total_cmp(&d[a]).then(a.cmp(&b)));
        let mut a = vec![vec![0.0; 2 * n]; n];
        for i in 0..n {
            for j in 0..n {
                a[i][j] = f64::from(h[order[i] * n + order[j]]);
            }
            a[i][i] += 0.01 * mean;
            a[i][n + i] = 1.0;
        }
        for i in 0..n {
            let pivot = a[i][i];
            a[i].iter_mut().for_each(|v| *v /= pivot);
            for k in 0..n {
                if k != i {
                    let f = a[k][i];
                    let row = a[i].clone();
                    a[k].iter_mut().zip(row).for_each(|(v, r)| *v -= f * r);
                }
            }
        }
        let mut inverse: Vec<Vec<f64>> = a.iter().map(|r| r[n..].to_vec()).collect();
        let mut codes = vec![0; w.len()];
        let mut w: Vec<f64> = w.iter().map(|w| f64::from(*w)).collect();
        for i in 0..n {
            let c = order[i];
            for (r, row) in w.chunks_exact_mut(n).enumerate() {
                let grid = grids.grid(r, c / grids.group);
                let code = grid.code(row[c] as f32, 15.0);
                codes[r * n + c] = code as u8;
                let e = (row[c] - f64::from(grid.value(code))) / inverse[i][i];
                for j in i + 1..n {
                    row[order[j]] -= e * inverse[i][j];
                }
            }
            // Take column i out of the inverse, as the optimal-brain-surgeon formula has it.
            let row = inverse[i].clone();
            for other in &mut inverse[i + 1..n] {
                let f = other[i] / row[i];
                for j in i + 1..n {
                    other[j] -= f * row[j];
                }
            }
        }
        codes
    }

    #[test]
    fn codes_are_those_of_the_paper() {
        let (rows, n) = (7, 36);
        let h = hessian_of(&correlated(200, n, 9), n);
        let w = correlated(rows, n, 10);
        for symmetric in [true, false] {
            let factor = InverseFactor::new(h.clone(), false).unwrap();
            let (q, _) = quantize(
                spec(symmetric),
                RangeSearch::NONE,
                12,
                (rows, n),
                &w,
                &factor,
            );
            let wanted = reference(&w, &h.values, n, &q);
            let off = q.codes.iter().zip(&wanted).filter(|(a, b)| a != b).count();
            assert!(off <= 2, "{off} of {} differ", wanted.len());
        }
    }

    #[test]
    fn errors_are_smaller_than_of_rounding_and_as_reported() {
        for (rows, n, group) in [(70, 200, 40), (9, 131, 131), (3, 16, 4)] {
            let h = hessian_of(&correlated(4 * n, n, 21), n);
            let w = correlated(rows, n, 22);
            let error = |q: &Quantized| {
                let mut d = vec![0.0; w.len()];
                q.dequantize_into(None, &mut d);
                d.iter_mut().zip(&w).for_each(|(d, w)| *d -= w);
                h.quadratic(&d)
            };
            let diagonal = h.diagonal();
            let search = RangeSearch::FINE;
            let shape = (rows, n);
            let plain = rtn::quantize(spec(true), search, group, shape, &w, Some(&diagonal));
            let factor = InverseFactor::new(h.clone(), false).unwrap();
            let (carried, loss) = quantize(spec(true), search, group, shape, &w, &factor);
            let (plain, carried) = (error(&plain), error(&carried));
            assert!(carried < 0.8 * plain, "{carried} of {plain}");
            assert!(
                loss >= carried && loss < 1.6 * carried + 1e-3,
                "{loss} for {carried}"
            );
        }
    }
}

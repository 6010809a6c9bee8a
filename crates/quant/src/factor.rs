//! The factor of a Hessian's inverse that GPTQ walks along, made in the Hessian's own memory.
//!
//! GPTQ wants the upper Cholesky factor `U` of `H⁻¹` (`H⁻¹ = UᵀU`), columns ordered by falling
//! diagonal. With the order reversed, that is the inverse of the ordinary lower factor of `H`
//! itself, read backwards: one factorization and one triangular inverse instead of three steps, and
//! both in place in the lower triangle. The upper one keeps `H`, so that a failed attempt can be
//! repeated with more damping. Twice the memory of an `n × n` Hessian is what does not fit.

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::prelude::{Reborrow, ReborrowMut};
use faer::traits::RealField;
use faer::{Accum, MatMut, MatRef, Par};

use crate::hessian::Hessian;

/// Share of the mean of the diagonal that is added to it, and what is tried when that is too little.
const DAMPING: [f32; 4] = [0.01, 0.03, 0.1, 0.3];

/// `L⁻¹` of a damped, reordered Hessian `H = LLᵀ`.
pub struct InverseFactor {
    /// Inputs.
    pub n: usize,
    /// `[n, n]`, lower triangle: `L⁻¹`.
    pub values: Vec<f32>,
    /// Column at each position; importance rises, so errors are carried from the end to the front.
    pub order: Vec<u32>,
    /// Diagonal of the Hessian by column, as it came.
    pub diagonal: Vec<f32>,
    /// What was out of the ordinary.
    pub note: Option<String>,
}

/// A Hessian that no damping makes positive.
#[derive(Debug, thiserror::Error)]
pub enum FactorError {
    /// Calibration gave infinities or NaN.
    #[error("the calibration's activations are not finite")]
    NotFinite,
    /// Every damping failed, in single and in double precision.
    #[error("the Hessian stays indefinite at a damping of 0.3, in single and double precision")]
    Indefinite,
}

impl InverseFactor {
    /// Consumes a finished Hessian. `double` says whether a second attempt may take twice its
    /// memory for double precision.
    ///
    /// # Errors
    /// When the Hessian is not finite, or indefinite however damped.
    pub fn new(hessian: Hessian, double: bool) -> Result<InverseFactor, FactorError> {
        let n = hessian.n;
        let mut values = hessian.values;
        let raw: Vec<f32> = (0..n).map(|i| values[i * n + i]).collect();
        if !raw.iter().all(|d| d.is_finite()) {
            return Err(FactorError::NotFinite);
        }
        let dead = raw.iter().filter(|d| **d <= 0.0).count();
        let diagonal: Vec<f32> = raw.iter().map(|&d| if d > 0.0 { d } else { 1.0 }).collect();
        let mut order: Vec<u32> = (0..n as u32).collect();
        order.sort_by(|&a, &b| raw[a as usize].total_cmp(&raw[b as usize]).then(b.cmp(&a)));
        permute(&mut values, n, &order);
        let ordered: Vec<f32> = order.iter().map(|&c| diagonal[c as usize]).collect();
        let mean = ordered.iter().map(|&d| f64::from(d)).sum::<f64>() / n.max(1) as f64;
        let mut note = (dead > 0).then(|| format!("{dead} inputs were never active"));
        for (attempt, damping) in DAMPING.into_iter().enumerate() {
            if attempt > 0 {
                restore(&mut values, n);
            }
            damp(&mut values, &ordered, damping * mean as f32);
            if factor_and_invert(matrix(&mut values, n)) && lower_is_finite(&values, n) {
                if attempt > 0 {
                    add(&mut note, format!("damping raised to {damping}"));
                }
                return Ok(InverseFactor {
                    n,
                    values,
                    order,
                    diagonal: raw,
                    note,
                });
            }
        }
        restore(&mut values, n);
        if !double || !in_double(&mut values, &ordered, DAMPING[3] * mean as f32) {
            return Err(FactorError::Indefinite);
        }
        add(&mut note, "factored in double precision".to_owned());
        Ok(InverseFactor {
            n,
            values,
            order,
            diagonal: raw,
            note,
        })
    }
}

impl InverseFactor {
    /// `Σ d H dᵀ` over rows `d` of a matrix `[_, n]`, by the Hessian that the upper triangle keeps.
    pub fn quadratic(&self, rows: &[f32]) -> f64 {
        let n = self.n;
        let count = rows.len() / n.max(1);
        let ordered = |row: &[f32]| {
            self.order
                .iter()
                .map(|c| row[*c as usize])
                .collect::<Vec<_>>()
        };
        let d: Vec<f32> = rows.chunks_exact(n.max(1)).flat_map(ordered).collect();
        let mut product = vec![0.0f32; d.len()];
        triangular::matmul(
            MatMut::from_row_major_slice_mut(&mut product, count, n),
            BlockStructure::Rectangular,
            Accum::Replace,
            MatRef::from_row_major_slice(&d, count, n),
            BlockStructure::Rectangular,
            MatRef::from_row_major_slice(&self.values, n, n),
            BlockStructure::StrictTriangularUpper,
            1.0,
            Par::rayon(0),
        );
        let mut sum = 0.0;
        for (i, (d, y)) in d.iter().zip(&product).enumerate() {
            let own = self.diagonal[self.order[i % n] as usize];
            sum += f64::from(*d) * (2.0 * f64::from(*y) + f64::from(own) * f64::from(*d));
        }
        sum
    }
}

/// Joins notes.
pub(crate) fn add(note: &mut Option<String>, more: String) {
    *note = Some(match note.take() {
        Some(note) => format!("{note}; {more}"),
        None => more,
    });
}

fn matrix(values: &mut [f32], n: usize) -> MatMut<'_, f32> {
    MatMut::from_row_major_slice_mut(values, n, n)
}

fn damp(values: &mut [f32], diagonal: &[f32], damping: f32) {
    let n = diagonal.len();
    for (i, d) in diagonal.iter().enumerate() {
        values[i * n + i] = d + damping;
    }
}

/// Copies the upper triangle over the lower one.
fn restore(values: &mut [f32], n: usize) {
    for i in 0..n {
        for j in 0..i {
            values[i * n + j] = values[j * n + i];
        }
    }
}

fn lower_is_finite(values: &[f32], n: usize) -> bool {
    (0..n).all(|i| values[i * n..=i * n + i].iter().all(|v| v.is_finite()))
}

/// `A[i, j] = A[order[i], order[j]]`, in place, with one row's memory.
fn permute(values: &mut [f32], n: usize, order: &[u32]) {
    let mut done = vec![false; n];
    let mut saved = vec![0.0f32; n];
    for start in 0..n {
        if done[start] {
            continue;
        }
        saved.copy_from_slice(&values[start * n..(start + 1) * n]);
        let mut at = start;
        loop {
            done[at] = true;
            let from = order[at] as usize;
            if from == start {
                values[at * n..(at + 1) * n].copy_from_slice(&saved);
                break;
            }
            values.copy_within(from * n..(from + 1) * n, at * n);
            at = from;
        }
    }
    for row in values.chunks_exact_mut(n.max(1)) {
        saved.copy_from_slice(row);
        for (value, &from) in row.iter_mut().zip(order) {
            *value = saved[from as usize];
        }
    }
}

/// The same in double precision; the lower triangle of `values` gets the result.
fn in_double(values: &mut [f32], diagonal: &[f32], damping: f32) -> bool {
    let n = diagonal.len();
    let mut wide: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
    for (i, &d) in diagonal.iter().enumerate() {
        wide[i * n + i] = f64::from(d) + f64::from(damping);
    }
    if !factor_and_invert(MatMut::from_row_major_slice_mut(&mut wide, n, n)) {
        return false;
    }
    for i in 0..n {
        for j in 0..=i {
            values[i * n + j] = wide[i * n + j] as f32;
        }
    }
    lower_is_finite(values, n)
}

/// Rows below which blocks are not split further.
const LEAF: usize = 48;

trait Real: RealField + Copy + PartialOrd {
    fn nought() -> Self;
    fn root(self) -> Self;
    fn minus(self, a: Self, b: Self) -> Self;
    fn over(self, by: Self) -> Self;
    fn negative(self) -> Self;
}

macro_rules! real {
    ($t:ty) => {
        impl Real for $t {
            fn nought() -> Self {
                0.0
            }
            fn root(self) -> Self {
                self.sqrt()
            }
            fn minus(self, a: Self, b: Self) -> Self {
                self - a * b
            }
            fn over(self, by: Self) -> Self {
                self / by
            }
            fn negative(self) -> Self {
                -self
            }
        }
    };
}
real!(f32);
real!(f64);

fn factor_and_invert<T: Real>(mut a: MatMut<'_, T>) -> bool {
    let par = Par::rayon(0);
    let positive = cholesky(a.rb_mut(), par);
    if positive {
        invert(a, par);
    }
    positive
}

/// `A = LLᵀ` into the lower triangle; `false` when `A` is not positive.
fn cholesky<T: Real>(mut a: MatMut<'_, T>, par: Par) -> bool {
    let n = a.nrows();
    if n <= LEAF {
        return cholesky_leaf(a);
    }
    let half = split(n);
    let (mut a11, _, mut a21, mut a22) = a.rb_mut().split_at_mut(half, half);
    if !cholesky(a11.rb_mut(), par) {
        return false;
    }
    solve_lower_triangular_in_place(a11.rb(), a21.rb_mut().transpose_mut(), par);
    let minus_one = T::one_impl().negative();
    triangular::matmul(
        a22.rb_mut(),
        BlockStructure::TriangularLower,
        Accum::Add,
        a21.rb(),
        BlockStructure::Rectangular,
        a21.rb().transpose(),
        BlockStructure::Rectangular,
        minus_one,
        par,
    );
    cholesky(a22, par)
}

fn split(n: usize) -> usize {
    (n / 2).next_multiple_of(16)
}

fn cholesky_leaf<T: Real>(mut a: MatMut<'_, T>) -> bool {
    for j in 0..a.nrows() {
        let mut d = a[(j, j)];
        for k in 0..j {
            d = d.minus(a[(j, k)], a[(j, k)]);
        }
        let positive = d > T::nought();
        if !positive {
            return false; // NaN as well
        }
        let root = d.root();
        a[(j, j)] = root;
        for i in j + 1..a.nrows() {
            let mut v = a[(i, j)];
            for k in 0..j {
                v = v.minus(a[(i, k)], a[(j, k)]);
            }
            a[(i, j)] = v.over(root);
        }
    }
    true
}

/// `L⁻¹` into the lower triangle that holds `L`.
fn invert<T: Real>(mut a: MatMut<'_, T>, par: Par) {
    let n = a.nrows();
    if n <= LEAF {
        return invert_leaf(a);
    }
    let half = split(n);
    let (a11, _, mut a21, a22) = a.rb_mut().split_at_mut(half, half);
    solve_lower_triangular_in_place(a22.rb(), a21.rb_mut(), par);
    solve_upper_triangular_in_place(a11.rb().transpose(), a21.rb_mut().transpose_mut(), par);
    for i in 0..a21.nrows() {
        for j in 0..a21.ncols() {
            a21[(i, j)] = a21[(i, j)].negative();
        }
    }
    invert(a11, par);
    invert(a22, par);
}

fn invert_leaf<T: Real>(mut a: MatMut<'_, T>) {
    let n = a.nrows();
    for j in 0..n {
        a[(j, j)] = T::one_impl().over(a[(j, j)]);
        for i in j + 1..n {
            let mut v = T::nought();
            for k in j..i {
                v = v.minus(a[(i, k)], a[(k, j)]);
            }
            a[(i, j)] = v.over(a[(i, i)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hessian::tests::{correlated, hessian_of};

    #[test]
    fn the_factor_is_that_of_the_inverse() {
        for n in [1, 5, 48, 49, 131, 200] {
            let x = correlated(3 * n + 7, n, 11);
            let hessian = hessian_of(&x, n);
            let h = hessian.values.clone();
            let mean: f32 = (0..n).map(|i| h[i * n + i]).sum::<f32>() / n as f32;
            let f = InverseFactor::new(hessian, false).unwrap();
            assert!(f.note.is_none());
            // L⁻¹ H L⁻ᵀ = 1, with H in the factor's order and damped.
            let entry = |i: usize, j: usize| {
                let (a, b) = (f.order[i] as usize, f.order[j] as usize);
                f64::from(h[a * n + b]) + f64::from(u8::from(i == j)) * f64::from(0.01 * mean)
            };
            for (r, c) in [(0, 0), (n - 1, n - 1), (n - 1, 0), (n / 2, n / 3)] {
                let mut product = 0.0;
                for i in 0..=r {
                    for j in 0..=c {
                        let (a, b) = (f.values[r * n + i], f.values[c * n + j]);
                        product += f64::from(a) * entry(i, j) * f64::from(b);
                    }
                }
                let wanted = f64::from(u8::from(r == c));
                assert!(
                    (product - wanted).abs() < 2e-3,
                    "{n}: ({r}, {c}) is {product}"
                );
            }
            let rows = correlated(3, n, 12);
            let same = f.quadratic(&rows) / hessian_of(&x, n).quadratic(&rows);
            assert!((same - 1.0).abs() < 1e-4, "{n}: {same}");
            assert!(f.order.windows(2).all(|w| {
                let d = |i: u32| h[i as usize * n + i as usize];
                d(w[0]) <= d(w[1])
            }));
        }
    }

    #[test]
    fn hopeless_hessians_are_damped_or_refused() {
        let n = 60;
        // Rank 1, and inputs that never fire.
        let row: Vec<f32> = (0..n).map(|i| if i < 9 { 0.0 } else { i as f32 }).collect();
        let f = InverseFactor::new(hessian_of(&row, n), false).unwrap();
        assert!(f.note.unwrap().contains("9 inputs were never active"));
        let mut bad = hessian_of(&row, n);
        for i in 0..n {
            for j in 0..n {
                bad.values[i * n + j] = if i == j { 1.0 } else { -1.0 };
            }
        }
        assert!(matches!(
            InverseFactor::new(bad.clone(), true),
            Err(FactorError::Indefinite)
        ));
        bad.values[61] = f32::NAN;
        assert!(matches!(
            InverseFactor::new(bad, true),
            Err(FactorError::NotFinite)
        ));
        // Slightly indefinite: more damping helps.
        let mut shaky = hessian_of(&correlated(300, n, 5), n);
        let mean: f32 = (0..n).map(|i| shaky.values[i * n + i]).sum::<f32>() / n as f32;
        for i in 0..n {
            shaky.values[i * n + i] = shaky.values[i * n + i].max(1e-6) - 0.02 * mean;
        }
        let note = InverseFactor::new(shaky, true).map(|f| f.note.unwrap_or_default());
        assert!(note.is_ok());
    }
}

//! The stages of a mixture of experts.
//!
//! Gates and ups of all experts read the same rows once every expert is calibrated on every token:
//! one Hessian and one factor serve the layer. Down projections read what their own expert makes of
//! the tokens that are sent to it; an expert that hardly any are sent to borrows some of the others',
//! counted for little.

use crate::calibrate::{Calibrator, Routed, Tower};
use crate::hessian::Hessian;
use crate::job::inputs::Input;
use crate::job::layer::{LayerRun, STORES, Said};
use crate::job::matrix::Folded;
use crate::job::{JobError, add_note};
use crate::source::Role;
use crate::store::RowStore;

/// Tokens an expert's down projection is calibrated on at least.
const LEAST_TOKENS: usize = 256;
/// What a borrowed token counts beside one that was sent.
const BORROWED: f32 = 0.1;

/// Tokens that were sent to one expert, with their weights.
struct Sent {
    rows: Vec<u32>,
    weights: Vec<f32>,
}

impl LayerRun<'_, '_> {
    /// Router, shared experts, and every routed one.
    pub(super) fn experts(
        &mut self,
        ranges: &[(usize, usize)],
        calibrator: &mut dyn Calibrator,
        said: &mut Said<'_>,
    ) -> Result<(), JobError> {
        use Role as R;
        let norm = self.need(R::MlpNorm)?;
        let router = self.need(R::Router)?;
        let count = self.job.source.tensors()[router].rows();
        let mut readers = self.all(&[R::Router, R::SharedGate, R::SharedUp]);
        for expert in 0..count {
            readers.extend([
                self.expert(R::ExpertGate, expert)?,
                self.expert(R::ExpertUp, expert)?,
            ]);
        }
        let input = self.normed_input(ranges, calibrator, norm, &readers)?;
        self.write_norm(norm, &input, said)?;
        self.matrix(&input, router, calibrator, said)?;
        if let Some(bias) = self.find(R::CorrectionBias) {
            self.keep(bias, Folded::default(), said)?;
        }
        let sent = self.route(ranges, calibrator, count)?;
        if self.find(R::SharedGate).is_some() {
            self.feed_forward(Tower::Shared, &input, ranges, calibrator, said)?;
        }
        let tokens: usize = ranges.iter().map(|(_, rows)| rows).sum();
        let most = ranges
            .iter()
            .map(|(_, rows)| *rows)
            .max()
            .unwrap_or(1)
            .max(1);
        for (expert, sent) in sent.iter().enumerate() {
            self.one_expert(expert, sent, (tokens, most), &input, calibrator, said)?;
        }
        Ok(())
    }

    fn expert(&self, role: Role, expert: usize) -> Result<usize, JobError> {
        let found = self.plan.layers[self.index].get(&(role, expert));
        found.copied().ok_or(JobError::Missing {
            layer: self.index,
            role,
        })
    }

    /// Which tokens go to which expert.
    fn route(
        &self,
        ranges: &[(usize, usize)],
        calibrator: &mut dyn Calibrator,
        count: usize,
    ) -> Result<Vec<Sent>, JobError> {
        let normed = self.store(STORES[1], self.plan.hidden)?;
        let empty = || Sent {
            rows: Vec::new(),
            weights: Vec::new(),
        };
        let mut sent: Vec<Sent> = (0..count).map(|_| empty()).collect();
        let mut routed = Routed::default();
        for &(first, rows) in ranges {
            let mut x = vec![0.0; rows * self.plan.hidden];
            normed.read(first, &mut x)?;
            calibrator.route(&x, rows, &mut routed);
            let choices = routed.experts.iter().zip(&routed.weights);
            for (i, (&expert, &weight)) in choices.enumerate() {
                if let Some(sent) = sent.get_mut(expert as usize) {
                    sent.rows.push((first + i / routed.top_k.max(1)) as u32);
                    sent.weights.push(weight);
                }
            }
        }
        Ok(sent)
    }

    fn one_expert(
        &mut self,
        expert: usize,
        sent: &Sent,
        (tokens, most): (usize, usize),
        input: &Input,
        calibrator: &mut dyn Calibrator,
        said: &mut Said<'_>,
    ) -> Result<(), JobError> {
        let gate = self.expert(Role::ExpertGate, expert)?;
        let up = self.expert(Role::ExpertUp, expert)?;
        let down = self.expert(Role::ExpertDown, expert)?;
        let waiting = self.matrix(input, gate, calibrator, said)?;
        self.settle(waiting, said)?;
        let rising = self.matrix(input, up, calibrator, said)?;
        let width = self.job.source.tensors()[down].cols();
        let normed = self.store(STORES[1], self.plan.hidden)?;
        let gated = self.store(STORES[2], width)?;
        let wanted = self.plan.chosen[down];
        let mut moments = Hessian::new(if wanted { width } else { 0 });
        let mut x = vec![0.0; most * self.plan.hidden];
        let mut out = vec![0.0; most * width];
        for (i, rows) in sent.rows.chunks(most).enumerate() {
            let x = &mut x[..rows.len() * self.plan.hidden];
            let out = &mut out[..rows.len() * width];
            read_rows(&normed, rows, x)?;
            calibrator.gated(Tower::Expert, x, rows.len(), out);
            if wanted {
                moments.add(out, 1.0);
            }
            gated.write(i * most, out)?;
        }
        let mut note = None;
        let least = LEAST_TOKENS.min(tokens);
        if wanted && sent.rows.len() < least {
            let borrowed = others(&sent.rows, tokens, least - sent.rows.len());
            for rows in borrowed.chunks(most) {
                let x = &mut x[..rows.len() * self.plan.hidden];
                let out = &mut out[..rows.len() * width];
                read_rows(&normed, rows, x)?;
                calibrator.gated(Tower::Expert, x, rows.len(), out);
                moments.add(out, BORROWED);
            }
            let (own, more) = (sent.rows.len(), borrowed.len());
            add_note(
                &mut note,
                Some(format!("{own} tokens sent, {more} borrowed")),
            );
        }
        moments.finish();
        self.down(
            down,
            moments,
            rising,
            sent.rows.len(),
            note,
            calibrator,
            said,
        )?;
        let [_, next] = self.stores()?;
        let parts = sent.rows.chunks(most).zip(sent.weights.chunks(most));
        for (i, (rows, weights)) in parts.enumerate() {
            let between = &mut out[..rows.len() * width];
            gated.read(i * most, between)?;
            let x = &mut x[..rows.len() * self.plan.hidden];
            calibrator.down(Tower::Expert, between, rows.len(), x);
            add_rows(next, rows, weights, x)?;
        }
        Ok(())
    }
}

/// Rows from here and there.
fn read_rows(store: &RowStore, rows: &[u32], out: &mut [f32]) -> Result<(), JobError> {
    for (&row, out) in rows.iter().zip(out.chunks_exact_mut(store.width())) {
        store.read(row as usize, out)?;
    }
    Ok(())
}

/// Adds weighted rows to those of a store.
fn add_rows(
    store: &RowStore,
    rows: &[u32],
    weights: &[f32],
    values: &[f32],
) -> Result<(), JobError> {
    let mut row_values = vec![0.0; store.width()];
    let parts = rows
        .iter()
        .zip(weights)
        .zip(values.chunks_exact(store.width()));
    for ((&row, &weight), values) in parts {
        store.read(row as usize, &mut row_values)?;
        row_values
            .iter_mut()
            .zip(values)
            .for_each(|(x, y)| *x += weight * y);
        store.write(row as usize, &row_values)?;
    }
    Ok(())
}

/// `count` of `tokens` rows that are not in `taken`, evenly spread.
fn others(taken: &[u32], tokens: usize, count: usize) -> Vec<u32> {
    let taken: std::collections::HashSet<u32> = taken.iter().copied().collect();
    let free: Vec<u32> = (0..tokens as u32).filter(|t| !taken.contains(t)).collect();
    let count = count.min(free.len());
    (0..count).map(|i| free[i * free.len() / count]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borrowed_tokens_are_others_and_spread() {
        assert_eq!(others(&[0, 2], 6, 2), [1, 4]);
        assert_eq!(others(&[0, 1, 2], 3, 5), [] as [u32; 0]);
        assert_eq!(others(&[], 4, 9), [0, 1, 2, 3]);
    }
}

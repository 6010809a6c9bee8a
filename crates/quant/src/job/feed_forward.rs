//! The feed-forward half of a layer, and what is shared with experts: an input kept in a file, and
//! a down projection with the up projection that waits for its scales.

use crate::calibrate::{Calibrator, Tower};
use crate::hessian::Hessian;
use crate::job::inputs::{self, Input, Scaling};
use crate::job::layer::{LayerRun, STORES, Said, Waiting};
use crate::job::{JobError, add_note};
use crate::source::Role;

impl LayerRun<'_, '_> {
    /// The input of gates and ups: made from the layer's output so far, and kept in a file.
    pub fn normed_input(
        &mut self,
        ranges: &[(usize, usize)],
        calibrator: &mut dyn Calibrator,
        norm: usize,
        readers: &[usize],
    ) -> Result<Input, JobError> {
        let width = self.plan.hidden;
        let [_, next] = self.stores()?;
        let normed = self.store(STORES[1], width)?;
        let wanted = !self.chosen(readers).is_empty();
        let mut moments = Hessian::new(if wanted { width } else { 0 });
        for &(first, rows) in ranges {
            let mut x = vec![0.0; rows * width];
            next.read(first, &mut x)?;
            let mut out = vec![0.0; rows * width];
            calibrator.mlp_input(&x, rows, &mut out);
            if wanted {
                moments.add(&out, 1.0);
            }
            normed.write(first, &out)?;
        }
        moments.finish();
        self.input(wanted.then_some(moments), norm, readers)
    }

    /// A feed-forward that every token goes through.
    pub fn feed_forward(
        &mut self,
        tower: Tower,
        input: &Input,
        ranges: &[(usize, usize)],
        calibrator: &mut dyn Calibrator,
        said: &mut Said<'_>,
    ) -> Result<(), JobError> {
        let [gate, up, down] = match tower {
            Tower::Dense => [Role::Gate, Role::Up, Role::Down],
            _ => [Role::SharedGate, Role::SharedUp, Role::SharedDown],
        };
        let (gate, up, down) = (self.need(gate)?, self.need(up)?, self.need(down)?);
        let waiting = self.matrix(input, gate, calibrator, said)?;
        self.settle(waiting, said)?;
        let rising = self.matrix(input, up, calibrator, said)?;
        let width = self.job.source.tensors()[down].cols();
        let normed = self.store(STORES[1], self.plan.hidden)?;
        let gated = self.store(STORES[2], width)?;
        let wanted = self.plan.chosen[down];
        let mut moments = Hessian::new(if wanted { width } else { 0 });
        for &(first, rows) in ranges {
            let mut x = vec![0.0; rows * self.plan.hidden];
            normed.read(first, &mut x)?;
            let mut out = vec![0.0; rows * width];
            calibrator.gated(tower, &x, rows, &mut out);
            if wanted {
                moments.add(&out, 1.0);
            }
            gated.write(first, &out)?;
        }
        moments.finish();
        for index in [gate, up] {
            calibrator.drop_matrix(self.job.source.tensors()[index].role)?;
        }
        let tokens = moments.weight as usize;
        self.down(down, moments, rising, tokens, None, calibrator, said)?;
        let [_, next] = self.stores()?;
        for &(first, rows) in ranges {
            let mut between = vec![0.0; rows * width];
            gated.read(first, &mut between)?;
            let mut out = vec![0.0; rows * self.plan.hidden];
            calibrator.down(tower, &between, rows, &mut out);
            let mut x = vec![0.0; rows * self.plan.hidden];
            next.read(first, &mut x)?;
            x.iter_mut().zip(&out).for_each(|(x, y)| *x += y);
            next.write(first, &x)?;
        }
        calibrator.drop_matrix(self.job.source.tensors()[down].role)?;
        Ok(())
    }

    /// A down projection, and the up projection that waited for its scales.
    #[allow(clippy::too_many_arguments)] // a matrix, what it reads, and what is told of it
    pub fn down(
        &mut self,
        down: usize,
        moments: Hessian,
        mut rising: Option<Waiting>,
        tokens: usize,
        note: Option<String>,
        calibrator: &mut dyn Calibrator,
        said: &mut Said<'_>,
    ) -> Result<(), JobError> {
        let scaled = self.job.recipe.scheme.scales_channels() && self.plan.chosen[down];
        let mut scales = None;
        if let (true, Some(up)) = (scaled && moments.n > 0, &mut rising) {
            let scaling = Scaling {
                readers: &[down],
                ties: None,
                exact: false,
            };
            let found = inputs::search_scales(self.job, self.plan, self.spec, &moments, scaling)?;
            if !found.is_identity() {
                up.quantized.divide_rows(&self.spec, &found.values);
                scales = Some(found.values);
            }
        }
        self.settle(rising, said)?;
        let mut said_of = None;
        add_note(&mut said_of, note);
        let input = Input::new(self.job, moments, scales, tokens, said_of);
        let waiting = self.matrix(&input, down, calibrator, said)?;
        self.settle(waiting, said)
    }
}

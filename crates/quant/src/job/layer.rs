//! A layer's stages: each group of matrices is calibrated on what the ones before it give, once
//! they are quantized.

use crate::calibrate::{Calibrator, Tower};
use crate::gguf::GgufPlace;
use crate::grid::GridSpec;
use crate::hessian::Hessian;
use crate::job::inputs::{self, Done, Input, Scaling};
use crate::job::matrix::{self, Folded};
use crate::job::plan::JobPlan;
use crate::job::{Job, JobError};
use crate::quantized::Quantized;
use crate::report::TensorReport;
use crate::shards::ShardWriter;
use crate::source::Role;
use crate::store::RowStore;

/// Files of activations inside a layer: what `o`, gate and up, and down projections read.
pub(super) const STORES: [&str; 3] = ["attended", "normed", "gated"];

/// Says how many weights are done, and the last error.
pub(super) type Said<'a> = dyn FnMut(usize, f64) + 'a;

/// The state of a run between layers.
pub(super) struct LayerRun<'a, 'j> {
    pub job: &'a mut Job<'j>,
    pub plan: &'a JobPlan,
    pub writer: &'a ShardWriter,
    pub hidden: Option<&'a [RowStore; 3]>,
    pub spec: GridSpec,
    /// Of the layer in hand.
    pub index: usize,
    pub reports: Vec<TensorReport>,
    pub weights_done: usize,
}

/// A quantized matrix whose rows may still be divided.
pub(super) struct Waiting {
    pub index: usize,
    pub quantized: Quantized,
    pub report: TensorReport,
}

/// Rows of the embedding that are read before its pages are given back: each brings what lies beside
/// it, two megabytes where the system keeps files in large pages.
const FEW_ROWS: usize = 4;

impl<'a, 'j> LayerRun<'a, 'j> {
    pub fn new(
        job: &'a mut Job<'j>,
        plan: &'a JobPlan,
        writer: &'a ShardWriter,
        hidden: Option<&'a [RowStore; 3]>,
    ) -> Self {
        LayerRun {
            spec: job.recipe.grid_spec(job.source.float_type()),
            job,
            plan,
            writer,
            hidden,
            index: 0,
            reports: Vec::new(),
            weights_done: 0,
        }
    }

    /// Embedding, last norm and head; and the first layer's input.
    pub fn outside(&mut self, said: &mut Said<'_>) -> Result<Vec<TensorReport>, JobError> {
        for &index in &self.plan.outside {
            self.keep(index, Folded::default(), said)?;
        }
        if let Some(gguf) = self.job.gguf {
            gguf.write_vectors(self.writer)?;
        }
        let (Some((set, _)), Some(hidden)) = (&self.job.calibration, self.hidden) else {
            return Ok(std::mem::take(&mut self.reports));
        };
        let source = self.job.source;
        let table = self.plan.outside.iter().copied();
        let table = table
            .into_iter()
            .find(|i| source.tensors()[*i].role == Role::Embedding);
        let table = table.ok_or(JobError::Missing {
            layer: 0,
            role: Role::Embedding,
        })?;
        // The input of layer 0 is what unit 0 leaves.
        let store = &hidden[0];
        let width = self.plan.hidden;
        for ((first, count), sequence) in set.ranges().into_iter().zip(&set.sequences) {
            let mut rows = vec![0.0; count * width];
            let few = rows.chunks_mut(FEW_ROWS * width);
            for (rows, tokens) in few.zip(sequence.chunks(FEW_ROWS)) {
                for (row, token) in rows.chunks_exact_mut(width).zip(tokens) {
                    source.read_rows(table, *token as usize, row)?;
                }
                source.release(table);
            }
            store.write(first, &rows)?;
        }
        Ok(std::mem::take(&mut self.reports))
    }

    /// One layer.
    pub fn layer(
        &mut self,
        index: usize,
        said: &mut Said<'_>,
    ) -> Result<Vec<TensorReport>, JobError> {
        self.index = index;
        self.weights_done = self.weights_before(index);
        match self.job.calibration.take() {
            None => self.round_all(said)?,
            Some((set, calibrator)) => {
                let ran = self.calibrated(&set.ranges(), calibrator, said);
                self.job.calibration = Some((set, calibrator));
                ran?;
            }
        }
        Ok(std::mem::take(&mut self.reports))
    }

    fn weights_before(&self, layer: usize) -> usize {
        let tensors = self.job.source.tensors().iter();
        let before = tensors.filter(|t| t.shape.len() > 1 && t.layer.is_none_or(|l| l < layer));
        before.map(|t| t.len()).sum()
    }

    /// Without a calibration, every matrix is its own.
    fn round_all(&mut self, said: &mut Said<'_>) -> Result<(), JobError> {
        let layer: Vec<usize> = self.plan.layers[self.index].values().copied().collect();
        for index in layer {
            if !self.plan.chosen[index] {
                self.keep(index, Folded::default(), said)?;
                continue;
            }
            let error =
                matrix::round_streaming(self.job, self.plan, self.spec, self.writer, index)?;
            let report = TensorReport {
                name: self.job.source.tensors()[index].module().to_owned(),
                scheme: self.job.recipe.scheme.name().to_owned(),
                error,
                tokens: 0,
                note: None,
            };
            self.say(index, report, said);
        }
        Ok(())
    }

    /// The tensor of a role, where the layer has one.
    pub fn find(&self, role: Role) -> Option<usize> {
        self.plan.layers[self.index].get(&(role, 0)).copied()
    }

    /// The tensor of a role.
    pub fn need(&self, role: Role) -> Result<usize, JobError> {
        self.find(role).ok_or(JobError::Missing {
            layer: self.index,
            role,
        })
    }

    /// Those of some roles that the layer has.
    pub fn all(&self, roles: &[Role]) -> Vec<usize> {
        roles.iter().filter_map(|role| self.find(*role)).collect()
    }

    /// Those of some tensors that become codes.
    pub fn chosen(&self, of: &[usize]) -> Vec<usize> {
        of.iter()
            .copied()
            .filter(|i| self.plan.chosen[*i])
            .collect()
    }

    /// Where a tensor goes in a GGUF file.
    fn place(&self, index: usize) -> Option<&'j GgufPlace> {
        self.job.gguf.and_then(|gguf| gguf.places.get(index))
    }

    fn write(&self, index: usize, quantized: &Quantized) -> Result<(), JobError> {
        let (source, place) = (self.job.source, self.place(index));
        matrix::write(self.plan, source, place, self.writer, index, quantized)
    }

    /// Writes a tensor that stays.
    pub fn keep(
        &mut self,
        index: usize,
        folded: Folded<'_>,
        said: &mut Said<'_>,
    ) -> Result<(), JobError> {
        let report = matrix::keep(
            self.job.source,
            self.place(index),
            self.writer,
            index,
            folded,
        )?;
        self.say(index, report, said);
        Ok(())
    }

    /// Reports a matrix; vectors go without saying.
    pub fn say(&mut self, index: usize, report: TensorReport, said: &mut Said<'_>) {
        let tensor = &self.job.source.tensors()[index];
        if tensor.shape.len() > 1 {
            self.weights_done += tensor.len();
            said(self.weights_done, report.error);
            self.reports.push(report);
        }
    }

    /// Gives the calibrator a vector as the source has it.
    fn set_vectors(&self, calibrator: &mut dyn Calibrator, roles: &[Role]) -> Result<(), JobError> {
        for &role in roles {
            if let Some(index) = self.find(role) {
                calibrator.set_vector(role, &matrix::read(self.job.source, index)?)?;
            }
        }
        Ok(())
    }

    /// Scales for an input whose norm they are folded into, where the scheme has any.
    pub fn norm_scales(
        &self,
        hessian: &Hessian,
        norm: usize,
        readers: &[usize],
    ) -> Result<Option<Vec<f32>>, JobError> {
        let chosen = self.chosen(readers);
        if !self.job.recipe.scheme.scales_channels() || chosen.is_empty() {
            return Ok(None);
        }
        let scaling = Scaling {
            readers: &chosen,
            ties: None,
            exact: inputs::needs_exact(self.job, self.plan, readers),
        };
        let found = inputs::search_scales(self.job, self.plan, self.spec, hessian, scaling)?;
        if found.is_identity() {
            return Ok(None);
        }
        let mut scales = found.values;
        inputs::settle(self.job, norm, &mut scales)?;
        Ok(Some(scales))
    }

    /// Quantizes or keeps a matrix of a calibrated input, and gives the calibrator what comes of
    /// it. Codes come back unwritten.
    pub fn matrix(
        &mut self,
        input: &Input,
        index: usize,
        calibrator: &mut dyn Calibrator,
        said: &mut Said<'_>,
    ) -> Result<Option<Waiting>, JobError> {
        let tensor = &self.job.source.tensors()[index];
        let (role, shape) = (tensor.role, (tensor.rows(), tensor.cols()));
        let module = tensor.module().to_owned();
        if !self.plan.chosen[index] {
            let weights = matrix::read(self.job.source, index)?;
            calibrator.set_matrix(role, shape, &weights)?;
            let folded = Folded {
                columns: input.scales.as_deref(),
                rows: None,
            };
            self.keep(index, folded, said)?;
            return Ok(None);
        }
        let mut weights = input.read(self.job.source, index)?;
        let group = self.plan.group_of(shape.1);
        let done = input.quantize(self.job, self.spec, group, role, shape, &weights);
        let Done {
            quantized,
            scheme,
            error,
        } = done;
        quantized.dequantize_into(input.scales.as_deref(), &mut weights);
        calibrator.set_matrix(role, shape, &weights)?;
        let report = TensorReport {
            name: module,
            scheme: scheme.name().to_owned(),
            error,
            tokens: input.tokens,
            note: input.note.clone(),
        };
        Ok(Some(Waiting {
            index,
            quantized,
            report,
        }))
    }

    /// Writes codes that nothing is folded into any more.
    pub fn settle(
        &mut self,
        waiting: Option<Waiting>,
        said: &mut Said<'_>,
    ) -> Result<(), JobError> {
        if let Some(waiting) = waiting {
            self.write(waiting.index, &waiting.quantized)?;
            self.say(waiting.index, waiting.report, said);
        }
        Ok(())
    }

    fn calibrated(
        &mut self,
        ranges: &[(usize, usize)],
        calibrator: &mut dyn Calibrator,
        said: &mut Said<'_>,
    ) -> Result<(), JobError> {
        use Role as R;
        calibrator.begin_layer(self.index)?;
        self.set_vectors(
            calibrator,
            &[
                R::AttentionNorm,
                R::MlpNorm,
                R::QNorm,
                R::KNorm,
                R::QANorm,
                R::KvANorm,
                R::QBias,
                R::KBias,
                R::VBias,
                R::OBias,
                R::QABias,
                R::KvABias,
                R::CorrectionBias,
            ],
        )?;
        let value = self.attention_inputs(ranges, calibrator, said)?;
        self.output_projection(ranges, calibrator, value, said)?;
        for role in [
            R::QNorm,
            R::KNorm,
            R::KvANorm,
            R::QBias,
            R::KBias,
            R::OBias,
            R::QABias,
            R::KvABias,
        ] {
            if let Some(index) = self.find(role) {
                self.keep(index, Folded::default(), said)?;
            }
        }
        if self.find(R::Router).is_some() {
            return self.experts(ranges, calibrator, said);
        }
        let norm = self.need(R::MlpNorm)?;
        let readers = self.all(&[R::Gate, R::Up]);
        let input = self.normed_input(ranges, calibrator, norm, &readers)?;
        self.write_norm(norm, &input, said)?;
        self.feed_forward(Tower::Dense, &input, ranges, calibrator, said)
    }

    /// Queries, keys and values, or MLA's projections. Values wait for the scales of `o`.
    fn attention_inputs(
        &mut self,
        ranges: &[(usize, usize)],
        calibrator: &mut dyn Calibrator,
        said: &mut Said<'_>,
    ) -> Result<Option<Waiting>, JobError> {
        use Role as R;
        let norm = self.need(R::AttentionNorm)?;
        let first = self.all(&[R::Q, R::K, R::V, R::QA, R::KvA]);
        let gathered = self.gather(ranges, &first, calibrator, |c, hidden, rows, out| {
            c.attention_input(hidden, rows, out);
        })?;
        let input = self.input(gathered, norm, &first)?;
        self.write_norm(norm, &input, said)?;
        let mut value = None;
        for index in first {
            let waiting = self.matrix(&input, index, calibrator, said)?;
            match self.job.source.tensors()[index].role {
                R::V => value = waiting,
                _ => self.settle(waiting, said)?,
            }
        }
        if let (Some(b), Some(norm)) = (self.find(R::QB), self.find(R::QANorm)) {
            let gathered = self.gather(ranges, &[b], calibrator, |c, hidden, rows, out| {
                c.query_input(hidden, rows, out);
            })?;
            let input = self.input(gathered, norm, &[b])?;
            self.write_norm(norm, &input, said)?;
            let waiting = self.matrix(&input, b, calibrator, said)?;
            self.settle(waiting, said)?;
        }
        if let Some(index) = self.find(R::KvB) {
            let tensor = &self.job.source.tensors()[index];
            let shape = (tensor.rows(), tensor.cols());
            calibrator.set_matrix(R::KvB, shape, &matrix::read(self.job.source, index)?)?;
            self.keep(index, Folded::default(), said)?;
        }
        Ok(value)
    }

    /// Sums up what some matrices read, made from the layer's input; `None` when none is
    /// quantized.
    fn gather(
        &self,
        ranges: &[(usize, usize)],
        readers: &[usize],
        calibrator: &mut dyn Calibrator,
        make: impl Fn(&mut dyn Calibrator, &[f32], usize, &mut [f32]),
    ) -> Result<Option<Hessian>, JobError> {
        let [hidden, _] = self.stores()?;
        let Some(&reader) = self.chosen(readers).first() else {
            return Ok(None);
        };
        let cols = self.job.source.tensors()[reader].cols();
        let mut moments = Hessian::new(cols);
        for &(first, rows) in ranges {
            let mut x = vec![0.0; rows * self.plan.hidden];
            hidden.read(first, &mut x)?;
            let mut out = vec![0.0; rows * cols];
            make(calibrator, &x, rows, &mut out);
            moments.add(&out, 1.0);
        }
        moments.finish();
        Ok(Some(moments))
    }

    /// An input that comes out of a norm.
    pub fn input(
        &self,
        gathered: Option<Hessian>,
        norm: usize,
        readers: &[usize],
    ) -> Result<Input, JobError> {
        let Some(hessian) = gathered else {
            return Ok(Input::new(self.job, Hessian::new(0), None, 0, None));
        };
        let tokens = hessian.weight as usize;
        let scales = self.norm_scales(&hessian, norm, readers)?;
        Ok(Input::new(self.job, hessian, scales, tokens, None))
    }

    /// Writes a norm with the scales of what it feeds folded in.
    pub fn write_norm(
        &mut self,
        norm: usize,
        input: &Input,
        said: &mut Said<'_>,
    ) -> Result<(), JobError> {
        let folded = Folded {
            columns: None,
            rows: input.scales.as_deref(),
        };
        self.keep(norm, folded, said)
    }

    /// The layer's input, and its output as far as it is.
    pub fn stores(&self) -> Result<[&'a RowStore; 2], JobError> {
        let stores = self.hidden.ok_or(JobError::NoTokens {
            scheme: self.job.recipe.scheme.name(),
        })?;
        Ok([&stores[self.index % 3], &stores[(self.index + 1) % 3]])
    }

    /// A file of activations inside the layer.
    pub fn store(&self, name: &str, width: usize) -> Result<RowStore, JobError> {
        Ok(RowStore::open(&self.job.scratch.join(name), width)?)
    }

    fn output_projection(
        &mut self,
        ranges: &[(usize, usize)],
        calibrator: &mut dyn Calibrator,
        value: Option<Waiting>,
        said: &mut Said<'_>,
    ) -> Result<(), JobError> {
        use Role as R;
        let o = self.need(R::O)?;
        let width = self.job.source.tensors()[o].cols();
        let attended = self.store(STORES[0], width)?;
        let [hidden, next] = self.stores()?;
        let wanted = self.plan.chosen[o];
        let mut moments = Hessian::new(if wanted { width } else { 0 });
        for &(first, rows) in ranges {
            let mut x = vec![0.0; rows * self.plan.hidden];
            hidden.read(first, &mut x)?;
            let mut out = vec![0.0; rows * width];
            calibrator.attend(&x, rows, &mut out);
            if wanted {
                moments.add(&out, 1.0);
            }
            attended.write(first, &out)?;
        }
        moments.finish();
        for role in [R::Q, R::K, R::V, R::QA, R::QB, R::KvA, R::KvB] {
            if self.find(role).is_some() {
                calibrator.drop_matrix(role)?;
            }
        }
        let tokens = moments.weight as usize;
        let mut scales = None;
        let mut divided = None;
        if let (true, Some(value)) = (wanted && self.job.recipe.scheme.scales_channels(), &value) {
            (scales, divided) = self.value_scales(&moments, o, value)?;
        }
        let input = Input::new(self.job, moments, scales, tokens, None);
        if let Some(mut value) = value {
            if let Some(by) = &divided {
                value.quantized.divide_rows(&self.spec, by);
            }
            self.settle(Some(value), said)?;
        }
        if let Some(bias) = self.find(R::VBias) {
            let folded = Folded {
                columns: None,
                rows: divided.as_deref(),
            };
            self.keep(bias, folded, said)?;
        }
        let waiting = self.matrix(&input, o, calibrator, said)?;
        self.settle(waiting, said)?;
        for &(first, rows) in ranges {
            let mut x = vec![0.0; rows * self.plan.hidden];
            hidden.read(first, &mut x)?;
            let mut out = vec![0.0; rows * width];
            attended.read(first, &mut out)?;
            calibrator.add_attention(&out, rows, &mut x);
            next.write(first, &x)?;
        }
        calibrator.drop_matrix(R::O)?;
        Ok(())
    }

    /// Scales between values and `o`: one for each channel of a value head, shared by the query
    /// heads that read it. Gives `o`'s column factors and what the values' rows are divided by.
    #[allow(clippy::type_complexity)] // the same scales, as both sides have them
    fn value_scales(
        &self,
        moments: &Hessian,
        o: usize,
        value: &Waiting,
    ) -> Result<(Option<Vec<f32>>, Option<Vec<f32>>), JobError> {
        let (heads_width, kv_width) = (moments.n, value.quantized.rows);
        let Some(head_dim) = self.head_dim(heads_width, kv_width) else {
            return Ok((None, None));
        };
        let repeat = heads_width / kv_width;
        let tie = |c: usize| c / head_dim / repeat * head_dim + c % head_dim;
        let ties: Vec<u32> = (0..heads_width).map(|c| tie(c) as u32).collect();
        let scaling = Scaling {
            readers: &[o],
            ties: Some(&ties),
            exact: false,
        };
        let found = inputs::search_scales(self.job, self.plan, self.spec, moments, scaling)?;
        if found.is_identity() {
            return Ok((None, None));
        }
        let mut by_value = vec![1.0; kv_width];
        for (tie, scale) in ties.iter().zip(&found.values) {
            by_value[*tie as usize] = *scale;
        }
        Ok((Some(found.values), Some(by_value)))
    }

    /// Width of a head, which no shape says alone: the calibrator knows.
    fn head_dim(&self, heads_width: usize, kv_width: usize) -> Option<usize> {
        let head_dim = self.job.head_dim?;
        let fits = heads_width.is_multiple_of(kv_width) && kv_width.is_multiple_of(head_dim);
        fits.then_some(head_dim)
    }
}

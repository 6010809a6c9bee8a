//! The one decoder of every architecture: embed → layers → norm → head.
//!
//! What a layer is made of comes from the config's [`LayerSpec`](scrimp_model::LayerSpec) and
//! from the weights that were loaded for it. Nothing is allocated in a step, and nothing here
//! knows whose rows it computes.

mod attention;
mod mlp;
mod scratch;
mod stages;

use scrimp_backend::{Backend, BackendError, Input, Norm, Projection, Routing};
use scrimp_memory::{Category, MemoryLedger, OverBudget, Reservation};
use scrimp_model::{MlpSpec, ModelConfig};

use crate::batch::{Batch, BatchError};
use crate::recorder::{Part, Recorder, WeightTraffic};
use crate::weights::Component;
use crate::weights::WeightStore;
use scratch::Scratch;

pub use scratch::{StepLimits, activation_bytes};
pub use stages::{LayerStages, StageError, Tower};

/// Logits of consecutive ones of a batch's `logit_rows`.
#[derive(Clone, Copy, Debug)]
pub struct LogitRows<'a> {
    /// Index into `logit_rows` of the first.
    pub first: usize,
    /// Logits per row.
    pub vocab_size: usize,
    /// `[count, vocab_size]`.
    pub values: &'a [f32],
}

impl<'a> LogitRows<'a> {
    /// Each row with its index into `logit_rows`.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &'a [f32])> + use<'a> {
        let first = self.first;
        let rows = self.values.chunks_exact(self.vocab_size);
        rows.enumerate().map(move |(i, row)| (first + i, row))
    }
}

/// Why a decoder has no working memory.
#[derive(Debug, thiserror::Error)]
pub enum DecoderError {
    /// The budget does not hold it.
    #[error(transparent)]
    OverBudget(#[from] OverBudget),
    /// The device does not hold it.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Limits under which no step can run.
    #[error("{what} is 0: it must be at least 1")]
    Zero {
        /// The limit.
        what: &'static str,
    },
}

/// A model ready to run: weights, and working memory for the largest step.
pub struct Decoder<B: Backend> {
    config: ModelConfig,
    limits: StepLimits,
    weights: WeightStore<B>,
    scratch: Scratch<B::Buffer>,
    inv_freq: Vec<f32>,
    /// `[max_rows, rope.dim]`.
    cos_sin: Vec<f32>,
    routing: Routing,
    /// Where the time goes, when somebody asked.
    recorder: Option<Recorder>,
    _reservation: Reservation,
}

/// What the parts of a layer are told about the step.
struct Step<'a> {
    config: &'a ModelConfig,
    batch: &'a Batch,
    rows: usize,
    /// Cosines and sines of every row.
    cos_sin: &'a [f32],
    recorder: Option<&'a Recorder>,
}

impl Step<'_> {
    /// The time since the last mark was spent on `part`.
    fn mark(&self, part: Part) {
        if let Some(recorder) = self.recorder {
            recorder.mark(part);
        }
    }
}

impl<B: Backend> Decoder<B> {
    /// Reserves and allocates the working memory of steps within `limits`.
    ///
    /// # Errors
    /// When a limit is 0, or the budget or the device has no room.
    pub fn new(
        config: ModelConfig,
        weights: WeightStore<B>,
        limits: StepLimits,
        backend: &mut B,
        ledger: &MemoryLedger,
    ) -> Result<Self, DecoderError> {
        for (what, limit) in [
            ("max_rows", limits.max_rows),
            ("max_logit_rows", limits.max_logit_rows),
            ("max_context", limits.max_context),
        ] {
            if limit == 0 {
                return Err(DecoderError::Zero { what });
            }
        }
        let bytes = activation_bytes(backend, &config, &limits);
        let reservation = ledger.reserve(Category::Activations, bytes, "steps")?;
        let scratch = scratch::allocate(backend, &config, &limits)?;
        let top_k = config.moe.as_ref().map_or(0, |m| m.router.top_k);
        Ok(Decoder {
            inv_freq: config.rope.inv_freq(),
            cos_sin: vec![0.0; limits.max_rows * config.rope.dim],
            routing: Routing {
                top_k,
                experts: Vec::with_capacity(limits.max_rows * top_k),
                weights: Vec::with_capacity(limits.max_rows * top_k),
            },
            config,
            limits,
            weights,
            scratch,
            recorder: None,
            _reservation: reservation,
        })
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Records what every step from now on takes.
    pub(crate) fn record(&mut self) {
        let bytes = |component| self.weights.component_bytes(component);
        let embedding = bytes(Component::Embedding);
        let experts = bytes(Component::RoutedExperts);
        let layers = self.config.layers();
        let num_experts = self.config.moe.as_ref().map_or(0, |moe| moe.num_experts);
        let routed = layers
            .filter(|layer| matches!(layer.mlp, MlpSpec::Moe))
            .count()
            * num_experts;
        let head = match self.config.tie_word_embeddings {
            true => embedding,
            false => bytes(Component::Head),
        };
        let all: usize = Component::ALL.into_iter().map(bytes).sum();
        self.recorder = Some(Recorder::new(WeightTraffic {
            always: all - embedding - experts - bytes(Component::Head),
            head,
            row: embedding / self.config.vocab_size.max(1),
            expert: experts.checked_div(routed).unwrap_or(0),
        }));
    }

    /// Where the last step's time went, when it is recorded.
    pub(crate) fn recorder(&self) -> Option<&Recorder> {
        self.recorder.as_ref()
    }

    /// The largest step.
    pub fn limits(&self) -> &StepLimits {
        &self.limits
    }

    /// The model's weights.
    pub fn weights(&self) -> &WeightStore<B> {
        &self.weights
    }

    /// Runs a batch: writes its keys and values to the cache, and hands the logits of its
    /// `logit_rows` to `sink`, in order, as many at a time as are held at once.
    ///
    /// The batch is to be consistent with the cache ([`Batch::check`]); its copies are the
    /// caller's to make beforehand.
    ///
    /// # Errors
    /// When the batch is larger than the limits or has a token outside the vocabulary. Nothing is
    /// computed then.
    pub fn forward(
        &mut self,
        backend: &mut B,
        batch: &Batch,
        cache: &mut B::KvCache,
        sink: &mut dyn FnMut(LogitRows<'_>),
    ) -> Result<(), BatchError> {
        self.check(batch)?;
        let rows = batch.num_rows();
        if rows == 0 {
            return Ok(());
        }
        if let Some(recorder) = &self.recorder {
            recorder.begin(rows, !batch.logit_rows.is_empty());
        }
        let cos_sin = &mut self.cos_sin[..rows * self.config.rope.dim];
        let positions = &batch.positions;
        self.config.rope.cos_sin(&self.inv_freq, positions, cos_sin);
        let step = Step {
            config: &self.config,
            batch,
            rows,
            cos_sin,
            recorder: self.recorder.as_ref(),
        };
        let scratch = &mut self.scratch;
        let model = self.weights.model();
        backend.embed(&model.embedding, &batch.input_ids, &mut scratch.hidden);
        step.mark(Part::Other);
        for index in 0..self.config.num_layers {
            let layer = self.weights.layer(index);
            attention::run(backend, &step, index, layer, scratch, cache);
            mlp::run(backend, &step, layer, scratch, &mut self.routing);
        }
        self.logits(backend, &batch.logit_rows, sink);
        Ok(())
    }

    fn check(&self, batch: &Batch) -> Result<(), BatchError> {
        let vocab_size = self.config.vocab_size;
        let longest = batch.context_lens.iter().max().map_or(0, |&n| n as usize);
        for (what, found, limit) in [
            ("rows", batch.num_rows(), self.limits.max_rows),
            ("tokens of context", longest, self.limits.max_context),
        ] {
            if found > limit {
                return Err(BatchError::TooLarge { what, found, limit });
            }
        }
        let unknown = |&&token: &&u32| token as usize >= vocab_size;
        match batch.input_ids.iter().find(unknown) {
            Some(&token) => Err(BatchError::UnknownToken { token, vocab_size }),
            None => Ok(()),
        }
    }

    fn logits(&mut self, backend: &mut B, rows: &[u32], sink: &mut dyn FnMut(LogitRows<'_>)) {
        let (hidden, vocab_size) = (self.config.hidden_size, self.config.vocab_size);
        let model = self.weights.model();
        let head = model.head.as_ref().unwrap_or(&model.embedding);
        let scratch = &mut self.scratch;
        let mut first = 0;
        for part in rows.chunks(self.limits.max_logit_rows) {
            backend.gather_rows(&scratch.hidden, hidden, part, &mut scratch.sampled);
            let input = Input {
                x: &scratch.sampled,
                rows: part.len(),
                norm: Some(Norm {
                    weight: &model.norm,
                    dim: hidden,
                    eps: self.config.rms_norm_eps,
                }),
                // An error here is an error of the logits themselves.
                fine: true,
            };
            let mut projection = [Projection {
                weight: head,
                bias: None,
                out: &mut scratch.logits,
                accumulate: false,
            }];
            backend.linear(input, &mut projection);
            let values = backend.read(&scratch.logits, part.len() * vocab_size);
            let mark = |part| self.recorder.iter().for_each(|r| r.mark(part));
            mark(Part::Linear);
            sink(LogitRows {
                first,
                vocab_size,
                values: &values,
            });
            mark(Part::Sampling);
            first += part.len();
        }
    }
}

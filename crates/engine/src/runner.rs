//! The model with its device and its cache: runs batches, and knows nothing of requests.

use scrimp_backend::{Backend, BackendError};
use scrimp_memory::{Category, MemoryLedger, OverBudget, Reservation};
use scrimp_model::{KvLayout, ModelConfig};

use crate::batch::{Batch, BatchError};
use crate::decoder::{Decoder, DecoderError, LogitRows, StepLimits};
use crate::recorder::{Recorder, StepCosts};
use crate::weights::{Inventory, LoadProgress, TensorSource, WeightError, WeightStore};

/// Why a model could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its weights.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// The memory of its steps.
    #[error(transparent)]
    Decoder(#[from] DecoderError),
    /// The budget does not hold the cache.
    #[error(transparent)]
    OverBudget(#[from] OverBudget),
    /// The device does not hold the cache.
    #[error("allocating the KV cache: {0}")]
    Cache(#[from] BackendError),
}

/// Sizes that the plan has settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunnerConfig {
    /// Largest step.
    pub limits: StepLimits,
    /// What a token leaves in the cache, and the block size.
    pub kv: KvLayout,
    /// Blocks of the cache.
    pub num_blocks: usize,
}

/// Owns the device, the model on it, and its KV cache.
pub struct ModelRunner<B: Backend> {
    backend: B,
    decoder: Decoder<B>,
    cache: B::KvCache,
    config: RunnerConfig,
    _reservation: Reservation,
}

impl<B: Backend> ModelRunner<B> {
    /// Loads a model: weights, then working memory, then the cache; each reserved beforehand.
    ///
    /// # Errors
    /// When the checkpoint does not fit the config, or the budget or the device has no room.
    pub fn load(
        model: &ModelConfig,
        source: &impl TensorSource,
        mut backend: B,
        config: RunnerConfig,
        ledger: &MemoryLedger,
        progress: &mut dyn FnMut(LoadProgress<'_>),
    ) -> Result<Self, LoadError> {
        let inventory = Inventory::new(model, source).map_err(WeightError::from)?;
        let weights = WeightStore::load(model, &inventory, source, &mut backend, ledger, progress)?;
        let decoder = Decoder::new(model.clone(), weights, config.limits, &mut backend, ledger)?;
        let bytes = backend.kv_cache_bytes(&config.kv, config.num_blocks);
        let reservation = ledger.reserve(Category::KvCache, bytes, "blocks")?;
        let cache = backend.alloc_kv_cache(&config.kv, config.num_blocks)?;
        Ok(ModelRunner {
            backend,
            decoder,
            cache,
            config,
            _reservation: reservation,
        })
    }

    /// Copies what is to be copied, runs the batch, and hands the logits of its `logit_rows` to
    /// `sink`, in order.
    ///
    /// # Errors
    /// When the batch contradicts itself, or does not fit the limits or the cache. Nothing is
    /// changed then.
    pub fn execute(
        &mut self,
        batch: &Batch,
        sink: &mut dyn FnMut(LogitRows<'_>),
    ) -> Result<(), BatchError> {
        batch.check(self.config.kv.block_size, self.config.num_blocks)?;
        if !batch.copies.is_empty() {
            self.backend.copy_blocks(&mut self.cache, &batch.copies);
        }
        self.decoder
            .forward(&mut self.backend, batch, &mut self.cache, sink)?;
        if let Some(recorder) = self.decoder.recorder() {
            let tokens: usize = batch.context_lens.iter().map(|&n| n as usize).sum();
            let block = self.backend.kv_cache_bytes(&self.config.kv, 1);
            recorder.kv(tokens * block / self.config.kv.block_size);
        }
        Ok(())
    }

    /// The device, and every matrix that it holds, in the order of a step.
    pub fn device_and_matrices(&mut self) -> (&mut B, Vec<&B::Matrix>) {
        let weights = self.decoder.weights();
        let layers = (0..self.decoder.config().num_layers).map(|i| weights.layer(i));
        let mut all: Vec<&B::Matrix> = layers.flat_map(|layer| layer.matrices()).collect();
        all.extend(weights.model().matrices());
        (&mut self.backend, all)
    }

    /// Records what every step from now on takes.
    pub fn record(&mut self) {
        self.decoder.record();
    }

    /// What the last step took, when steps are recorded.
    pub fn costs(&self) -> Option<StepCosts> {
        self.decoder.recorder().map(Recorder::costs)
    }

    /// The model's shape.
    pub fn model(&self) -> &ModelConfig {
        self.decoder.config()
    }

    /// Sizes that were planned.
    pub fn config(&self) -> &RunnerConfig {
        &self.config
    }

    /// Bytes of the model's weights on the device.
    pub fn weight_bytes(&self) -> usize {
        self.decoder.weights().bytes()
    }

    /// One line on the device, for people.
    pub fn description(&self) -> String {
        self.backend.description()
    }
}

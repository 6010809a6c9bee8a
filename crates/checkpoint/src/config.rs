//! From an open checkpoint to the model's configuration.

use scrimp_model::{AttentionConfig, ModelConfig, RopeScaling};

use crate::{Checkpoint, CheckpointError, Format};

impl Checkpoint {
    /// The model's configuration: from `config.json` and `generation_config.json`, or from a GGUF's
    /// key-values and what only its tensor list says.
    ///
    /// # Errors
    /// When there is no configuration, or it describes no model that scrimp can run.
    pub fn config(&self) -> Result<ModelConfig, CheckpointError> {
        match (self.format, self.metadata()) {
            (Format::Gguf, Some(metadata)) => {
                let config = ModelConfig::from_gguf(metadata).map_err(|source| {
                    let file = self.weights.first().map(|w| w.path.display().to_string());
                    CheckpointError::Config {
                        file: file.unwrap_or_default(),
                        source,
                    }
                })?;
                self.correct(config)
            }
            _ => self.hf_config(),
        }
    }

    fn hf_config(&self) -> Result<ModelConfig, CheckpointError> {
        const CONFIG: &str = "config.json";
        const GENERATION: &str = "generation_config.json";
        let in_file = |name| {
            move |source| CheckpointError::Config {
                file: self.files.named(name),
                source,
            }
        };
        let json = self
            .files
            .json(CONFIG)?
            .ok_or_else(|| CheckpointError::MissingFile {
                name: CONFIG.to_owned(),
                place: self.files.place(),
            })?;
        let config = ModelConfig::from_hf(&json).map_err(in_file(CONFIG))?;
        match self.files.json(GENERATION)? {
            Some(json) => config
                .merge_generation_config(&json)
                .map_err(in_file(GENERATION)),
            None => Ok(config),
        }
    }

    /// What a GGUF says only by which tensors it has.
    fn correct(&self, mut config: ModelConfig) -> Result<ModelConfig, CheckpointError> {
        config.tie_word_embeddings = !self.contains("output.weight");
        if let Some(moe) = &mut config.moe {
            moe.router.correction_bias = (0..config.num_layers)
                .any(|layer| self.contains(&format!("blk.{layer}.exp_probs_b.bias")));
        }
        match &mut config.attention {
            AttentionConfig::Gqa(gqa) => {
                gqa.qkv_bias = self.contains("blk.0.attn_q.bias");
                gqa.o_bias = self.contains("blk.0.attn_output.bias");
            }
            AttentionConfig::Mla(mla) => {
                mla.attention_bias = self.contains("blk.0.attn_kv_a_mqa.bias");
            }
        }
        self.rope_factors(&mut config)?;
        Ok(config)
    }

    /// Llama-3.1's stretched frequencies are stored as a table of divisors.
    fn rope_factors(&self, config: &mut ModelConfig) -> Result<(), CheckpointError> {
        const FACTORS: &str = "rope_freqs.weight";
        if !self.contains(FACTORS) {
            return Ok(());
        }
        let factors = self.floats(FACTORS, &[config.rope.dim / 2])?;
        if config.rope.scaling != RopeScaling::None {
            return Err(CheckpointError::SurplusTensors {
                names: vec![format!(
                    "{FACTORS} (the key-values scale the rotation as well)"
                )],
            });
        }
        if !factors.iter().all(|f| (1e-3..=1e6).contains(f)) {
            return Err(CheckpointError::NotAModel {
                path: FACTORS.into(),
                why: "its values divide frequencies and have to be from 0.001 to 1000000"
                    .to_owned(),
            });
        }
        config.rope.scaling = RopeScaling::Factors { factors };
        Ok(())
    }
}

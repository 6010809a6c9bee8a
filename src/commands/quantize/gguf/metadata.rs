//! The key-values of a GGUF file: a GGUF source's own, or a configuration's.

use anyhow::{Context, Result, bail, ensure};
use scrimp_checkpoint::Format;
use scrimp_model::{
    Architecture, AttentionConfig, GqaConfig, MetaValue, Metadata, MlaConfig, ModelConfig,
    MoeConfig, MoeLayerFreq, RopeConfig, RopeScaling, Scoring,
};
use scrimp_quant::Recipe;

use super::tokenizer;
use crate::opened::Opened;

/// Version of the block formats.
const QUANTIZATION_VERSION: u64 = 2;

/// Keys that are not true of a file made from another: of its parts, of its alignment, and of how
/// it was quantized.
const NOT_CARRIED: [&str; 3] = ["general.alignment", "split.", "quantize."];

/// All key-values of the file.
pub fn of(opened: &Opened, recipe: &Recipe) -> Result<Metadata> {
    let config = &opened.config;
    let carried = opened.checkpoint.metadata();
    let mut metadata = match (opened.checkpoint.format(), carried) {
        (Format::Gguf, Some(metadata)) => carry(metadata, config),
        _ => {
            let mut metadata = model(config)?;
            metadata.insert("general.name", MetaValue::Text(opened.name.clone()));
            tokenizer::add(&mut metadata, opened)?;
            check(&metadata, config)?;
            metadata
        }
    };
    let file_type = match (recipe.scheme.bits(), recipe.asymmetric) {
        (8, _) => 7,
        (_, false) => 2,
        (_, true) => 3,
    };
    metadata.insert("general.file_type", MetaValue::Unsigned(file_type));
    let version = MetaValue::Unsigned(QUANTIZATION_VERSION);
    metadata.insert("general.quantization_version", version);
    Ok(metadata)
}

/// A source's key-values, less what is no longer so. MLA is written in its newer form whichever the
/// source has.
fn carry(source: &Metadata, config: &ModelConfig) -> Metadata {
    let architecture = source.text("general.architecture").unwrap_or_default();
    let next = format!("{architecture}.nextn_predict_layers");
    let kept = source.iter().filter(|(key, _)| {
        *key != next && !NOT_CARRIED.iter().any(|dropped| key.starts_with(dropped))
    });
    let mut metadata: Metadata = kept
        .map(|(key, value)| (key.to_owned(), value.clone()))
        .collect();
    let mut keys = Keys::new(&mut metadata, architecture);
    keys.count("block_count", config.num_layers);
    if let AttentionConfig::Mla(mla) = &config.attention {
        keys.mla(mla);
    }
    metadata
}

fn architecture(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Llama => "llama",
        Architecture::Qwen2 => "qwen2",
        Architecture::Qwen3 => "qwen3",
        Architecture::Qwen3Moe => "qwen3moe",
        Architecture::DeepseekV2 | Architecture::DeepseekV3 => "deepseek2",
    }
}

/// A configuration's keys.
fn model(config: &ModelConfig) -> Result<Metadata> {
    let mut metadata = Metadata::default();
    let name = architecture(config.architecture);
    metadata.insert("general.architecture", MetaValue::Text(name.to_owned()));
    metadata.insert("general.type", MetaValue::Text("model".to_owned()));
    let mut keys = Keys::new(&mut metadata, name);
    keys.count("vocab_size", config.vocab_size);
    keys.count("context_length", config.max_position_embeddings);
    keys.count("embedding_length", config.hidden_size);
    keys.count("block_count", config.num_layers);
    keys.count("feed_forward_length", config.intermediate_size);
    keys.float("attention.layer_norm_rms_epsilon", config.rms_norm_eps);
    keys.count("attention.head_count", config.attention.num_heads());
    match &config.attention {
        AttentionConfig::Gqa(gqa) => keys.gqa(gqa),
        AttentionConfig::Mla(mla) => keys.mla(mla),
    }
    match &config.moe {
        Some(moe) => keys.moe(moe, config.architecture)?,
        // Readers of DeepSeek ask for these whether there are experts or not.
        None if name == "deepseek2" => {
            keys.count("leading_dense_block_count", config.num_layers);
            keys.count("expert_feed_forward_length", config.intermediate_size);
            keys.count("expert_shared_count", 0);
        }
        None => {}
    }
    keys.rope(&config.rope)?;
    Ok(metadata)
}

/// Keys of one architecture.
struct Keys<'a> {
    metadata: &'a mut Metadata,
    architecture: &'a str,
}

impl<'a> Keys<'a> {
    fn new(metadata: &'a mut Metadata, architecture: &'a str) -> Keys<'a> {
        Keys {
            metadata,
            architecture,
        }
    }

    fn put(&mut self, key: &str, value: MetaValue) {
        let key = format!("{}.{key}", self.architecture);
        self.metadata.insert(key, value);
    }

    fn count(&mut self, key: &str, count: usize) {
        self.put(key, MetaValue::Unsigned(count as u64));
    }

    fn float(&mut self, key: &str, value: f32) {
        self.put(key, MetaValue::Float(value.into()));
    }

    fn gqa(&mut self, gqa: &GqaConfig) {
        self.count("attention.head_count_kv", gqa.num_kv_heads);
        self.count("attention.key_length", gqa.head_dim);
        self.count("attention.value_length", gqa.head_dim);
        self.count("rope.dimension_count", gqa.head_dim);
    }

    /// Attention over the latent is attention with one key and value head as wide as that.
    fn mla(&mut self, mla: &MlaConfig) {
        let (latent, rotated) = (mla.kv_lora_rank, mla.qk_rope_head_dim);
        self.count("attention.head_count_kv", 1);
        // 0 where queries have no bottleneck: some readers ask for the key all the same.
        self.count("attention.q_lora_rank", mla.q_lora_rank.unwrap_or(0));
        self.count("attention.kv_lora_rank", latent);
        self.count("attention.key_length", latent + rotated);
        self.count("attention.value_length", latent);
        self.count("attention.key_length_mla", mla.qk_nope_head_dim + rotated);
        self.count("attention.value_length_mla", mla.v_head_dim);
        self.count("rope.dimension_count", rotated);
    }

    fn moe(&mut self, moe: &MoeConfig, architecture: Architecture) -> Result<()> {
        let every = matches!(
            moe.moe_layer_freq,
            MoeLayerFreq::Every(1) | MoeLayerFreq::SparseStep(1)
        );
        let router = &moe.router;
        let deepseek = architecture != Architecture::Qwen3Moe;
        ensure!(
            every && moe.mlp_only_layers.is_empty(),
            "GGUF says how many leading layers have no experts, and nothing of others that have none"
        );
        ensure!(
            deepseek || (router.norm_topk_prob && moe.num_shared_experts == 0),
            "GGUF's readers divide the weights of Qwen3's experts by their sum, which this model does \
             not (norm_topk_prob is false), or know no shared experts, which it has"
        );
        self.count("expert_count", moe.num_experts);
        self.count("expert_used_count", router.top_k);
        self.count("expert_feed_forward_length", moe.moe_intermediate_size);
        if deepseek {
            self.count("leading_dense_block_count", moe.first_k_dense_replace);
            self.count("expert_shared_count", moe.num_shared_experts);
            self.float("expert_weights_scale", router.routed_scaling_factor);
            let norm = MetaValue::Bool(router.norm_topk_prob);
            self.put("expert_weights_norm", norm);
            let function = match router.scoring {
                Scoring::Softmax => 1,
                Scoring::Sigmoid => 2,
            };
            self.count("expert_gating_func", function);
        }
        if router.n_group > 1 {
            self.count("expert_group_count", router.n_group);
            self.count("expert_group_used_count", router.topk_group);
        }
        Ok(())
    }

    fn rope(&mut self, rope: &RopeConfig) -> Result<()> {
        self.float("rope.freq_base", rope.theta);
        match &rope.scaling {
            // The last two are a table beside the weights.
            RopeScaling::None | RopeScaling::Llama3 { .. } | RopeScaling::Factors { .. } => {}
            RopeScaling::Linear { factor } => {
                self.put("rope.scaling.type", MetaValue::Text("linear".to_owned()));
                self.float("rope.scaling.factor", *factor);
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_position_embeddings,
                attention_factor,
                softmax_scale,
                truncate,
            } => {
                ensure!(
                    *truncate,
                    "GGUF has no key for YaRN whose ramp is not rounded (truncate is false)"
                );
                self.put("rope.scaling.type", MetaValue::Text("yarn".to_owned()));
                self.float("rope.scaling.factor", *factor);
                let original = *original_max_position_embeddings;
                self.count("rope.scaling.original_context_length", original);
                self.float("rope.scaling.yarn_beta_fast", *beta_fast);
                self.float("rope.scaling.yarn_beta_slow", *beta_slow);
                let log = factor.ln();
                let mut usual = 0.1 * log + 1.0;
                if *softmax_scale != 1.0 {
                    let multiplier = (softmax_scale.sqrt() - 1.0) / log;
                    self.float("rope.scaling.yarn_log_multiplier", multiplier);
                    usual = 1.0;
                }
                if (attention_factor - usual).abs() > 1e-6 {
                    self.float("rope.scaling.yarn_attn_factor", *attention_factor);
                }
            }
        }
        Ok(())
    }
}

/// Reads the keys back: whatever they have no words for is refused, not lost.
fn check(metadata: &Metadata, config: &ModelConfig) -> Result<()> {
    let read = ModelConfig::from_gguf(metadata).context("GGUF cannot hold this model")?;
    let said = said(&read);
    let wanted = self::said(config);
    if said != wanted {
        bail!("GGUF cannot hold this model: it would say {said:?} of it, and not {wanted:?}");
    }
    let frequencies = |config: &ModelConfig| {
        let mut rope = config.rope.clone();
        if matches!(
            rope.scaling,
            RopeScaling::Llama3 { .. } | RopeScaling::Factors { .. }
        ) {
            rope.scaling = RopeScaling::None;
        }
        let mut all = rope.inv_freq();
        all.push(rope.attention_factor());
        all.push(rope.softmax_scale());
        all
    };
    let (read, wanted) = (frequencies(&read), frequencies(config));
    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * b.abs();
    ensure!(
        read.len() == wanted.len() && read.iter().zip(&wanted).all(close),
        "GGUF has no keys for this model's rotation ({:?})",
        config.rope.scaling
    );
    Ok(())
}

/// What key-values alone say: biases, a head and a correction are told by which tensors there are.
fn said(config: &ModelConfig) -> ModelConfig {
    let mut config = config.clone();
    config.tie_word_embeddings = false;
    config.bos_token_id = None;
    config.eos_token_ids.clear();
    config.num_nextn_predict_layers = 0;
    config.dtype = None;
    config.fp8_tile = None;
    config.rope.scaling = RopeScaling::None;
    config.rope.interleaved = false;
    match &mut config.attention {
        AttentionConfig::Gqa(gqa) => (gqa.qkv_bias, gqa.o_bias) = (false, false),
        AttentionConfig::Mla(mla) => mla.attention_bias = false,
    }
    if let Some(moe) = &mut config.moe {
        moe.router.correction_bias = false;
        moe.moe_layer_freq = MoeLayerFreq::Every(1);
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use scrimp_checkpoint::Checkpoint;

    fn config(name: &str) -> ModelConfig {
        let goldens = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens");
        let path = std::path::Path::new(goldens).join(name);
        Checkpoint::open(&path).unwrap().config().unwrap()
    }

    #[test]
    fn configurations_survive_the_way_to_keys_and_back() {
        for name in [
            "llama",
            "llama_head_dim",
            "llama_rope_linear",
            "llama_rope_llama3",
            "qwen2",
            "qwen2_yarn",
            "qwen3",
            "qwen3_moe",
            "deepseek_v2",
            "deepseek_v2_q_lora",
            "deepseek_v3",
            "deepseek_v3_no_q_lora",
        ] {
            let config = config(name);
            let metadata = model(&config).unwrap_or_else(|e| panic!("{name}: {e}"));
            check(&metadata, &config).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }

    #[test]
    fn what_keys_cannot_say_is_refused() {
        let said = model(&config("qwen3_moe_mixed")).unwrap_err().to_string();
        assert!(said.contains("leading layers"), "{said}");
        let mut plain = config("qwen3_moe");
        if let Some(moe) = &mut plain.moe {
            moe.router.norm_topk_prob = false;
        }
        let said = model(&plain).unwrap_err().to_string();
        assert!(said.contains("norm_topk_prob"), "{said}");
        let wide = config("deepseek_v3");
        let mut keys = model(&wide).unwrap();
        keys.insert("deepseek2.expert_used_count", MetaValue::Unsigned(1));
        assert!(check(&keys, &wide).is_err());
    }
}

//! `config.json` to [`ModelConfig`], with the defaults of transformers' configuration classes.

use scrimp_tensor::DType;
use serde_json::Value;

use crate::fields::{
    Fields, MAX_CONTEXT, MAX_INTERMEDIATE, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, shortened,
};
use crate::quantization::quantization;
use crate::{
    Architecture, AttentionConfig, ConfigError, ModelConfig, hf_attention, hf_moe, rope_hf,
};

/// What a configuration class assumes when a key is absent. `None` for heads and widths means
/// that they follow from others.
pub(crate) struct Defaults {
    pub vocab: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: Option<usize>,
    pub head_dim: Option<usize>,
    pub context: usize,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
}

/// A class of transformers.
pub(crate) struct Family {
    pub class: &'static str,
    pub model_type: &'static str,
    pub architecture: Architecture,
    pub defaults: Defaults,
}

const LLAMA: Defaults = Defaults {
    vocab: 32000,
    hidden: 4096,
    intermediate: 11008,
    layers: 32,
    heads: 32,
    kv_heads: None,
    head_dim: None,
    context: 2048,
    bos: Some(1),
    eos: Some(2),
};

const QWEN: Defaults = Defaults {
    vocab: 151936,
    intermediate: 22016,
    kv_heads: Some(32),
    context: 32768,
    bos: None,
    eos: None,
    ..LLAMA
};

const FAMILIES: [Family; 7] = [
    family("LlamaForCausalLM", "llama", Architecture::Llama, LLAMA),
    family(
        "MistralForCausalLM",
        "mistral",
        Architecture::Llama,
        Defaults {
            intermediate: 14336,
            kv_heads: Some(8),
            context: 131_072,
            ..LLAMA
        },
    ),
    family("Qwen2ForCausalLM", "qwen2", Architecture::Qwen2, QWEN),
    family(
        "Qwen3ForCausalLM",
        "qwen3",
        Architecture::Qwen3,
        Defaults {
            head_dim: Some(128),
            ..QWEN
        },
    ),
    family(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        Architecture::Qwen3Moe,
        Defaults {
            hidden: 2048,
            intermediate: 6144,
            layers: 24,
            kv_heads: Some(4),
            ..QWEN
        },
    ),
    family(
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        Architecture::DeepseekV2,
        Defaults {
            vocab: 102_400,
            ..LLAMA
        },
    ),
    family(
        "DeepseekV3ForCausalLM",
        "deepseek_v3",
        Architecture::DeepseekV3,
        Defaults {
            vocab: 129_280,
            hidden: 7168,
            intermediate: 18432,
            layers: 61,
            heads: 128,
            context: 4096,
            bos: Some(0),
            eos: Some(1),
            ..LLAMA
        },
    ),
];

const fn family(
    class: &'static str,
    model_type: &'static str,
    architecture: Architecture,
    defaults: Defaults,
) -> Family {
    Family {
        class,
        model_type,
        architecture,
        defaults,
    }
}

impl ModelConfig {
    /// Reads a `config.json`. Absent keys take the defaults of transformers' configuration class.
    ///
    /// # Errors
    /// When the architecture is unknown, a value is out of range, values contradict each other, or
    /// the model uses something scrimp does not run (sliding windows, other activations…).
    pub fn from_hf(config: &Value) -> Result<ModelConfig, ConfigError> {
        let map = config.as_object().ok_or(ConfigError::NotAnObject {
            found: kind(config),
        })?;
        let fields = Fields::Json(map, "");
        let family = find_family(&fields, config)?;
        refuse_what_is_not_run(&fields, config, family)?;

        let defaults = &family.defaults;
        let attention = match family.architecture {
            Architecture::DeepseekV2 => AttentionConfig::Mla(hf_attention::mla(&fields, defaults)?),
            Architecture::DeepseekV3 => AttentionConfig::Mla(hf_attention::mla(&fields, defaults)?),
            architecture => {
                AttentionConfig::Gqa(hf_attention::gqa(&fields, defaults, architecture)?)
            }
        };
        let packed = quantization(config)?;
        let context = fields.extent("max_position_embeddings", defaults.context, MAX_CONTEXT)?;
        let interleaved = match family.architecture {
            Architecture::DeepseekV2 => true,
            Architecture::DeepseekV3 => fields.flag("rope_interleave", true)?,
            _ => false,
        };
        ModelConfig {
            architecture: family.architecture,
            vocab_size: fields.extent("vocab_size", defaults.vocab, MAX_VOCAB)?,
            hidden_size: fields.extent("hidden_size", defaults.hidden, MAX_WIDTH)?,
            num_layers: fields.extent("num_hidden_layers", defaults.layers, MAX_LAYERS)?,
            intermediate_size: fields.extent(
                "intermediate_size",
                defaults.intermediate,
                MAX_INTERMEDIATE,
            )?,
            rms_norm_eps: fields.epsilon("rms_norm_eps")?,
            tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
            max_position_embeddings: context,
            rope: rope_hf::rope(&fields, config, &attention, context, interleaved)?,
            attention,
            moe: hf_moe::moe(&fields, config, family.architecture)?,
            bos_token_id: token_ids(config, "bos_token_id", defaults.bos)?
                .first()
                .copied(),
            eos_token_ids: token_ids(config, "eos_token_id", defaults.eos)?,
            num_nextn_predict_layers: match family.architecture {
                Architecture::DeepseekV3 => nextn_layers(&fields)?,
                _ => 0,
            },
            dtype: stored_dtype(&fields)?,
            fp8_tile: packed.fp8_tile,
            quantization: packed.ints,
        }
        .checked()
    }

    /// Adds the end tokens of a `generation_config.json`, which often lists more than
    /// `config.json` does.
    ///
    /// # Errors
    /// When its `eos_token_id` is no token id or list of such, or is outside the vocabulary.
    pub fn merge_generation_config(mut self, generation: &Value) -> Result<Self, ConfigError> {
        for token in token_ids(generation, "eos_token_id", None)? {
            if !self.eos_token_ids.contains(&token) {
                self.eos_token_ids.push(token);
            }
        }
        self.checked()
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn find_family(fields: &Fields, config: &Value) -> Result<&'static Family, ConfigError> {
    let class = config.pointer("/architectures/0").and_then(Value::as_str);
    let found = match class {
        Some(class) => FAMILIES.iter().find(|f| f.class == class),
        None => {
            let model_type = fields.text("model_type")?;
            FAMILIES
                .iter()
                .find(|f| model_type.as_deref() == Some(f.model_type))
        }
    };
    found.ok_or_else(|| ConfigError::UnknownArchitecture {
        found: shortened(
            class
                .or(config["model_type"].as_str())
                .unwrap_or("(none given)"),
        ),
        known: FAMILIES.map(|f| f.class).join(", "),
    })
}

/// Settings that change the computation in ways that are not implemented.
fn refuse_what_is_not_run(
    fields: &Fields,
    config: &Value,
    family: &Family,
) -> Result<(), ConfigError> {
    if let Some(act) = fields.text("hidden_act")?
        && !matches!(act.as_str(), "silu" | "swish")
    {
        return Err(fields.unsupported("hidden_act", "only \"silu\" is implemented"));
    }
    if fields.flag("mlp_bias", false)? && family.class == "LlamaForCausalLM" {
        return Err(fields.unsupported(
            "mlp_bias",
            "biases in feed-forward layers are not implemented",
        ));
    }
    hf_attention::refuse_sliding_window(fields, config, family)
}

fn nextn_layers(fields: &Fields) -> Result<usize, ConfigError> {
    let key = match fields.has("num_mtp_layers") {
        true => "num_mtp_layers",
        false => "num_nextn_predict_layers",
    };
    Ok(match fields.has(key) {
        true => fields.count(key, 0, MAX_LAYERS)?.unwrap_or(0),
        false => 1,
    })
}

/// A token id, a list of them, or null. Absent keys take the default.
fn token_ids(config: &Value, key: &str, default: Option<u32>) -> Result<Vec<u32>, ConfigError> {
    let one = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
    let ids = match config.get(key) {
        None => return Ok(default.into_iter().collect()),
        Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(ids)) if ids.len() <= 1024 => ids.iter().map(one).collect(),
        Some(id) => one(id).map(|id| vec![id]),
    };
    ids.ok_or_else(|| ConfigError::Value {
        key: key.to_owned(),
        value: shortened(&config[key].to_string()),
        allowed: "a token id, a list of at most 1024 of them, or null".to_owned(),
    })
}

/// The dtype a release says its weights have; names that are none of ours count as unsaid.
fn stored_dtype(fields: &Fields) -> Result<Option<DType>, ConfigError> {
    let key = if fields.has("dtype") {
        "dtype"
    } else {
        "torch_dtype"
    };
    Ok(match fields.text(key)?.as_deref() {
        Some("float32") => Some(DType::F32),
        Some("float16") => Some(DType::F16),
        Some("bfloat16") => Some(DType::BF16),
        _ => None,
    })
}

//! Attention from a `config.json`: its shape, and the windows that are refused.

use serde_json::Value;

use crate::fields::{Fields, MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_WIDTH};
use crate::hf::{Defaults, Family};
use crate::{Architecture, ConfigError, GqaConfig, MlaConfig};

/// A window no shorter than the context never cuts anything, and is accepted.
pub(crate) fn refuse_sliding_window(
    fields: &Fields,
    config: &Value,
    family: &Family,
) -> Result<(), ConfigError> {
    let context = fields.extent(
        "max_position_embeddings",
        family.defaults.context,
        MAX_CONTEXT,
    )?;
    let layers = fields.extent("num_hidden_layers", family.defaults.layers, MAX_LAYERS)?;
    let default = if fields.has("sliding_window") {
        None
    } else {
        Some(4096)
    };
    let used = match family.class {
        "MistralForCausalLM" => true,
        "Qwen2ForCausalLM" | "Qwen3ForCausalLM" => {
            let first = fields
                .count("max_window_layers", 0, MAX_LAYERS)?
                .unwrap_or(28);
            let listed = config["layer_types"].as_array();
            fields.flag("use_sliding_window", false)?
                && listed.map_or(first < layers, |types| {
                    types.iter().any(|t| t != "full_attention")
                })
        }
        "Qwen3MoeForCausalLM" => fields.flag("use_sliding_window", false)?,
        _ => false,
    };
    let window = fields.count("sliding_window", 1, MAX_CONTEXT)?.or(default);
    match window.filter(|&window| used && window < context) {
        None => Ok(()),
        Some(window) => Err(ConfigError::Unsupported {
            key: "sliding_window".to_owned(),
            value: window.to_string(),
            why: format!(
                "attention within a window is not implemented; a window of at least \
                 max_position_embeddings ({context}), or null, would do"
            ),
        }),
    }
}

/// Grouped-query attention of a family.
pub(crate) fn gqa(
    fields: &Fields,
    defaults: &Defaults,
    architecture: Architecture,
) -> Result<GqaConfig, ConfigError> {
    let hidden = fields.extent("hidden_size", defaults.hidden, MAX_WIDTH)?;
    let num_heads = fields.extent("num_attention_heads", defaults.heads, MAX_HEADS)?;
    let kv_heads = fields.count("num_key_value_heads", 1, MAX_HEADS)?;
    let kv_default = if fields.has("num_key_value_heads") {
        None
    } else {
        defaults.kv_heads
    };
    let head_default = if fields.has("head_dim") {
        None
    } else {
        defaults.head_dim
    };
    let head_dim = match fields.count("head_dim", 1, MAX_HEADS)?.or(head_default) {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(num_heads) => hidden / num_heads,
        None => {
            return Err(ConfigError::Contradiction {
                first: "hidden_size",
                first_value: hidden,
                second: "num_attention_heads",
                second_value: num_heads,
                rule: "without head_dim, heads divide the hidden size evenly",
            });
        }
    };
    let bias = match architecture {
        Architecture::Qwen2 => false,
        _ => fields.flag("attention_bias", false)?,
    };
    Ok(GqaConfig {
        num_heads,
        num_kv_heads: kv_heads.or(kv_default).unwrap_or(num_heads),
        head_dim,
        qkv_bias: bias || architecture == Architecture::Qwen2,
        o_bias: bias,
        qk_norm: matches!(architecture, Architecture::Qwen3 | Architecture::Qwen3Moe),
    })
}

/// Latent attention of DeepSeek.
pub(crate) fn mla(fields: &Fields, defaults: &Defaults) -> Result<MlaConfig, ConfigError> {
    let num_heads = fields.extent("num_attention_heads", defaults.heads, MAX_HEADS)?;
    if let Some(kv_heads) = fields.count("num_key_value_heads", 1, MAX_HEADS)?
        && kv_heads != num_heads
    {
        return Err(ConfigError::Contradiction {
            first: "num_key_value_heads",
            first_value: kv_heads,
            second: "num_attention_heads",
            second_value: num_heads,
            rule: "latent attention expands a key and a value for every head",
        });
    }
    let q_lora_rank = match fields.has("q_lora_rank") {
        true => fields.count("q_lora_rank", 1, MAX_WIDTH)?,
        false => Some(1536),
    };
    Ok(MlaConfig {
        num_heads,
        q_lora_rank,
        kv_lora_rank: fields.extent("kv_lora_rank", 512, MAX_WIDTH)?,
        qk_nope_head_dim: fields.extent("qk_nope_head_dim", 128, MAX_HEADS)?,
        qk_rope_head_dim: fields.extent("qk_rope_head_dim", 64, MAX_HEADS)?,
        v_head_dim: fields.extent("v_head_dim", 128, MAX_HEADS)?,
        attention_bias: fields.flag("attention_bias", false)?,
    })
}

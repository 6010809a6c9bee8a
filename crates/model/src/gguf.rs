//! GGUF key-values to [`ModelConfig`].
//!
//! A few facts are only in the tensor list, not in the key-values: whether there is a head of its
//! own, biases, or a table of rotary divisors. [`ModelConfig::from_gguf`] assumes the family's
//! usual case; the checkpoint corrects it.

use crate::fields::{
    Fields, MAX_CONTEXT, MAX_EXPERTS, MAX_HEADS, MAX_INTERMEDIATE, MAX_LAYERS, MAX_VOCAB,
    MAX_WIDTH, shortened,
};
use crate::rope::mscale;
use crate::{
    Architecture, AttentionConfig, ConfigError, GqaConfig, GroupScore, Metadata, MlaConfig,
    ModelConfig, MoeConfig, MoeLayerFreq, RopeConfig, RopeScaling, RouterConfig, Scoring,
};

/// `general.architecture` names; `deepseek2` holds V3 as well, told apart by its routing.
const ARCHITECTURES: [(&str, Architecture); 5] = [
    ("llama", Architecture::Llama),
    ("qwen2", Architecture::Qwen2),
    ("qwen3", Architecture::Qwen3),
    ("qwen3moe", Architecture::Qwen3Moe),
    ("deepseek2", Architecture::DeepseekV2),
];

impl ModelConfig {
    /// Reads a GGUF file's key-values.
    ///
    /// # Errors
    /// When the architecture is unknown, a key is missing, a value is out of range, or values
    /// contradict each other.
    pub fn from_gguf(metadata: &Metadata) -> Result<ModelConfig, ConfigError> {
        let name = metadata
            .text("general.architecture")
            .unwrap_or("(none given)");
        let known = ARCHITECTURES.iter().find(|(known, _)| *known == name);
        let Some(&(name, mut architecture)) = known else {
            return Err(ConfigError::UnknownArchitecture {
                found: shortened(name),
                known: ARCHITECTURES.map(|(known, _)| known).join(", "),
            });
        };
        let fields = Fields::Gguf(metadata, name);
        let moe = moe(&fields, architecture)?;
        let sigmoid = moe
            .as_ref()
            .is_some_and(|moe| moe.router.scoring == Scoring::Sigmoid);
        if architecture == Architecture::DeepseekV2 && sigmoid {
            architecture = Architecture::DeepseekV3;
        }
        let context = fields.required("context_length", MAX_CONTEXT)?;
        refuse_sliding_window(&fields, context)?;
        let attention = match architecture {
            Architecture::DeepseekV2 | Architecture::DeepseekV3 => {
                AttentionConfig::Mla(mla(&fields)?)
            }
            _ => AttentionConfig::Gqa(gqa(&fields, architecture)?),
        };
        let (num_layers, num_nextn_predict_layers) = layers(&fields)?;
        let general = Fields::Gguf(metadata, "tokenizer.ggml");
        ModelConfig {
            architecture,
            vocab_size: vocab_size(&fields, metadata)?,
            hidden_size: fields.required("embedding_length", MAX_WIDTH)?,
            num_layers,
            intermediate_size: intermediate_size(&fields, moe.as_ref())?,
            rms_norm_eps: fields.epsilon("attention.layer_norm_rms_epsilon")?,
            tie_word_embeddings: false,
            max_position_embeddings: context,
            rope: rope(&fields, &attention, architecture, context)?,
            attention,
            moe,
            bos_token_id: token(&general, "bos_token_id")?,
            eos_token_ids: end_tokens(&general)?,
            num_nextn_predict_layers,
            dtype: None,
            fp8_tile: None,
            quantization: None,
        }
        .checked()
    }
}

/// Layers that are run, and the multi-token-prediction layers counted after them.
fn layers(fields: &Fields) -> Result<(usize, usize), ConfigError> {
    let all = fields.required("block_count", MAX_LAYERS)?;
    let next = fields
        .count("nextn_predict_layers", 0, MAX_LAYERS)?
        .unwrap_or(0);
    if next >= all {
        return Err(ConfigError::Contradiction {
            first: "nextn_predict_layers",
            first_value: next,
            second: "block_count",
            second_value: all,
            rule: "prediction layers are counted in the blocks, and others have to remain",
        });
    }
    Ok((all - next, next))
}

fn vocab_size(fields: &Fields, metadata: &Metadata) -> Result<usize, ConfigError> {
    if let Some(size) = fields.count("vocab_size", 1, MAX_VOCAB)? {
        return Ok(size);
    }
    match metadata.array("tokenizer.ggml.tokens") {
        Some(tokens) if (1..=MAX_VOCAB).contains(&tokens.len()) => Ok(tokens.len()),
        _ => fields.required("vocab_size", MAX_VOCAB),
    }
}

/// A model of experts alone may leave the dense width out.
fn intermediate_size(fields: &Fields, moe: Option<&MoeConfig>) -> Result<usize, ConfigError> {
    match (
        fields.count("feed_forward_length", 0, MAX_INTERMEDIATE)?,
        moe,
    ) {
        (Some(0) | None, Some(moe)) => Ok(moe.moe_intermediate_size),
        _ => fields.required("feed_forward_length", MAX_INTERMEDIATE),
    }
}

fn refuse_sliding_window(fields: &Fields, context: usize) -> Result<(), ConfigError> {
    match fields.count("attention.sliding_window", 0, MAX_CONTEXT)? {
        Some(window) if window > 0 && window < context => Err(fields.unsupported(
            "attention.sliding_window",
            format!(
                "attention within a window shorter than the context ({context}) is not implemented"
            ),
        )),
        _ => Ok(()),
    }
}

fn token(fields: &Fields, key: &str) -> Result<Option<u32>, ConfigError> {
    Ok(fields.count(key, 0, MAX_VOCAB)?.map(|id| id as u32))
}

fn end_tokens(fields: &Fields) -> Result<Vec<u32>, ConfigError> {
    let mut ids = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        let id = token(fields, key)?;
        ids.extend(id.filter(|id| !ids.contains(id)));
    }
    Ok(ids)
}

fn gqa(fields: &Fields, architecture: Architecture) -> Result<GqaConfig, ConfigError> {
    let hidden = fields.required("embedding_length", MAX_WIDTH)?;
    let num_heads = fields.required("attention.head_count", MAX_HEADS)?;
    let kv_heads = fields.count("attention.head_count_kv", 1, MAX_HEADS)?;
    let head_dim = match fields.count("attention.key_length", 1, MAX_HEADS)? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(num_heads) => hidden / num_heads,
        None => {
            return Err(ConfigError::Contradiction {
                first: "embedding_length",
                first_value: hidden,
                second: "attention.head_count",
                second_value: num_heads,
                rule: "without attention.key_length, heads divide the width evenly",
            });
        }
    };
    for key in ["attention.value_length", "rope.dimension_count"] {
        match fields.count(key, 1, MAX_HEADS)? {
            Some(width) if width != head_dim => {
                return Err(fields.unsupported(
                    key,
                    format!("only the width of a whole head ({head_dim}) is implemented here"),
                ));
            }
            _ => {}
        }
    }
    Ok(GqaConfig {
        num_heads,
        num_kv_heads: kv_heads.unwrap_or(num_heads),
        head_dim,
        qkv_bias: architecture == Architecture::Qwen2,
        o_bias: false,
        qk_norm: matches!(architecture, Architecture::Qwen3 | Architecture::Qwen3Moe),
    })
}

/// Newer files give the widths of the cached form in `key_length` and those of a head in
/// `key_length_mla`; older ones give the latter in `key_length`.
fn mla(fields: &Fields) -> Result<MlaConfig, ConfigError> {
    let width = |newer: &str, older: &str| match fields.has(newer) {
        true => fields.required(newer, MAX_HEADS),
        false => fields.required(older, MAX_HEADS),
    };
    let key = width("attention.key_length_mla", "attention.key_length")?;
    let rotated = fields.required("rope.dimension_count", MAX_HEADS)?;
    if key <= rotated {
        return Err(ConfigError::Contradiction {
            first: "a head's key length",
            first_value: key,
            second: "rope.dimension_count",
            second_value: rotated,
            rule: "part of a key is not rotated",
        });
    }
    Ok(MlaConfig {
        num_heads: fields.required("attention.head_count", MAX_HEADS)?,
        q_lora_rank: fields
            .count("attention.q_lora_rank", 0, MAX_WIDTH)?
            .filter(|&r| r > 0),
        kv_lora_rank: fields.required("attention.kv_lora_rank", MAX_WIDTH)?,
        qk_nope_head_dim: key - rotated,
        qk_rope_head_dim: rotated,
        v_head_dim: width("attention.value_length_mla", "attention.value_length")?,
        attention_bias: false,
    })
}

fn moe(fields: &Fields, architecture: Architecture) -> Result<Option<MoeConfig>, ConfigError> {
    let num_experts = fields.count("expert_count", 0, MAX_EXPERTS)?.unwrap_or(0);
    let deepseek = architecture == Architecture::DeepseekV2;
    if num_experts == 0 && architecture == Architecture::Qwen3Moe {
        return fields.required("expert_count", MAX_EXPERTS).map(|_| None);
    }
    if num_experts == 0 {
        return Ok(None);
    }
    if !deepseek && architecture != Architecture::Qwen3Moe {
        return Err(fields.unsupported("expert_count", "this family is run without experts only"));
    }
    let scoring = match fields.count("expert_gating_func", 0, 16)? {
        None | Some(0 | 1) => Scoring::Softmax,
        Some(2) if deepseek => Scoring::Sigmoid,
        Some(_) => {
            return Err(fields.unsupported(
                "expert_gating_func",
                "implemented are 1 (softmax) and, for DeepSeek, 2 (sigmoid)",
            ));
        }
    };
    let sigmoid = scoring == Scoring::Sigmoid;
    let at_least_one = |key| Ok(fields.count(key, 0, MAX_EXPERTS)?.unwrap_or(1).max(1));
    let n_group = at_least_one("expert_group_count")?;
    let topk_group = if n_group == 1 {
        1
    } else {
        at_least_one("expert_group_used_count")?
    };
    let scale = fields.optional_ratio("expert_weights_scale")?;
    Ok(Some(MoeConfig {
        num_experts,
        moe_intermediate_size: fields.required("expert_feed_forward_length", MAX_WIDTH)?,
        num_shared_experts: fields.count("expert_shared_count", 0, 1024)?.unwrap_or(0),
        first_k_dense_replace: fields
            .count("leading_dense_block_count", 0, MAX_LAYERS)?
            .unwrap_or(0),
        moe_layer_freq: if deepseek {
            MoeLayerFreq::Every(1)
        } else {
            MoeLayerFreq::SparseStep(1)
        },
        mlp_only_layers: Vec::new(),
        router: RouterConfig {
            top_k: fields.required("expert_used_count", MAX_EXPERTS)?,
            scoring,
            n_group,
            topk_group,
            group_score: if sigmoid {
                GroupScore::Top2Sum
            } else {
                GroupScore::Max
            },
            // Qwen3-MoE has no such key: every release normalises.
            norm_topk_prob: fields.flag("expert_weights_norm", !deepseek)?,
            routed_scaling_factor: scale.unwrap_or(1.0) as f32,
            correction_bias: sigmoid,
        },
    }))
}

fn rope(
    fields: &Fields,
    attention: &AttentionConfig,
    architecture: Architecture,
    context: usize,
) -> Result<RopeConfig, ConfigError> {
    let theta = fields.number("rope.freq_base", |v| v as f32 > 1.0, "a number above 1")?;
    let (dim, mla) = match attention {
        AttentionConfig::Gqa(gqa) => (gqa.head_dim, false),
        AttentionConfig::Mla(mla) => (mla.qk_rope_head_dim, true),
    };
    Ok(RopeConfig {
        dim,
        theta: theta.unwrap_or(10_000.0) as f32,
        scaling: scaling(fields, context, mla)?,
        // The converter permutes Llama's queries and keys so that pairs are neighbours.
        interleaved: mla || architecture == Architecture::Llama,
    })
}

fn scaling(fields: &Fields, context: usize, mla: bool) -> Result<RopeScaling, ConfigError> {
    // A factor of 0, or none, means no scaling, whatever the type says.
    let factor = match fields.optional_ratio("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => fields.optional_ratio("rope.scale_linear")?,
    };
    let kind = fields
        .text("rope.scaling.type")?
        .unwrap_or("linear".to_owned());
    match (kind.as_str(), factor) {
        ("none", _) | ("linear" | "yarn", None) => Ok(RopeScaling::None),
        ("linear", Some(1.0)) => Ok(RopeScaling::None),
        ("linear", Some(factor)) => Ok(RopeScaling::Linear {
            factor: factor as f32,
        }),
        ("yarn", Some(factor)) => yarn(fields, factor, context, mla),
        _ => Err(fields.unsupported(
            "rope.scaling.type",
            "implemented are \"none\", \"linear\" and \"yarn\"",
        )),
    }
}

/// GGUF keeps one multiplier, a tenth of `mscale_all_dim`; `mscale`, which it does not keep, was
/// equal to that in every DeepSeek release, so cos and sin stay as they are.
fn yarn(
    fields: &Fields,
    factor: f64,
    context: usize,
    mla: bool,
) -> Result<RopeScaling, ConfigError> {
    let multiplier = fields
        .optional_ratio("rope.scaling.yarn_log_multiplier")?
        // Stored in f32: undo the tenth there, so that 0.1 gives exactly 1.
        .map(|m| f64::from(m as f32 / 0.1f32));
    let given = match fields.ratio("rope.scaling.yarn_attn_factor")? {
        Some(given) => Some(given),
        None => fields.ratio("rope.scaling.attn_factor")?,
    };
    let attention_factor = given.unwrap_or(match multiplier {
        Some(_) if mla => 1.0,
        _ => mscale(factor, 1.0),
    });
    let softmax_scale = match multiplier {
        Some(all) if mla => mscale(factor, all).powi(2),
        _ => 1.0,
    };
    let original = fields.count("rope.scaling.original_context_length", 1, MAX_CONTEXT)?;
    Ok(RopeScaling::Yarn {
        factor: factor as f32,
        beta_fast: fields.ratio("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0) as f32,
        beta_slow: fields.ratio("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0) as f32,
        original_max_position_embeddings: original.unwrap_or(context),
        attention_factor: attention_factor as f32,
        softmax_scale: softmax_scale as f32,
        truncate: true,
    })
}

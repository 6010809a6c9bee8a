//! The small files of the output: configuration, tokenizer, templates.

use anyhow::{Result, bail};
use scrimp_checkpoint::{Checkpoint, Format};
use scrimp_model::{
    Architecture, AttentionConfig, GqaConfig, GroupScore, MlaConfig, ModelConfig, MoeConfig,
    MoeLayerFreq, RopeConfig, RopeScaling, Scoring,
};
use scrimp_tensor::DType;
use serde_json::{Map, Value, json};

use crate::opened::{self, Opened};

/// Files that are taken along as they are, where there are any.
const COPIED: [&str; 12] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "configuration_deepseek.py",
    "LICENSE",
];

/// A file of the output.
pub type File = (String, Vec<u8>);

/// `config.json` without its quantization, and the other files.
pub fn of(opened: &Opened, float: DType) -> Result<(Value, Vec<File>)> {
    match opened.checkpoint.format() {
        Format::Safetensors => folder(&opened.checkpoint, float),
        Format::Gguf => gguf(opened, float),
    }
}

fn folder(checkpoint: &Checkpoint, float: DType) -> Result<(Value, Vec<File>)> {
    let source = checkpoint.files();
    let mut config = source.json("config.json")?.unwrap_or_default();
    let Some(fields) = config.as_object_mut() else {
        bail!("config.json of {} is no object", source.place());
    };
    fields.remove("quantization_config");
    if fields.contains_key("num_nextn_predict_layers") {
        // Layers of multi-token prediction are not taken along.
        fields.insert("num_nextn_predict_layers".into(), json!(0));
    }
    let key = match fields.contains_key("dtype") {
        true => "dtype",
        false => "torch_dtype",
    };
    fields.insert(key.into(), json!(float_name(float)));
    let mut files = Vec::new();
    for name in COPIED {
        if let Some(contents) = source.read(name)? {
            files.push((name.to_owned(), contents.into_owned()));
        }
    }
    Ok((config, files))
}

/// A GGUF's header as the files that others read.
fn gguf(opened: &Opened, float: DType) -> Result<(Value, Vec<File>)> {
    let Some(metadata) = opened.checkpoint.metadata() else {
        bail!("{} has no header", opened.name);
    };
    let config = config_json(&opened.config, float)?;
    let tokenizer = opened::gguf_tokenizer(metadata.clone());
    let token = |id: Option<u32>| id.and_then(|id| tokenizer.tokens.get(id as usize));
    let mut about = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token(tokenizer.bos),
        "eos_token": token(tokenizer.eos),
        "unk_token": token(tokenizer.unk),
        "clean_up_tokenization_spaces": false,
        "model_max_length": opened.config.max_position_embeddings,
    });
    let mut files = vec![("tokenizer.json".to_owned(), pretty(&tokenizer.to_json()?))];
    if let Some(template) = &tokenizer.chat_template {
        about["chat_template"] = json!(template);
    }
    files.push(("tokenizer_config.json".to_owned(), pretty(&about)));
    let generation = json!({
        "bos_token_id": opened.config.bos_token_id,
        "eos_token_id": opened.config.eos_token_ids,
    });
    files.push(("generation_config.json".to_owned(), pretty(&generation)));
    Ok((config, files))
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text
}

fn float_name(float: DType) -> &'static str {
    match float {
        DType::F32 => "float32",
        DType::F16 => "float16",
        _ => "bfloat16",
    }
}

/// Hugging Face's class and type of an architecture.
fn class(architecture: Architecture) -> (&'static str, &'static str) {
    match architecture {
        Architecture::Llama => ("LlamaForCausalLM", "llama"),
        Architecture::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
        Architecture::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
        Architecture::Qwen3Moe => ("Qwen3MoeForCausalLM", "qwen3_moe"),
        Architecture::DeepseekV2 => ("DeepseekV2ForCausalLM", "deepseek_v2"),
        Architecture::DeepseekV3 => ("DeepseekV3ForCausalLM", "deepseek_v3"),
    }
}

/// A configuration as Hugging Face's `config.json`.
fn config_json(config: &ModelConfig, float: DType) -> Result<Value> {
    let (class, model_type) = class(config.architecture);
    let mut json = json!({
        "architectures": [class],
        "model_type": model_type,
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": config.intermediate_size,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_ids.first(),
        "rope_theta": config.rope.theta,
        "torch_dtype": float_name(float),
    });
    let mut add = |more: Value| {
        if let (Some(json), Value::Object(more)) = (json.as_object_mut(), more) {
            json.extend(more);
        }
    };
    match &config.attention {
        AttentionConfig::Gqa(gqa) => add(gqa_json(gqa, config.architecture)),
        AttentionConfig::Mla(mla) => add(mla_json(mla)),
    }
    if let Some(moe) = &config.moe {
        add(moe_json(moe, config.architecture)?);
    }
    if let Some(scaling) = rope_json(&config.rope)? {
        add(json!({"rope_scaling": scaling}));
    }
    Ok(json)
}

fn gqa_json(gqa: &GqaConfig, architecture: Architecture) -> Value {
    let mut json = json!({
        "num_attention_heads": gqa.num_heads,
        "num_key_value_heads": gqa.num_kv_heads,
        "head_dim": gqa.head_dim,
    });
    if architecture != Architecture::Qwen2 {
        json["attention_bias"] = json!(gqa.qkv_bias);
    }
    json
}

fn mla_json(mla: &MlaConfig) -> Value {
    json!({
        "num_attention_heads": mla.num_heads,
        "num_key_value_heads": mla.num_heads,
        "q_lora_rank": mla.q_lora_rank,
        "kv_lora_rank": mla.kv_lora_rank,
        "qk_nope_head_dim": mla.qk_nope_head_dim,
        "qk_rope_head_dim": mla.qk_rope_head_dim,
        "v_head_dim": mla.v_head_dim,
        "attention_bias": mla.attention_bias,
    })
}

fn moe_json(moe: &MoeConfig, architecture: Architecture) -> Result<Value> {
    let router = &moe.router;
    let common = json!({
        "num_experts_per_tok": router.top_k,
        "moe_intermediate_size": moe.moe_intermediate_size,
        "norm_topk_prob": router.norm_topk_prob,
    });
    let more = match (architecture, moe.moe_layer_freq) {
        (Architecture::Qwen3Moe, MoeLayerFreq::SparseStep(step)) => json!({
            "num_experts": moe.num_experts,
            "decoder_sparse_step": step,
            "mlp_only_layers": moe.mlp_only_layers,
        }),
        (Architecture::DeepseekV2 | Architecture::DeepseekV3, MoeLayerFreq::Every(step)) => json!({
            "n_routed_experts": moe.num_experts,
            "n_shared_experts": moe.num_shared_experts,
            "first_k_dense_replace": moe.first_k_dense_replace,
            "moe_layer_freq": step,
            "n_group": router.n_group,
            "topk_group": router.topk_group,
            "routed_scaling_factor": router.routed_scaling_factor,
            "num_nextn_predict_layers": 0,
            "scoring_func": match router.scoring {
                Scoring::Softmax => "softmax",
                Scoring::Sigmoid => "sigmoid",
            },
            "topk_method": match (router.correction_bias, router.group_score) {
                (true, _) | (_, GroupScore::Top2Sum) => "noaux_tc",
                (false, _) if router.n_group > 1 => "group_limited_greedy",
                (false, _) => "greedy",
            },
        }),
        _ => bail!("a mixture of experts laid out as no Hugging Face configuration says"),
    };
    let (Value::Object(mut common), Value::Object(more)) = (common, more) else {
        return Ok(Value::Null);
    };
    common.extend(more);
    Ok(Value::Object(common))
}

fn rope_json(rope: &RopeConfig) -> Result<Option<Value>> {
    let scaling = match &rope.scaling {
        RopeScaling::None => return Ok(None),
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_max_position_embeddings,
            attention_factor,
            softmax_scale,
            truncate,
        } => {
            let mut yarn = Map::new();
            let mut put = |key: &str, value: Value| yarn.insert(key.to_owned(), value);
            put("rope_type", json!("yarn"));
            put("type", json!("yarn"));
            put("factor", json!(factor));
            put("beta_fast", json!(beta_fast));
            put("beta_slow", json!(beta_slow));
            put(
                "original_max_position_embeddings",
                json!(original_max_position_embeddings),
            );
            if *softmax_scale == 1.0 {
                put("attention_factor", json!(attention_factor));
                put("truncate", json!(truncate));
            } else {
                // DeepSeek's variants: both temperatures follow from these.
                let of = |temperature: f32| (temperature - 1.0) / (0.1 * factor.ln());
                let all = softmax_scale.sqrt();
                put("mscale_all_dim", json!(of(all)));
                put("mscale", json!(of(attention_factor * all)));
            }
            Value::Object(yarn)
        }
        RopeScaling::Factors { .. } => bail!(
            "this GGUF stores its rotation as a table of factors, which a config.json cannot say: \
             quantize the model's Hugging Face folder instead"
        ),
    };
    Ok(Some(scaling))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written is read back as the same model.
    #[test]
    fn configurations_survive_the_way_to_json_and_back() {
        let goldens = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens");
        for name in [
            "llama",
            "llama_head_dim",
            "llama_rope_linear",
            "llama_rope_llama3",
            "qwen2",
            "qwen2_yarn",
            "qwen3",
            "qwen3_moe",
            "qwen3_moe_mixed",
            "deepseek_v2",
            "deepseek_v2_q_lora",
            "deepseek_v3",
            "deepseek_v3_no_q_lora",
        ] {
            let path = std::path::Path::new(goldens).join(name);
            let config = Checkpoint::open(&path).unwrap().config().unwrap();
            let json = config_json(&config, DType::F32).unwrap();
            let mut back = ModelConfig::from_hf(&json).unwrap_or_else(|e| panic!("{name}: {e}"));
            back.eos_token_ids.clone_from(&config.eos_token_ids);
            if let (
                RopeScaling::Yarn {
                    attention_factor: a,
                    softmax_scale: s,
                    ..
                },
                RopeScaling::Yarn {
                    attention_factor: b,
                    softmax_scale: t,
                    ..
                },
            ) = (&mut back.rope.scaling, &config.rope.scaling)
            {
                assert!((*a - b).abs() < 1e-5 && (*s - t).abs() < 1e-5, "{name}");
                (*a, *s) = (*b, *t);
            }
            back.num_nextn_predict_layers = config.num_nextn_predict_layers;
            back.dtype = config.dtype;
            assert_eq!(back, config, "{name}");
        }
    }
}

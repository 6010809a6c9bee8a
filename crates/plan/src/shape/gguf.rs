//! A GGUF's key-values as the config they were made from, and its tensors as they are.

use scrimp_model::{MetaArray, MetaValue, Metadata};
use serde_json::{Map, Value, json};

use super::{ModelShape, TensorHeader};
use crate::Error;

/// `general.architecture` and the `model_type` with the same layers.
const ARCHITECTURES: &[(&str, &str)] = &[
    ("llama", "llama"),
    ("qwen2", "qwen2"),
    ("qwen2moe", "qwen2_moe"),
    ("qwen3", "qwen3"),
    ("qwen3moe", "qwen3_moe"),
    ("qwen3next", "qwen3_next"),
    ("qwen35", "qwen3_5_text"),
    ("qwen35moe", "qwen3_5_moe_text"),
    ("deepseek2", "deepseek_v3"),
    ("gpt-oss", "gpt_oss"),
    ("gemma", "gemma"),
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3_text"),
    ("glm4", "glm4"),
    ("glm4moe", "glm4_moe"),
    ("phi2", "phi"),
    ("phi3", "phi3"),
    ("granite", "granite"),
    ("olmo2", "olmo2"),
    ("command-r", "cohere"),
    ("cohere2", "cohere2"),
    ("mistral3", "mistral"),
];

/// Keys below the architecture, and the config's keys with the same meaning.
const KEYS: &[(&str, &str)] = &[
    ("block_count", "num_hidden_layers"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("context_length", "max_position_embeddings"),
    ("vocab_size", "vocab_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.sliding_window", "sliding_window"),
    ("attention.q_lora_rank", "q_lora_rank"),
    ("attention.kv_lora_rank", "kv_lora_rank"),
    ("attention.indexer.head_count", "index_n_heads"),
    ("attention.indexer.key_length", "index_head_dim"),
    ("expert_count", "num_experts"),
    ("expert_used_count", "num_experts_per_tok"),
    ("expert_feed_forward_length", "moe_intermediate_size"),
    ("expert_shared_count", "n_shared_experts"),
    (
        "expert_shared_feed_forward_length",
        "shared_expert_intermediate_size",
    ),
    ("leading_dense_block_count", "first_k_dense_replace"),
    ("nextn_predict_layers", "num_nextn_predict_layers"),
    ("full_attention_interval", "full_attention_interval"),
    ("ssm.conv_kernel", "linear_conv_kernel_dim"),
    ("ssm.group_count", "linear_num_key_heads"),
    ("ssm.time_step_rank", "linear_num_value_heads"),
    ("ssm.state_size", "linear_key_head_dim"),
];

impl ModelShape {
    /// The shape of a GGUF: caches from its key-values, tensors exactly as its header lists them.
    ///
    /// # Errors
    ///
    /// The architecture is not known, a key that the caches depend on is missing or wrong, or a
    /// tensor's size does not fit its shape.
    pub fn from_gguf(
        name: &str,
        metadata: &Metadata,
        headers: &[TensorHeader],
    ) -> Result<ModelShape, Error> {
        let tied = !headers.iter().any(|h| h.name == "output.weight");
        let config = config(metadata, tied).map_err(|what| Error::Config {
            model: name.to_owned(),
            what,
        })?;
        ModelShape::from_partial_config(name, &config)?.with_tensors(headers)
    }
}

/// The config that the key-values stand for.
fn config(metadata: &Metadata, tied: bool) -> Result<Value, String> {
    let found = metadata.text("general.architecture").unwrap_or_default();
    let known = ARCHITECTURES.iter().find(|(name, _)| *name == found);
    let Some(&(arch, model_type)) = known else {
        let names: Vec<&str> = ARCHITECTURES.iter().map(|a| a.0).collect();
        return Err(format!(
            "general.architecture {found:?} is not known; known are {}",
            names.join(", ")
        ));
    };
    let mut config = Map::new();
    for (key, name) in KEYS {
        if let Some(value) = metadata.get(&format!("{arch}.{key}")).and_then(scalar) {
            config.insert((*name).to_owned(), value);
        }
    }
    let number = |config: &Map<String, Value>, key: &str| config.get(key).and_then(Value::as_u64);
    if let (Some(blocks), Some(next)) = (
        number(&config, "num_hidden_layers"),
        number(&config, "num_nextn_predict_layers"),
    ) {
        config.insert(
            "num_hidden_layers".to_owned(),
            json!(blocks.saturating_sub(next)),
        );
    }
    if let Some(tokens) = metadata.array("tokenizer.ggml.tokens") {
        config.entry("vocab_size").or_insert(json!(tokens.len()));
    }
    let mixtral = model_type == "llama" && number(&config, "num_experts").unwrap_or(0) > 0;
    let model_type = if mixtral { "mixtral" } else { model_type };
    config.insert("model_type".to_owned(), json!(model_type));
    config.insert("tie_word_embeddings".to_owned(), json!(tied));
    if config.contains_key("kv_lora_rank") {
        latent(&mut config, metadata, arch);
    }
    if let Some(state) = config.get("linear_key_head_dim").cloned() {
        config.insert("linear_value_head_dim".to_owned(), state);
    }
    let width = config.get("moe_intermediate_size").cloned();
    if let Some(width) = width.filter(|_| model_type == "gpt_oss") {
        config.insert("intermediate_size".to_owned(), width);
    }
    Ok(Value::Object(config))
}

/// Head sizes of latent attention: newer files keep them under `_mla`, older ones as they are.
fn latent(config: &mut Map<String, Value>, metadata: &Metadata, arch: &str) {
    let either = |new: &str, old: &str| {
        metadata
            .unsigned(&format!("{arch}.attention.{new}"))
            .or_else(|| metadata.unsigned(&format!("{arch}.attention.{old}")))
    };
    let rope = metadata.unsigned(&format!("{arch}.rope.dimension_count"));
    let key = either("key_length_mla", "key_length");
    if let (Some(rope), Some(key)) = (rope, key) {
        config.insert("qk_rope_head_dim".to_owned(), json!(rope));
        config.insert(
            "qk_nope_head_dim".to_owned(),
            json!(key.saturating_sub(rope)),
        );
    }
    if let Some(value) = either("value_length_mla", "value_length") {
        config.insert("v_head_dim".to_owned(), json!(value));
    }
}

/// A number; of an array over layers (hybrids have 0 for layers without), the largest.
fn scalar(value: &MetaValue) -> Option<Value> {
    match value {
        MetaValue::Unsigned(v) => Some(json!(v)),
        MetaValue::Signed(v) => Some(json!(v)),
        MetaValue::Array(MetaArray::Unsigned(v)) => v.iter().max().map(|v| json!(v)),
        MetaValue::Array(MetaArray::Signed(v)) => v.iter().max().map(|v| json!(v)),
        _ => None,
    }
}

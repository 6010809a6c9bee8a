//! GGUF key-values of each family, and those that must be refused.

#![allow(clippy::unwrap_used)]

use scrimp_model::{
    Architecture, AttentionConfig, GroupScore, MetaArray, MetaValue, Metadata, ModelConfig,
    RopeScaling, Scoring,
};

enum V {
    N(u64),
    F(f64),
    T(&'static str),
    B(bool),
}
use V::{B, F, N, T};

fn metadata(architecture: &str, values: &[(&str, V)]) -> Metadata {
    let mut metadata = Metadata::default();
    metadata.insert(
        "general.architecture",
        MetaValue::Text(architecture.to_owned()),
    );
    for (key, value) in values {
        let value = match value {
            N(v) => MetaValue::Unsigned(*v),
            F(v) => MetaValue::Float(*v),
            T(v) => MetaValue::Text((*v).to_owned()),
            B(v) => MetaValue::Bool(*v),
        };
        let key = match key.strip_prefix('.') {
            Some(key) => format!("tokenizer.ggml.{key}"),
            None => format!("{architecture}.{key}"),
        };
        metadata.insert(key, value);
    }
    metadata
}

fn dense(architecture: &str, more: &[(&str, V)]) -> Metadata {
    let mut metadata = metadata(
        architecture,
        &[
            ("block_count", N(3)),
            ("context_length", N(512)),
            ("embedding_length", N(60)),
            ("feed_forward_length", N(100)),
            ("attention.head_count", N(6)),
            ("attention.head_count_kv", N(2)),
            ("attention.layer_norm_rms_epsilon", F(1e-5)),
            ("rope.freq_base", F(50000.0)),
            ("vocab_size", N(97)),
            (".bos_token_id", N(1)),
            (".eos_token_id", N(2)),
            (".eot_token_id", N(5)),
        ],
    );
    for (key, value) in self::metadata(architecture, more).iter() {
        metadata.insert(key, value.clone());
    }
    metadata
}

fn deepseek(more: &[(&str, V)]) -> Metadata {
    let mut metadata = dense(
        "deepseek2",
        &[
            ("attention.head_count", N(4)),
            ("attention.head_count_kv", N(1)),
            ("attention.q_lora_rank", N(36)),
            ("attention.kv_lora_rank", N(28)),
            ("attention.key_length", N(36)),
            ("attention.value_length", N(28)),
            ("attention.key_length_mla", N(20)),
            ("attention.value_length_mla", N(14)),
            ("rope.dimension_count", N(8)),
            ("leading_dense_block_count", N(1)),
            ("expert_count", N(12)),
            ("expert_used_count", N(3)),
            ("expert_shared_count", N(1)),
            ("expert_feed_forward_length", N(24)),
            ("expert_group_count", N(4)),
            ("expert_group_used_count", N(2)),
            ("expert_weights_scale", F(2.5)),
            ("expert_weights_norm", B(true)),
            ("expert_gating_func", N(2)),
            ("rope.scaling.type", T("yarn")),
            ("rope.scaling.factor", F(40.0)),
            ("rope.scaling.original_context_length", N(64)),
            ("rope.scaling.yarn_log_multiplier", F(f64::from(0.1f32))),
        ],
    );
    for (key, value) in self::metadata("deepseek2", more).iter() {
        metadata.insert(key, value.clone());
    }
    metadata
}

#[test]
fn dense_families() {
    let llama = ModelConfig::from_gguf(&dense("llama", &[])).unwrap();
    assert_eq!(llama.architecture, Architecture::Llama);
    assert_eq!(llama.eos_token_ids, [2, 5]);
    assert_eq!(llama.rope.theta, 50000.0);
    assert!(llama.rope.interleaved, "converters permute Llama's heads");
    let AttentionConfig::Gqa(gqa) = llama.attention else {
        panic!()
    };
    assert_eq!((gqa.num_heads, gqa.num_kv_heads, gqa.head_dim), (6, 2, 10));

    let qwen2 = ModelConfig::from_gguf(&dense("qwen2", &[])).unwrap();
    let AttentionConfig::Gqa(gqa) = qwen2.attention else {
        panic!()
    };
    assert!(gqa.qkv_bias && !qwen2.rope.interleaved);

    let wide = [
        ("attention.key_length", N(16)),
        ("attention.value_length", N(16)),
    ];
    let qwen3 = ModelConfig::from_gguf(&dense("qwen3", &wide)).unwrap();
    let AttentionConfig::Gqa(gqa) = qwen3.attention else {
        panic!()
    };
    assert!(gqa.qk_norm && gqa.head_dim == 16);
}

#[test]
fn qwen3_moe_normalises_its_weights() {
    let values = [
        ("expert_count", N(7)),
        ("expert_used_count", N(3)),
        ("expert_feed_forward_length", N(24)),
    ];
    let config = ModelConfig::from_gguf(&dense("qwen3moe", &values)).unwrap();
    let moe = config.moe.unwrap();
    assert!(moe.router.norm_topk_prob);
    assert_eq!(moe.router.scoring, Scoring::Softmax);
    assert!((0..3).all(|layer| moe.is_moe_layer(layer)));
    assert!(ModelConfig::from_gguf(&dense("qwen3moe", &[])).is_err());
}

#[test]
fn deepseek_v3_in_the_newer_layout() {
    let config = ModelConfig::from_gguf(&deepseek(&[])).unwrap();
    assert_eq!(config.architecture, Architecture::DeepseekV3);
    let AttentionConfig::Mla(mla) = config.attention else {
        panic!()
    };
    assert_eq!(
        (mla.qk_nope_head_dim, mla.qk_rope_head_dim, mla.v_head_dim),
        (12, 8, 14)
    );
    assert_eq!((mla.q_lora_rank, mla.kv_lora_rank), (Some(36), 28));
    let router = config.moe.unwrap().router;
    assert_eq!(router.group_score, GroupScore::Top2Sum);
    assert_eq!((router.n_group, router.topk_group, router.top_k), (4, 2, 3));
    assert!(router.correction_bias && router.norm_topk_prob);
    assert_eq!(router.routed_scaling_factor, 2.5);
    let RopeScaling::Yarn {
        attention_factor,
        softmax_scale,
        ..
    } = config.rope.scaling
    else {
        panic!()
    };
    assert_eq!(attention_factor, 1.0);
    // (0.1 ln 40 + 1)²
    assert!((softmax_scale - 1.873_855).abs() < 1e-5, "{softmax_scale}");
}

#[test]
fn deepseek_v2_in_the_older_layout() {
    let mut older = Metadata::default();
    for (key, value) in deepseek(&[]).iter() {
        if !key.contains("_mla") && !key.contains("gating") && !key.contains("q_lora") {
            older.insert(key, value.clone());
        }
    }
    older.insert("deepseek2.attention.key_length", MetaValue::Unsigned(20));
    older.insert("deepseek2.attention.value_length", MetaValue::Unsigned(14));
    let config = ModelConfig::from_gguf(&older).unwrap();
    assert_eq!(config.architecture, Architecture::DeepseekV2);
    let AttentionConfig::Mla(mla) = config.attention else {
        panic!()
    };
    assert_eq!(
        (mla.qk_nope_head_dim, mla.v_head_dim, mla.q_lora_rank),
        (12, 14, None)
    );
    assert_eq!(config.moe.unwrap().router.group_score, GroupScore::Max);
}

#[test]
fn prediction_layers_are_not_run() {
    let config = ModelConfig::from_gguf(&deepseek(&[("nextn_predict_layers", N(1))])).unwrap();
    assert_eq!((config.num_layers, config.num_nextn_predict_layers), (2, 1));
}

#[test]
fn arrays_that_repeat_one_value_count_as_it() {
    let mut metadata = dense("llama", &[]);
    let key = "llama.attention.head_count_kv";
    metadata.insert(key, MetaValue::Array(MetaArray::Signed(vec![3, 3, 3])));
    let config = ModelConfig::from_gguf(&metadata).unwrap();
    assert!(matches!(config.attention, AttentionConfig::Gqa(gqa) if gqa.num_kv_heads == 3));
    metadata.insert(key, MetaValue::Array(MetaArray::Signed(vec![3, 2, 3])));
    let error = ModelConfig::from_gguf(&metadata).unwrap_err().to_string();
    assert!(
        error.contains(key) && error.contains("different values"),
        "{error}"
    );
}

#[test]
fn bad_values_are_refused_by_full_key() {
    let cases: [(Metadata, &str); 10] = [
        (metadata("gpt2", &[]), "deepseek2"),
        (metadata("llama", &[]), "llama.context_length"),
        (
            dense("llama", &[("block_count", N(0))]),
            "llama.block_count is 0",
        ),
        (
            dense("llama", &[("embedding_length", N(1 << 50))]),
            "llama.embedding_length",
        ),
        (
            dense("llama", &[("rope.freq_base", F(f64::NAN))]),
            "llama.rope.freq_base is NaN",
        ),
        (
            dense("llama", &[("rope.dimension_count", N(4))]),
            "llama.rope.dimension_count is 4",
        ),
        (
            dense("llama", &[("expert_count", N(8))]),
            "llama.expert_count is 8",
        ),
        (
            dense("llama", &[("attention.sliding_window", N(64))]),
            "llama.attention.sliding_window is 64",
        ),
        (
            deepseek(&[("expert_gating_func", N(4))]),
            "deepseek2.expert_gating_func is 4",
        ),
        (
            deepseek(&[("nextn_predict_layers", N(3))]),
            "nextn_predict_layers = 3",
        ),
    ];
    for (metadata, words) in cases {
        let error = ModelConfig::from_gguf(&metadata).unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} does not say {words:?}");
    }
}

//! Configurations that must be refused, each with a message that names the key and the value.

#![allow(clippy::unwrap_used)]

use scrimp_model::ModelConfig;
use serde_json::{Value, json};

/// A small config of class `class` with `changes` laid over it.
fn config(class: &str, changes: Value) -> Value {
    let mut config = json!({
        "architectures": [class], "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
        "vocab_size": 100, "max_position_embeddings": 128, "num_experts": 8,
        "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
        "sliding_window": null, "bos_token_id": 1, "eos_token_id": 2,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn refused(class: &str, changes: Value, words: &[&str]) {
    let shown = changes.to_string();
    let error = ModelConfig::from_hf(&config(class, changes))
        .unwrap_err()
        .to_string();
    for word in words {
        assert!(
            error.contains(word),
            "{shown}: {error:?} does not say {word:?}"
        );
    }
}

const LLAMA: &str = "LlamaForCausalLM";
const V2: &str = "DeepseekV2ForCausalLM";
const V3: &str = "DeepseekV3ForCausalLM";
const QWEN3_MOE: &str = "Qwen3MoeForCausalLM";

#[test]
fn the_plain_config_is_accepted_for_every_family() {
    for class in [
        LLAMA,
        V2,
        V3,
        QWEN3_MOE,
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
    ] {
        ModelConfig::from_hf(&config(class, json!({}))).unwrap();
    }
}

#[test]
fn extents_are_whole_positive_and_not_absurd() {
    for bad in [
        json!(0),
        json!(-1),
        json!(1u64 << 40),
        json!(1.5),
        json!("64"),
        json!([64]),
        json!(1e300),
    ] {
        for key in [
            "hidden_size",
            "vocab_size",
            "num_hidden_layers",
            "intermediate_size",
            "num_attention_heads",
            "max_position_embeddings",
        ] {
            let mut changes = json!({});
            changes[key] = bad.clone();
            refused(LLAMA, changes, &[key, "whole number from 1 to"]);
        }
    }
    refused(
        LLAMA,
        json!({"hidden_size": null}),
        &["hidden_size", "missing"],
    );
    refused(V3, json!({"kv_lora_rank": 0}), &["kv_lora_rank is 0"]);
    refused(
        V3,
        json!({"qk_rope_head_dim": 1u64 << 50}),
        &["qk_rope_head_dim"],
    );
    refused(LLAMA, json!({"rms_norm_eps": 1e-60}), &["rms_norm_eps"]);
    for key in ["factor", "beta_fast", "attention_factor", "mscale"] {
        let mut scaling = json!({"type": "yarn", "factor": 4});
        scaling[key] = json!(1e30);
        refused(LLAMA, json!({"rope_scaling": scaling}), &[key, "1000000"]);
    }
    refused(
        LLAMA,
        json!({"rms_norm_eps": -1e-5}),
        &["rms_norm_eps", "between 0 and 1"],
    );
    refused(
        LLAMA,
        json!({"rope_theta": 0.0}),
        &["rope_theta", "above 1"],
    );
    refused(LLAMA, json!({"rope_theta": 1e300}), &["rope_theta"]);
    refused(
        LLAMA,
        json!({"tie_word_embeddings": "yes"}),
        &["tie_word_embeddings", "true or false"],
    );
}

#[test]
fn values_that_contradict_each_other() {
    refused(
        LLAMA,
        json!({"num_key_value_heads": 3}),
        &["num_key_value_heads = 3", "num_attention_heads = 4"],
    );
    refused(
        LLAMA,
        json!({"num_attention_heads": 5, "num_key_value_heads": 5}),
        &["hidden_size = 64", "5"],
    );
    refused(
        LLAMA,
        json!({"head_dim": 15}),
        &["rotary width", "15", "even"],
    );
    refused(LLAMA, json!({"eos_token_id": 100}), &["100", "vocab_size"]);
    refused(LLAMA, json!({"bos_token_id": -1}), &["bos_token_id", "-1"]);
    refused(
        LLAMA,
        json!({"eos_token_id": [2, "</s>"]}),
        &["eos_token_id"],
    );
    refused(
        QWEN3_MOE,
        json!({"num_experts_per_tok": 9}),
        &["num_experts_per_tok = 9", "8"],
    );
    refused(V3, json!({"n_group": 3}), &["n_group = 3", "one size"]);
    refused(
        V3,
        json!({"n_group": 2, "topk_group": 3}),
        &["topk_group = 3"],
    );
    refused(
        V3,
        json!({"n_group": 4, "num_experts_per_tok": 3}),
        &["num_experts_per_tok = 3", "groups"],
    );
    refused(
        V3,
        json!({"n_group": 8, "num_experts_per_tok": 1}),
        &["two best"],
    );
    refused(
        V3,
        json!({"num_key_value_heads": 2}),
        &["num_key_value_heads = 2"],
    );
    refused(
        QWEN3_MOE,
        json!({"mlp_only_layers": [-1]}),
        &["mlp_only_layers"],
    );
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    refused(
        "GPT2LMHeadModel",
        json!({}),
        &["GPT2LMHeadModel", LLAMA, V3],
    );
    refused(
        LLAMA,
        json!({"hidden_act": "gelu"}),
        &["hidden_act", "gelu", "silu"],
    );
    refused(LLAMA, json!({"mlp_bias": true}), &["mlp_bias"]);
    refused(
        LLAMA,
        json!({"partial_rotary_factor": 0.5}),
        &["partial_rotary_factor"],
    );
    refused(
        LLAMA,
        json!({"rope_scaling": {"type": "longrope"}}),
        &["rope_scaling.type", "longrope", "yarn"],
    );
    refused(
        LLAMA,
        json!({"rope_scaling": {"type": "linear"}}),
        &["rope_scaling.factor", "missing"],
    );
    refused(
        LLAMA,
        json!({"rope_scaling": {"type": "yarn", "factor": -2}}),
        &["rope_scaling.factor", "-2"],
    );
    refused(
        LLAMA,
        json!({"rope_scaling": "yarn"}),
        &["rope_scaling", "object"],
    );
    refused(
        LLAMA,
        json!({"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}}),
        &["rope_parameters.high_freq_factor", "above low_freq_factor"],
    );
    refused(
        V3,
        json!({"scoring_func": "softmax"}),
        &["scoring_func", "sigmoid"],
    );
    refused(
        V2,
        json!({"topk_method": "noaux_tc"}),
        &["topk_method", "greedy"],
    );
    refused(
        LLAMA,
        json!({"quantization_config": {"quant_method": "bitsandbytes"}}),
        &["bitsandbytes", "awq", "fp8"],
    );
    refused(
        V3,
        json!({"quantization_config": {"quant_method": "fp8"}}),
        &["weight_block_size"],
    );
    refused(
        V3,
        json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 0]}}),
        &["weight_block_size"],
    );
}

#[test]
fn sliding_windows_that_bite_are_refused() {
    let window = json!({"sliding_window": 64});
    refused(
        "MistralForCausalLM",
        window.clone(),
        &["sliding_window is 64", "128"],
    );
    // As long as the context, a window cuts nothing.
    ModelConfig::from_hf(&config(
        "MistralForCausalLM",
        json!({"sliding_window": 128}),
    ))
    .unwrap();
    // Qwen stores one and says that it does not use it.
    for class in ["Qwen2ForCausalLM", "Qwen3ForCausalLM", QWEN3_MOE] {
        ModelConfig::from_hf(&config(class, window.clone())).unwrap();
        let used =
            json!({"sliding_window": 64, "use_sliding_window": true, "max_window_layers": 1});
        refused(class, used, &["sliding_window is 64"]);
    }
    let past_the_end =
        json!({"sliding_window": 64, "use_sliding_window": true, "max_window_layers": 2});
    ModelConfig::from_hf(&config("Qwen2ForCausalLM", past_the_end)).unwrap();
}

#[test]
fn end_tokens_come_from_both_files() {
    let base = ModelConfig::from_hf(&config(LLAMA, json!({"eos_token_id": [2, 3]}))).unwrap();
    let merged = base
        .clone()
        .merge_generation_config(&json!({"eos_token_id": [7, 2]}))
        .unwrap();
    assert_eq!(merged.eos_token_ids, [2, 3, 7]);
    let same = base
        .clone()
        .merge_generation_config(&json!({"temperature": 0.6}))
        .unwrap();
    assert_eq!(same, base);
    assert!(
        base.clone()
            .merge_generation_config(&json!({"eos_token_id": 100}))
            .is_err()
    );
    assert!(
        base.merge_generation_config(&json!({"eos_token_id": "x"}))
            .is_err()
    );
}

#[test]
fn no_object_is_no_config() {
    for bad in [json!(null), json!([]), json!("x"), json!(3)] {
        let error = ModelConfig::from_hf(&bad).unwrap_err().to_string();
        assert!(error.contains("JSON object"), "{error}");
    }
    let error = ModelConfig::from_hf(&json!({})).unwrap_err().to_string();
    assert!(error.contains("none given"), "{error}");
}

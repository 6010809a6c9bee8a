//! Configs that are wrong, partial or quantized: what is read, and what is said.

#![allow(clippy::unwrap_used)]

use scrimp_plan::{Component, ModelShape, Storage, WeightScheme, catalogue};
use serde_json::{Value, json};

fn base() -> Value {
    catalogue::find("Qwen3-30B-A3B").unwrap().config
}

fn with(key: &str, value: Value) -> Value {
    let mut config = base();
    config[key] = value;
    config
}

fn message(config: &Value) -> String {
    ModelShape::from_config("test", config)
        .unwrap_err()
        .to_string()
}

#[test]
fn wrong_values_are_named_with_what_is_expected() {
    for (key, value) in [
        ("hidden_size", json!(-4096)),
        ("hidden_size", json!(0)),
        ("hidden_size", json!("wide")),
        ("num_hidden_layers", json!(1e12)),
        ("num_hidden_layers", json!(2.5)),
        ("vocab_size", json!(true)),
        ("num_experts", json!(-1)),
        ("moe_intermediate_size", json!(u64::MAX)),
        ("head_dim", json!(1u64 << 40)),
        ("tie_word_embeddings", json!("no")),
        ("layer_types", json!("full_attention")),
        ("torch_dtype", json!("int3")),
    ] {
        let text = message(&with(key, value.clone()));
        assert!(
            text.contains(key) && text.contains("has to be"),
            "{key} = {value}: {text}"
        );
    }
}

#[test]
fn contradictions_name_both_sides() {
    let text = message(&with("num_key_value_heads", json!(5)));
    assert!(
        text.contains("num_attention_heads") && text.contains('5'),
        "{text}"
    );
    let text = message(&with("num_experts_per_tok", json!(129)));
    assert!(text.contains("129") && text.contains("128"), "{text}");
    let text = message(&with("layer_types", json!(["full_attention"])));
    assert!(
        text.contains("48") && text.contains("layer_types"),
        "{text}"
    );
}

#[test]
fn sizes_that_no_model_has_are_refused_without_overflow() {
    let mut config = base();
    config["hidden_size"] = json!(1 << 18);
    config["moe_intermediate_size"] = json!(1 << 20);
    config["num_experts"] = json!(1 << 13);
    config["num_hidden_layers"] = json!(1 << 11);
    let text = message(&config);
    assert!(text.contains("parameters"), "{text}");
}

#[test]
fn missing_keys_are_named() {
    for key in [
        "hidden_size",
        "vocab_size",
        "num_hidden_layers",
        "moe_intermediate_size",
    ] {
        let mut config = base();
        config.as_object_mut().unwrap().remove(key);
        let text = message(&config);
        assert!(
            text.contains(key) && text.contains("missing"),
            "{key}: {text}"
        );
    }
    let mut config = base();
    config.as_object_mut().unwrap().remove("vocab_size");
    let partial = ModelShape::from_partial_config("test", &config).unwrap();
    assert!(partial.undetermined.unwrap().contains("vocab_size"));
    // A value that is wrong is an error there, too.
    config["moe_intermediate_size"] = json!(-1);
    assert!(ModelShape::from_partial_config("test", &config).is_err());
}

#[test]
fn not_an_object_and_unknown_families_are_errors() {
    assert!(message(&json!([])).contains("object"));
    let text = message(&with("model_type", json!("mamba9")));
    assert!(
        text.contains("mamba9") && text.contains("qwen3_moe"),
        "{text}"
    );
    assert!(message(&with("model_type", json!(7))).contains("model_type"));
    assert!(message(&json!({"text_config": 3})).contains("text_config"));
}

#[test]
fn a_class_name_stands_for_the_type() {
    let mut config = base();
    config.as_object_mut().unwrap().remove("model_type");
    config["architectures"] = json!(["Qwen3MoeForCausalLM"]);
    let shape = ModelShape::from_config("test", &config).unwrap();
    assert_eq!(shape.total_params(), 30_532_122_624);
}

#[test]
fn ignore_lists_keep_modules() {
    let groups = json!({"group_0": {"targets": ["Linear"], "weights": {
        "num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": true}}});
    let config = with(
        "quantization_config",
        json!({"quant_method": "compressed-tensors", "format": "pack-quantized",
               "ignore": ["lm_head", "re:.*self_attn.*", "model.layers.0.mlp.experts.*"],
               "config_groups": groups}),
    );
    let shape = ModelShape::from_config("test", &config).unwrap();
    let int4 = Storage::IntGroups {
        bits: 4,
        group: 128,
        symmetric: true,
    };
    for tensor in &shape.tensors {
        let experts = tensor.component == Component::RoutedExperts;
        let expected = match experts && tensor.layer != Some(0) {
            true => int4,
            false => Storage::Bf16,
        };
        assert_eq!(tensor.storage, expected, "{tensor:?}");
    }
    assert_eq!(
        shape.quantization.as_deref(),
        Some("compressed-tensors pack-quantized")
    );
}

#[test]
fn quantizers_that_are_not_known_or_broken_are_errors() {
    for (config, part) in [
        (json!({"quant_method": "magic"}), "quant_method"),
        (json!({}), "quant_method"),
        (json!("fp8"), "quantization_config"),
        (
            json!({"quant_method": "fp8", "weight_block_size": [0, 128]}),
            "weight_block_size",
        ),
        (json!({"quant_method": "awq", "bits": 77}), "bits"),
        (
            json!({"quant_method": "compressed-tensors"}),
            "config_groups",
        ),
        (
            json!({"quant_method": "fp8", "ignored_layers": ["re:("]}),
            "ignored_layers",
        ),
    ] {
        let text = message(&with("quantization_config", config));
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn only_experts_of_gpt_oss_are_mxfp4() {
    let shape = catalogue::shape("gpt-oss-20b").unwrap();
    for tensor in &shape.tensors {
        let experts = tensor.component == Component::RoutedExperts && tensor.rows > 1;
        assert_eq!(tensor.storage == Storage::Mxfp4, experts, "{tensor:?}");
    }
}

#[test]
fn schemes_change_what_they_say_and_nothing_else() {
    let shape = catalogue::shape("Qwen3-30B-A3B").unwrap();
    let under = |scheme: &str| -> u64 {
        let scheme = WeightScheme::parse(scheme).unwrap();
        shape.bytes_under(&scheme).iter().map(|b| b.total()).sum()
    };
    assert_eq!(under("released"), shape.tensor_bytes());
    assert_eq!(under("bf16"), shape.tensor_bytes());
    let experts: u64 = shape
        .tensors
        .iter()
        .filter(|t| t.component == Component::RoutedExperts)
        .map(|t| t.values())
        .sum();
    // 4 bits and a 16-bit scale for 128 values.
    assert_eq!(
        under("bf16") - under("experts-int4"),
        experts * 2 - experts / 128 * 66
    );
    assert!(under("int4-g128") < under("experts-int4"));
    assert!(under("fp8") < under("bf16") && under("int4-g64") > under("int4-g128"));
    for group in &shape.tensors {
        let scheme = WeightScheme::parse("gguf:Q4_K_M").unwrap();
        let one = shape.bytes_of(group, &scheme);
        assert!(one.total() > 0 && one.scales == 0, "{group:?}");
    }
}

#[test]
fn a_dequantized_release_is_as_large_as_its_values() {
    let r1 = catalogue::shape("DeepSeek-R1").unwrap();
    let bf16 = WeightScheme::parse("bf16").unwrap();
    let bytes: u64 = r1.bytes_under(&bf16).iter().map(|b| b.total()).sum();
    let values: u64 = r1.tensors.iter().map(|t| t.values()).sum();
    let bias = 59 * 256 * 2;
    assert_eq!(bytes, 2 * values + bias);
}

#[test]
fn lists_of_layer_kinds_decide() {
    let mut config = base();
    config["num_hidden_layers"] = json!(3);
    config["mlp_layer_types"] = json!(["dense", "sparse", "dense"]);
    let shape = ModelShape::from_config("test", &config).unwrap();
    let with_experts: Vec<u32> = shape
        .tensors
        .iter()
        .filter(|t| t.component == Component::Router)
        .filter_map(|t| t.layer)
        .collect();
    assert_eq!(with_experts, [1]);
    config["mlp_layer_types"] = json!(["dense"]);
    assert!(message(&config).contains("mlp_layer_types"));

    // Latent attention is one kind, whatever the list calls it.
    let mut latent = catalogue::find("GLM-5").unwrap().config;
    let named = vec!["deepseek_sparse_attention"; 78];
    latent["layer_types"] = json!(named);
    assert!(ModelShape::from_config("test", &latent).is_ok());
}

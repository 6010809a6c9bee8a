//! Names: every entry reads, near names help, quantized names are quantized.

#![allow(clippy::unwrap_used)]

use scrimp_plan::{Component, ModelShape, Storage, catalogue};
use serde_json::json;

#[test]
fn every_entry_reads_and_says_where_it_is_from() {
    assert!(catalogue::names().len() > 80);
    for name in catalogue::names() {
        let entry = catalogue::find(name).unwrap();
        assert!(entry.source.len() > 10, "{name}");
        let shape = ModelShape::from_config(name, &entry.config).unwrap();
        assert!(shape.total_params() > 1_000_000, "{name}");
        assert!(shape.max_position_embeddings > 0, "{name}");
        let layers = shape.tensors.iter().filter_map(|t| t.layer).max().unwrap();
        assert_eq!(layers as usize + 1, shape.caches.len(), "{name}");
    }
}

#[test]
fn names_are_found_with_or_without_organisation_in_either_case() {
    for name in [
        "deepseek-ai/DeepSeek-R1",
        "deepseek-r1",
        "DEEPSEEK-R1",
        "someone/DeepSeek-R1",
    ] {
        assert_eq!(
            catalogue::find(name).unwrap().name,
            "deepseek-ai/DeepSeek-R1"
        );
    }
    let kimi = catalogue::find("Kimi-K2").unwrap();
    assert_eq!(kimi.config["quantization_config"]["quant_method"], "fp8");
    assert!(catalogue::find("Phi-3-mini-128k-instruct").is_ok());
    let llama = catalogue::find("Meta-Llama-3.1-8B-Instruct").unwrap();
    assert_eq!(llama.name, "meta-llama/Llama-3.1-8B-Instruct");
}

#[test]
fn a_wrong_name_has_near_ones() {
    let message = catalogue::find("DeepSek-R1").unwrap_err().to_string();
    assert!(message.contains("deepseek-ai/DeepSeek-R1"), "{message}");
    let message = catalogue::find("qwen3-8").unwrap_err().to_string();
    assert!(message.contains("Qwen/Qwen3-8B"), "{message}");
    assert!(catalogue::find("").is_err());
}

#[test]
fn quantized_names_have_the_shape_and_the_quantization() {
    let storage = |name: &str, wanted: Component| {
        let shape = catalogue::shape(name).unwrap();
        let found = shape
            .tensors
            .iter()
            .find(|t| t.component == wanted && t.rows > 1);
        found.unwrap().storage
    };
    let fp8 = Storage::Fp8Tiles(128, 128);
    let awq = Storage::IntGroups {
        bits: 4,
        group: 128,
        symmetric: false,
    };
    for (name, expected) in [
        ("Qwen/Qwen3-32B-FP8", fp8),
        (
            "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic",
            Storage::Fp8Rows,
        ),
        (
            "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8",
            Storage::Int8Rows,
        ),
        ("Qwen/Qwen3-8B-AWQ", awq),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", awq),
        ("Qwen/Qwen3-8B", Storage::Bf16),
    ] {
        assert_eq!(storage(name, Component::Attention), expected, "{name}");
        assert_eq!(storage(name, Component::Head), Storage::Bf16, "{name}");
    }
    let kimi = json!({"vision_config": {"vt_hidden_size": 1152, "vt_num_hidden_layers": 27,
        "vt_intermediate_size": 4304, "init_pos_emb_height": 64, "init_pos_emb_width": 64}});
    let (kimi, _) = catalogue::complete("moonshotai/Kimi-K2.5", &kimi);
    let kimi = ModelShape::from_config("Kimi-K2.5", &kimi).unwrap();
    let tower = kimi
        .tensors
        .iter()
        .filter(|t| t.component == Component::Vision);
    assert!(tower.clone().count() > 100);
    assert!(tower.clone().all(|t| t.storage == Storage::Bf16));
    let mistral = "RedHatAI/Mistral-Small-3.1-24B-Instruct-2503-quantized.w8a8";
    assert_eq!(storage(mistral, Component::DenseMlp), Storage::Int8Rows);
    assert_eq!(storage(mistral, Component::Vision), Storage::Bf16);
}

#[test]
fn experts_of_kimi_k2_thinking_are_int4() {
    let shape = catalogue::shape("Kimi-K2-Thinking").unwrap();
    let int4 = Storage::IntGroups {
        bits: 4,
        group: 32,
        symmetric: true,
    };
    for tensor in &shape.tensors {
        let routed = tensor.component == Component::RoutedExperts;
        assert_eq!(tensor.storage == int4, routed, "{tensor:?}");
    }
    // The release has about 594 GB.
    let gigabytes = shape.tensor_bytes() as f64 / 1e9;
    assert!((gigabytes / 594.0 - 1.0).abs() < 0.005, "{gigabytes}");
}

#[test]
fn a_partial_config_is_completed_and_keeps_what_it_says() {
    let given = json!({"num_hidden_layers": 20, "num_key_value_heads": 4});
    let (full, from) = catalogue::complete("Qwen/Qwen3-8B", &given);
    assert!(from.unwrap().contains("Qwen/Qwen3-8B"));
    let shape = ModelShape::from_config("x", &full).unwrap();
    assert_eq!(shape.caches.len(), 20);
    assert_eq!(shape.hidden_size, 4096);
    let (same, from) = catalogue::complete("nobody/knows-this", &given);
    assert_eq!((same, from), (given, None));
}

#[test]
fn a_flat_config_completes_the_language_model_of_a_wrapper() {
    let flat = json!({"model_type": "qwen3_5_text", "num_hidden_layers": 8});
    let (full, _) = catalogue::complete("Qwen/Qwen3.6-27B", &flat);
    let shape = ModelShape::from_config("x", &full).unwrap();
    assert_eq!(shape.caches.len(), 8);
    assert!(
        shape
            .tensors
            .iter()
            .any(|t| t.component == Component::Vision)
    );
}

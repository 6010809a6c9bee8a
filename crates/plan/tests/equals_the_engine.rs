//! For what scrimp runs, the plan's inventory and the engine's own counts are the same numbers.

#![allow(clippy::unwrap_used)]

use scrimp_model::ModelConfig;
use scrimp_plan::{Component, ModelShape, catalogue};

/// One of each architecture that scrimp runs, and the others of their kinds in the catalogue.
const RUN: &[&str] = &[
    "Llama-3.1-8B",
    "Llama-3.2-1B",
    "SmolLM2-135M",
    "Mistral-7B-Instruct-v0.3",
    "Qwen2.5-7B",
    "Qwen2.5-1.5B",
    "QwQ-32B",
    "Qwen3-8B",
    "Qwen3-0.6B",
    "Qwen3-30B-A3B",
    "DeepSeek-V2-Lite",
    "DeepSeek-V2",
    "DeepSeek-V3",
    "DeepSeek-R1",
];

#[test]
fn counts_agree_by_component() {
    for name in RUN {
        let mut config = catalogue::find(name).unwrap().config;
        let shape = ModelShape::from_config(name, &config).unwrap();
        // What running needs and sizes do not.
        for (key, value) in [
            ("rms_norm_eps", serde_json::json!(1e-6)),
            ("rope_theta", serde_json::json!(1e4)),
            ("hidden_act", serde_json::json!("silu")),
        ] {
            config.as_object_mut().unwrap().entry(key).or_insert(value);
        }
        if shape.model_type == "deepseek_v3" {
            config["scoring_func"] = "sigmoid".into();
            config["topk_method"] = "noaux_tc".into();
            config["n_group"] = 8.into();
            config["topk_group"] = 4.into();
        }
        let counts = match ModelConfig::from_hf(&config) {
            Ok(config) => config.parameter_counts(),
            Err(error) => panic!("{name}: {error}"),
        };
        let of = |component| {
            let parts = shape.tensors.iter().filter(|t| t.component == component);
            parts.map(|t| t.values()).sum::<u64>()
        };
        for (component, count) in [
            (Component::Embedding, counts.embedding),
            (Component::Attention, counts.attention),
            (Component::DenseMlp, counts.dense_mlp),
            (Component::RoutedExperts, counts.routed_experts),
            (Component::SharedExperts, counts.shared_experts),
            (Component::Router, counts.router),
            (Component::Norms, counts.norms),
            (Component::Head, counts.head),
        ] {
            assert_eq!(of(component), count, "{name}: {component:?}");
        }
        assert_eq!(shape.model_params(), counts.total(), "{name}");
    }
}

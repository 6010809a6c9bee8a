//! `config.json` against what transformers makes of the same file (`tools/goldens/configs.py`).

#![allow(clippy::unwrap_used)]

use scrimp_model::{AttentionConfig, ModelConfig};
use serde_json::Value;

fn cases() -> Vec<Value> {
    let cases: Vec<Value> = serde_json::from_str(include_str!("configs.json")).unwrap();
    assert!(cases.len() > 10);
    cases
}

fn floats(value: &Value) -> Vec<f32> {
    let values = value.as_array().unwrap().iter();
    values.map(|v| v.as_f64().unwrap() as f32).collect()
}

/// The attributes of transformers' configuration, as scrimp holds them.
fn attribute(config: &ModelConfig, key: &str) -> Option<Value> {
    let moe = config.moe.as_ref();
    let number = |v: usize| Some(Value::from(v));
    let (gqa, mla) = match &config.attention {
        AttentionConfig::Gqa(gqa) => (Some(gqa), None),
        AttentionConfig::Mla(mla) => (None, Some(mla)),
    };
    match key {
        "vocab_size" => number(config.vocab_size),
        "hidden_size" => number(config.hidden_size),
        "num_hidden_layers" => number(config.num_layers),
        "intermediate_size" => number(config.intermediate_size),
        "max_position_embeddings" => number(config.max_position_embeddings),
        "num_attention_heads" => number(config.attention.num_heads()),
        "num_key_value_heads" => number(gqa?.num_kv_heads),
        "head_dim" => number(gqa?.head_dim),
        "tie_word_embeddings" => Some(config.tie_word_embeddings.into()),
        "bos_token_id" => Some(config.bos_token_id.into()),
        "eos_token_id" => Some(config.eos_token_ids.first().copied().into()),
        "q_lora_rank" => Some(mla?.q_lora_rank.into()),
        "kv_lora_rank" => number(mla?.kv_lora_rank),
        "qk_nope_head_dim" => number(mla?.qk_nope_head_dim),
        "qk_rope_head_dim" => number(mla?.qk_rope_head_dim),
        "v_head_dim" => number(mla?.v_head_dim),
        "n_routed_experts" | "num_experts" => number(moe?.num_experts),
        "n_shared_experts" => number(moe?.num_shared_experts),
        "num_experts_per_tok" => number(moe?.router.top_k),
        "moe_intermediate_size" => number(moe?.moe_intermediate_size),
        "first_k_dense_replace" => number(moe?.first_k_dense_replace),
        "norm_topk_prob" => Some(moe?.router.norm_topk_prob.into()),
        "rms_norm_eps" => None,           // a float: compared below
        "routed_scaling_factor" => None,  // likewise
        "n_group" | "topk_group" => None, // V2's are null where scrimp says 1
        other => panic!("{other} is not compared with anything"),
    }
}

#[test]
fn values_and_defaults_are_those_of_transformers() {
    for case in cases() {
        let name = &case["name"];
        let config = ModelConfig::from_hf(&case["config"]).unwrap();
        for (key, wanted) in case["expected"].as_object().unwrap() {
            if let Some(found) = attribute(&config, key) {
                assert_eq!(found, *wanted, "{name}: {key}");
            }
        }
        assert_eq!(
            config.rms_norm_eps,
            case["expected"]["rms_norm_eps"].as_f64().unwrap() as f32
        );
        if let Some(moe) = &config.moe {
            let wanted = &case["expected"];
            let group = |key: &str| wanted[key].as_u64().unwrap_or(1) as usize;
            assert_eq!(moe.router.n_group, group("n_group"), "{name}");
            assert_eq!(moe.router.topk_group, group("topk_group"), "{name}");
            let scale = wanted["routed_scaling_factor"].as_f64().unwrap_or(1.0) as f32;
            assert_eq!(moe.router.routed_scaling_factor, scale, "{name}");
        }
    }
}

#[test]
fn parameter_counts_are_exact() {
    let mut r1 = 0;
    for case in cases() {
        let config = ModelConfig::from_hf(&case["config"]).unwrap();
        let counts = config.parameter_counts();
        assert_eq!(
            Value::from(counts.total()),
            case["parameters"],
            "{}",
            case["name"]
        );
        if case["name"] == "deepseek r1" {
            r1 = counts.total();
            assert_eq!(counts.routed_experts, 653_908_770_816);
            assert_eq!(counts.shared_experts, 2_554_331_136);
            assert_eq!(counts.dense_mlp, 1_189_085_184);
            assert_eq!(counts.embedding + counts.head, 1_853_358_080);
            assert_eq!(counts.attention, 11_413_422_080);
        }
    }
    assert_eq!(r1, 671_026_419_200);
}

#[test]
fn rotary_frequencies_and_scales_are_those_of_transformers() {
    for case in cases() {
        let name = &case["name"];
        let config = ModelConfig::from_hf(&case["config"]).unwrap();
        let (found, wanted) = (config.rope.inv_freq(), floats(&case["inv_freq"]));
        assert_eq!(found.len(), wanted.len(), "{name}");
        assert_eq!(found.len() * 2, config.rope.dim, "{name}");
        for (i, (a, b)) in found.iter().zip(&wanted).enumerate() {
            // Two roundings of f32: transformers' power is good to one unit in the last place.
            assert!(
                (a - b).abs() <= 2.5e-7 * b.abs(),
                "{name}: frequency {i}: {a} and {b}"
            );
        }
        let scaling = case["scaling"].as_f64().unwrap() as f32;
        assert!((config.attention_scale() - scaling).abs() <= 1e-7, "{name}");
        check_cos_sin(&case, &config, &wanted);
    }
}

fn check_cos_sin(case: &Value, config: &ModelConfig, inv_freq: &[f32]) {
    let positions: Vec<u32> = floats(&case["positions"])
        .iter()
        .map(|&p| p as u32)
        .collect();
    let (dim, half) = (config.rope.dim, config.rope.dim / 2);
    let mut out = vec![f32::NAN; positions.len() * dim];
    config.rope.cos_sin(inv_freq, &positions, &mut out);
    for (row, found) in out.chunks(dim).enumerate() {
        let wanted = [floats(&case["cos"][row]), floats(&case["sin"][row])].concat();
        for i in 0..dim {
            let (a, b) = (found[i], wanted[i]);
            let which = if i < half { "cosine" } else { "sine" };
            assert!(
                (a - b).abs() <= 3e-7,
                "{}: {which} {} at {}: {a} and {b}",
                case["name"],
                i % half,
                positions[row]
            );
        }
    }
}

#[test]
fn r1_takes_70272_bytes_a_token() {
    let cases = cases();
    let r1 = cases.iter().find(|c| c["name"] == "deepseek r1").unwrap();
    let config = ModelConfig::from_hf(&r1["config"]).unwrap();
    let layout = scrimp_model::KvLayout::of(&config, scrimp_tensor::DType::BF16, 16);
    assert_eq!(layout.bytes_per_token(), 70_272);
    assert_eq!(config.num_nextn_predict_layers, 1);
    assert_eq!(config.dtype, Some(scrimp_tensor::DType::BF16));
}

//! Sizes of GGUF mixes against what llama.cpp's own quantizer printed for the same shapes.

#![allow(clippy::unwrap_used)]

use scrimp_plan::{ModelShape, WeightScheme, catalogue};
use serde_json::json;

const MIB: f64 = 1_048_576.0;

fn tensors(shape: &ModelShape, mix: &str) -> u64 {
    let scheme = WeightScheme::parse(mix).unwrap();
    shape.bytes_under(&scheme).iter().map(|b| b.total()).sum()
}

/// Rows of 576 values do not divide into blocks of 256: most tensors fall back.
#[test]
fn smollm2_is_exact_with_its_fallbacks() {
    let shape = catalogue::shape("SmolLM2-135M-Instruct").unwrap();
    for (mix, bytes) in [
        ("Q4_K_M", 103_668_480),
        ("Q5_K_M", 110_317_824),
        ("Q6_K", 136_597_248),
        ("Q4_0", 89_941_248),
        ("Q4_1", 96_576_768),
        ("Q8_0", 143_025_408),
    ] {
        assert_eq!(tensors(&shape, mix), bytes, "{mix}");
    }
}

/// `llama-quantize --dry-run` on a model of Qwen2.5-1.5B's shape, in MiB with two digits.
#[test]
fn every_mix_of_a_dense_model_is_what_the_quantizer_prints() {
    let shape = catalogue::shape("Qwen/Qwen2.5-1.5B").unwrap();
    for (mix, mib) in [
        ("Q2_K", 639.30),
        ("Q2_K_S", 604.81),
        ("Q3_K_S", 720.02),
        ("Q3_K_M", 780.32),
        ("Q3_K_L", 833.71),
        ("Q4_K_S", 891.08),
        ("Q4_K_M", 934.69),
        ("Q5_K_M", 1067.26),
        ("Q5_K_S", 1042.15),
        ("Q6_K", 1208.10),
        ("IQ4_XS", 854.71),
        ("IQ4_NL", 892.20),
        ("IQ3_S", 721.41),
        ("IQ3_M", 735.01),
        ("IQ3_XS", 692.13),
        ("IQ3_XXS", 654.59),
        ("IQ2_XXS", 481.67),
        ("IQ2_XS", 519.16),
        ("IQ2_S", 532.02),
        ("IQ2_M", 567.54),
        ("IQ1_S", 410.63),
        ("IQ1_M", 437.27),
        ("MXFP4_MOE", 1564.62),
    ] {
        let found = tensors(&shape, mix) as f64 / MIB;
        assert!(
            (found - mib).abs() < 0.006,
            "{mix}: {found:.3} rather than {mib}"
        );
    }
}

/// Files on disk, tokenizer and headers included: an estimate, to a tenth of a percent.
#[test]
fn files_of_larger_models_are_near() {
    for (name, scheme, bytes) in [
        ("Qwen3-8B", "Q4_K_M", 5_027_784_224_u64),
        ("Qwen3-8B", "awq", 6_098_581_864),
        ("Qwen3-32B", "Q8_0", 34_817_719_616),
        ("Qwen3-30B-A3B", "Q4_K_M", 18_556_686_752),
        ("Llama-3.3-70B-Instruct", "Q4_K_M", 42_520_398_816),
        ("Llama-3.3-70B-Instruct", "awq", 39_767_996_256),
        ("gpt-oss-120b", "gguf:MXFP4", 63_387_346_208),
        ("gpt-oss-20b", "MXFP4_MOE", 12_109_566_624),
    ] {
        let shape = catalogue::shape(name).unwrap();
        let found = shape.file_bytes(&WeightScheme::parse(scheme).unwrap());
        let error = (found as f64 - bytes as f64) / bytes as f64;
        assert!(
            error.abs() < 1e-3,
            "{name} {scheme}: {found} rather than {bytes}"
        );
    }
}

/// What a GGUF does not hold costs nothing: prediction layers stay out.
#[test]
fn prediction_layers_are_not_in_a_gguf() {
    let with = catalogue::find("DeepSeek-R1").unwrap().config;
    let mut without = with.clone();
    without["num_nextn_predict_layers"] = json!(0);
    let with = ModelShape::from_config("r1", &with).unwrap();
    let without = ModelShape::from_config("r1", &without).unwrap();
    assert_eq!(tensors(&with, "Q4_K_M"), tensors(&without, "Q4_K_M"));
    assert_eq!(with.model_params(), 671_026_419_200);
}

/// Unsloth's published file has 130.6 GiB.
#[test]
fn the_dynamic_mix_of_r1_is_near_the_published_file() {
    let shape = catalogue::shape("DeepSeek-R1").unwrap();
    let gib = tensors(&shape, "UD-IQ1_S") as f64 / MIB / 1024.0;
    assert!((gib / 130.6 - 1.0).abs() < 0.01, "{gib}");
}

/// `llama-quantize --dry-run` on models of experts: eight of them (which has rules of its own) with
/// rows that do not divide into 256, and sixteen.
#[test]
fn every_mix_of_models_of_experts_is_what_the_quantizer_prints() {
    let eight = json!({
        "model_type": "mixtral", "num_hidden_layers": 32, "hidden_size": 512,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
        "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 768,
        "vocab_size": 1024, "tie_word_embeddings": false,
    });
    let sixteen = json!({
        "model_type": "qwen3_moe", "num_hidden_layers": 24, "hidden_size": 512,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
        "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 256,
        "intermediate_size": 256, "vocab_size": 1024, "tie_word_embeddings": false,
    });
    let eight = ModelShape::from_config("eight", &eight).unwrap();
    let sixteen = ModelShape::from_config("sixteen", &sixteen).unwrap();
    for (mix, of_eight, of_sixteen) in [
        ("Q2_K", 117.83, 60.38),
        ("Q3_K_M", 151.69, 78.94),
        ("Q3_K_L", 160.88, 85.79),
        ("Q4_K_M", 189.94, 99.25),
        ("Q4_K_S", 179.07, 93.49),
        ("Q5_K_M", 221.01, 116.37),
        ("Q6_K", 255.07, 134.57),
        ("Q8_0", 328.94, 174.04),
        ("IQ4_XS", 170.18, 88.53),
        ("IQ3_S", 138.19, 71.09),
        ("IQ3_M", 144.56, 73.08),
        ("IQ3_XS", 131.06, 67.29),
        ("IQ2_XXS", 86.04, 44.47),
        ("IQ2_M", 105.06, 55.35),
        ("IQ1_S", 68.29, 35.28),
        ("MXFP4_MOE", 175.94, 97.54),
        ("Q4_0", 176.57, 92.67),
    ] {
        for (shape, mib) in [(&eight, of_eight), (&sixteen, of_sixteen)] {
            let found = tensors(shape, mix) as f64 / MIB;
            assert!(
                (found - mib).abs() < 0.006,
                "{} {mix}: {found:.3} rather than {mib}",
                shape.name
            );
        }
    }
}

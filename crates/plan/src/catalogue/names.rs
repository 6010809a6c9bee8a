//! What names of releases have in common: organisation, training, quantization.

use serde_json::{Value, json};

/// Endings that say how a model was trained or when, not what shape it has.
const TRAINING: &[&str] = &[
    "-instruct",
    "-it",
    "-pt",
    "-base",
    "-hf",
    "-chat",
    "-reasoning",
    "-thinking",
    "-preview",
    "-v0.1",
    "-v0.2",
    "-v0.3",
    "-v1",
    "-2407",
    "-2409",
    "-2501",
    "-2503",
    "-2506",
    "-2507",
    "-0324",
    "-0414",
    "-0528",
    "-1106",
    "-0905",
    "-exp",
    "-gguf",
    "-bf16",
    "-4k",
    "-128k",
];

/// Lower case, without the organisation.
pub(super) fn bare(name: &str) -> String {
    let name = name.trim().trim_end_matches('/').to_lowercase();
    let name = name.rsplit('/').next().unwrap_or_default();
    name.strip_prefix("meta-").unwrap_or(name).to_owned()
}

/// The name without endings that do not change the shape.
pub(super) fn stem(bare: &str) -> &str {
    let mut stem = bare;
    while let Some(shorter) = TRAINING.iter().find_map(|ending| stem.strip_suffix(ending)) {
        stem = shorter;
    }
    stem
}

/// An ending of a name, and the config it stands for.
type Ending = (&'static str, fn() -> Value);

/// The name without its quantization, and the `quantization_config` that such names stand for.
pub(super) fn quantization(bare: &str) -> Option<(String, Value)> {
    let endings: [Ending; 15] = [
        ("-fp8-dynamic", || compressed(8, "float", "channel", None)),
        ("-fp8-block", fp8_blocks),
        ("-fp8", fp8_blocks),
        ("-quantized.w8a8", || compressed(8, "int", "channel", None)),
        ("-quantized.w4a16", || {
            compressed(4, "int", "group", Some(128))
        }),
        ("-quantized.w8a16", || compressed(8, "int", "channel", None)),
        ("-w8a8", || compressed(8, "int", "channel", None)),
        ("-w4a16", || compressed(4, "int", "group", Some(128))),
        ("-awq-int4", || packed("awq", 4)),
        ("-awq", || packed("awq", 4)),
        ("-gptq-int4", || packed("gptq", 4)),
        ("-gptq-int8", || packed("gptq", 8)),
        ("-int4", || packed("gptq", 4)),
        ("-fp4", || compressed(4, "float", "tensor_group", Some(16))),
        ("-nvfp4", || {
            compressed(4, "float", "tensor_group", Some(16))
        }),
    ];
    endings.iter().find_map(|(ending, config)| {
        let stem = bare.strip_suffix(ending)?;
        Some((stem.to_owned(), config()))
    })
}

/// Towers and heads that quantizers leave alone.
const IGNORED: [&str; 5] = [
    "lm_head",
    "re:.*vision_tower.*",
    "re:.*multi_modal_projector.*",
    "re:.*visual.*",
    "re:.*mlp\\.gate$",
];

fn compressed(bits: u8, kind: &str, strategy: &str, group: Option<u32>) -> Value {
    json!({
        "quant_method": "compressed-tensors",
        "ignore": IGNORED,
        "config_groups": {"group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": bits, "type": kind, "strategy": strategy, "group_size": group,
                "symmetric": true,
            },
        }},
    })
}

fn fp8_blocks() -> Value {
    json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]})
}

fn packed(method: &str, bits: u8) -> Value {
    json!({"quant_method": method, "bits": bits, "group_size": 128})
}

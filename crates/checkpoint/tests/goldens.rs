//! Real files: the tiny models of `tests/goldens`, and SmolLM2's GGUF where `SCRIMP_SMOLLM2` names it.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::goldens;
use scrimp_checkpoint::{Checkpoint, Format};
use scrimp_model::{Architecture, AttentionConfig, RopeScaling};
use scrimp_tensor::DType;

const FOLDERS: [&str; 17] = [
    "deepseek_v2",
    "deepseek_v2_q_lora",
    "deepseek_v3",
    "deepseek_v3_fp8",
    "deepseek_v3_no_q_lora",
    "llama",
    "llama_bf16",
    "llama_head_dim",
    "llama_rope_linear",
    "llama_rope_llama3",
    "llama_sharded",
    "qwen2",
    "qwen2_f16",
    "qwen2_yarn",
    "qwen3",
    "qwen3_moe",
    "qwen3_moe_mixed",
];

/// Values of all tensors but those of multi-token-prediction layers and FP8 scales.
fn values(checkpoint: &Checkpoint, skipped: &str) -> u64 {
    let counted = checkpoint
        .tensors()
        .filter(|(name, _)| !name.starts_with(skipped) && !name.ends_with("_scale_inv"));
    counted.map(|(_, t)| t.elements().unwrap() as u64).sum()
}

#[test]
fn parameter_counts_are_what_the_files_hold() {
    for name in FOLDERS {
        let checkpoint = Checkpoint::open(&goldens().join(name)).unwrap();
        let config = checkpoint.config().unwrap();
        let mtp = format!("model.layers.{}.", config.num_layers);
        let counts = config.parameter_counts();
        assert_eq!(counts.total(), values(&checkpoint, &mtp), "{name}");
    }
}

#[test]
fn fp8_tiles_are_read_from_the_release_layout() {
    let checkpoint = Checkpoint::open(&goldens().join("deepseek_v3_fp8")).unwrap();
    let config = checkpoint.config().unwrap();
    assert_eq!(config.fp8_tile, Some((128, 128)));
    assert_eq!(config.num_nextn_predict_layers, 1);
    let (name, tensor) = checkpoint
        .tensors()
        .find(|(_, t)| t.dtype == DType::F8E4M3)
        .unwrap();
    let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
    let mut scales = Vec::new();
    let matrix = checkpoint
        .matrix(name, (rows, cols), config.fp8_tile, &mut scales)
        .unwrap();
    let mut row = vec![0.0; cols];
    matrix.decode_row(rows - 1, &mut row).unwrap();
    assert!(row.iter().all(|v| v.is_finite()) && row.iter().any(|v| *v != 0.0));
}

#[test]
fn a_gguf_describes_the_same_model_as_its_folder() {
    for (folder, file) in [
        ("llama", "model"),
        ("deepseek_v3", "mla"),
        ("deepseek_v3", "legacy"),
    ] {
        let folder = goldens().join(folder);
        let hf = Checkpoint::open(&folder).unwrap().config().unwrap();
        let gguf = Checkpoint::open(&folder.join(format!("{file}.gguf"))).unwrap();
        assert_eq!(gguf.format(), Format::Gguf);
        let mut config = gguf.config().unwrap();
        // What a GGUF does not say, or says otherwise.
        assert!(config.rope.interleaved);
        config.rope.interleaved = hf.rope.interleaved;
        config.dtype = hf.dtype;
        if let (
            RopeScaling::Yarn {
                softmax_scale: a, ..
            },
            RopeScaling::Yarn {
                softmax_scale: b, ..
            },
        ) = (&mut config.rope.scaling, &hf.rope.scaling)
        {
            assert!((*a - b).abs() < 1e-6, "{file}: {a} and {b}");
            *a = *b;
        }
        config.num_nextn_predict_layers = hf.num_nextn_predict_layers;
        assert_eq!(config, hf, "{file}");
    }
}

#[test]
fn a_gguf_holds_the_same_values_as_its_folder() {
    let folder = goldens().join("llama");
    let hf = Checkpoint::open(&folder).unwrap();
    let gguf = Checkpoint::open(&folder.join("model.gguf")).unwrap();
    for (ours, theirs) in [
        ("model.embed_tokens.weight", "token_embd.weight"),
        (
            "model.layers.1.mlp.down_proj.weight",
            "blk.1.ffn_down.weight",
        ),
        ("model.norm.weight", "output_norm.weight"),
    ] {
        let (a, b) = (hf.get(ours).unwrap(), gguf.get(theirs).unwrap());
        assert_eq!(a.shape, b.shape, "{ours}");
        assert_eq!(a.to_f32().unwrap(), b.to_f32().unwrap(), "{ours}");
    }
}

#[test]
fn every_block_format_is_read_from_one_gguf() {
    let checkpoint = Checkpoint::open(&goldens().join("llama_packed")).unwrap();
    assert_eq!(checkpoint.format(), Format::Gguf);
    let mut seen: Vec<DType> = Vec::new();
    for (name, tensor) in checkpoint.tensors() {
        let values = tensor.to_f32().unwrap();
        assert!(values.iter().all(|v| v.is_finite()), "{name}");
        seen.push(tensor.dtype);
    }
    for dtype in DType::all().filter(|d| d.is_block()) {
        assert!(seen.contains(&dtype), "{dtype}");
    }
}

#[test]
fn a_built_in_model_is_the_same_as_a_folder() {
    let folder = goldens().join("llama");
    let read = |name: &'static str| -> (&'static str, &'static [u8]) {
        (name, std::fs::read(folder.join(name)).unwrap().leak())
    };
    let files = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ];
    let built_in = Checkpoint::from_static(&files.map(read)).unwrap();
    let opened = Checkpoint::open(&folder).unwrap();
    assert_eq!(built_in.config().unwrap(), opened.config().unwrap());
    assert!(built_in.files().json("tokenizer.json").unwrap().is_some());
    assert!(
        built_in
            .tensors()
            .map(|(n, t)| (n, t.bytes))
            .eq(opened.tensors().map(|(n, t)| (n, t.bytes)))
    );
    let lone = Checkpoint::from_static(&[("x.gguf", read("model.gguf").1)]).unwrap();
    assert_eq!(lone.format(), Format::Gguf);
    assert!(Checkpoint::from_static(&[]).is_err());
}

#[test]
fn smollm2() {
    let Ok(path) = std::env::var("SCRIMP_SMOLLM2") else {
        eprintln!("SCRIMP_SMOLLM2 is not set: not tested against the real file");
        return;
    };
    let checkpoint = Checkpoint::open(Path::new(&path)).unwrap();
    assert_eq!(checkpoint.len(), 272);
    let config = checkpoint.config().unwrap();
    assert_eq!(config.architecture, Architecture::Llama);
    assert_eq!(
        (config.num_layers, config.hidden_size, config.vocab_size),
        (30, 576, 49152)
    );
    assert!(config.tie_word_embeddings);
    assert_eq!(config.rope.theta, 100_000.0);
    assert_eq!(config.eos_token_ids, [2]);
    assert!(
        matches!(config.attention, AttentionConfig::Gqa(g) if g.num_kv_heads == 3 && !g.qkv_bias)
    );
    assert_eq!(config.parameter_counts().total(), 134_515_008);
    assert_eq!(values(&checkpoint, "?"), 134_515_008);
    let metadata = checkpoint.metadata().unwrap();
    assert_eq!(
        metadata.texts("tokenizer.ggml.tokens").unwrap().len(),
        49152
    );
    assert_eq!(
        metadata
            .integers("tokenizer.ggml.token_type")
            .unwrap()
            .len(),
        49152
    );
    let mut scales = Vec::new();
    let matrix = checkpoint
        .matrix("blk.3.ffn_down.weight", (576, 1536), None, &mut scales)
        .unwrap();
    let mut row = vec![0.0; 1536];
    matrix.decode_row(575, &mut row).unwrap();
    assert!(row.iter().all(|v| v.abs() < 10.0) && row.iter().any(|v| *v != 0.0));
}

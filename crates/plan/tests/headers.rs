//! Shapes from the headers of checkpoints: storage as it is, components by name.

#![allow(clippy::unwrap_used)]

use scrimp_model::{MetaArray, MetaValue, Metadata};
use scrimp_plan::{Component, GgmlType, KvDtype, ModelShape, Storage, TensorHeader, catalogue};

fn header(name: &str, shape: &[u64], dtype: &str, bytes: u64) -> TensorHeader {
    TensorHeader {
        name: name.to_owned(),
        shape: shape.to_vec(),
        dtype: dtype.to_owned(),
        bytes,
    }
}

/// The names that a safetensors release gives to a group's tensors.
fn headers_of(shape: &ModelShape) -> Vec<TensorHeader> {
    let mut headers = Vec::new();
    for group in &shape.tensors {
        let place = group
            .layer
            .map_or("model.".to_owned(), |l| format!("model.layers.{l}."));
        let within = match group.component {
            Component::Attention => "self_attn.",
            Component::Norms if group.name.starts_with(['q', 'k']) => "self_attn.",
            Component::Embedding | Component::Head | Component::Norms => "",
            _ => "mlp.",
        };
        let (dtype, each) = match group.storage {
            Storage::Fp8Tiles(..) => ("F8_E4M3", group.rows * group.columns),
            Storage::F32 => ("F32", 4 * group.rows * group.columns),
            _ => ("BF16", 2 * group.rows * group.columns),
        };
        let extents = match group.rows {
            1 => vec![group.columns],
            rows => vec![rows, group.columns],
        };
        for index in 0..group.count {
            let name = match group.name.strip_prefix("experts.") {
                Some(rest) => format!("{place}mlp.experts.{index}.{rest}.weight"),
                None => format!("{place}{within}{}.weight", group.name),
            };
            headers.push(header(&name, &extents, dtype, each));
        }
    }
    headers
}

#[test]
fn a_safetensors_header_gives_the_same_inventory() {
    for name in ["Qwen3-0.6B", "DeepSeek-V2-Lite"] {
        let config = catalogue::find(name).unwrap().config;
        let derived = ModelShape::from_config(name, &config).unwrap();
        let read = ModelShape::from_tensors(name, &config, &headers_of(&derived)).unwrap();
        assert_eq!(read.by_component(), derived.by_component(), "{name}");
        assert_eq!(read.total_params(), derived.total_params(), "{name}");
        assert_eq!(read.active_params(), derived.active_params(), "{name}");
    }
}

#[test]
fn a_size_that_does_not_fit_is_an_error() {
    let config = catalogue::find("Qwen3-0.6B").unwrap().config;
    for (extents, dtype, bytes) in [
        (vec![4, 4], "BF16", 31),
        (vec![1 << 40, 1 << 40], "BF16", 8),
        (vec![4, 4], "Q9_Z", 8),
    ] {
        let one = [header("model.norm.weight", &extents, dtype, bytes)];
        let message = ModelShape::from_tensors("x", &config, &one)
            .unwrap_err()
            .to_string();
        assert!(message.contains("model.norm.weight"), "{message}");
    }
}

fn metadata(pairs: &[(&str, u64)], arch: &str, tokens: usize) -> Metadata {
    let mut metadata = Metadata::default();
    metadata.insert("general.architecture", MetaValue::Text(arch.to_owned()));
    for (key, value) in pairs {
        metadata.insert(format!("{arch}.{key}"), MetaValue::Unsigned(*value));
    }
    let tokens = vec![String::new(); tokens];
    metadata.insert(
        "tokenizer.ggml.tokens",
        MetaValue::Array(MetaArray::Text(tokens)),
    );
    metadata
}

#[test]
fn a_gguf_is_read_as_it_is_stored() {
    let keys = [
        ("block_count", 2),
        ("embedding_length", 512),
        ("feed_forward_length", 1024),
        ("context_length", 4096),
        ("attention.head_count", 8),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 64),
        ("expert_count", 4),
        ("expert_used_count", 2),
        ("expert_feed_forward_length", 256),
    ];
    let metadata = metadata(&keys, "qwen3moe", 1000);
    let q4 = |values: u64| values / 256 * 144;
    let mut headers = vec![header(
        "token_embd.weight",
        &[1000, 512],
        "Q4_K",
        q4(512_000),
    )];
    for layer in 0..2 {
        let mut add = |name: &str, extents: &[u64], dtype: &str, bytes| {
            headers.push(header(
                &format!("blk.{layer}.{name}"),
                extents,
                dtype,
                bytes,
            ));
        };
        add("attn_norm.weight", &[512], "F32", 2048);
        add("attn_q.weight", &[512, 512], "Q4_K", q4(512 * 512));
        add("attn_v.weight", &[128, 512], "Q6_K", 128 * 2 * 210);
        add("attn_output.weight", &[512, 512], "Q4_K", q4(512 * 512));
        add("ffn_gate_inp.weight", &[4, 512], "F32", 8192);
        add(
            "ffn_down_exps.weight",
            &[4, 512, 256],
            "Q6_K",
            4 * 512 * 210,
        );
    }
    let stored: u64 = headers.iter().map(|h| h.bytes).sum();
    let shape = ModelShape::from_gguf("x.gguf", &metadata, &headers).unwrap();
    assert_eq!(shape.tensor_bytes(), stored);
    assert_eq!(shape.vocab_size, 1000);
    assert_eq!(shape.kv_bytes_per_token(KvDtype::F16), 2 * 2 * 2 * 64 * 2);
    let named = |name: &str| shape.tensors.iter().filter(|t| t.name == name).count();
    assert_eq!(
        (named("embed_tokens"), named("v_proj"), named("o_proj")),
        (1, 2, 2)
    );
    let experts = shape
        .tensors
        .iter()
        .find(|t| t.component == Component::RoutedExperts)
        .unwrap();
    assert_eq!((experts.count, experts.active, experts.rows), (4, 2, 512));
    assert_eq!(experts.storage, Storage::Ggml(GgmlType::Q6K));
    let routers = shape
        .tensors
        .iter()
        .filter(|t| t.component == Component::Router);
    assert_eq!(routers.count(), 2);
}

#[test]
fn an_unknown_architecture_lists_the_known_ones() {
    let message = ModelShape::from_gguf("x", &metadata(&[], "rwkv", 1), &[])
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("rwkv") && message.contains("deepseek2"),
        "{message}"
    );
}

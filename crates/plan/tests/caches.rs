//! Caches: what grows, what a window caps, what a state fixes, in the terms of each engine.

#![allow(clippy::unwrap_used)]

use scrimp_plan::{KvDtype, LayerCache, MlaCacheMode, ModelShape, caches_from_config, catalogue};
use serde_json::json;

const MIB: u64 = 1 << 20;

fn shape(name: &str) -> ModelShape {
    catalogue::shape(name).unwrap()
}

#[test]
fn latent_rows_are_shared_by_all_heads() {
    let r1 = shape("DeepSeek-R1");
    assert_eq!(r1.kv_bytes_per_token(KvDtype::Bf16), 61 * 576 * 2);
    assert_eq!(
        r1.kv_bytes_per_token_aligned(KvDtype::Bf16, 128),
        61 * 640 * 2
    );
    assert_eq!(r1.caches[0].token_bytes(KvDtype::Fp8DsMla), 656);
    // 128 heads of 192 + 128 values; then the latent with its transposed copy.
    let bytes = |mode| r1.mla_bytes_per_token(mode, KvDtype::F16);
    assert_eq!(bytes(MlaCacheMode::PerHead), 61 * 128 * (192 + 128) * 2);
    assert_eq!(
        bytes(MlaCacheMode::LatentAndTransposed),
        61 * (576 + 512) * 2
    );
    assert_eq!(bytes(MlaCacheMode::Latent), 70_272);
}

#[test]
fn an_indexer_adds_its_keys() {
    let v32 = shape("DeepSeek-V3.2");
    let more = v32.kv_bytes_per_token(KvDtype::Fp8DsMla)
        - shape("DeepSeek-V3").kv_bytes_per_token(KvDtype::Fp8DsMla);
    assert_eq!(more, 61 * 132);
}

#[test]
fn windows_are_capped_unless_an_allocator_ignores_them() {
    let oss = shape("gpt-oss-20b");
    let token = 2 * 8 * 64 * 2;
    assert_eq!(oss.kv_bytes_per_token(KvDtype::Bf16), 12 * token);
    assert_eq!(oss.kv_bytes_per_token_unwindowed(KvDtype::Bf16), 24 * token);
    assert_eq!(oss.kv_bytes(8192, KvDtype::Bf16), 12 * token * (8192 + 128));
    assert_eq!(oss.kv_bytes(100, KvDtype::Bf16), 24 * token * 100);
    assert_eq!(
        oss.kv_bytes_unwindowed(8192, KvDtype::Bf16),
        24 * token * 8192
    );
}

#[test]
fn llama_cpp_gives_windows_cells_of_their_own() {
    let both = (KvDtype::F16, KvDtype::F16);
    let cache = shape("gpt-oss-120b").llama_cpp_cache(131_072, 2, Some(1280), both);
    assert_eq!(cache.full, 9216 * MIB);
    assert_eq!(cache.sliding, 90 * MIB);
    let own = shape("gpt-oss-120b").llama_cpp_cache(131_072, 1, None, both);
    assert_eq!(own.sliding, 18 * 768 * 2048);
    let mixed = (KvDtype::Q8_0, KvDtype::Q4_0);
    let cache = shape("Qwen3-8B").llama_cpp_cache(1000, 1, None, mixed);
    assert_eq!(cache.total(), 36 * 1000 * (1024 / 32) * (34 + 18));
}

#[test]
fn states_do_not_grow() {
    let hybrid = shape("Qwen3.6-27B");
    let both = (KvDtype::F16, KvDtype::F16);
    let cache = hybrid.llama_cpp_cache(65_536, 4, None, both);
    assert_eq!(cache.full, 16_384 * MIB);
    assert_eq!(cache.recurrent as f64 / MIB as f64, 598.5);
    let full = hybrid.caches.iter().filter(|c| c.is_full()).count();
    assert_eq!(full, 16);
    let grown = hybrid.kv_bytes(2000, KvDtype::Bf16) - hybrid.kv_bytes(1000, KvDtype::Bf16);
    assert_eq!(grown, 1000 * hybrid.kv_bytes_per_token(KvDtype::Bf16));
    assert_eq!(hybrid.kv_bytes(0, KvDtype::Bf16), hybrid.state_bytes());
}

#[test]
fn gemma_alternates_and_mistral_slides() {
    let kinds = |name: &str| -> String {
        let mark = |cache: &LayerCache| match cache {
            LayerCache::Sliding { .. } => 's',
            _ => 'f',
        };
        shape(name).caches.iter().map(mark).collect()
    };
    assert!(kinds("gemma-2-9b").starts_with("sfsfsf"));
    assert!(kinds("gemma-3-12b-it").starts_with("sssssfsssssf"));
    assert!(kinds("gemma-3-27b-it").ends_with("sfss"));
    assert_eq!(kinds("Mistral-7B-v0.1"), "s".repeat(32));
    assert_eq!(kinds("Mistral-7B-Instruct-v0.3"), "f".repeat(32));
}

#[test]
fn three_keys_are_enough_for_caches() {
    let config = json!({"num_hidden_layers": 80, "num_key_value_heads": 8, "head_dim": 128});
    let caches = caches_from_config("x", &config).unwrap();
    let bytes: u64 = caches.iter().map(|c| c.token_bytes(KvDtype::Bf16)).sum();
    assert_eq!(bytes, 327_680);
    let shape = ModelShape::from_partial_config("x", &config).unwrap();
    assert_eq!(shape.kv_bytes_per_token(KvDtype::Bf16), 327_680);
    assert!(shape.tensors.is_empty());
    assert!(shape.undetermined.unwrap().contains("model_type"));
    let message = ModelShape::from_config("x", &config)
        .unwrap_err()
        .to_string();
    assert!(message.contains("model_type is missing"), "{message}");
}

#[test]
fn absurd_lengths_do_not_overflow() {
    let r1 = shape("DeepSeek-R1");
    assert_eq!(r1.kv_bytes(u64::MAX, KvDtype::Bf16), u64::MAX);
    let both = (KvDtype::F32, KvDtype::F32);
    assert_eq!(
        r1.llama_cpp_cache(u64::MAX, u64::MAX, None, both).full,
        u64::MAX
    );
}

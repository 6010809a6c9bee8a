//! Figures that depend on a model alone: parameters, tensor bytes, KV bytes.

use serde_json::{Map, Value};

use super::quantities::{Figures, Predicted};
use super::setting::{count, dtype, text};
use crate::{KvDtype, LayerCache, MlaCacheMode, ModelShape, WeightScheme};

const GIB: f64 = (1u64 << 30) as f64;
const MIB: f64 = (1u64 << 20) as f64;
const KIB: f64 = 1024.0;
/// Values that a latent row is rounded up to where an old vLLM aligned it (256 bytes of BF16).
const ALIGNED_VALUES: u64 = 128;

/// Parameters, by the ways of counting them.
pub(super) fn parameters(shape: &ModelShape) -> Result<Predicted, String> {
    let mut figures = Figures::default();
    known(shape)?;
    let total = shape.total_params() as f64;
    figures.put("total", total);
    figures.put("total_params", total);
    figures.put("params_b", shape.model_params() as f64 / 1e9);
    figures.put("active_params", shape.active_params() as f64);
    for name in ["BF16", "F16", "F32", "F8_E4M3", "I8", "I32", "U8"] {
        figures.put(
            name,
            shape.params_by_dtype().get(name).copied().unwrap_or(0) as f64,
        );
    }
    mixes(shape, &mut figures);
    Ok(figures.0)
}

/// Bytes of tensors and of files. The name of a published mix is part of what is asked
/// (`... UD-IQ1_S`), as it is on a command line.
pub(super) fn weights(shape: &ModelShape, case: &Value) -> Result<Predicted, String> {
    let mut figures = Figures::default();
    known(shape)?;
    figures.put("tensor_bytes", shape.tensor_bytes() as f64);
    figures.put("params_b", shape.model_params() as f64 / 1e9);
    mixes(shape, &mut figures);
    let none = Map::new();
    let expected = case
        .get("expected")
        .and_then(Value::as_object)
        .unwrap_or(&none);
    if let Some(Value::Object(files)) = expected.get("file_bytes") {
        for name in files.keys() {
            let key = format!("file_bytes.{name}");
            match file_scheme(shape, name) {
                Ok(scheme) => figures.put(&key, shape.file_bytes(&scheme) as f64),
                Err(why) => figures.unknown(&key, &why),
            }
        }
    }
    let named = case
        .get("model")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let mix = named.split_whitespace().nth(1).map(WeightScheme::parse);
    let dynamic = "a mix of types chosen layer by layer: only the file's header says which";
    match mix {
        Some(Ok(scheme)) => {
            let bytes = shape.file_bytes(&scheme) as f64;
            figures.put("file_gib", bytes / GIB);
            figures.put("bpw", 8.0 * bytes / shape.model_params() as f64);
        }
        _ => {
            figures.unknown("file_gib", dynamic);
            figures.unknown("bpw", dynamic);
        }
    }
    Ok(figures.0)
}

/// A file's scheme by the name it is listed under.
fn file_scheme(shape: &ModelShape, name: &str) -> Result<WeightScheme, String> {
    match name.strip_prefix("GGUF_").unwrap_or(name) {
        "BF16" if shape.quantization.is_none() => Ok(WeightScheme::Released),
        other => WeightScheme::parse(other).map_err(|e| e.to_string()),
    }
}

/// Sizes of GGUF mixes.
fn mixes(shape: &ModelShape, figures: &mut Figures) {
    for mix in ["q4_k_m", "q5_k_m", "q6_k", "q8_0", "q4_0"] {
        if let Ok(scheme) = WeightScheme::parse(mix) {
            let bytes = shape.file_bytes(&scheme) as f64;
            figures.put(&format!("gguf_{mix}_gib"), bytes / GIB);
            figures.put(&format!("gguf_{mix}_bytes"), bytes);
        }
    }
}

fn known(shape: &ModelShape) -> Result<(), String> {
    if shape.tensors.is_empty() {
        let why = shape
            .undetermined
            .as_deref()
            .unwrap_or("it lists no tensors");
        return Err(format!("the config does not determine the weights: {why}"));
    }
    Ok(())
}

/// KV bytes, by the ways of counting them.
pub(super) fn kv(shape: &ModelShape, setting: &Map<String, Value>) -> Result<Predicted, String> {
    let mut figures = Figures::default();
    let name = ["kv_dtype", "kv_cache_dtype", "type_k"]
        .iter()
        .find_map(|k| text(setting, k));
    let kind = match name {
        None => KvDtype::Bf16,
        Some(name) => dtype(name)
            .ok_or_else(|| format!("its KV type {name:?} is not known"))?
            .unwrap_or(KvDtype::Bf16),
    };
    let engine = text(setting, "engine").unwrap_or_default();
    let layers = shape
        .caches
        .iter()
        .filter(|c| c.token_bytes(kind) > 0)
        .count() as f64;
    let aligned = engine.contains("MEM_ALIGN") || engine.contains("aligned");
    // An allocator that reserves full pages for windows counts every layer.
    let reserved = engine.contains("full pages") || engine.contains("hybrid allocator");
    let per_token = match (aligned, reserved) {
        (true, _) => shape.kv_bytes_per_token_aligned(kind, ALIGNED_VALUES),
        (_, true) => shape.kv_bytes_per_token_unwindowed(kind),
        _ => shape.kv_bytes_per_token(kind),
    };
    figures.put("bytes_per_token", per_token as f64);
    figures.put("kv_layers", layers);
    // A layer's row is what attention reads; keys of an indexer are a cache of their own.
    let rows = shape.caches.iter().map(|cache| match *cache {
        LayerCache::IndexedLatent { rank, rope, .. } => LayerCache::Latent { rank, rope },
        other => other,
    });
    if let Some(row) = rows
        .filter(|c| c.token_bytes(kind) > 0)
        .max_by_key(|c| c.token_bytes(kind))
    {
        let layer = match aligned {
            true => per_token as f64 / layers,
            false => row.token_bytes(kind) as f64,
        };
        figures.put("bytes_per_token_layer", layer);
        figures.put(
            "elements_per_token_layer",
            layer / kind.row_bytes(32) as f64 * 32.0,
        );
    }
    for (mode, name) in [
        (MlaCacheMode::PerHead, "mla0"),
        (MlaCacheMode::LatentAndTransposed, "mla1"),
    ] {
        for (dtype, kind) in [("f16", KvDtype::F16), ("q8", KvDtype::Q8_0)] {
            let bytes = shape.mla_bytes_per_token(mode, kind) as f64;
            figures.put(&format!("{name}_{dtype}_kB"), bytes / KIB);
        }
    }
    contexts(shape, setting, kind, &mut figures)?;
    let given = "it is a measurement of one machine that the setting does not describe";
    figures.unknown("available_kv_gib", given);
    figures.unknown("kv_tokens", given);
    Ok(figures.0)
}

/// Sizes of whole contexts.
fn contexts(
    shape: &ModelShape,
    setting: &Map<String, Value>,
    kind: KvDtype,
    figures: &mut Figures,
) -> Result<(), String> {
    let most = 1 << 32;
    let sequences = count(setting, &["n_seq", "n_seqs", "batch"], 1 << 20)?.unwrap_or(1);
    let cells = count(setting, &["swa_cells"], most)?;
    if let Some(context) = count(setting, &["n_ctx_seq", "n_ctx", "max_model_len"], most)? {
        let value = match text(setting, "type_v") {
            Some(name) => dtype(name)
                .flatten()
                .ok_or_else(|| format!("type_v {name:?}"))?,
            None => kind,
        };
        // `n_ctx` is shared by the sequences, `n_ctx_seq` is one sequence's.
        let shared = setting.contains_key("n_ctx") && !setting.contains_key("n_ctx_seq");
        let copies = if shared { 1 } else { sequences };
        let cache = shape.llama_cpp_cache(context, copies, cells, (kind, value));
        figures.put("full_attn_kv_mib", cache.full as f64 / MIB);
        figures.put("swa_kv_mib", cache.sliding as f64 / MIB);
        figures.put("kv_mib", (cache.full + cache.sliding) as f64 / MIB);
        figures.put("kv_gib", (cache.full + cache.sliding) as f64 / GIB);
        let states = shape.llama_cpp_cache(context, sequences, cells, (kind, value));
        figures.put("recurrent_state_mib", states.recurrent as f64 / MIB);
        let all = |bytes: u64| sequences as f64 * bytes as f64 / GIB;
        figures.put("kv_gib_window_capped", all(shape.kv_bytes(context, kind)));
        figures.put(
            "kv_gib_full_pages",
            all(shape.kv_bytes_unwindowed(context, kind)),
        );
    }
    Ok(())
}

//! A case's setting as a [`Deployment`].
//!
//! Settings are what people wrote beside a log, so keys have several names and engines are
//! sentences. What is missing gets the engine's default, and the report says so.

use serde_json::{Map, Value, json};

use crate::engines::releases::of_month;
use crate::{
    Deployment, Device, Engine, EngineKind, KvDtype, MemoryRule, ModelShape, Parallel, Storage,
    Version, WeightScheme,
};

/// Bytes in a GiB.
const GIB: f64 = (1u64 << 30) as f64;
/// Largest total of a device that is believed.
const MAX_GIB: f64 = 4096.0;
/// A release of vLLM's first engine, where a log says only that.
const LAST_V0: Version = Version(0, 7, 3);

/// A setting that was read.
pub(super) struct Read {
    pub deployment: Deployment,
    /// What it does not say.
    pub assumed: Vec<String>,
    /// Whether it, or the model, says how long sequences get.
    pub has_length: bool,
}

type Setting = Map<String, Value>;

/// Reads a setting; an error says what is missing or wrong.
pub(super) fn deployment(shape: &ModelShape, setting: &Setting) -> Result<Read, String> {
    let mut assumed = Vec::new();
    let text = text(setting, "engine").ok_or("its setting names no engine")?;
    let engine = engine(text).ok_or_else(|| format!("its engine {text:?} is not known"))?;
    if engine.version.is_none() && engine.kind == EngineKind::Vllm {
        assumed.push("newest rules, since the setting gives no version".to_owned());
    }
    let device = device(setting)?;
    let rank = |key| Ok::<u32, String>(count(setting, &[key], 4096)?.unwrap_or(1) as u32);
    let parallel = Parallel {
        tp: rank("tp")?,
        pp: rank("pp")?,
        dp: rank("dp")?,
        dcp: rank("dcp")?,
        expert: ["ep", "expert_parallel", "enable_expert_parallel"]
            .iter()
            .any(|key| setting.get(*key).is_some_and(truthy)),
    };
    let devices = parallel.devices().min(u64::from(u32::MAX)) as u32;
    let max_model_len = count(setting, &["max_model_len", "max_seq_len", "n_ctx"], 1 << 32)?;
    let mut deployment = Deployment {
        engine,
        device,
        device_count: devices,
        devices_per_node: devices.min(8),
        host_memory: None,
        disk: None,
        parallel,
        weights: scheme(shape, setting, &mut assumed)?,
        kv_dtype: kv_dtype(setting)?,
        memory: memory(setting)?,
        max_model_len,
        max_num_batched_tokens: count(
            setting,
            &[
                "max_num_batched_tokens",
                "max_num_tokens",
                "chunked_prefill_size",
            ],
            1 << 32,
        )?,
        max_num_seqs: count(
            setting,
            &[
                "max_num_seqs",
                "cuda_graph_max_bs",
                "max_batch_size",
                "n_seqs",
                "n_seq",
            ],
            1 << 32,
        )?,
        block_size: count(setting, &["block_size", "page_size"], 1 << 20)?,
        cuda_graphs: !setting.get("enforce_eager").is_some_and(truthy),
        free_at_start: gib_of(setting, &["free_at_start_gib", "avail_before_load_gb"])?,
        offload_bytes: 0,
    };
    whole_prompts(shape, setting, &mut deployment);
    if deployment.memory.is_none() {
        assumed.push("the engine's default fraction of memory".to_owned());
    }
    let has_length = max_model_len.is_some() || shape.max_position_embeddings > 0;
    Ok(Read {
        deployment,
        assumed,
        has_length,
    })
}

/// Without chunked prefill a step holds the longest prompt.
fn whole_prompts(shape: &ModelShape, setting: &Setting, deployment: &mut Deployment) {
    let off = ["chunked_prefill", "enable_chunked_prefill"]
        .iter()
        .any(|key| setting.get(*key) == Some(&Value::Bool(false)));
    if off && deployment.max_num_batched_tokens.is_none() {
        let longest = deployment
            .max_model_len
            .unwrap_or(shape.max_position_embeddings);
        deployment.max_num_batched_tokens = Some(longest.max(2048));
    }
}

/// Engine and version without the rest of the sentence; `model` when there is none.
pub(super) fn engine_label(setting: &Setting) -> String {
    match text(setting, "engine").and_then(engine) {
        Some(Engine {
            kind,
            version: Some(version),
        }) => format!("{} {version}", name(kind)),
        Some(Engine {
            kind,
            version: None,
        }) => name(kind).to_owned(),
        None => "model".to_owned(),
    }
}

fn name(kind: EngineKind) -> &'static str {
    match kind {
        EngineKind::Scrimp => "scrimp",
        EngineKind::Vllm => "vllm",
        EngineKind::Sglang => "sglang",
        EngineKind::LlamaCpp => "llama.cpp",
        EngineKind::TrtLlm => "trtllm",
    }
}

/// Reads `vLLM 0.11`, `vLLM V0 (Mar 2025, ...)`, `SGLang 0.4.3.post4`, `TensorRT-LLM`.
pub(super) fn engine(text: &str) -> Option<Engine> {
    const NAMES: [(&str, EngineKind); 9] = [
        ("vllm", EngineKind::Vllm),
        ("sglang", EngineKind::Sglang),
        ("tensorrt", EngineKind::TrtLlm),
        ("trtllm", EngineKind::TrtLlm),
        ("trt-llm", EngineKind::TrtLlm),
        ("llama.cpp", EngineKind::LlamaCpp),
        ("llama-cpp", EngineKind::LlamaCpp),
        ("gguf", EngineKind::LlamaCpp),
        ("scrimp", EngineKind::Scrimp),
    ];
    let lower = text.to_ascii_lowercase();
    let kind = NAMES.iter().find(|(name, _)| lower.contains(name))?.1;
    let mut version = version(&lower).or_else(|| month(&lower).and_then(|(y, m)| of_month(y, m)));
    let first = lower
        .split(|c: char| !c.is_ascii_alphanumeric())
        .any(|word| word == "v0");
    if kind == EngineKind::Vllm && first {
        version = Some(version.map_or(LAST_V0, |v| v.min(LAST_V0)));
    }
    Some(Engine {
        kind,
        version: version.filter(|_| kind != EngineKind::LlamaCpp),
    })
}

/// The first `major.minor` or `major.minor.patch` of a sentence.
fn version(text: &str) -> Option<Version> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '.')
        .find_map(|word| {
            let mut parts = word.trim_start_matches('v').split('.');
            let major = parts.next()?.parse().ok()?;
            let minor = parts.next()?.parse().ok()?;
            let patch = parts.next().and_then(|p| p.parse().ok()).unwrap_or(0);
            Some(Version(major, minor, patch))
        })
}

/// `Mar 2025` in a sentence.
fn month(text: &str) -> Option<(u32, u32)> {
    const MONTHS: [&str; 12] = [
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ];
    let words: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    words.windows(2).find_map(|pair| {
        let month = MONTHS.iter().position(|m| pair[0].starts_with(m))? as u32 + 1;
        let year = pair[1].parse().ok().filter(|y| (2020..2100).contains(y))?;
        Some((year, month))
    })
}

/// The device by its name, with the total that was measured where there is one.
fn device(setting: &Setting) -> Result<Device, String> {
    let total =
        gib_of(setting, &["total_gpu_gib"])?.or(count(setting, &["total_gpu_bytes"], 1 << 52)?);
    let named = text(setting, "gpu").and_then(|gpu| {
        let words = || gpu.split(|c: char| !c.is_ascii_alphanumeric());
        Device::find(gpu)
            .ok()
            .or_else(|| words().find_map(|word| Device::find(word).ok()))
    });
    match (named, total) {
        (Some(device), None) => Ok(device),
        (Some(mut device), Some(total)) => {
            let taken = device.total_bytes.saturating_sub(device.free_bytes);
            device.total_bytes = total;
            device.free_bytes = total.saturating_sub(taken);
            Ok(device)
        }
        (None, Some(total)) => Ok(Device {
            name: "unnamed".to_owned(),
            total_bytes: total,
            free_bytes: total,
            bandwidth: 0.0,
            bf16_flops: 0.0,
            fp8_flops: 0.0,
            link_bandwidth: 0.0,
            is_cpu: false,
        }),
        (None, None) => Err(match text(setting, "gpu") {
            Some(gpu) => format!("its device {gpu:?} is not in the catalogue"),
            None => "its setting names no device and no amount of memory".to_owned(),
        }),
    }
}

/// How weights are stored where the config does not say.
fn scheme(
    shape: &ModelShape,
    setting: &Setting,
    assumed: &mut Vec<String>,
) -> Result<WeightScheme, String> {
    if let Some(named) = text(setting, "weights") {
        return WeightScheme::parse(named).map_err(|e| e.to_string());
    }
    if shape.quantization.is_some() {
        return Ok(WeightScheme::Released);
    }
    match text(setting, "quantization")
        .map(str::to_ascii_lowercase)
        .as_deref()
    {
        None | Some("none" | "auto" | "null" | "") => Ok(WeightScheme::Released),
        // Quantized while loading: one scale a matrix.
        Some("fp8") => Ok(WeightScheme::Linear(Storage::Fp8)),
        Some("compressed-tensors") => {
            // Such releases say in their names what their configs say at length.
            let name = shape.name.to_ascii_lowercase();
            const NAMED: [&str; 4] = ["w4a16", "w8a16", "w8a8", "fp8-dynamic"];
            if let Some(named) = NAMED.into_iter().find(|format| name.contains(format)) {
                assumed.push(format!("{named}, as the model's name says"));
                return WeightScheme::parse(named).map_err(|e| e.to_string());
            }
            assumed.push("8 bits a weight, since the config has no quantization_config".to_owned());
            Ok(WeightScheme::Linear(Storage::Int8Rows))
        }
        Some(other) => WeightScheme::parse(other).map_err(|_| {
            format!("quantization {other:?} needs the config's quantization_config to be sized")
        }),
    }
}

fn memory(setting: &Setting) -> Result<Option<MemoryRule>, String> {
    let fraction = |key: &str| match setting.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(f) if f > 0.0 && f <= 1.0 => Ok(Some(f)),
            _ => Err(format!(
                "its {key} is {value}, and has to be above 0 and at most 1"
            )),
        },
    };
    if let Some(f) = fraction("gpu_memory_utilization")? {
        return Ok(Some(MemoryRule::OfTotal(f)));
    }
    if let Some(f) = fraction("mem_fraction_static")? {
        return Ok(Some(MemoryRule::Static(f)));
    }
    Ok(fraction("free_gpu_memory_fraction")?.map(MemoryRule::OfFreeAfterLoad))
}

fn kv_dtype(setting: &Setting) -> Result<Option<KvDtype>, String> {
    let key = ["kv_dtype", "kv_cache_dtype", "type_k"]
        .into_iter()
        .find(|k| setting.contains_key(*k));
    let Some(name) = key.and_then(|k| text(setting, k)) else {
        return Ok(None);
    };
    dtype(name).ok_or_else(|| format!("its KV type {name:?} is not known"))
}

/// A KV type by name; the inner `None` is the engine's own choice.
pub(super) fn dtype(name: &str) -> Option<Option<KvDtype>> {
    Some(Some(
        match name
            .trim_start_matches("torch.")
            .to_ascii_lowercase()
            .as_str()
        {
            "auto" => return Some(None),
            "f32" | "fp32" | "float32" => KvDtype::F32,
            "f16" | "fp16" | "float16" | "half" => KvDtype::F16,
            "bf16" | "bfloat16" => KvDtype::Bf16,
            "fp8" | "fp8_e4m3" | "fp8_e5m2" => KvDtype::Fp8,
            "fp8_ds_mla" => KvDtype::Fp8DsMla,
            "int8" => KvDtype::Int8,
            "q8_0" => KvDtype::Q8_0,
            "q4_0" => KvDtype::Q4_0,
            "int4" => KvDtype::Int4,
            _ => return None,
        },
    ))
}

/// The type that a run gives unquantized weights.
pub(super) fn lay_over_config(setting: &Setting, config: &mut Value) {
    let (Some(dtype), Value::Object(config)) = (text(setting, "dtype"), config) else {
        return;
    };
    let dtype = dtype.trim_start_matches("torch.");
    if ["bfloat16", "float16", "float32"].contains(&dtype) {
        config.remove("dtype");
        config.insert("torch_dtype".to_owned(), json!(dtype));
    }
}

pub(super) fn text<'a>(setting: &'a Setting, key: &str) -> Option<&'a str> {
    setting.get(key).and_then(Value::as_str)
}

/// The first of the keys that is there, as a whole number from 1 to `most`.
pub(super) fn count(setting: &Setting, keys: &[&str], most: u64) -> Result<Option<u64>, String> {
    for key in keys {
        match setting.get(*key) {
            None | Some(Value::Null) => {}
            Some(value) => {
                let whole = value.as_f64().filter(|v| v.fract() == 0.0 && *v >= 1.0);
                return match whole {
                    Some(whole) if whole <= most as f64 => Ok(Some(whole as u64)),
                    _ => Err(format!(
                        "its {key} is {value}, not a whole number from 1 to {most}"
                    )),
                };
            }
        }
    }
    Ok(None)
}

fn gib_of(setting: &Setting, keys: &[&str]) -> Result<Option<u64>, String> {
    for key in keys {
        match setting.get(*key) {
            None | Some(Value::Null) => {}
            Some(value) => {
                return match value.as_f64() {
                    Some(gib) if gib > 0.0 && gib <= MAX_GIB => Ok(Some((gib * GIB) as u64)),
                    _ => Err(format!(
                        "its {key} is {value}, not above 0 and at most {MAX_GIB}"
                    )),
                };
            }
        }
    }
    Ok(None)
}

fn truthy(value: &Value) -> bool {
    value
        .as_bool()
        .unwrap_or_else(|| value.as_u64().is_some_and(|n| n > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_read_from_sentences() {
        let read = |text| engine(text).map(|e| (e.kind, e.version));
        let vllm = |a, b, c| Some((EngineKind::Vllm, Some(Version(a, b, c))));
        assert_eq!(read("vLLM 0.19.0"), vllm(0, 19, 0));
        assert_eq!(read("vLLM ~0.11 (V1)"), vllm(0, 11, 0));
        assert_eq!(read("vLLM 0.6.x"), vllm(0, 6, 0));
        assert_eq!(
            read("vLLM V0 (Mar 2025, MLA cache aligned to 640)"),
            vllm(0, 7, 3)
        );
        assert_eq!(read("vLLM V0 (Dec 2024)"), vllm(0, 6, 5));
        assert_eq!(
            read("vLLM V0, VLLM_MLA_CUDA_MEM_ALIGN_KV_CACHE=1"),
            vllm(0, 7, 3)
        );
        assert_eq!(read("vLLM (Jul 2025) + LMCache connector"), vllm(0, 9, 2));
        let sglang = Some((EngineKind::Sglang, Some(Version(0, 4, 3))));
        assert_eq!(read("SGLang 0.4.3.post4"), sglang);
        assert_eq!(read("TensorRT-LLM"), Some((EngineKind::TrtLlm, None)));
        assert_eq!(read("ik_llama.cpp"), Some((EngineKind::LlamaCpp, None)));
        assert_eq!(read("an engine"), None);
    }
}

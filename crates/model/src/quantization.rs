//! `quantization_config`: how the packed weights of a checkpoint are to be read.
//!
//! Which tensors are packed, in how many bits and groups, is seen from the tensors themselves;
//! what is parsed here is what they do not say. Settings that change the computation are read
//! strictly; keys that are not known are passed over, for every writer adds some.

use serde_json::{Map, Value};

use crate::ConfigError;
use crate::fields::{Fields, MAX_WIDTH, shortened};

/// A way of packing weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quantization {
    /// `compressed-tensors`: `weight_packed` words of integers, or `weight` bytes.
    CompressedTensors {
        /// Whether activations are rounded to int8, with one step for each token (W8A8).
        int8_tokens: bool,
    },
    /// AWQ's "gemm" version.
    Awq,
    /// GPTQ.
    Gptq {
        /// Columns that share a scale; `None` for a whole row.
        group_size: Option<usize>,
        /// Whether stored zero points are one less than meant (every format but `gptq_v2`).
        zeros_less_one: bool,
    },
}

/// What `quantization_config` says of a Hugging Face checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Packed {
    /// Packed integers.
    pub ints: Option<Quantization>,
    /// The tile of DeepSeek's FP8 scales.
    pub fp8_tile: Option<(usize, usize)>,
}

/// Reads the `quantization_config` of a `config.json`, or its older name `compression_config`.
pub(crate) fn quantization(config: &Value) -> Result<Packed, ConfigError> {
    let found = ["quantization_config", "compression_config"]
        .into_iter()
        .find(|key| !config[key].is_null());
    let Some(key) = found else {
        return Ok(Packed::default());
    };
    let map = object(&config[key], key)?;
    let fields = Fields::Json(map, "quantization_config.");
    let method = fields.text("quant_method")?;
    let ints = match method.as_deref() {
        Some("fp8") => {
            let fp8_tile = Some(fp8_tile(&map_value(map, "weight_block_size"))?);
            return Ok(Packed {
                fp8_tile,
                ..Packed::default()
            });
        }
        Some("compressed-tensors") => compressed_tensors(&fields, map)?,
        None if key == "compression_config" => compressed_tensors(&fields, map)?,
        Some("awq") => awq(&fields)?,
        Some("gptq") => gptq(&fields)?,
        _ => {
            return Err(fields.unsupported(
                "quant_method",
                "fp8 (with weight_block_size), compressed-tensors, awq and gptq are read from \
                 safetensors; take one of these, an unquantized checkpoint or a GGUF",
            ));
        }
    };
    Ok(Packed {
        ints: Some(ints),
        ..Packed::default()
    })
}

fn map_value(map: &Map<String, Value>, key: &str) -> Value {
    map.get(key).cloned().unwrap_or(Value::Null)
}

fn object<'a>(value: &'a Value, key: &str) -> Result<&'a Map<String, Value>, ConfigError> {
    value.as_object().ok_or_else(|| ConfigError::Value {
        key: key.to_owned(),
        value: shortened(&value.to_string()),
        allowed: "an object".to_owned(),
    })
}

/// Refuses a value that is none of those which are run; what is absent passes.
fn one_of(fields: &Fields, key: &str, known: &[&str], why: &str) -> Result<(), ConfigError> {
    match fields.text(key)? {
        Some(found) if !known.contains(&found.to_lowercase().as_str()) => {
            Err(fields.unsupported(key, why))
        }
        _ => Ok(()),
    }
}

/// Refuses a number that is none of those which are run; what is absent passes.
fn bits_of(fields: &Fields, key: &str, known: &[usize], why: &str) -> Result<(), ConfigError> {
    match fields.count(key, 1, 64)? {
        Some(found) if !known.contains(&found) => Err(fields.unsupported(key, why)),
        _ => Ok(()),
    }
}

/// A group size: -1, null and absence stand for whole rows.
fn group_size(fields: &Fields, value: &Value, key: &str) -> Result<Option<usize>, ConfigError> {
    if value.is_null() || value.as_i64() == Some(-1) {
        return Ok(None);
    }
    fields.count(key, 1, MAX_WIDTH)
}

const FORMATS: [&str; 3] = ["pack-quantized", "int-quantized", "naive-quantized"];
const FORMATS_WHY: &str = "pack-quantized and int-quantized are read";

fn compressed_tensors(
    fields: &Fields,
    map: &Map<String, Value>,
) -> Result<Quantization, ConfigError> {
    let groups = map_value(map, "config_groups");
    let groups = object(&groups, "quantization_config.config_groups")?;
    let mixed = fields.text("format")?.as_deref() == Some("mixed-precision");
    if !mixed {
        one_of(fields, "format", &FORMATS, FORMATS_WHY)?;
    }
    if let Some(sparsity) = map.get("sparsity_config").and_then(Value::as_object) {
        let fields = Fields::Json(sparsity, "quantization_config.sparsity_config.");
        one_of(&fields, "format", &["dense"], "sparse weights are not read")?;
    }
    let transforms = &map_value(map, "transform_config")["config_groups"];
    if transforms
        .as_object()
        .is_some_and(|groups| !groups.is_empty())
    {
        return Err(fields.unsupported(
            "transform_config",
            "transforms that have to be computed with every token are not implemented",
        ));
    }
    let mut int8_tokens = None;
    for group in groups.values() {
        let rounds = config_group(object(group, "quantization_config.config_groups.*")?)?;
        if *int8_tokens.get_or_insert(rounds) != rounds {
            return Err(fields.unsupported(
                "config_groups",
                "groups with quantized activations beside groups without are not implemented",
            ));
        }
    }
    Ok(Quantization::CompressedTensors {
        int8_tokens: int8_tokens.unwrap_or(false),
    })
}

/// Whether a group's activations are rounded to int8.
fn config_group(group: &Map<String, Value>) -> Result<bool, ConfigError> {
    let fields = Fields::Json(group, "quantization_config.config_groups.*.");
    one_of(&fields, "format", &FORMATS, FORMATS_WHY)?;
    if !map_value(group, "output_activations").is_null() {
        return Err(fields.unsupported("output_activations", "only null is implemented"));
    }
    let weights = map_value(group, "weights");
    let weights = object(&weights, "quantization_config.config_groups.*.weights")?;
    let fields = Fields::Json(weights, "quantization_config.config_groups.*.weights.");
    one_of(&fields, "type", &["int"], "only integers are read here")?;
    bits_of(&fields, "num_bits", &[4, 8], "4 and 8 bits are read")?;
    let strategies = ["group", "channel"];
    one_of(
        &fields,
        "strategy",
        &strategies,
        "group and channel are read",
    )?;
    group_size(&fields, &map_value(weights, "group_size"), "group_size")?;

    let activations = map_value(group, "input_activations");
    if activations.is_null() {
        return Ok(false);
    }
    let activations = object(
        &activations,
        "quantization_config.config_groups.*.input_activations",
    )?;
    let prefix = "quantization_config.config_groups.*.input_activations.";
    let fields = Fields::Json(activations, prefix);
    let why = "activations are int8, symmetric, with a dynamic step for each token, or not rounded";
    one_of(&fields, "type", &["int"], why)?;
    one_of(&fields, "strategy", &["token"], why)?;
    bits_of(&fields, "num_bits", &[8], why)?;
    for key in ["dynamic", "symmetric"] {
        if map_value(activations, key) != Value::Bool(true) {
            return Err(fields.unsupported(key, why));
        }
    }
    Ok(true)
}

fn awq(fields: &Fields) -> Result<Quantization, ConfigError> {
    one_of(
        fields,
        "version",
        &["gemm"],
        "only the \"gemm\" layout is read; write the checkpoint in that version",
    )?;
    for key in ["bits", "w_bit"] {
        bits_of(fields, key, &[4], "AWQ's layout holds 4 bits")?;
    }
    Ok(Quantization::Awq)
}

fn gptq(fields: &Fields) -> Result<Quantization, ConfigError> {
    bits_of(fields, "bits", &[4, 8], "4 and 8 bits are read")?;
    // Newer writers say `format` for what was `checkpoint_format`.
    let mut version = "gptq".to_owned();
    for key in ["checkpoint_format", "format"] {
        one_of(
            fields,
            key,
            &["gptq", "gptq_v2"],
            "gptq and gptq_v2 are read; write the checkpoint in one of these",
        )?;
        if let Some(found) = fields.text(key)? {
            version = found.to_lowercase();
        }
    }
    let Fields::Json(map, _) = fields else {
        return Err(fields.unsupported("quant_method", "GGUF files have no GPTQ tensors"));
    };
    Ok(Quantization::Gptq {
        group_size: group_size(fields, &map_value(map, "group_size"), "group_size")?,
        zeros_less_one: version != "gptq_v2",
    })
}

/// The tile of DeepSeek's FP8 scales.
fn fp8_tile(block: &Value) -> Result<(usize, usize), ConfigError> {
    let extent = |i: usize| {
        block[i]
            .as_u64()
            .filter(|v| (1..=MAX_WIDTH as u64).contains(v))
    };
    let two = block.as_array().is_some_and(|b| b.len() == 2);
    match (two, extent(0), extent(1)) {
        (true, Some(rows), Some(cols)) => Ok((rows as usize, cols as usize)),
        _ => Err(ConfigError::Value {
            key: "quantization_config.weight_block_size".to_owned(),
            value: shortened(&block.to_string()),
            allowed: format!("two whole numbers from 1 to {MAX_WIDTH}, such as [128, 128]"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(quantization_config: Value) -> Result<Packed, String> {
        let config = json!({ "quantization_config": quantization_config });
        quantization(&config).map_err(|error| error.to_string())
    }

    fn w8a8() -> Value {
        json!({
            "quant_method": "compressed-tensors", "format": "int-quantized",
            "ignore": ["lm_head"], "kv_cache_scheme": null, "some_new_key": [1, 2],
            "config_groups": {"group_0": {
                "targets": ["Linear"], "output_activations": null,
                "weights": {"num_bits": 8, "type": "int", "symmetric": true,
                            "strategy": "channel", "group_size": null},
                "input_activations": {"num_bits": 8, "type": "int", "symmetric": true,
                                      "strategy": "token", "dynamic": true}
            }}
        })
    }

    #[test]
    fn formats_are_told_apart() {
        let tokens = |int8_tokens| Some(Quantization::CompressedTensors { int8_tokens });
        assert_eq!(read(w8a8()).unwrap().ints, tokens(true));
        let mut w4a16 = w8a8();
        w4a16["format"] = json!("pack-quantized");
        let group = &mut w4a16["config_groups"]["group_0"];
        group["input_activations"] = json!(null);
        group["weights"] = json!({"num_bits": 4, "strategy": "group", "group_size": 128});
        assert_eq!(read(w4a16.clone()).unwrap().ints, tokens(false));
        let old = json!({ "compression_config": w4a16 });
        assert_eq!(quantization(&old).unwrap().ints, tokens(false));

        let awq = json!({"quant_method": "awq", "version": "GEMM", "bits": 4, "group_size": 64});
        assert_eq!(read(awq).unwrap().ints, Some(Quantization::Awq));
        let gptq = |more: Value| {
            let mut config = json!({"quant_method": "gptq", "bits": 8, "group_size": 64});
            for (key, value) in more.as_object().unwrap() {
                config[key] = value.clone();
            }
            read(config).map(|packed| packed.ints)
        };
        let is = |group_size, zeros_less_one| {
            Ok(Some(Quantization::Gptq {
                group_size,
                zeros_less_one,
            }))
        };
        assert_eq!(gptq(json!({})), is(Some(64), true));
        let v2 = json!({"checkpoint_format": "gptq_v2", "group_size": -1});
        assert_eq!(gptq(v2), is(None, false));
        assert_eq!(gptq(json!({"format": "gptq_v2"})), is(Some(64), false));
        assert_eq!(read(Value::Null).unwrap(), Packed::default());
    }

    #[test]
    fn what_is_not_run_is_refused_by_name() {
        let refused = |config: Value, words: &[&str]| {
            let error = read(config).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{word:?} is not in: {error}");
            }
        };
        refused(
            json!({"quant_method": "bitsandbytes"}),
            &["bitsandbytes", "gptq"],
        );
        refused(
            json!({"quant_method": "awq", "version": "gemv"}),
            &["version", "gemv"],
        );
        refused(json!({"quant_method": "awq", "bits": 3}), &["bits", "3"]);
        refused(
            json!({"quant_method": "gptq", "bits": 3}),
            &["bits", "4 and 8"],
        );
        let marlin = json!({"quant_method": "gptq", "checkpoint_format": "marlin"});
        refused(marlin, &["checkpoint_format", "marlin"]);
        let odd = json!({"quant_method": "gptq", "bits": 4, "group_size": -2});
        refused(odd, &["group_size", "-2"]);
        refused(json!([]), &["an object"]);
        let none = json!({"quant_method": "compressed-tensors", "format": "pack-quantized"});
        refused(none, &["config_groups"]);

        let changed = |pointer: &str, value: Value, words: &[&str]| {
            let mut config = w8a8();
            *config.pointer_mut(pointer).unwrap() = value;
            refused(config, words);
        };
        changed(
            "/format",
            json!("nvfp4-pack-quantized"),
            &["format", "nvfp4"],
        );
        let group = "/config_groups/group_0";
        let in_group = |key: &str| format!("{group}{key}");
        changed(&in_group("/weights/num_bits"), json!(2), &["num_bits", "2"]);
        changed(
            &in_group("/weights/type"),
            json!("float"),
            &["type", "float"],
        );
        changed(
            &in_group("/weights/strategy"),
            json!("tensor"),
            &["strategy", "tensor"],
        );
        changed(
            &in_group("/input_activations/dynamic"),
            json!(false),
            &["dynamic"],
        );
        changed(
            &in_group("/input_activations/strategy"),
            json!("tensor"),
            &["strategy"],
        );
        changed(
            &in_group("/output_activations"),
            json!({}),
            &["output_activations"],
        );
        changed(
            &in_group("/weights"),
            json!(null),
            &["weights", "an object"],
        );
        let mut mixed = w8a8();
        mixed["config_groups"]["group_1"] = mixed["config_groups"]["group_0"].clone();
        mixed["config_groups"]["group_1"]["input_activations"] = json!(null);
        refused(mixed, &["config_groups"]);
        let mut rotated = w8a8();
        rotated["transform_config"] = json!({"config_groups": {"R3": {}}});
        refused(rotated, &["transform_config"]);
    }
}

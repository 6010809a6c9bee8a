//! How a release stores its linear matrices: `quantization_config`, read module by module.

use regex::Regex;
use scrimp_model::ConfigError;
use scrimp_model::fields::Fields;
use serde_json::{Map, Value};

use super::config::Source;
use super::{Component, Storage};

const PREFIX: &str = "quantization_config.";
const METHODS: &str = "fp8, fbgemm_fp8, compressed-tensors, awq, gptq, mxfp4, modelopt or \
                       bitsandbytes";

/// The quantization of a release; empty for one that is not quantized.
#[derive(Debug, Default)]
pub(super) struct Release {
    label: Option<String>,
    groups: Vec<Group>,
    ignored: Vec<Pattern>,
    /// Quantizes the head too.
    head: bool,
    /// Only routed experts are quantized.
    experts_only: bool,
}

/// Modules and how they are stored.
#[derive(Debug)]
struct Group {
    /// Empty: every linear module.
    targets: Vec<Pattern>,
    /// `None`: left as they are.
    storage: Option<Storage>,
}

/// A module in an ignore list: a name or part of one, with `*`, or a regular expression.
#[derive(Debug)]
struct Pattern(Regex);

impl Pattern {
    fn read(text: &str, fields: &Fields<'_>, key: &str) -> Result<Pattern, ConfigError> {
        let source = match text.strip_prefix("re:") {
            Some(regex) => format!("^(?:{regex})"),
            None => {
                let literal = regex::escape(text.trim_end_matches('.')).replace(r"\*", ".*");
                format!(r"(?:^|\.){literal}(?:$|\.)")
            }
        };
        Regex::new(&source).map(Pattern).map_err(|_| {
            fields.error(
                key,
                format!("module names or regular expressions; {text:?} is none"),
            )
        })
    }
}

impl Release {
    pub(super) fn read(source: &Source) -> Result<Release, ConfigError> {
        let map = match source.config.get("quantization_config") {
            None | Some(Value::Null) => return Ok(Release::default()),
            Some(Value::Object(map)) => map,
            Some(_) => {
                let fields = source.fields();
                return Err(fields.error("quantization_config", "an object with quant_method"));
            }
        };
        let fields = Fields::Json(map, PREFIX);
        let method = fields
            .text("quant_method")?
            .ok_or_else(|| fields.missing("quant_method", METHODS))?;
        let mut release = Release {
            label: Some(method.clone()),
            ignored: ignored(map, &fields)?,
            ..Release::default()
        };
        let storage = match method.as_str() {
            "fp8" => Some(fp8(map, &fields)?),
            "fbgemm_fp8" => Some(Storage::Fp8Rows),
            "awq" | "gptq" | "awq_marlin" | "gptq_marlin" => {
                release.head = fields.flag("lm_head", false)?;
                Some(packed(&fields)?)
            }
            "mxfp4" => {
                release.experts_only = true;
                Some(Storage::Mxfp4)
            }
            "modelopt" => Some(modelopt(map, &fields)?),
            // NF4 with 8-bit scales for each 64 values and a 32-bit one for each 256 of those.
            "bitsandbytes" => Some(match fields.flag("load_in_8bit", false)? {
                true => Storage::Int8Rows,
                false => Storage::IntGroups {
                    bits: 4,
                    group: 128,
                    symmetric: true,
                },
            }),
            "compressed-tensors" => None,
            _ => return Err(fields.error("quant_method", METHODS)),
        };
        match storage {
            Some(storage) => release.groups.push(Group {
                targets: Vec::new(),
                storage: Some(storage),
            }),
            None => {
                release.head = true;
                release.groups = compressed_groups(map, &fields)?;
            }
        }
        if let Some(format) = fields.text("format")? {
            release.label = Some(format!("{method} {format}"));
        }
        Ok(release)
    }

    /// What reports call it.
    pub(super) fn label(&self) -> Option<String> {
        self.label.clone()
    }

    /// How the linear module at `path` is stored; `None` when it is not quantized.
    pub(super) fn storage(&self, path: &str, component: Component) -> Option<Storage> {
        let kept = match component {
            Component::Head => !self.head,
            // Quantizers of language models leave towers alone, under whatever names.
            Component::Vision => true,
            Component::RoutedExperts => false,
            _ => self.experts_only,
        };
        let path = path.replace("mlp.experts.", "mlp.experts.0.");
        if kept || self.ignored.iter().any(|p| p.0.is_match(&path)) {
            return None;
        }
        let group = self
            .groups
            .iter()
            .find(|g| g.targets.is_empty() || g.targets.iter().any(|p| p.0.is_match(&path)))?;
        group.storage
    }
}

/// Every list under which the methods name what they leave alone.
fn ignored(map: &Map<String, Value>, fields: &Fields<'_>) -> Result<Vec<Pattern>, ConfigError> {
    let mut patterns = Vec::new();
    for key in [
        "ignore",
        "ignored_layers",
        "modules_to_not_convert",
        "exclude_modules",
    ] {
        patterns.extend(names(map, key, fields)?);
        // modelopt's own file keeps its settings one level down.
        if let Some(Value::Object(inner)) = map.get("quantization") {
            patterns.extend(names(inner, key, fields)?);
        }
    }
    Ok(patterns)
}

fn names(
    map: &Map<String, Value>,
    key: &'static str,
    fields: &Fields<'_>,
) -> Result<Vec<Pattern>, ConfigError> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list
            .iter()
            .map(|entry| match entry.as_str() {
                Some(text) => Pattern::read(text, fields, key),
                None => Err(fields.error(key, "a list of module names")),
            })
            .collect(),
        Some(_) => Err(fields.error(key, "a list of module names")),
    }
}

/// `weight_block_size`, or one scale a tensor.
fn fp8(map: &Map<String, Value>, fields: &Fields<'_>) -> Result<Storage, ConfigError> {
    let allowed = "two whole numbers from 1 to 65536";
    match map.get("weight_block_size") {
        None | Some(Value::Null) => Ok(Storage::Fp8),
        Some(Value::Array(sides)) => match sides.as_slice() {
            [rows, columns] => match (side(rows), side(columns)) {
                (Some(rows), Some(columns)) => Ok(Storage::Fp8Tiles(rows, columns)),
                _ => Err(fields.error("weight_block_size", allowed)),
            },
            _ => Err(fields.error("weight_block_size", allowed)),
        },
        Some(_) => Err(fields.error("weight_block_size", allowed)),
    }
}

fn side(value: &Value) -> Option<u32> {
    let side = u32::try_from(value.as_u64()?).ok()?;
    (1..=65_536).contains(&side).then_some(side)
}

/// AWQ's and GPTQ's packed integers; both store zero points whether they are needed or not.
fn packed(fields: &Fields<'_>) -> Result<Storage, ConfigError> {
    let key = if fields.has("bits") { "bits" } else { "w_bit" };
    let bits = fields.count(key, 2, 8)?.unwrap_or(4) as u8;
    let group = match fields.number("group_size", |v| v == -1.0, "-1 or a whole number") {
        Ok(Some(_)) => 0,
        _ => fields.count("group_size", 1, 1 << 16)?.unwrap_or(128) as u32,
    };
    Ok(Storage::IntGroups {
        bits,
        group,
        symmetric: false,
    })
}

fn modelopt(map: &Map<String, Value>, fields: &Fields<'_>) -> Result<Storage, ConfigError> {
    let allowed = "FP8 or NVFP4";
    let nested = map.get("quantization").and_then(|q| q.get("quant_algo"));
    let algorithm = map.get("quant_algo").or(nested).and_then(Value::as_str);
    match algorithm.map(str::to_ascii_uppercase).as_deref() {
        Some("FP8") => Ok(Storage::Fp8),
        Some("NVFP4") => Ok(Storage::Nvfp4),
        None => Err(fields.missing("quant_algo", allowed)),
        Some(_) => Err(fields.error("quant_algo", allowed)),
    }
}

fn compressed_groups(
    map: &Map<String, Value>,
    fields: &Fields<'_>,
) -> Result<Vec<Group>, ConfigError> {
    let allowed = "an object of groups with targets and weights";
    let groups = match map.get("config_groups") {
        None | Some(Value::Null) => return Err(fields.missing("config_groups", allowed)),
        Some(Value::Object(groups)) => groups,
        Some(_) => return Err(fields.error("config_groups", allowed)),
    };
    groups
        .values()
        .map(|group| {
            let group = group
                .as_object()
                .ok_or_else(|| fields.error("config_groups", allowed))?;
            let inner = Fields::Json(group, "quantization_config.config_groups.*.");
            let all = group
                .get("targets")
                .and_then(Value::as_array)
                .is_none_or(|t| t.iter().any(|t| t == "Linear"));
            let targets = if all {
                Vec::new()
            } else {
                names(group, "targets", &inner)?
            };
            let storage = match group.get("weights") {
                None | Some(Value::Null) => None,
                Some(Value::Object(weights)) => Some(compressed_weights(weights)?),
                Some(_) => return Err(inner.error("weights", "an object with num_bits and type")),
            };
            Ok(Group { targets, storage })
        })
        .collect()
}

fn compressed_weights(weights: &Map<String, Value>) -> Result<Storage, ConfigError> {
    let fields = Fields::Json(weights, "quantization_config.config_groups.*.weights.");
    let bits = fields
        .count("num_bits", 1, 16)?
        .ok_or_else(|| fields.missing("num_bits", "4 or 8"))? as u8;
    let kind = fields.text("type")?.unwrap_or_else(|| "int".to_owned());
    let strategy = fields.text("strategy")?.unwrap_or_default();
    let group = fields.count("group_size", 1, 1 << 16);
    let group = if strategy.contains("group") {
        group?.map(|g| g as u32)
    } else {
        None
    };
    Ok(match (kind.as_str(), bits, group) {
        ("float", 8, _) if strategy == "block" => {
            let sides = weights.get("block_structure").and_then(Value::as_array);
            let sides: Vec<u32> = sides.into_iter().flatten().filter_map(side).collect();
            match sides[..] {
                [rows, columns] => Storage::Fp8Tiles(rows, columns),
                _ => Storage::Fp8Tiles(128, 128),
            }
        }
        ("float", 8, _) if strategy == "tensor" => Storage::Fp8,
        ("float", 8, _) => Storage::Fp8Rows,
        ("float", 4, Some(32)) => Storage::Mxfp4,
        ("float", 4, _) => Storage::Nvfp4,
        ("int", 8, None) => Storage::Int8Rows,
        ("int", 1..=8, group) => Storage::IntGroups {
            bits,
            group: group.unwrap_or(0),
            symmetric: fields.flag("symmetric", true)?,
        },
        _ => {
            return Err(fields.error("num_bits", "4 or 8 of type float, up to 8 of type int"));
        }
    })
}

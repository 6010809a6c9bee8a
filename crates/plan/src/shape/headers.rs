//! A shape whose storage is read from a checkpoint's headers, tensor by tensor.

use std::collections::BTreeMap;

use serde_json::Value;

use super::config::MAX_PARAMETERS;
use super::{Component, ModelShape, Role, Split, Storage, TensorGroup};
use crate::{Error, GgmlType};

/// One tensor in a GGUF or safetensors header.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorHeader {
    /// Name in the file.
    pub name: String,
    /// Extents, outermost first: [out, in] for a matrix, experts first when they are stacked.
    pub shape: Vec<u64>,
    /// Type by the file's own name: `BF16`, `F8_E4M3`, `I32`, `Q4_K`.
    pub dtype: String,
    /// Bytes of its data.
    pub bytes: u64,
}

impl ModelShape {
    /// The shape of a config, with the tensors that the headers list instead of those that follow
    /// from it: what the file stores is exact, whatever its quantizer did.
    ///
    /// # Errors
    ///
    /// The config does not even determine the caches, or a header's shape cannot be.
    pub fn from_tensors(
        name: &str,
        config: &Value,
        headers: &[TensorHeader],
    ) -> Result<ModelShape, Error> {
        let shape = ModelShape::from_partial_config(name, config)?;
        shape.with_tensors(headers)
    }

    /// The shape with the tensors that the headers list instead of its own.
    pub(super) fn with_tensors(self, headers: &[TensorHeader]) -> Result<ModelShape, Error> {
        let mut shape = self;
        let layers = shape.caches.len() as u32;
        let mut groups: BTreeMap<Key, TensorGroup> = BTreeMap::new();
        for header in headers {
            let group = group(header, &shape, layers).map_err(|what| Error::Config {
                model: shape.name.clone(),
                what: format!("tensor {:?}: {what}", header.name),
            })?;
            match groups.get_mut(&Key::of(&group)) {
                Some(same) => {
                    same.count += group.count;
                    same.active = active(&shape, same.component, same.count);
                }
                None => {
                    groups.insert(Key::of(&group), group);
                }
            }
        }
        shape.tensors = groups.into_values().collect();
        let values = |t: &TensorGroup| u128::from(t.count) * u128::from(t.rows * t.columns);
        if shape.tensors.iter().map(values).sum::<u128>() > MAX_PARAMETERS {
            return Err(Error::Config {
                model: shape.name.clone(),
                what: "its headers list more values than any model has; they are damaged"
                    .to_owned(),
            });
        }
        shape.undetermined = None;
        Ok(shape)
    }
}

/// Tensors that are one group.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key(Option<u32>, Component, String, u64, u64, String);

impl Key {
    fn of(group: &TensorGroup) -> Key {
        Key(
            group.layer,
            group.component,
            group.name.clone(),
            group.rows,
            group.columns,
            format!("{:?}", group.storage),
        )
    }
}

fn active(shape: &ModelShape, component: Component, count: u64) -> u64 {
    match component {
        Component::RoutedExperts if shape.experts_per_token > 0 => {
            count.min(shape.experts_per_token)
        }
        Component::Mtp => 0,
        _ => count,
    }
}

fn group(header: &TensorHeader, shape: &ModelShape, layers: u32) -> Result<TensorGroup, String> {
    let layer = layer_of(&header.name);
    let component = match layer {
        Some(layer) if layer >= layers && layers > 0 => Component::Mtp,
        _ => component_of(&header.name),
    };
    let wide = matches!(header.dtype.as_str(), "I64" | "U64" | "F64");
    let (count, rows, columns) = match (component, header.shape.as_slice()) {
        // Shapes of packed tensors and the like: a few bytes, whatever they mean.
        _ if wide => (1, 1, header.bytes),
        (Component::RoutedExperts, &[count, length]) if header.name.ends_with("bias") => {
            (count, 1, length)
        }
        _ => extents(&header.shape, component)?,
    };
    let storage = match wide {
        true => Storage::Ggml(GgmlType::I8),
        false => storage_of(header, count, rows, columns)?,
    };
    let role = match component {
        Component::Embedding => Role::Embedding,
        Component::Norms | Component::Router => Role::Kept,
        _ if rows == 1 || header.name.ends_with("bias") => Role::Kept,
        _ => Role::Linear,
    };
    let name = short(&header.name);
    Ok(TensorGroup {
        split: split_of(&name, component, shape),
        component,
        name,
        layer: layer.filter(|_| component != Component::Mtp),
        count,
        active: active(shape, component, count),
        rows,
        columns,
        storage,
        role,
    })
}

/// `count` matrices of rows × columns; only experts are stacked, other extents are one matrix.
fn extents(extents: &[u64], component: Component) -> Result<(u64, u64, u64), String> {
    let (count, matrix) = match (component, extents) {
        (Component::RoutedExperts, [count, rest @ ..]) if rest.len() >= 2 => (*count, rest),
        _ => (1, extents),
    };
    let (rows, columns) = match matrix {
        [] => (1, 1),
        [one] => (1, *one),
        [rows, columns @ ..] => {
            let columns = columns.iter().try_fold(1u64, |p, e| p.checked_mul(*e));
            (*rows, columns.ok_or_else(|| overflow(extents))?)
        }
    };
    let all = u128::from(count) * u128::from(rows) * u128::from(columns);
    if all > MAX_PARAMETERS {
        return Err(overflow(extents));
    }
    Ok((count, rows, columns))
}

fn overflow(extents: &[u64]) -> String {
    format!("its shape {extents:?} has more values than any model; the header is damaged")
}

fn storage_of(
    header: &TensorHeader,
    count: u64,
    rows: u64,
    columns: u64,
) -> Result<Storage, String> {
    let storage = match header.dtype.to_ascii_uppercase().as_str() {
        // Packed integers are counted in words, as the hub counts them.
        "F32" | "I32" | "U32" => Storage::F32,
        "F16" => Storage::F16,
        "BF16" | "I16" | "U16" => Storage::Bf16,
        "F8_E4M3" | "F8_E5M2" => Storage::Fp8,
        "F8_E8M0" | "I8" | "U8" | "BOOL" => Storage::Ggml(GgmlType::I8),
        other => match GgmlType::parse(other) {
            Some(ggml) => Storage::Ggml(ggml),
            None => return Err(format!("its type {:?} is not known", header.dtype)),
        },
    };
    let expected = match storage {
        Storage::F32 => 4 * count * rows * columns,
        Storage::F16 | Storage::Bf16 => 2 * count * rows * columns,
        Storage::Ggml(ggml) => count * rows * ggml.row_bytes(columns),
        _ => count * rows * columns,
    };
    if expected != header.bytes {
        return Err(format!(
            "{} of shape {:?} take {expected} bytes, and the header says {}",
            header.dtype, header.shape, header.bytes
        ));
    }
    Ok(storage)
}

/// The layer in `model.layers.3.…`, `blk.3.…` or `h.3.…`.
fn layer_of(name: &str) -> Option<u32> {
    let parts: Vec<&str> = name.split('.').collect();
    let vision = name.contains("vision") || name.contains("visual") || name.starts_with("v.");
    parts
        .windows(2)
        .find(|pair| !vision && matches!(pair[0], "layers" | "blk" | "h"))
        .and_then(|pair| pair[1].parse().ok())
}

/// Parts of names by component, first match wins: GGUF's names and the hub's.
const COMPONENTS: &[(&str, Component)] = &[
    ("vision", Component::Vision),
    ("visual", Component::Vision),
    ("multi_modal", Component::Vision),
    ("mm_projector", Component::Vision),
    ("mtp.", Component::Mtp),
    ("nextn", Component::Mtp),
    ("_shexp", Component::SharedExperts),
    ("shared_expert", Component::SharedExperts),
    ("_exps", Component::RoutedExperts),
    ("ffn_gate_inp", Component::Router),
    ("exp_probs_b", Component::Router),
    ("router", Component::Router),
    (".gate.", Component::Router),
    (".experts.", Component::RoutedExperts),
    ("norm", Component::Norms),
    ("rope_freqs", Component::Norms),
    ("sinks", Component::Norms),
    ("A_log", Component::Norms),
    ("dt_bias", Component::Norms),
    ("ssm_a", Component::Norms),
    ("ssm_dt", Component::Norms),
    ("token_embd", Component::Embedding),
    ("embed", Component::Embedding),
    ("wte", Component::Embedding),
    ("lm_head", Component::Head),
    ("output.weight", Component::Head),
    ("attn", Component::Attention),
    ("ssm", Component::Attention),
    ("mlp", Component::DenseMlp),
    ("ffn", Component::DenseMlp),
];

fn component_of(name: &str) -> Component {
    if name.contains(".attn_output.") {
        return Component::Attention;
    }
    let found = COMPONENTS.iter().find(|(part, _)| name.contains(part));
    found.map_or(Component::Norms, |f| f.1)
}

/// Names in GGUF and in Mixtral's checkpoints, and the ones that all others use.
const RENAMED: &[(&str, &str)] = &[
    ("token_embd", "embed_tokens"),
    ("output", "lm_head"),
    ("attn_q", "q_proj"),
    ("attn_k", "k_proj"),
    ("attn_v", "v_proj"),
    ("attn_output", "o_proj"),
    ("attn_q_a", "q_a_proj"),
    ("attn_q_b", "q_b_proj"),
    ("attn_kv_a_mqa", "kv_a_proj_with_mqa"),
    ("attn_kv_b", "kv_b_proj"),
    ("ffn_gate", "gate_proj"),
    ("ffn_up", "up_proj"),
    ("ffn_down", "down_proj"),
    ("ffn_gate_inp", "gate"),
    ("ffn_gate_exps", "experts.gate_proj"),
    ("ffn_up_exps", "experts.up_proj"),
    ("ffn_down_exps", "experts.down_proj"),
    ("ffn_gate_shexp", "shared_experts.gate_proj"),
    ("ffn_up_shexp", "shared_experts.up_proj"),
    ("ffn_down_shexp", "shared_experts.down_proj"),
    ("experts.w1", "experts.gate_proj"),
    ("experts.w3", "experts.up_proj"),
    ("experts.w2", "experts.down_proj"),
];

/// The name without module prefix, layer and expert numbers, and `weight`.
fn short(name: &str) -> String {
    const DROPPED: [&str; 9] = [
        "model",
        "language_model",
        "layers",
        "blk",
        "weight",
        "self_attn",
        "mlp",
        "block_sparse_moe",
        "linear_attn",
    ];
    let kept: Vec<&str> = name
        .split('.')
        .filter(|part| part.parse::<u32>().is_err() && !DROPPED.contains(part))
        .collect();
    let name = kept.join(".");
    let (stem, bias) = match name.strip_suffix(".bias") {
        Some(stem) => (stem, ".bias"),
        None => (name.as_str(), ""),
    };
    let renamed = RENAMED.iter().find(|(from, _)| *from == stem);
    format!("{}{bias}", renamed.map_or(stem, |(_, to)| to))
}

fn split_of(name: &str, component: Component, shape: &ModelShape) -> Split {
    let kv = shape.caches.iter().find_map(|cache| match *cache {
        super::LayerCache::Full { heads, .. } | super::LayerCache::Sliding { heads, .. } => {
            Some(heads)
        }
        _ => None,
    });
    let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    match component {
        Component::Embedding | Component::Head => Split::Vocab,
        Component::Norms | Component::Router | Component::Vision | Component::Mtp => {
            Split::Replicated
        }
        _ if has(&["k_proj", "v_proj"]) => kv.map_or(Split::Rows, Split::KvHeads),
        _ if has(&["o_proj.bias", "down_proj.bias"]) => Split::Replicated,
        _ if has(&["o_proj", "out_proj", "ssm_out", "down_proj"]) => Split::Columns,
        _ if has(&["_a_proj", "indexer", "expert_gate", "gate_inp"]) => Split::Replicated,
        _ => Split::Rows,
    }
}

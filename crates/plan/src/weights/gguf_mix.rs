//! llama.cpp's mixes: which block format each tensor gets under `Q4_K_M` and its kin.
//!
//! The rules are those of `llama_tensor_get_type_impl` in llama.cpp's `src/llama-quant.cpp`,
//! without an importance matrix and without `--tensor-type` overrides. The `UD-` mixes are
//! Unsloth's for DeepSeek's models, as their makers describe them: the mix for routed experts, 4
//! bits for attention and embedding, 6 for what leads back into the residual stream and the head.

use std::collections::BTreeSet;

use GgmlType::*;

use super::GgmlType;
use crate::{Component, ModelShape, Role, Storage, TensorGroup};

/// Mixes by name and the format that tensors without a rule of their own get.
const MIXES: &[(&str, GgmlType)] = &[
    ("F32", F32),
    ("F16", F16),
    ("BF16", Bf16),
    ("Q8_0", Q8_0),
    ("Q6_K", Q6K),
    ("Q5_K_M", Q5K),
    ("Q5_K_S", Q5K),
    ("Q5_0", Q5_0),
    ("Q5_1", Q5_1),
    ("Q4_K_M", Q4K),
    ("Q4_K_S", Q4K),
    ("Q4_0", Q4_0),
    ("Q4_1", Q4_1),
    ("IQ4_NL", Iq4Nl),
    ("IQ4_XS", Iq4Xs),
    ("Q3_K_L", Q3K),
    ("Q3_K_M", Q3K),
    ("Q3_K_S", Q3K),
    ("IQ3_M", Iq3S),
    ("IQ3_S", Iq3S),
    ("IQ3_XS", Iq3S),
    ("IQ3_XXS", Iq3Xxs),
    ("Q2_K", Q2K),
    ("Q2_K_S", Q2K),
    ("IQ2_M", Iq2S),
    ("IQ2_S", Iq2Xs),
    ("IQ2_XS", Iq2Xs),
    ("IQ2_XXS", Iq2Xxs),
    ("IQ1_M", Iq1M),
    ("IQ1_S", Iq1S),
    ("MXFP4_MOE", Mxfp4),
    ("UD-IQ1_S", Iq1S),
    ("UD-Q2_K_XL", Q2K),
];

/// The mix of this name in llama.cpp's spelling; common short names are taken too.
pub(super) fn canonical(name: &str) -> Option<&'static str> {
    let wanted = match name.to_ascii_uppercase().as_str() {
        "Q4_K" => "Q4_K_M".to_owned(),
        "Q5_K" => "Q5_K_M".to_owned(),
        "Q3_K" => "Q3_K_M".to_owned(),
        "MXFP4" => "MXFP4_MOE".to_owned(),
        other => other.to_owned(),
    };
    MIXES.iter().map(|m| m.0).find(|mix| *mix == wanted)
}

/// Every mix.
pub(super) fn names() -> Vec<&'static str> {
    MIXES.iter().map(|m| m.0).collect()
}

/// Mixes with rules of their own for 1 and 2 bits.
const LOW_BITS: [&str; 6] = ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M"];

/// What the rules ask of a model.
struct Model {
    layers: u64,
    experts: u64,
    /// Query heads to a KV head.
    gqa: u64,
    tied: bool,
    /// llama.cpp's `LLM_TYPE_70B`: 80 layers of Llama's or Qwen's width.
    is_70b: bool,
    /// The GGUF holds queries, keys and values as one matrix.
    fused: bool,
}

/// Kinds of tensors that rules tell apart.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Output,
    Embedding,
    /// Values, alone or fused with others.
    Value,
    Key,
    Query,
    AttentionOutput,
    GateOrUp,
    Down,
    Other,
}

/// A tensor's place among those of its kind.
#[derive(Clone, Copy)]
struct Place {
    layer: u64,
    /// Layers with values before it, and all of them.
    value: (u64, u64),
    /// Down projections before it, those of shared experts counted too.
    down: u64,
}

/// The storage of every group, in the order of the shape's tensors; `None` for those that a GGUF
/// of the language model does not hold.
pub(super) fn storages(shape: &ModelShape, mix: &str) -> Vec<Option<Storage>> {
    let model = Model::of(shape);
    let mix = canonical(mix).unwrap_or("Q4_K_M");
    let base = MIXES.iter().find(|m| m.0 == mix).map_or(Q4K, |m| m.1);
    let held = |t: &TensorGroup| !matches!(t.component, Component::Mtp | Component::Vision);
    let with_values: BTreeSet<u32> = shape
        .tensors
        .iter()
        .filter(|t| held(t) && model.kind(t) == Kind::Value)
        .filter_map(|t| t.layer)
        .collect();
    let mut down = 0;
    shape
        .tensors
        .iter()
        .map(|group| {
            if !held(group) {
                return None;
            }
            let kind = model.kind(group);
            let layer = group.layer.unwrap_or(0);
            let place = Place {
                layer: u64::from(layer),
                value: (
                    with_values.range(..layer).count() as u64,
                    with_values.len() as u64,
                ),
                down,
            };
            down += u64::from(kind == Kind::Down);
            let format = model.format(group, kind, (mix, base), place);
            Some(Storage::Ggml(format))
        })
        .collect()
}

impl Model {
    fn of(shape: &ModelShape) -> Model {
        let kv = shape.caches.iter().find_map(|cache| match *cache {
            crate::LayerCache::Full { heads, .. } | crate::LayerCache::Sliding { heads, .. } => {
                Some(u64::from(heads))
            }
            _ => None,
        });
        let layers = shape.caches.len() as u64;
        Model {
            layers,
            experts: shape.num_experts,
            gqa: kv.map_or(1, |kv| shape.num_attention_heads / kv.max(1)),
            tied: !shape.tensors.iter().any(|t| t.component == Component::Head),
            is_70b: layers == 80 && matches!(shape.model_type.as_str(), "llama" | "qwen2"),
            fused: shape.model_type == "phi3",
        }
    }

    fn kind(&self, group: &TensorGroup) -> Kind {
        if group.role == Role::Kept {
            return Kind::Other;
        }
        match group.name.as_str() {
            "lm_head" => Kind::Output,
            "embed_tokens" => Kind::Embedding,
            "k_proj" | "q_proj" if self.fused => Kind::Value,
            "v_proj" | "kv_b_proj" | "in_proj_qkvz" => Kind::Value,
            "k_proj" => Kind::Key,
            "q_proj" => Kind::Query,
            "o_proj" => Kind::AttentionOutput,
            name if name.ends_with("down_proj") => Kind::Down,
            name if name.ends_with("gate_proj") || name.ends_with("up_proj") => Kind::GateOrUp,
            _ => Kind::Other,
        }
    }

    /// The format of a group. What is not a matrix of a linear layer or a table stays in 32 bits.
    fn format(
        &self,
        group: &TensorGroup,
        kind: Kind,
        (mix, base): (&str, GgmlType),
        place: Place,
    ) -> GgmlType {
        if group.role == Role::Kept || group.rows == 1 {
            return F32;
        }
        if matches!(base, F32 | F16 | Bf16) {
            return base;
        }
        let chosen = match kind {
            Kind::Output => output(mix, base, group.columns),
            Kind::Embedding if self.tied => output(mix, base, group.columns),
            _ if mix == "MXFP4_MOE" => match group.component {
                Component::RoutedExperts => Mxfp4,
                _ => Q8_0,
            },
            _ if mix.starts_with("UD-") => self.dynamic(group, kind, base, place),
            Kind::Embedding => embedding(mix, base),
            _ if LOW_BITS.contains(&mix) => self.low_bit(kind, mix, base, place),
            Kind::Value => self.value(mix, base, place),
            Kind::Key | Kind::Query => self.key_or_query(kind, mix, base),
            Kind::Down => self.down(mix, base, place),
            Kind::GateOrUp => self.gate_or_up(mix, base, place),
            Kind::AttentionOutput => self.attention_output(mix, base),
            Kind::Other => base,
        };
        fitting(chosen, group.columns)
    }

    /// Unsloth's: experts in the mix, the down projections of the first eighth in more.
    fn dynamic(&self, group: &TensorGroup, kind: Kind, base: GgmlType, place: Place) -> GgmlType {
        match (group.component, kind) {
            (Component::RoutedExperts, Kind::Down) if place.layer < self.layers / 8 => {
                if base == Q2K { Q3K } else { Q2K }
            }
            (Component::RoutedExperts, _) => base,
            (_, Kind::Down) => Q6K,
            _ => Q4K,
        }
    }

    /// Attention and down projections of the mixes at 1 and 2 bits.
    fn low_bit(&self, kind: Kind, mix: &str, base: GgmlType, place: Place) -> GgmlType {
        let larger = matches!(mix, "IQ2_S" | "IQ2_M");
        match kind {
            Kind::Value if self.gqa >= 4 || self.experts >= 4 => Q4K,
            Kind::Value if larger => Iq3S,
            Kind::Value => Q2K,
            Kind::Key if self.experts == 8 => Q4K,
            Kind::Down if place.down < self.layers / 8 => {
                if larger {
                    Iq3S
                } else {
                    Q2K
                }
            }
            Kind::AttentionOutput if self.experts == 8 => Q5K,
            Kind::AttentionOutput if matches!(mix, "IQ1_S" | "IQ1_M") => Iq2Xxs,
            Kind::AttentionOutput if larger => Iq3S,
            _ => base,
        }
    }

    fn value(&self, mix: &str, base: GgmlType, place: Place) -> GgmlType {
        let (index, count) = place.value;
        let grouped = self.gqa >= 4;
        let chosen = match mix {
            "Q2_K" if grouped => Q4K,
            "Q2_K" => Q3K,
            "Q2_K_S" if grouped => Q4K,
            "IQ3_XXS" if grouped => Q4K,
            "IQ3_XXS" => Iq3S,
            "IQ3_XS" | "IQ3_S" if grouped => Q4K,
            "IQ3_M" => Q4K,
            "Q3_K_M" if index < 2 => Q5K,
            "Q3_K_M" => Q4K,
            "Q3_K_L" => Q5K,
            "IQ4_NL" | "IQ4_XS" if grouped => Q5K,
            "Q4_K_M" | "Q5_K_M" if more_bits(index, count) => Q6K,
            "Q4_K_S" if index < 4 => Q5K,
            _ => base,
        };
        let chosen = match chosen {
            Q3K | Q4K if self.is_70b => Q5K,
            other => other,
        };
        if self.experts == 8 { Q8_0 } else { chosen }
    }

    fn key_or_query(&self, kind: Kind, mix: &str, base: GgmlType) -> GgmlType {
        match mix {
            _ if kind == Kind::Key && self.experts == 8 => Q8_0,
            "IQ3_XS" => Iq3Xxs,
            "IQ3_XXS" => Iq2S,
            _ => base,
        }
    }

    fn gate_or_up(&self, mix: &str, base: GgmlType, place: Place) -> GgmlType {
        let middle = self.layers / 8..7 * self.layers / 8;
        match mix {
            "IQ3_XS" if middle.contains(&place.layer) => Iq3Xxs,
            _ => base,
        }
    }

    fn down(&self, mix: &str, base: GgmlType, place: Place) -> GgmlType {
        let (layer, layers) = (place.layer, self.layers);
        let early = layer < layers / 8;
        let more = more_bits(layer, layers);
        match mix {
            "Q2_K" => Q3K,
            "Q2_K_S" if early => Q4K,
            "IQ3_XXS" if early => Q4K,
            "IQ3_XXS" => Q3K,
            "Q3_K_M" if layer < layers / 16 => Q5K,
            "Q3_K_M" => Q4K,
            "IQ3_M" if early || (self.experts == 8 && more) => Q4K,
            "Q3_K_L" => Q5K,
            "Q4_K_M" | "Q5_K_M" if more => Q6K,
            "IQ4_NL" | "IQ4_XS" | "Q4_K_S" if early => Q5K,
            _ => base,
        }
    }

    fn attention_output(&self, mix: &str, base: GgmlType) -> GgmlType {
        if self.experts == 8 {
            return match mix {
                "Q2_K" | "IQ3_XS" | "IQ3_XXS" | "Q3_K_S" | "Q3_K_M" | "IQ4_NL" | "Q4_K_S"
                | "Q4_K_M" | "IQ3_S" | "IQ3_M" | "IQ4_XS" => Q5K,
                _ => base,
            };
        }
        match mix {
            "Q2_K" => Q3K,
            "IQ3_XXS" => Iq3S,
            "Q3_K_M" | "IQ3_M" => Q4K,
            "Q3_K_L" => Q5K,
            _ => base,
        }
    }
}

/// The head, or the table that serves as one.
fn output(mix: &str, base: GgmlType, columns: u64) -> GgmlType {
    match mix {
        "MXFP4_MOE" | "Q8_0" => Q8_0,
        _ if !columns.is_multiple_of(base.block()) => Q8_0,
        "UD-IQ1_S" | "UD-Q2_K_XL" => Q6K,
        "IQ2_XXS" | "IQ2_XS" | "IQ2_S" | "IQ2_M" | "IQ3_XXS" | "IQ1_S" | "IQ1_M" => Q5K,
        _ if base == Q8_0 => Q8_0,
        _ => Q6K,
    }
}

fn embedding(mix: &str, base: GgmlType) -> GgmlType {
    match mix {
        "IQ2_XXS" | "IQ2_XS" | "IQ1_S" | "IQ1_M" => Q2K,
        "IQ2_S" | "IQ2_M" | "IQ3_XXS" => Iq3S,
        _ => base,
    }
}

/// The first and last eighth of the layers and every third between.
fn more_bits(index: u64, count: u64) -> bool {
    let eighth = count / 8;
    index < eighth || index >= 7 * count / 8 || (index - eighth) % 3 == 2
}

/// What a format falls back to when its blocks do not divide a row.
fn fitting(chosen: GgmlType, columns: u64) -> GgmlType {
    if columns.is_multiple_of(chosen.block()) {
        return chosen;
    }
    let smaller = match chosen {
        Q2K | Q3K | Tq1_0 | Tq2_0 => Q4_0,
        Q4K => Q5_0,
        Q5K => Q5_1,
        Q6K => Q8_0,
        Iq1S | Iq1M | Iq2Xxs | Iq2Xs | Iq2S | Iq3Xxs | Iq3S | Iq4Xs => Iq4Nl,
        other => other,
    };
    if columns.is_multiple_of(smaller.block()) {
        smaller
    } else {
        F16
    }
}

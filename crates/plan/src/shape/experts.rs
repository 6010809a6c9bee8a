//! Tensors of feed-forwards: dense, routed and shared.

use scrimp_model::ConfigError;
use scrimp_model::fields::{Fields, MAX_EXPERTS, MAX_INTERMEDIATE, MAX_LAYERS};
use serde_json::{Map, Value};

use super::builder::{Builder, Matrix};
use super::families::{Family, Shared};
use super::{Component, Split};

/// Routed and shared experts of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Experts {
    pub count: u64,
    pub per_token: u64,
    /// Width of one routed expert.
    pub width: u64,
    /// Width of all shared experts together.
    pub shared: u64,
}

impl Experts {
    /// Reads them under any of the families' names; `None` for a dense model.
    pub(super) fn read(
        family: &Family,
        fields: &Fields<'_>,
    ) -> Result<Option<Experts>, ConfigError> {
        let names = ["n_routed_experts", "num_experts", "num_local_experts"];
        let Some(key) = names.into_iter().find(|key| fields.has(key)) else {
            return Ok(None);
        };
        let count = match fields.count(key, 0, MAX_EXPERTS)? {
            None | Some(0) => return Ok(None),
            Some(count) => count,
        };
        let chosen = ["num_experts_per_tok", "experts_per_token"]
            .into_iter()
            .find(|key| fields.has(key))
            .unwrap_or("num_experts_per_tok");
        let per_token = fields.required(chosen, MAX_EXPERTS)?;
        if per_token > count {
            return Err(ConfigError::Contradiction {
                first: "num_experts_per_tok",
                first_value: per_token,
                second: "num_experts",
                second_value: count,
                rule: "a token cannot use more experts than there are",
            });
        }
        let width = fields.required(family.expert_width, MAX_INTERMEDIATE)? as u64;
        let shared = match family.shared {
            Shared::None => 0,
            Shared::Same => width,
            Shared::Count => {
                fields
                    .count("n_shared_experts", 0, MAX_EXPERTS)?
                    .unwrap_or(0) as u64
                    * width
            }
            Shared::Gated => fields
                .count("shared_expert_intermediate_size", 0, MAX_INTERMEDIATE)?
                .unwrap_or(0) as u64,
        };
        Ok(Some(Experts {
            count: count as u64,
            per_token: per_token as u64,
            width,
            shared,
        }))
    }

    /// Tensors of one layer.
    pub(super) fn add(&self, builder: &mut Builder<'_>, family: &Family, hidden: u64) {
        let matrix = |component, path, rows, columns, split| Matrix {
            component,
            path,
            rows,
            columns,
            split,
        };
        builder.kept(matrix(
            Component::Router,
            "mlp.gate",
            self.count,
            hidden,
            Split::Replicated,
        ));
        if family.correction_bias {
            builder.f32_vector(
                Component::Router,
                "mlp.gate.e_score_correction_bias",
                self.count,
                Split::Replicated,
            );
        }
        let routed = Component::RoutedExperts;
        for (path, rows, columns, split) in [
            ("mlp.experts.gate_proj", self.width, hidden, Split::Rows),
            ("mlp.experts.up_proj", self.width, hidden, Split::Rows),
            ("mlp.experts.down_proj", hidden, self.width, Split::Columns),
        ] {
            let one = matrix(routed, path, rows, columns, split);
            builder.linears(one, self.count, self.per_token);
        }
        if family.expert_bias {
            self.add_biases(builder, hidden);
        }
        if self.shared > 0 {
            self.add_shared(builder, family, hidden);
        }
    }

    fn add_biases(&self, builder: &mut Builder<'_>, hidden: u64) {
        builder.vector(
            Component::Router,
            "mlp.gate.bias",
            self.count,
            Split::Replicated,
        );
        for (path, columns, split) in [
            ("mlp.experts.gate_proj.bias", self.width, Split::Rows),
            ("mlp.experts.up_proj.bias", self.width, Split::Rows),
            ("mlp.experts.down_proj.bias", hidden, Split::Replicated),
        ] {
            let one = Matrix {
                component: Component::RoutedExperts,
                path,
                rows: 1,
                columns,
                split,
            };
            builder.vectors(one, self.count, self.per_token);
        }
    }

    fn add_shared(&self, builder: &mut Builder<'_>, family: &Family, hidden: u64) {
        for (path, rows, columns, split) in [
            (
                "mlp.shared_experts.gate_proj",
                self.shared,
                hidden,
                Split::Rows,
            ),
            (
                "mlp.shared_experts.up_proj",
                self.shared,
                hidden,
                Split::Rows,
            ),
            (
                "mlp.shared_experts.down_proj",
                hidden,
                self.shared,
                Split::Columns,
            ),
        ] {
            builder.linear(Matrix {
                component: Component::SharedExperts,
                path,
                rows,
                columns,
                split,
            });
        }
        if family.shared == Shared::Gated {
            builder.kept(Matrix {
                component: Component::SharedExperts,
                path: "mlp.shared_expert_gate",
                rows: 1,
                columns: hidden,
                split: Split::Replicated,
            });
        }
    }
}

/// Which layers have experts.
#[derive(Clone, Debug)]
pub(super) struct ExpertLayers {
    /// Layer by layer, where the config lists them.
    listed: Option<Vec<bool>>,
    dense_first: u64,
    step: u64,
    dense: Vec<u64>,
}

impl ExpertLayers {
    pub(super) fn read(
        config: &Map<String, Value>,
        fields: &Fields<'_>,
        layers: usize,
    ) -> Result<ExpertLayers, ConfigError> {
        let dense_first = fields.count("first_k_dense_replace", 0, MAX_LAYERS)?;
        let mut step = 1;
        for key in [
            "decoder_sparse_step",
            "moe_layer_freq",
            "interleave_moe_layer_step",
        ] {
            step = fields.count(key, 1, MAX_LAYERS)?.unwrap_or(step);
        }
        let dense = match config.get("mlp_only_layers") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(layers)) => layers
                .iter()
                .map(|layer| layer.as_u64())
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| fields.error("mlp_only_layers", "a list of layer numbers"))?,
            Some(_) => return Err(fields.error("mlp_only_layers", "a list of layer numbers")),
        };
        let listed = match config.get("mlp_layer_types") {
            Some(Value::Array(kinds)) if kinds.len() == layers => {
                Some(kinds.iter().map(|kind| kind == "sparse").collect())
            }
            None | Some(Value::Null) => None,
            Some(_) => {
                let allowed = "a list with \"dense\" or \"sparse\" for each layer";
                return Err(fields.error("mlp_layer_types", allowed));
            }
        };
        Ok(ExpertLayers {
            listed,
            dense_first: dense_first.unwrap_or(0) as u64,
            step: step as u64,
            dense,
        })
    }

    /// Whether layer `index` has experts, by DeepSeek's rule (`first_k_dense_replace`,
    /// `moe_layer_freq`) where it is used and by Qwen's otherwise; with a step of 1 both agree.
    pub(super) fn has(&self, index: u64, deepseek: bool) -> bool {
        if let Some(listed) = &self.listed {
            // Prediction layers come after the list and have experts.
            return listed.get(index as usize).copied().unwrap_or(true);
        }
        let at = if deepseek { index } else { index + 1 };
        index >= self.dense_first && at.is_multiple_of(self.step) && !self.dense.contains(&index)
    }
}

/// A dense feed-forward of one layer.
pub(super) fn add_dense(
    builder: &mut Builder<'_>,
    family: &Family,
    fields: &Fields<'_>,
    hidden: u64,
) -> Result<(), ConfigError> {
    let width = fields.required(family.dense_width, MAX_INTERMEDIATE)? as u64;
    let parts: &[(&'static str, &'static str, bool)] = if family.gated_mlp {
        &[
            ("mlp.gate_proj", "mlp.gate_proj.bias", true),
            ("mlp.up_proj", "mlp.up_proj.bias", true),
            ("mlp.down_proj", "mlp.down_proj.bias", false),
        ]
    } else {
        &[
            ("mlp.up_proj", "mlp.up_proj.bias", true),
            ("mlp.down_proj", "mlp.down_proj.bias", false),
        ]
    };
    let bias = family.mlp_bias.read(fields)?;
    for &(path, bias_path, up) in parts {
        let (rows, columns, split) = if up {
            (width, hidden, Split::Rows)
        } else {
            (hidden, width, Split::Columns)
        };
        builder.linear(Matrix {
            component: Component::DenseMlp,
            path,
            rows,
            columns,
            split,
        });
        if bias {
            let split = if up { Split::Rows } else { Split::Replicated };
            builder.vector(Component::DenseMlp, bias_path, rows, split);
        }
    }
    Ok(())
}

//! Vision towers and projectors of the wrappers around known language models.
//!
//! A tower is patches, positions, encoder layers and a projector; a table of [`Tower`] fields holds
//! what differs. A tower of an unknown kind is read as a plain encoder, which is near enough for
//! the share it has in such models.

use scrimp_model::ConfigError;
use scrimp_model::fields::{Fields, MAX_INTERMEDIATE, MAX_LAYERS, MAX_WIDTH};
use serde_json::Value;

use super::builder::{Builder, Matrix};
use super::config::Source;
use super::{Component, Split};

const VISION: Component = Component::Vision;

/// An encoder over patches of an image.
#[derive(Clone, Copy, Debug)]
struct Tower {
    hidden: u64,
    layers: u64,
    width: u64,
    /// Values in a patch: channels × height × width (× frames).
    patch: u64,
    /// Rows of the table of positions; 0 where positions are rotated alone.
    positions: u64,
    /// Projections have biases.
    biases: bool,
    /// Patches have a bias.
    patch_bias: bool,
    /// Norms have biases.
    norm_bias: bool,
    /// Three matrices in a feed-forward, not two.
    gated: bool,
    /// Norms of the whole tower, before and after its layers.
    norms: u64,
    /// A pooling head of one more layer with its query (SigLIP's).
    pooling: bool,
    /// One position more, with an embedding of its own (CLIP).
    class_token: bool,
}

/// What joins a tower to the language model: matrices (rows, columns), norms and whether both have
/// biases.
#[derive(Clone, Debug, Default)]
struct Projector {
    matrices: Vec<(u64, u64)>,
    vectors: Vec<u64>,
    biases: bool,
}

/// Adds the tower and projector that the config's `vision_config` describes.
pub(super) fn add(
    builder: &mut Builder<'_>,
    source: &Source,
    hidden: u64,
) -> Result<(), ConfigError> {
    let config = match source.outer.get("vision_config") {
        Some(Value::Object(config)) => config,
        _ => return Ok(()),
    };
    let fields = Fields::Json(config, "vision_config.");
    let outer = Fields::Json(&source.outer, "");
    let kind = fields.text("model_type")?.unwrap_or_default();
    let wrapper = outer.text("model_type")?.unwrap_or_default();
    let tower = Tower::read(&fields, &kind, &wrapper)?;
    let projector = Projector::read(&fields, &outer, &wrapper, &tower, hidden)?;
    builder.enter_part(VISION, "vision_tower.");
    tower.add(builder);
    builder.enter_part(VISION, "multi_modal_projector.");
    projector.add(builder);
    Ok(())
}

/// The first of these keys that is there, as an extent.
fn extent(fields: &Fields<'_>, keys: &[&str], most: usize) -> Result<u64, ConfigError> {
    let key = keys.iter().find(|key| fields.has(key)).unwrap_or(&keys[0]);
    Ok(fields.required(key, most)? as u64)
}

impl Tower {
    fn read(fields: &Fields<'_>, kind: &str, wrapper: &str) -> Result<Tower, ConfigError> {
        let channels = fields.extent("num_channels", 3, 64)?;
        let frames = fields.extent("temporal_patch_size", 1, 64)?;
        let side = fields.extent("patch_size", 14, 1024)?;
        let image = fields.extent("image_size", 0, 1 << 16)?;
        let table = ["num_position_embeddings", "init_pos_emb_height"]
            .into_iter()
            .find(|key| fields.has(key));
        let positions = match table {
            Some("init_pos_emb_height") => {
                fields.required("init_pos_emb_height", 1 << 12)?
                    * fields.required("init_pos_emb_width", 1 << 12)?
            }
            Some(key) => fields.required(key, 1 << 24)?,
            None if kind == "moonvit" => 64 * 64,
            None => (image / side) * (image / side),
        };
        let pixtral = kind == "pixtral";
        // Qwen2.5-VL: rotated positions, gated feed-forwards with biases, norms without.
        let gated = pixtral || wrapper == "qwen2_5_vl";
        let class_token = matches!(kind, "clip_vision_model" | "llama4_vision_model");
        let hidden = extent(fields, &["hidden_size", "vt_hidden_size"], MAX_WIDTH)?;
        Ok(Tower {
            hidden,
            layers: extent(
                fields,
                &["num_hidden_layers", "vt_num_hidden_layers", "depth"],
                MAX_LAYERS,
            )?,
            width: extent(
                fields,
                &["intermediate_size", "vt_intermediate_size"],
                MAX_INTERMEDIATE,
            )?,
            patch: (channels * frames * side * side) as u64,
            positions: if gated { 0 } else { positions as u64 },
            biases: !pixtral,
            patch_bias: !gated && !class_token,
            norm_bias: !gated,
            gated,
            norms: match class_token {
                true => 2,
                false => u64::from(!wrapper.starts_with("qwen")),
            },
            pooling: kind.starts_with("siglip")
                && wrapper != "gemma3"
                && fields.flag("vision_use_head", true)?,
            class_token,
        })
    }

    fn add(&self, builder: &mut Builder<'_>) {
        let h = self.hidden;
        linear(
            builder,
            "visual.patch_embed",
            h,
            self.patch,
            Split::Replicated,
        );
        vector(
            builder,
            "visual.patch_embed.bias",
            u64::from(self.patch_bias) * h,
        );
        // A position and an embedding of its own.
        let positions = self.positions + 2 * u64::from(self.class_token);
        if positions > 0 {
            builder.table(VISION, "visual.positions", positions, h);
        }
        for _ in 0..self.layers {
            self.add_layer(builder);
        }
        vector(
            builder,
            "visual.norm",
            self.norms * h * (1 + u64::from(self.norm_bias)),
        );
        if self.pooling {
            vector(builder, "visual.probe", h);
            linear(builder, "visual.head.in_proj", 3 * h, h, Split::Replicated);
            linear(builder, "visual.head.out_proj", h, h, Split::Replicated);
            linear(builder, "visual.head.fc1", self.width, h, Split::Replicated);
            linear(builder, "visual.head.fc2", h, self.width, Split::Replicated);
            // Queries, keys, values, output, the last matrix and a norm; the first matrix.
            vector(builder, "visual.head.biases", 7 * h + self.width);
        }
    }

    fn add_layer(&self, builder: &mut Builder<'_>) {
        let (h, width) = (self.hidden, self.width);
        linear(builder, "visual.qkv", 3 * h, h, Split::Rows);
        linear(builder, "visual.proj", h, h, Split::Columns);
        linear(builder, "visual.fc1", width, h, Split::Rows);
        if self.gated {
            linear(builder, "visual.gate", width, h, Split::Rows);
        }
        linear(builder, "visual.fc2", h, width, Split::Columns);
        vector(
            builder,
            "visual.norms",
            2 * h * (1 + u64::from(self.norm_bias)),
        );
        if self.biases {
            // Queries, keys, values, output and the last matrix; the first ones.
            vector(
                builder,
                "visual.biases",
                5 * h + width * (1 + u64::from(self.gated)),
            );
        }
    }
}

impl Projector {
    /// By wrapper: what each one's modelling code builds.
    fn read(
        fields: &Fields<'_>,
        outer: &Fields<'_>,
        wrapper: &str,
        tower: &Tower,
        hidden: u64,
    ) -> Result<Projector, ConfigError> {
        let from = tower.hidden;
        Ok(match wrapper {
            "gemma3" => Projector {
                matrices: vec![(hidden, from)],
                vectors: vec![from],
                biases: false,
            },
            "mistral3" => {
                let merge = outer.extent("spatial_merge_size", 2, 16)? as u64;
                Projector {
                    matrices: vec![
                        (from, merge * merge * from),
                        (hidden, from),
                        (hidden, hidden),
                    ],
                    // The norm before the layers, and the projector's.
                    vectors: vec![from],
                    biases: outer.flag("multimodal_projector_bias", false)?,
                }
            }
            "llava_next" | "llava" => {
                // One layer of the tower, or a list of them side by side.
                let picked = list_length(outer, "vision_feature_layer").max(1);
                Projector {
                    matrices: vec![(hidden, picked * from), (hidden, hidden)],
                    vectors: vec![if wrapper == "llava_next" { hidden } else { 0 }],
                    biases: outer.flag("multimodal_projector_bias", true)?,
                }
            }
            "llama4" => {
                let inner = fields.required("projector_input_dim", MAX_WIDTH)? as u64;
                let out = fields.required("vision_output_dim", MAX_WIDTH)? as u64;
                Projector {
                    matrices: vec![(inner, 4 * from), (out, inner), (hidden, out)],
                    ..Projector::default()
                }
            }
            // Patches merged two by two: Kimi's and Qwen's.
            _ => {
                let merged = match fields.count("spatial_merge_size", 1, 16)? {
                    Some(side) => (side * side) as u64 * from,
                    None => 4 * from,
                };
                let out = fields.extent("out_hidden_size", hidden as usize, MAX_WIDTH)? as u64;
                let mut projector = Projector {
                    matrices: vec![(merged, merged), (out, merged)],
                    vectors: vec![from * (1 + u64::from(tower.norm_bias))],
                    biases: true,
                };
                // Qwen3-VL has one more for each layer that it also takes features from.
                for _ in 0..list_length(fields, "deepstack_visual_indexes") {
                    projector.matrices.extend([(merged, merged), (out, merged)]);
                    projector.vectors.push(2 * merged);
                }
                projector
            }
        })
    }

    fn add(&self, builder: &mut Builder<'_>) {
        for &(rows, columns) in &self.matrices {
            linear(
                builder,
                "visual.projector",
                rows,
                columns,
                Split::Replicated,
            );
            if self.biases {
                vector(builder, "visual.projector.bias", rows);
            }
        }
        for &length in &self.vectors {
            vector(builder, "visual.projector.norm", length);
        }
    }
}

/// The length of a list; 0 where there is none.
fn list_length(fields: &Fields<'_>, key: &str) -> u64 {
    match fields {
        Fields::Json(map, _) => map
            .get(key)
            .and_then(Value::as_array)
            .map_or(0, |list| list.len().min(MAX_LAYERS) as u64),
        Fields::Gguf(..) => 0,
    }
}

fn linear(builder: &mut Builder<'_>, path: &'static str, rows: u64, columns: u64, split: Split) {
    builder.linear(Matrix {
        component: VISION,
        path,
        rows,
        columns,
        split,
    });
}

fn vector(builder: &mut Builder<'_>, path: &'static str, length: u64) {
    if length > 0 {
        builder.vector(VISION, path, length, Split::Replicated);
    }
}

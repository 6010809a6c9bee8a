//! Tensors of softmax attention: grouped heads, and DeepSeek's latent with or without an indexer.

use scrimp_model::ConfigError;
use scrimp_model::fields::{Fields, MAX_HEADS, MAX_LAYERS, MAX_WIDTH};
use serde_json::{Map, Value};

use super::builder::{Builder, Matrix};
use super::families::{Family, QkNorm};
use super::{Component, Split};

/// Heads of grouped-query attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Heads {
    pub query: u64,
    pub kv: u64,
    /// Values in a head.
    pub dim: u64,
}

impl Heads {
    /// Reads heads; what only the projections need (`hidden_size`, query heads) may be absent when
    /// `head_dim` is given.
    pub(super) fn read(fields: &Fields<'_>) -> Result<Heads, ConfigError> {
        let query = fields.count("num_attention_heads", 1, MAX_HEADS)?;
        let kv = match (fields.count("num_key_value_heads", 1, MAX_HEADS)?, query) {
            (Some(kv), _) => kv,
            (None, Some(query)) => query,
            (None, None) => fields.required("num_key_value_heads", MAX_HEADS)?,
        };
        let dim = match fields.count("head_dim", 1, MAX_HEADS)? {
            Some(dim) => dim,
            None => {
                let hidden = fields.required("hidden_size", MAX_WIDTH)?;
                let heads = fields.required("num_attention_heads", MAX_HEADS)?;
                if hidden % heads != 0 {
                    return Err(ConfigError::Contradiction {
                        first: "hidden_size",
                        first_value: hidden,
                        second: "num_attention_heads",
                        second_value: heads,
                        rule: "without head_dim the heads have to divide the width",
                    });
                }
                hidden / heads
            }
        };
        let query = query.unwrap_or(kv);
        if !query.is_multiple_of(kv) {
            return Err(ConfigError::Contradiction {
                first: "num_attention_heads",
                first_value: query,
                second: "num_key_value_heads",
                second_value: kv,
                rule: "key-value heads have to divide the query heads",
            });
        }
        Ok(Heads {
            query: query as u64,
            kv: kv as u64,
            dim: dim as u64,
        })
    }

    fn split(&self) -> Split {
        Split::KvHeads(self.kv as u32)
    }
}

/// Sizes of latent attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Latent {
    pub heads: u64,
    pub q_rank: Option<u64>,
    pub rank: u64,
    pub nope: u64,
    pub rope: u64,
    pub value: u64,
    /// Heads and width of the indexer's keys (DeepSeek-V3.2).
    pub index: Option<(u64, u64)>,
}

impl Latent {
    pub(super) fn read(fields: &Fields<'_>) -> Result<Latent, ConfigError> {
        let index = match fields.count("index_head_dim", 1, MAX_HEADS)? {
            Some(dim) => Some((
                fields.required("index_n_heads", MAX_HEADS)? as u64,
                dim as u64,
            )),
            None => None,
        };
        Ok(Latent {
            heads: fields.required("num_attention_heads", MAX_HEADS)? as u64,
            q_rank: fields.count("q_lora_rank", 1, MAX_WIDTH)?.map(|v| v as u64),
            rank: fields.required("kv_lora_rank", MAX_WIDTH)? as u64,
            nope: fields.required("qk_nope_head_dim", MAX_HEADS)? as u64,
            rope: fields.required("qk_rope_head_dim", MAX_HEADS)? as u64,
            value: fields.required("v_head_dim", MAX_HEADS)? as u64,
            index,
        })
    }
}

/// Which layers have an indexer of their own; the others use the choice of the last one that has
/// (GLM-5.2): by `indexer_types`, or every `index_topk_freq`-th from `index_skip_topk_offset` on.
pub(super) fn indexed_layers(
    config: &Map<String, Value>,
    fields: &Fields<'_>,
    layers: usize,
) -> Result<Vec<bool>, ConfigError> {
    match config.get("indexer_types") {
        Some(Value::Array(kinds)) if kinds.len() == layers => {
            return Ok(kinds.iter().map(|kind| kind != "shared").collect());
        }
        None | Some(Value::Null) => {}
        Some(_) => {
            let allowed = "a list with \"full\" or \"shared\" for each layer";
            return Err(fields.error("indexer_types", allowed));
        }
    }
    let every = fields.extent("index_topk_freq", 1, MAX_LAYERS)?;
    let offset = fields
        .count("index_skip_topk_offset", 0, MAX_LAYERS)?
        .unwrap_or(2);
    Ok((0..layers)
        .map(|layer| (layer + 1).saturating_sub(offset).is_multiple_of(every))
        .collect())
}

const PROJECTIONS: Component = Component::Attention;

fn projection(path: &'static str, rows: u64, columns: u64, split: Split) -> Matrix {
    Matrix {
        component: PROJECTIONS,
        path,
        rows,
        columns,
        split,
    }
}

/// Grouped-query attention of one layer.
pub(super) fn add_heads(
    builder: &mut Builder<'_>,
    family: &Family,
    fields: &Fields<'_>,
    hidden: u64,
) -> Result<(), ConfigError> {
    let heads = Heads::read(fields)?;
    if fields.count("num_attention_heads", 1, MAX_HEADS)?.is_none() {
        fields.required("num_attention_heads", MAX_HEADS)?;
    }
    let width = heads.query * heads.dim;
    let kv = heads.kv * heads.dim;
    let q_rows = if family.gated_attention {
        2 * width
    } else {
        width
    };
    let kv_split = heads.split();
    builder.linear(projection("self_attn.q_proj", q_rows, hidden, Split::Rows));
    builder.linear(projection("self_attn.k_proj", kv, hidden, kv_split));
    builder.linear(projection("self_attn.v_proj", kv, hidden, kv_split));
    builder.linear(projection(
        "self_attn.o_proj",
        hidden,
        width,
        Split::Columns,
    ));
    if family.qkv_bias.read(fields)? {
        builder.vector(PROJECTIONS, "self_attn.q_proj.bias", q_rows, Split::Rows);
        builder.vector(PROJECTIONS, "self_attn.k_proj.bias", kv, kv_split);
        builder.vector(PROJECTIONS, "self_attn.v_proj.bias", kv, kv_split);
    }
    if family.o_bias.read(fields)? {
        builder.vector(
            PROJECTIONS,
            "self_attn.o_proj.bias",
            hidden,
            Split::Replicated,
        );
    }
    if family.sinks {
        builder.vector(
            Component::Norms,
            "self_attn.sinks",
            heads.query,
            Split::Rows,
        );
    }
    let (q_norm, k_norm) = match family.qk_norm {
        QkNorm::None => (0, 0),
        QkNorm::PerHead => (heads.dim, heads.dim),
        QkNorm::Whole => (width, kv),
        QkNorm::Key(key) if fields.flag(key, false)? => (heads.dim, heads.dim),
        QkNorm::WholeKey(key) if fields.flag(key, false)? => (width, kv),
        QkNorm::Key(_) | QkNorm::WholeKey(_) => (0, 0),
    };
    if q_norm > 0 {
        builder.vector(
            Component::Norms,
            "self_attn.q_norm",
            q_norm,
            Split::Replicated,
        );
        builder.vector(
            Component::Norms,
            "self_attn.k_norm",
            k_norm,
            Split::Replicated,
        );
    }
    Ok(())
}

/// Latent attention of one layer.
pub(super) fn add_latent(
    builder: &mut Builder<'_>,
    fields: &Fields<'_>,
    hidden: u64,
    indexed: bool,
) -> Result<(), ConfigError> {
    let latent = Latent::read(fields)?;
    let bias = fields.flag("attention_bias", false)?;
    let q_rows = latent.heads * (latent.nope + latent.rope);
    let kv_a = latent.rank + latent.rope;
    let kv_b = latent.heads * (latent.nope + latent.value);
    let values = latent.heads * latent.value;
    let whole = Split::Replicated;
    match latent.q_rank {
        Some(rank) => {
            builder.linear(projection("self_attn.q_a_proj", rank, hidden, whole));
            builder.vector(Component::Norms, "self_attn.q_a_layernorm", rank, whole);
            builder.linear(projection("self_attn.q_b_proj", q_rows, rank, Split::Rows));
            if bias {
                builder.vector(PROJECTIONS, "self_attn.q_a_proj.bias", rank, whole);
            }
        }
        None => builder.linear(projection("self_attn.q_proj", q_rows, hidden, Split::Rows)),
    }
    builder.linear(projection(
        "self_attn.kv_a_proj_with_mqa",
        kv_a,
        hidden,
        whole,
    ));
    builder.vector(
        Component::Norms,
        "self_attn.kv_a_layernorm",
        latent.rank,
        whole,
    );
    builder.linear(projection(
        "self_attn.kv_b_proj",
        kv_b,
        latent.rank,
        Split::Rows,
    ));
    builder.linear(projection(
        "self_attn.o_proj",
        hidden,
        values,
        Split::Columns,
    ));
    if bias {
        builder.vector(
            PROJECTIONS,
            "self_attn.kv_a_proj_with_mqa.bias",
            kv_a,
            whole,
        );
        builder.vector(PROJECTIONS, "self_attn.o_proj.bias", hidden, whole);
    }
    if let Some((heads, dim)) = latent.index.filter(|_| indexed) {
        add_indexer(builder, hidden, latent.q_rank.unwrap_or(hidden), heads, dim);
    }
    Ok(())
}

/// The indexer of DeepSeek-V3.2: queries from the query latent, one key a token, a weight a head.
fn add_indexer(builder: &mut Builder<'_>, hidden: u64, q_rank: u64, heads: u64, dim: u64) {
    let whole = Split::Replicated;
    builder.linear(projection(
        "self_attn.indexer.wq_b",
        heads * dim,
        q_rank,
        whole,
    ));
    builder.linear(projection("self_attn.indexer.wk", dim, hidden, whole));
    builder.kept(projection(
        "self_attn.indexer.weights_proj",
        heads,
        hidden,
        whole,
    ));
    builder.vector(
        Component::Norms,
        "self_attn.indexer.k_norm.weight",
        dim,
        whole,
    );
    builder.vector(
        Component::Norms,
        "self_attn.indexer.k_norm.bias",
        dim,
        whole,
    );
}

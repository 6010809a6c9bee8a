//! What each layer keeps for a sequence, from the few keys of a config that say so.

use scrimp_model::ConfigError;
use scrimp_model::fields::{Fields, MAX_CONTEXT, MAX_LAYERS};
use serde_json::Value;

use super::LayerCache;
use super::attention::{Heads, Latent, indexed_layers};
use super::config::Source;
use super::families::{Family, Windows};
use super::linear_attention::DeltaNet;
use crate::Error;

/// What each layer keeps, first to last, from a `config.json` that may lack everything else:
/// `num_hidden_layers` with `num_key_value_heads` and `head_dim` are enough.
///
/// # Errors
///
/// A key that the caches depend on is missing, or has a value that cannot be.
pub fn caches_from_config(name: &str, json: &Value) -> Result<Vec<LayerCache>, Error> {
    let source = Source::read(name, json)?;
    caches(&source).map_err(|e| source.error(e))
}

pub(super) fn caches(source: &Source) -> Result<Vec<LayerCache>, ConfigError> {
    let fields = source.fields();
    let layers = fields.required("num_hidden_layers", MAX_LAYERS)?;
    if source.latent() {
        let latent = Latent::read(&fields)?;
        let (rank, rope) = (latent.rank as u32, latent.rope as u32);
        let indexed = indexed_layers(&source.config, &fields, layers)?;
        let cache = |indexed: bool| match latent.index.filter(|_| indexed) {
            Some((_, index)) => LayerCache::IndexedLatent {
                rank,
                rope,
                index: index as u32,
            },
            None => LayerCache::Latent { rank, rope },
        };
        return Ok(indexed.into_iter().map(cache).collect());
    }
    let kinds = layer_kinds(source.family, &source.config, &fields, layers)?;
    let delta_net = if kinds.contains(&Kind::Linear) {
        Some(DeltaNet::read(&fields)?)
    } else {
        None
    };
    let heads = Heads::read(&fields)?;
    let (kv, dim) = (heads.kv as u32, heads.dim as u32);
    let window = if kinds.contains(&Kind::Sliding) {
        fields.required(source.family.window, MAX_CONTEXT)? as u32
    } else {
        0
    };
    Ok(kinds
        .into_iter()
        .map(|kind| match (kind, delta_net) {
            (Kind::Linear, Some(net)) => net.state(),
            (Kind::Sliding, _) => LayerCache::Sliding {
                heads: kv,
                key: dim,
                value: dim,
                window,
            },
            _ => LayerCache::Full {
                heads: kv,
                key: dim,
                value: dim,
            },
        })
        .collect())
}

/// What a layer attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Full,
    Sliding,
    Linear,
}

/// The kind of every layer: as `layer_types` lists them, or by the family's rule.
pub(super) fn layer_kinds(
    family: &Family,
    config: &serde_json::Map<String, Value>,
    fields: &Fields<'_>,
    layers: usize,
) -> Result<Vec<Kind>, ConfigError> {
    let allowed = "a list with \"full_attention\", \"sliding_attention\" or \"linear_attention\" for each layer";
    match config.get("layer_types") {
        Some(Value::Array(types)) => {
            if types.len() != layers {
                return Err(ConfigError::Contradiction {
                    first: "num_hidden_layers",
                    first_value: layers,
                    second: "the length of layer_types",
                    second_value: types.len(),
                    rule: "layer_types has to name every layer",
                });
            }
            return types
                .iter()
                .map(|kind| match kind.as_str() {
                    Some("full_attention") => Ok(Kind::Full),
                    Some("sliding_attention" | "chunked_attention") => Ok(Kind::Sliding),
                    Some("linear_attention") => Ok(Kind::Linear),
                    _ => Err(fields.error("layer_types", allowed)),
                })
                .collect();
        }
        None | Some(Value::Null) => {}
        Some(_) => return Err(fields.error("layer_types", allowed)),
    }
    if let Some(interval) = fields.count("full_attention_interval", 1, MAX_LAYERS)? {
        return Ok(every(layers, interval, Kind::Linear));
    }
    let windowed = fields.count(family.window, 1, MAX_CONTEXT)?.is_some();
    Ok(match family.windows {
        Windows::All if windowed => vec![Kind::Sliding; layers],
        Windows::Opted if windowed && fields.flag("use_sliding_window", false)? => {
            let first = fields.count("max_window_layers", 0, MAX_LAYERS)?;
            let first = first.unwrap_or(layers);
            let kind = |index| {
                if index < first {
                    Kind::Full
                } else {
                    Kind::Sliding
                }
            };
            (0..layers).map(kind).collect()
        }
        Windows::AllBut(n, key) if windowed => {
            let n = fields.extent(key, n as usize, MAX_LAYERS)?;
            every(layers, n, Kind::Sliding)
        }
        _ => vec![Kind::Full; layers],
    })
}

/// The last of each `n` layers is full, the others are of this kind.
fn every(layers: usize, n: usize, other: Kind) -> Vec<Kind> {
    (1..=layers)
        .map(|i| {
            if i.is_multiple_of(n) {
                Kind::Full
            } else {
                other
            }
        })
        .collect()
}

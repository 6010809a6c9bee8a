//! Rotary settings from a `config.json`, in the spelling of transformers 4 (`rope_theta` and
//! `rope_scaling`, with `type` or `rope_type`) and of transformers 5 (`rope_parameters`).

use serde_json::{Map, Value};

use crate::fields::{Fields, MAX_CONTEXT, RATIO};
use crate::rope::mscale;
use crate::{AttentionConfig, ConfigError, RopeConfig, RopeScaling};

/// The rotary embedding of a model whose attention and context are known.
pub(crate) fn rope(
    top: &Fields,
    config: &Value,
    attention: &AttentionConfig,
    context: usize,
    interleaved: bool,
) -> Result<RopeConfig, ConfigError> {
    let empty = Map::new();
    let (name, map) = scaling_object(config, &empty)?;
    let fields = Fields::Json(map, name);
    refuse_partial(top)?;
    refuse_partial(&fields)?;
    let theta = match fields.has("rope_theta") {
        true => theta(&fields)?,
        false => theta(top)?,
    };
    let dim = match attention {
        AttentionConfig::Gqa(gqa) => gqa.head_dim,
        AttentionConfig::Mla(mla) => mla.qk_rope_head_dim,
    };
    let mla = matches!(attention, AttentionConfig::Mla(_));
    Ok(RopeConfig {
        dim,
        theta: theta as f32,
        scaling: scaling(top, &fields, context, mla)?,
        interleaved,
    })
}

/// A base of 1 or less has no frequencies to speak of, and YaRN divides by its logarithm.
fn theta(fields: &Fields) -> Result<f64, ConfigError> {
    let theta = fields.number("rope_theta", |v| v as f32 > 1.0, "a number above 1")?;
    Ok(theta.unwrap_or(10_000.0))
}

/// `rope_scaling` goes before `rope_parameters`, as in transformers; null and `{}` count as absent.
fn scaling_object<'a>(
    config: &'a Value,
    empty: &'a Map<String, Value>,
) -> Result<(&'static str, &'a Map<String, Value>), ConfigError> {
    for (key, prefix) in [
        ("rope_scaling", "rope_scaling."),
        ("rope_parameters", "rope_parameters."),
    ] {
        match &config[key] {
            Value::Null => {}
            Value::Object(map) if map.is_empty() => {}
            Value::Object(map) => return Ok((prefix, map)),
            other => {
                return Err(ConfigError::Value {
                    key: key.to_owned(),
                    value: crate::fields::shortened(&other.to_string()),
                    allowed: "an object or null".to_owned(),
                });
            }
        }
    }
    Ok(("rope_parameters.", empty))
}

fn refuse_partial(fields: &Fields) -> Result<(), ConfigError> {
    match fields.ratio("partial_rotary_factor")? {
        Some(factor) if factor != 1.0 => Err(fields.unsupported(
            "partial_rotary_factor",
            "rotating only part of a head is not implemented for this family",
        )),
        _ => Ok(()),
    }
}

fn scaling(
    top: &Fields,
    fields: &Fields,
    context: usize,
    mla: bool,
) -> Result<RopeScaling, ConfigError> {
    let key = if fields.has("rope_type") {
        "rope_type"
    } else {
        "type"
    };
    let original = || -> Result<usize, ConfigError> {
        let key = "original_max_position_embeddings";
        let own = top.count(key, 1, MAX_CONTEXT)?;
        Ok(match own {
            Some(own) => own,
            None => fields.count(key, 1, MAX_CONTEXT)?.unwrap_or(context),
        })
    };
    match fields.text(key)?.as_deref() {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear {
            factor: fields.required_ratio("factor")? as f32,
        }),
        Some("llama3") => llama3(fields, original()?),
        Some("yarn") => yarn(fields, original()?, context, mla),
        Some(_) => Err(fields.unsupported(
            key,
            "implemented are \"default\", \"linear\", \"llama3\" and \"yarn\"",
        )),
    }
}

fn llama3(fields: &Fields, original: usize) -> Result<RopeScaling, ConfigError> {
    let low = fields.required_ratio("low_freq_factor")?;
    let high = fields.required_ratio("high_freq_factor")?;
    if high as f32 <= low as f32 {
        return Err(fields.error("high_freq_factor", "a number above low_freq_factor"));
    }
    Ok(RopeScaling::Llama3 {
        factor: fields.required_ratio("factor")? as f32,
        low_freq_factor: low as f32,
        high_freq_factor: high as f32,
        original_max_position_embeddings: original,
    })
}

/// The scales of YaRN as transformers derives them: cos and sin carry `attention_factor`, or the
/// quotient of both `mscale`s, or `0.1 ln(factor) + 1`; the softmax of latent attention (and of
/// no other) is sharpened by the square of `mscale_all_dim`'s.
fn yarn(
    fields: &Fields,
    original: usize,
    context: usize,
    mla: bool,
) -> Result<RopeScaling, ConfigError> {
    let factor = match (fields.has("factor"), fields.ratio("factor")?) {
        (_, Some(factor)) => factor,
        (true, None) => Some(context as f64 / original as f64)
            .filter(|factor| RATIO.contains(factor))
            .ok_or_else(|| fields.error("factor", "given, for the contexts' quotient is absurd"))?,
        (false, None) => fields.required_ratio("factor")?,
    };
    let scale = fields.optional_ratio("mscale")?;
    let scale_all = fields.optional_ratio("mscale_all_dim")?;
    let attention_factor = match (fields.ratio("attention_factor")?, scale, scale_all) {
        (Some(given), _, _) => given,
        (None, Some(scale), Some(all)) => mscale(factor, scale) / mscale(factor, all),
        _ => mscale(factor, 1.0),
    };
    let softmax_scale = match scale_all {
        Some(all) if mla => mscale(factor, all).powi(2),
        _ => 1.0,
    };
    let beta_slow = fields.optional_ratio("beta_slow")?.unwrap_or(1.0);
    let beta_fast = fields.optional_ratio("beta_fast")?.unwrap_or(32.0);
    Ok(RopeScaling::Yarn {
        factor: factor as f32,
        beta_fast: beta_fast as f32,
        beta_slow: beta_slow as f32,
        original_max_position_embeddings: original,
        attention_factor: attention_factor as f32,
        softmax_scale: softmax_scale as f32,
        truncate: fields.flag("truncate", true)?,
    })
}

//! Reading keys under limits: the one place where a value from outside becomes a number.
//!
//! JSON and GGUF both come through [`Fields`], so both get the same checks and the same messages.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::{ConfigError, MetaArray, MetaValue, Metadata};

/// Greatest widths of a layer, generous against every released model.
pub const MAX_WIDTH: usize = 1 << 18;
/// Greatest width of a feed-forward layer.
pub const MAX_INTERMEDIATE: usize = 1 << 20;
/// Most heads, and widest head.
pub const MAX_HEADS: usize = 1 << 12;
/// Most layers.
pub const MAX_LAYERS: usize = 1 << 11;
/// Most experts.
pub const MAX_EXPERTS: usize = 1 << 13;
/// Most tokens of a vocabulary.
pub const MAX_VOCAB: usize = 1 << 24;
/// Longest context.
pub const MAX_CONTEXT: usize = 1 << 30;

/// Factors of any use: of frequencies, contexts, scores. What is far outside only makes infinities.
pub const RATIO: RangeInclusive<f64> = 1e-3..=1e6;
const RATIO_ALLOWED: &str = "a number from 0.001 to 1000000";

/// A set of keys to read a configuration from.
#[derive(Clone, Copy)]
pub enum Fields<'a> {
    /// A JSON object, and what its keys are prefixed with in messages.
    Json(&'a Map<String, Value>, &'static str),
    /// GGUF key-values under the prefix of an architecture.
    Gguf(&'a Metadata, &'a str),
}

/// A scalar of either source.
enum Scalar {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Other(String),
}

impl Fields<'_> {
    /// The key as messages and GGUF name it.
    pub fn full_key(&self, key: &str) -> String {
        match self {
            Fields::Json(_, prefix) => format!("{prefix}{key}"),
            Fields::Gguf(_, architecture) => format!("{architecture}.{key}"),
        }
    }

    /// Whether the key is there, null included.
    pub fn has(&self, key: &str) -> bool {
        match self {
            Fields::Json(map, _) => map.contains_key(key),
            Fields::Gguf(metadata, _) => metadata.get(&self.full_key(key)).is_some(),
        }
    }

    /// The value as it is written, for messages.
    pub fn shown(&self, key: &str) -> String {
        match self.scalar(key) {
            None => "null".to_owned(),
            Some(Scalar::Integer(v)) => v.to_string(),
            Some(Scalar::Float(v)) => v.to_string(),
            Some(Scalar::Bool(v)) => v.to_string(),
            Some(Scalar::Text(v)) => format!("{:?}", shortened(&v)),
            Some(Scalar::Other(v)) => v,
        }
    }

    fn scalar(&self, key: &str) -> Option<Scalar> {
        match self {
            Fields::Json(map, _) => match map.get(key)? {
                Value::Null => None,
                Value::Bool(v) => Some(Scalar::Bool(*v)),
                Value::String(v) => Some(Scalar::Text(v.clone())),
                Value::Number(n) => Some(match n.as_i128() {
                    Some(v) => Scalar::Integer(v),
                    None => Scalar::Float(n.as_f64().unwrap_or(f64::NAN)),
                }),
                other => Some(Scalar::Other(shortened(&other.to_string()))),
            },
            Fields::Gguf(metadata, _) => Some(match metadata.get(&self.full_key(key))? {
                MetaValue::Unsigned(v) => Scalar::Integer((*v).into()),
                MetaValue::Signed(v) => Scalar::Integer((*v).into()),
                MetaValue::Float(v) => Scalar::Float(*v),
                MetaValue::Bool(v) => Scalar::Bool(*v),
                MetaValue::Text(v) => Scalar::Text(v.clone()),
                MetaValue::Array(array) => uniform(array),
            }),
        }
    }

    /// A value that is not what it has to be.
    pub fn error(&self, key: &str, allowed: impl Into<String>) -> ConfigError {
        ConfigError::Value {
            key: self.full_key(key),
            value: self.shown(key),
            allowed: allowed.into(),
        }
    }

    /// A key that has to be there and is not.
    pub fn missing(&self, key: &str, allowed: impl Into<String>) -> ConfigError {
        ConfigError::Missing {
            key: self.full_key(key),
            allowed: allowed.into(),
        }
    }

    /// A setting that is legal and not implemented here.
    pub fn unsupported(&self, key: &str, why: impl Into<String>) -> ConfigError {
        ConfigError::Unsupported {
            key: self.full_key(key),
            value: self.shown(key),
            why: why.into(),
        }
    }

    /// A whole number in `least..=most`; `None` when the key is absent or null.
    pub fn count(
        &self,
        key: &str,
        least: usize,
        most: usize,
    ) -> Result<Option<usize>, ConfigError> {
        let integer = match self.scalar(key) {
            None => return Ok(None),
            Some(Scalar::Integer(v)) => Some(v),
            Some(Scalar::Float(v)) if v.fract() == 0.0 && v.abs() < 1e15 => Some(v as i128),
            _ => None,
        };
        integer
            .and_then(|v| usize::try_from(v).ok())
            .filter(|v| (least..=most).contains(v))
            .map(Some)
            .ok_or_else(|| self.error(key, format!("a whole number from {least} to {most}")))
    }

    /// A positive extent up to `most`; `default` when the key is absent.
    pub fn extent(&self, key: &str, default: usize, most: usize) -> Result<usize, ConfigError> {
        if self.has(key) {
            self.required(key, most)
        } else {
            Ok(default)
        }
    }

    /// A positive extent up to `most` that has to be there.
    pub fn required(&self, key: &str, most: usize) -> Result<usize, ConfigError> {
        self.count(key, 1, most)?
            .ok_or_else(|| self.missing(key, format!("a whole number from 1 to {most}")))
    }

    /// A finite number for which `fits` holds; `None` when the key is absent or null.
    pub fn number(
        &self,
        key: &str,
        fits: impl Fn(f64) -> bool,
        allowed: &str,
    ) -> Result<Option<f64>, ConfigError> {
        let number = match self.scalar(key) {
            None => return Ok(None),
            Some(Scalar::Integer(v)) => v as f64,
            Some(Scalar::Float(v)) => v,
            _ => f64::NAN,
        };
        if (number as f32).is_finite() && fits(number) {
            Ok(Some(number))
        } else {
            Err(self.error(key, allowed))
        }
    }

    /// A factor within [`RATIO`]; `None` when the key is absent or null.
    pub fn ratio(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.number(key, |v| RATIO.contains(&v), RATIO_ALLOWED)
    }

    /// A factor within [`RATIO`] that has to be there.
    pub fn required_ratio(&self, key: &str) -> Result<f64, ConfigError> {
        self.ratio(key)?
            .ok_or_else(|| self.missing(key, RATIO_ALLOWED))
    }

    /// A factor that may also be 0, which says the same as its absence.
    pub fn optional_ratio(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        let fits = |v: f64| v == 0.0 || RATIO.contains(&v);
        let found = self.number(key, fits, "0, or a number from 0.001 to 1000000")?;
        Ok(found.filter(|&v| v != 0.0))
    }

    /// The epsilon of a norm: small, but not so small that f32 makes it zero.
    pub fn epsilon(&self, key: &str) -> Result<f32, ConfigError> {
        let fits = |v: f64| v as f32 > 0.0 && v < 1.0;
        let epsilon = self.number(key, fits, "a number between 0 and 1")?;
        Ok(epsilon.unwrap_or(1e-6) as f32)
    }

    /// A boolean; `default` when the key is absent or null.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.scalar(key) {
            None => Ok(default),
            Some(Scalar::Bool(v)) => Ok(v),
            _ => Err(self.error(key, "true or false")),
        }
    }

    /// Text; `None` when the key is absent or null.
    pub fn text(&self, key: &str) -> Result<Option<String>, ConfigError> {
        match self.scalar(key) {
            None => Ok(None),
            Some(Scalar::Text(v)) => Ok(Some(v)),
            _ => Err(self.error(key, "text")),
        }
    }
}

/// An array that repeats one number for every layer counts as that number.
fn uniform(array: &MetaArray) -> Scalar {
    let scalar = match array {
        MetaArray::Unsigned(v) => same(v).map(|v| Scalar::Integer(v.into())),
        MetaArray::Signed(v) => same(v).map(|v| Scalar::Integer(v.into())),
        MetaArray::Float(v) => same(v).map(Scalar::Float),
        MetaArray::Bool(v) => same(v).map(Scalar::Bool),
        MetaArray::Text(_) => None,
    };
    scalar.unwrap_or_else(|| Scalar::Other(format!("an array of {} different values", array.len())))
}

fn same<T: Copy + PartialEq>(values: &[T]) -> Option<T> {
    let first = *values.first()?;
    values.iter().all(|v| *v == first).then_some(first)
}

/// Text cut to a length that suits a message.
pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

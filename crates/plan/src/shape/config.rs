//! Reading a `config.json`: which family, which part of it, and the shape that follows.

use scrimp_model::ConfigError;
use scrimp_model::fields::{
    Fields, MAX_CONTEXT, MAX_HEADS, MAX_INTERMEDIATE, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH,
};
use serde_json::{Map, Value};

use super::caches::caches;
use super::experts::Experts;
use super::families::{self, Family};
use super::release::Release;
use super::{ModelShape, Storage, layers};
use crate::Error;

/// More values than any model has: sums stay far from the end of 64 bits.
pub(super) const MAX_PARAMETERS: u128 = 1 << 50;

/// A config, unwrapped: the language model's keys with the family's defaults under them.
pub(super) struct Source {
    pub name: String,
    pub model_type: Option<String>,
    pub family: &'static Family,
    /// Keys of the language model.
    pub config: Map<String, Value>,
    /// Keys of the whole file.
    pub outer: Map<String, Value>,
    prefix: &'static str,
}

impl Source {
    pub(super) fn read(name: &str, json: &Value) -> Result<Source, Error> {
        let failed = |what: String| Error::Config {
            model: name.to_owned(),
            what,
        };
        let Value::Object(outer) = json else {
            return Err(failed(
                "its configuration has to be a JSON object, as in config.json".to_owned(),
            ));
        };
        let (inner, prefix) = match outer.get("text_config") {
            Some(Value::Object(text)) => (text, "text_config."),
            Some(Value::Null) | None => (outer, ""),
            Some(_) => {
                return Err(failed(
                    "text_config has to be an object with the language model's keys".to_owned(),
                ));
            }
        };
        let mut inner = inner.clone();
        for key in [
            "tie_word_embeddings",
            "quantization_config",
            "torch_dtype",
            "dtype",
        ] {
            if let Some(value) = outer.get(key).filter(|_| !inner.contains_key(key)) {
                inner.insert(key.to_owned(), value.clone());
            }
        }
        let model_type = model_type(&inner, outer).map_err(failed)?;
        let family = match model_type.as_deref() {
            None => families::find("llama").expect("llama is in the table"),
            Some(found) => families::find(found).ok_or_else(|| {
                failed(format!(
                    "model_type {found:?} is not known; known are {}",
                    families::known()
                ))
            })?,
        };
        Ok(Source {
            name: name.to_owned(),
            model_type,
            family,
            config: families::with_defaults(family, &inner),
            outer: outer.clone(),
            prefix,
        })
    }

    pub(super) fn fields(&self) -> Fields<'_> {
        Fields::Json(&self.config, self.prefix)
    }

    /// Whether attention is latent, by family or, where the config does not name one, by its keys.
    pub(super) fn latent(&self) -> bool {
        self.family.latent
            || (self.model_type.is_none() && self.config.contains_key("kv_lora_rank"))
    }

    pub(super) fn error(&self, error: ConfigError) -> Error {
        Error::Config {
            model: self.name.clone(),
            what: error.to_string(),
        }
    }

    /// Type of weights that are not quantized.
    pub(super) fn dtype(&self) -> Result<Storage, ConfigError> {
        let fields = self.fields();
        let key = if fields.has("dtype") {
            "dtype"
        } else {
            "torch_dtype"
        };
        let text = fields.text(key)?;
        match text.as_deref().map(|t| t.trim_start_matches("torch.")) {
            None | Some("bfloat16" | "auto") => Ok(Storage::Bf16),
            Some("float16" | "half") => Ok(Storage::F16),
            Some("float32" | "float") => Ok(Storage::F32),
            Some(_) => Err(fields.error(key, "bfloat16, float16 or float32")),
        }
    }
}

/// The language model's `model_type`: its own, else by `architectures`; wrappers around a known
/// language model (`kimi_vl`, `llava_next`) say theirs in `text_config`.
fn model_type(
    inner: &Map<String, Value>,
    outer: &Map<String, Value>,
) -> Result<Option<String>, String> {
    for map in [inner, outer] {
        match map.get("model_type") {
            None | Some(Value::Null) => {}
            Some(Value::String(found)) => return Ok(Some(found.clone())),
            Some(other) => return Err(format!("model_type is {other}, but it has to be text")),
        }
    }
    let class = outer
        .get("architectures")
        .and_then(|list| list.get(0))
        .and_then(Value::as_str);
    Ok(class.and_then(families::of_class).map(str::to_owned))
}

impl ModelShape {
    /// The shape that a `config.json` describes.
    ///
    /// # Errors
    ///
    /// The family is not known, or a key is missing, out of range or in contradiction to another;
    /// the message names it, its value and what it may be.
    pub fn from_config(name: &str, json: &Value) -> Result<ModelShape, Error> {
        let source = Source::read(name, json)?;
        let mut shape = outline(&source).map_err(|e| source.error(e))?;
        weights(&source, &mut shape).map_err(|e| source.error(e))?;
        Ok(shape)
    }

    /// What a `config.json` that may be partial determines: without the keys for the weights,
    /// `tensors` is empty and `undetermined` says what is missing.
    ///
    /// # Errors
    ///
    /// Not even the caches follow from it, or a value is wrong rather than missing.
    pub fn from_partial_config(name: &str, json: &Value) -> Result<ModelShape, Error> {
        let source = Source::read(name, json)?;
        let mut shape = outline(&source).map_err(|e| source.error(e))?;
        match weights(&source, &mut shape) {
            Ok(()) => {}
            Err(missing @ ConfigError::Missing { .. }) => {
                shape.undetermined = Some(missing.to_string());
            }
            Err(wrong) => return Err(source.error(wrong)),
        }
        Ok(shape)
    }
}

/// Fills in the tensors and what follows from how they are stored.
fn weights(source: &Source, shape: &mut ModelShape) -> Result<(), ConfigError> {
    if source.model_type.is_none() {
        return Err(ConfigError::Missing {
            key: "model_type".to_owned(),
            allowed: format!("one of {}", families::known()),
        });
    }
    let fields = source.fields();
    fields.required("hidden_size", MAX_WIDTH)?;
    let release = Release::read(source)?;
    let tensors = layers::tensors(source, &release)?;
    let values: u128 = tensors
        .iter()
        .map(|t| u128::from(t.count) * u128::from(t.rows) * u128::from(t.columns))
        .sum();
    if values > MAX_PARAMETERS {
        let rule = "hidden_size, intermediate_size, num_hidden_layers and experts make more than \
                    2^50 parameters, and no model has so many";
        return Err(fields.error("hidden_size", format!("smaller: {rule}")));
    }
    shape.quantization = release.label();
    shape.tensors = tensors;
    Ok(())
}

/// Everything but the tensors; sizes that are not given are 0.
fn outline(source: &Source) -> Result<ModelShape, ConfigError> {
    let fields = source.fields();
    let size = |key, most| Ok(fields.count(key, 1, most)?.unwrap_or(0) as u64);
    let caches = caches(source)?;
    let experts = Experts::read(source.family, &fields);
    let dense = size("intermediate_size", MAX_INTERMEDIATE)?;
    let (intermediate_size, experts_per_token, num_experts) = match experts {
        Ok(Some(e)) => (
            dense.max(e.width * e.per_token + e.shared),
            e.per_token,
            e.count,
        ),
        Ok(None) => (dense, 0, 0),
        Err(ConfigError::Missing { .. }) => (dense, 0, 0),
        Err(wrong) => return Err(wrong),
    };
    fields.count("num_hidden_layers", 1, MAX_LAYERS)?;
    Ok(ModelShape {
        name: source.name.clone(),
        model_type: source.model_type.clone().unwrap_or_default(),
        hidden_size: size("hidden_size", MAX_WIDTH)?,
        vocab_size: size("vocab_size", MAX_VOCAB)?,
        num_attention_heads: size("num_attention_heads", MAX_HEADS)?,
        intermediate_size,
        experts_per_token,
        num_experts,
        max_position_embeddings: size("max_position_embeddings", MAX_CONTEXT)?,
        dtype: source.dtype()?,
        quantization: None,
        undetermined: None,
        tensors: Vec::new(),
        caches,
    })
}

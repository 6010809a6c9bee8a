//! Shapes of known releases, so that a name is enough to plan: configs with where they come from.
//!
//! Holds no results: every total and every byte count is computed from these configs.

mod names;

use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::{Error, ModelShape};

/// A release's config.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The name as published, with its organisation.
    pub name: String,
    /// Where its shape was read.
    pub source: String,
    /// Keys of its `config.json` that planning needs.
    pub config: Value,
}

/// A shape in the file, and every name it is published under.
struct Record {
    names: Vec<String>,
    source: String,
    config: Value,
}

static RECORDS: LazyLock<Vec<Record>> = LazyLock::new(|| {
    let file = include_str!("models.json");
    let json: Value = serde_json::from_str(file).expect("models.json is checked by a test");
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    list(&json)
        .iter()
        .map(|record| Record {
            names: list(&record["names"]).iter().map(text).collect(),
            source: text(&record["source"]),
            config: record["config"].clone(),
        })
        .collect()
});

/// Every name in the catalogue, as published.
pub fn names() -> Vec<&'static str> {
    RECORDS
        .iter()
        .flat_map(|r| r.names.iter().map(String::as_str))
        .collect()
}

/// The release of this name: `org/name` or the bare name, in either case. A name that only adds
/// what kind of training or quantization it had (`-Instruct`, `-FP8`, `-quantized.w8a8`) to a known
/// one has its shape, and the quantization that such names stand for.
///
/// # Errors
///
/// No such name; the message has the nearest ones.
pub fn find(name: &str) -> Result<Entry, Error> {
    let wanted = names::bare(name);
    if let Some(entry) = exact(name, &wanted) {
        return Ok(entry);
    }
    if let Some((stem, quantization)) = names::quantization(&wanted) {
        let known = exact(name, &stem).or_else(|| similar(name, &stem));
        if let Some(mut entry) = known {
            overlay(&mut entry.config, "quantization_config", quantization);
            return Ok(entry);
        }
    }
    similar(name, &wanted).ok_or_else(|| Error::Unknown {
        kind: "model",
        name: name.to_owned(),
        nearest: nearest(&wanted),
    })
}

/// The shape of the release of this name.
///
/// # Errors
///
/// As [`find`].
pub fn shape(name: &str) -> Result<ModelShape, Error> {
    let entry = find(name)?;
    ModelShape::from_config(&entry.name, &entry.config)
}

/// A config that may be partial or empty, completed by the catalogue's for the model of this name:
/// what the config says counts. Second, where the rest comes from; `None` where nothing was added.
pub fn complete(name: &str, config: &Value) -> (Value, Option<String>) {
    let Value::Object(given) = config else {
        return (config.clone(), None);
    };
    let Ok(entry) = find(name) else {
        return (config.clone(), None);
    };
    let mut full = entry.config;
    if let Value::Object(full) = &mut full {
        // A flat config of the language model goes over that part of a wrapper's.
        match full.get_mut("text_config") {
            Some(Value::Object(text)) if !given.contains_key("text_config") => {
                let mut given = given.clone();
                let known = |t: &Value| t.as_str().is_some_and(crate::shape::is_known_type);
                if !given.get("model_type").is_some_and(known) {
                    given.remove("model_type");
                }
                lay_over(text, &given);
            }
            _ => lay_over(full, given),
        }
    }
    let from = (full != *config).then(|| format!("{}: {}", entry.name, entry.source));
    (full, from)
}

/// Lays keys over a config, into objects that both have; another quantization replaces the whole.
fn lay_over(base: &mut Map<String, Value>, over: &Map<String, Value>) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(Value::Object(inner)), Value::Object(value))
                if inner.get("quant_method") == value.get("quant_method") =>
            {
                lay_over(inner, value);
            }
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

fn overlay(config: &mut Value, key: &str, value: Value) {
    if let Value::Object(map) = config {
        map.insert(key.to_owned(), value);
    }
}

fn entry(record: &Record, name: &str) -> Entry {
    Entry {
        name: name.to_owned(),
        source: record.source.clone(),
        config: record.config.clone(),
    }
}

fn exact(asked: &str, wanted: &str) -> Option<Entry> {
    RECORDS.iter().find_map(|record| {
        let found = record.names.iter().find(|n| names::bare(n) == wanted)?;
        let name = if names::bare(asked) == wanted {
            found
        } else {
            asked
        };
        Some(entry(record, name))
    })
}

fn similar(asked: &str, wanted: &str) -> Option<Entry> {
    let stem = names::stem(wanted);
    let same = |r: &&Record| r.names.iter().any(|n| names::stem(&names::bare(n)) == stem);
    RECORDS.iter().find(same).map(|record| entry(record, asked))
}

fn nearest(wanted: &str) -> String {
    let mut near: Vec<(f64, &str)> = names()
        .into_iter()
        .map(|name| (strsim::jaro_winkler(wanted, &names::bare(name)), name))
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let near: Vec<&str> = near.into_iter().take(5).map(|n| n.1).collect();
    near.join(", ")
}

//! GGUF key-values with their types, as a checkpoint hands them out.

use std::collections::BTreeMap;

/// All key-values of a GGUF file, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    values: BTreeMap<String, MetaValue>,
}

/// One value. GGUF's ten number types come in three widths here; nothing is lost.
#[derive(Clone, Debug, PartialEq)]
pub enum MetaValue {
    /// `u8`, `u16`, `u32`, `u64`.
    Unsigned(u64),
    /// `i8`, `i16`, `i32`, `i64`.
    Signed(i64),
    /// `f32`, `f64`.
    Float(f64),
    /// Boolean.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// Values of one type.
    Array(MetaArray),
}

/// An array value.
#[derive(Clone, Debug, PartialEq)]
pub enum MetaArray {
    /// Unsigned integers.
    Unsigned(Vec<u64>),
    /// Signed integers.
    Signed(Vec<i64>),
    /// Floats.
    Float(Vec<f64>),
    /// Booleans.
    Bool(Vec<bool>),
    /// Strings.
    Text(Vec<String>),
}

impl MetaArray {
    /// How many values it holds.
    pub fn len(&self) -> usize {
        match self {
            MetaArray::Unsigned(v) => v.len(),
            MetaArray::Signed(v) => v.len(),
            MetaArray::Float(v) => v.len(),
            MetaArray::Bool(v) => v.len(),
            MetaArray::Text(v) => v.len(),
        }
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Metadata {
    /// Adds a value; the one that was there under this key comes back.
    pub fn insert(&mut self, key: impl Into<String>, value: MetaValue) -> Option<MetaValue> {
        self.values.insert(key.into(), value)
    }

    /// The value under `key`.
    pub fn get(&self, key: &str) -> Option<&MetaValue> {
        self.values.get(key)
    }

    /// Takes the value under `key` out.
    pub fn take(&mut self, key: &str) -> Option<MetaValue> {
        self.values.remove(key)
    }

    /// Keys and values, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &MetaValue)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Text under `key`, if there is such a key and it is text.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            MetaValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A non-negative integer under `key`, whatever its width and sign.
    pub fn unsigned(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            MetaValue::Unsigned(value) => Some(*value),
            MetaValue::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// A float under `key`.
    pub fn float(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            MetaValue::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// A boolean under `key`.
    pub fn bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            MetaValue::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The array under `key`.
    pub fn array(&self, key: &str) -> Option<&MetaArray> {
        match self.get(key)? {
            MetaValue::Array(array) => Some(array),
            _ => None,
        }
    }

    /// The strings under `key`.
    pub fn texts(&self, key: &str) -> Option<&[String]> {
        match self.array(key)? {
            MetaArray::Text(texts) => Some(texts),
            _ => None,
        }
    }

    /// The floats under `key` (a SentencePiece vocabulary's scores).
    pub fn floats(&self, key: &str) -> Option<&[f64]> {
        match self.array(key)? {
            MetaArray::Float(values) => Some(values),
            _ => None,
        }
    }

    /// Integers under `key` (token types), whatever their width and sign.
    pub fn integers(&self, key: &str) -> Option<Vec<i64>> {
        match self.array(key)? {
            MetaArray::Signed(values) => Some(values.clone()),
            MetaArray::Unsigned(values) => values.iter().map(|&v| v.try_into().ok()).collect(),
            _ => None,
        }
    }
}

impl FromIterator<(String, MetaValue)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (String, MetaValue)>>(values: I) -> Self {
        Metadata {
            values: values.into_iter().collect(),
        }
    }
}

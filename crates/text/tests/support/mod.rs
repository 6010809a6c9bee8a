//! What the tests of this folder share: the fixtures and a reader for GGUF's metadata.

#![allow(dead_code)] // each test file uses a part

use std::collections::BTreeMap;
use std::path::PathBuf;

use scrimp_text::{GgufTokenizer, Tokenizer, TokenizerConfig};
use serde::Deserialize;
use serde_json::Value;

/// Tokenizers made by Hugging Face's library (tools/goldens/text_tokenizers.py).
pub const JSON_FIXTURES: [&str; 5] = ["qwen", "deepseek", "smollm", "sentencepiece", "metaspace"];

/// Ids, text, and text without special tokens.
pub type Golden = (Vec<u32>, String, String);

#[derive(Deserialize)]
pub struct Goldens {
    pub texts: Vec<String>,
    pub goldens: BTreeMap<String, Vec<Golden>>,
}

pub fn read(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/tokenizers"
    ));
    std::fs::read(folder.join(name)).unwrap()
}

pub fn goldens() -> Goldens {
    serde_json::from_slice(&read("goldens.json")).unwrap()
}

pub fn fixture(name: &str) -> Tokenizer {
    let json = read(&format!("{name}.json"));
    Tokenizer::from_json(&json, &TokenizerConfig::default()).unwrap()
}

/// A byte-level fixture as a GGUF file would hold it.
pub fn as_gguf(name: &str, pre: &str) -> GgufTokenizer {
    let json: Value = serde_json::from_slice(&read(&format!("{name}.json"))).unwrap();
    let mut tokens = BTreeMap::new();
    for (text, id) in json["model"]["vocab"].as_object().unwrap() {
        tokens.insert(id.as_u64().unwrap(), (text.clone(), 1));
    }
    for token in json["added_tokens"].as_array().unwrap() {
        let kind = if token["special"] == true { 3 } else { 4 };
        let text = token["content"].as_str().unwrap().to_owned();
        tokens.insert(token["id"].as_u64().unwrap(), (text, kind));
    }
    let merges = json["model"]["merges"].as_array().unwrap().iter();
    GgufTokenizer {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        merges: merges
            .map(|m| format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap()))
            .collect(),
        token_types: tokens.values().map(|(_, kind)| *kind).collect(),
        tokens: tokens.into_values().map(|(text, _)| text).collect(),
        bos: Some(0),
        eos: Some(2),
        ..Default::default()
    }
}

/// The metadata of a GGUF v2 or v3 file, numbers as `f64`; for files that are known to be sound.
pub fn gguf_metadata(bytes: &[u8]) -> BTreeMap<String, Meta> {
    let mut at = Cursor { bytes, at: 8 };
    at.u64();
    let count = at.u64();
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = at.string();
        let kind = at.u32();
        metadata.insert(key, at.value(kind));
    }
    metadata
}

pub enum Meta {
    Number(f64),
    Text(String),
    List(Vec<Meta>),
}

impl Meta {
    pub fn number(&self) -> f64 {
        match self {
            Self::Number(number) => *number,
            _ => panic!("not a number"),
        }
    }

    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            _ => panic!("not a string"),
        }
    }

    pub fn list(&self) -> &[Meta] {
        match self {
            Self::List(list) => list,
            _ => panic!("not a list"),
        }
    }

    pub fn texts(&self) -> Vec<String> {
        self.list()
            .iter()
            .map(|text| text.text().to_owned())
            .collect()
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let taken = self.bytes[self.at..self.at + N].try_into().unwrap();
        self.at += N;
        taken
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn string(&mut self) -> String {
        let len = self.u64() as usize;
        self.at += len;
        String::from_utf8(self.bytes[self.at - len..self.at].to_vec()).unwrap()
    }

    fn value(&mut self, kind: u32) -> Meta {
        Meta::Number(match kind {
            0 | 7 => u8::from_le_bytes(self.take()).into(),
            1 => i8::from_le_bytes(self.take()).into(),
            2 => u16::from_le_bytes(self.take()).into(),
            3 => i16::from_le_bytes(self.take()).into(),
            4 => self.u32().into(),
            5 => i32::from_le_bytes(self.take()).into(),
            6 => f32::from_le_bytes(self.take()).into(),
            8 => return Meta::Text(self.string()),
            9 => {
                let (kind, count) = (self.u32(), self.u64());
                return Meta::List((0..count).map(|_| self.value(kind)).collect());
            }
            10 => self.u64() as f64,
            11 => i64::from_le_bytes(self.take()) as f64,
            12 => f64::from_le_bytes(self.take()),
            other => panic!("unknown GGUF value type {other}"),
        })
    }
}

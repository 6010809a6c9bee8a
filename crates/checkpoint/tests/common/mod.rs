//! Builders of small model files, good and bad.

#![allow(dead_code, clippy::unwrap_used)]

use std::path::PathBuf;

/// `tests/goldens` of the repository.
pub fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens")
}

/// A safetensors file of this header and this many bytes of data, which count up.
pub fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend((0..data).map(|i| i as u8));
    file
}

/// A safetensors file of one f32 vector per name.
pub fn vectors(names: &[&str]) -> Vec<u8> {
    let entry = |(i, name): (usize, &&str)| {
        let (begin, end) = (i * 8, i * 8 + 8);
        format!(r#""{name}":{{"dtype":"F32","shape":[2],"data_offsets":[{begin},{end}]}}"#)
    };
    let entries: Vec<String> = names.iter().enumerate().map(entry).collect();
    safetensors(&format!("{{{}}}", entries.join(",")), names.len() * 8)
}

/// Writes GGUF files piece by piece, so that each piece can be wrong.
#[derive(Clone)]
pub struct Gguf {
    pub version: u32,
    pub tensors: u64,
    pub keys: u64,
    pub body: Vec<u8>,
    pub infos: Vec<u8>,
    pub alignment: usize,
    pub data: usize,
}

impl Gguf {
    pub fn new() -> Gguf {
        Gguf {
            version: 3,
            tensors: 0,
            keys: 0,
            body: Vec::new(),
            infos: Vec::new(),
            alignment: 32,
            data: 0,
        }
    }

    pub fn string(text: &[u8]) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text].concat()
    }

    /// A key-value of any type number and raw bytes.
    pub fn raw(mut self, key: &str, number: u32, value: &[u8]) -> Gguf {
        self.body.extend(Self::string(key.as_bytes()));
        self.body.extend(number.to_le_bytes());
        self.body.extend(value);
        self.keys += 1;
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Gguf {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub fn text(self, key: &str, value: &str) -> Gguf {
        self.raw(key, 8, &Self::string(value.as_bytes()))
    }

    /// An array of raw items.
    pub fn array(self, key: &str, number: u32, count: u64, items: &[u8]) -> Gguf {
        let value = [&number.to_le_bytes()[..], &count.to_le_bytes(), items].concat();
        self.raw(key, 9, &value)
    }

    /// A tensor: extents innermost first, type by number.
    pub fn tensor(mut self, name: &str, extents: &[u64], number: u32, offset: u64) -> Gguf {
        self.infos.extend(Self::string(name.as_bytes()));
        self.infos.extend((extents.len() as u32).to_le_bytes());
        extents
            .iter()
            .for_each(|e| self.infos.extend(e.to_le_bytes()));
        self.infos.extend(number.to_le_bytes());
        self.infos.extend(offset.to_le_bytes());
        self.tensors += 1;
        self
    }

    pub fn data(mut self, bytes: usize) -> Gguf {
        self.data = bytes;
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend(self.tensors.to_le_bytes());
        file.extend(self.keys.to_le_bytes());
        file.extend(&self.body);
        file.extend(&self.infos);
        file.resize(file.len().next_multiple_of(self.alignment), 0);
        file.extend((0..self.data).map(|i| i as u8));
        file
    }
}

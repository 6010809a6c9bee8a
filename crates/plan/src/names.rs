//! Names of engines and KV types, as a command line gives and prints them.

use crate::{Engine, EngineKind, Error, KvDtype, Version};

const ENGINES: [(&str, EngineKind); 8] = [
    ("scrimp", EngineKind::Scrimp),
    ("vllm", EngineKind::Vllm),
    ("sglang", EngineKind::Sglang),
    ("llama.cpp", EngineKind::LlamaCpp),
    ("llamacpp", EngineKind::LlamaCpp),
    ("llama-server", EngineKind::LlamaCpp),
    ("trtllm", EngineKind::TrtLlm),
    ("tensorrt-llm", EngineKind::TrtLlm),
];

const KV_DTYPES: [(&str, KvDtype); 15] = [
    ("f32", KvDtype::F32),
    ("f16", KvDtype::F16),
    ("bf16", KvDtype::Bf16),
    ("fp8", KvDtype::Fp8),
    ("fp8_ds_mla", KvDtype::Fp8DsMla),
    ("int8", KvDtype::Int8),
    ("int4", KvDtype::Int4),
    ("q8_0", KvDtype::Q8_0),
    ("q4_0", KvDtype::Q4_0),
    ("float32", KvDtype::F32),
    ("float16", KvDtype::F16),
    ("fp16", KvDtype::F16),
    ("bfloat16", KvDtype::Bf16),
    ("fp8_e4m3", KvDtype::Fp8),
    ("fp8_e5m2", KvDtype::Fp8),
];

fn find<T: Copy>(table: &[(&'static str, T)], kind: &'static str, name: &str) -> Result<T, Error> {
    let wanted = name.trim().to_ascii_lowercase();
    let found = table.iter().find(|(known, _)| *known == wanted);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<&str> = table.iter().map(|(known, _)| *known).collect();
        Error::Unknown {
            kind,
            name: name.to_owned(),
            nearest: known.join(", "),
        }
    })
}

impl KvDtype {
    /// Reads `bf16`, `fp8`, `int8`, `int4`, `q8_0`, ….
    ///
    /// # Errors
    /// No such type; the message lists them.
    pub fn parse(name: &str) -> Result<KvDtype, Error> {
        find(&KV_DTYPES, "KV type", name)
    }

    /// The name to print, which [`parse`](Self::parse) reads back.
    pub fn name(self) -> &'static str {
        let found = KV_DTYPES.iter().find(|(_, dtype)| *dtype == self);
        found.map_or("bf16", |(name, _)| name)
    }
}

impl EngineKind {
    /// The name to print, which [`Engine::parse`] reads back.
    pub fn name(self) -> &'static str {
        let found = ENGINES.iter().find(|(_, kind)| *kind == self);
        found.map_or("scrimp", |(name, _)| name)
    }
}

impl Engine {
    /// Reads `vllm`, `vllm@0.19`, `sglang@0.5.6`, `llama.cpp`, ….
    ///
    /// # Errors
    /// An unknown engine, or a version that is not one to three numbers.
    pub fn parse(text: &str) -> Result<Engine, Error> {
        let (name, version) = match text.split_once('@') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        let kind = find(&ENGINES, "engine", name)?;
        let version = version.map(|v| read_version(text, v)).transpose()?;
        Ok(Engine { kind, version })
    }

    /// The name to print, which [`parse`](Self::parse) reads back.
    pub fn name(&self) -> String {
        match self.version {
            Some(version) => format!("{}@{version}", self.kind.name()),
            None => self.kind.name().to_owned(),
        }
    }
}

fn read_version(text: &str, version: &str) -> Result<Version, Error> {
    let bad = || Error::Setting {
        setting: "--engine",
        what: format!("`{text}`: `{version}` is not a version such as 0.19 or 0.19.1"),
    };
    let mut parts = [0u32; 3];
    let given: Vec<&str> = version.trim_start_matches('v').split('.').collect();
    if given.len() > 3 {
        return Err(bad());
    }
    for (part, text) in parts.iter_mut().zip(given) {
        *part = text.parse().map_err(|_| bad())?;
    }
    Ok(Version(parts[0], parts[1], parts[2]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for (name, dtype) in KV_DTYPES {
            assert_eq!(KvDtype::parse(name).unwrap(), dtype);
            assert_eq!(KvDtype::parse(dtype.name()).unwrap(), dtype);
        }
        for text in ["vllm", "vllm@0.19.0", "llama.cpp", "trtllm@1.0.0"] {
            assert_eq!(Engine::parse(text).unwrap().name(), text);
        }
        assert_eq!(
            Engine::parse("vllm@0.19").unwrap().version,
            Some(Version(0, 19, 0))
        );
    }

    #[test]
    fn what_is_unknown_is_said_with_what_is_known() {
        for text in ["vlm", "vllm@", "vllm@1.2.3.4", "vllm@x", ""] {
            assert!(Engine::parse(text).is_err(), "{text}");
        }
        let message = KvDtype::parse("fp7").unwrap_err().to_string();
        assert!(message.contains("int4"), "{message}");
    }
}

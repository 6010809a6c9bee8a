//! Names of weight schemes, as a command line gives them.

use super::{GgmlType, gguf_mix};
use crate::{Error, Storage, WeightScheme};

const fn groups(bits: u8, group: u32, symmetric: bool) -> Storage {
    Storage::IntGroups {
        bits,
        group,
        symmetric,
    }
}

/// Formats by name; the first of a format's names is the one that is printed.
const FORMATS: &[(&str, Storage)] = &[
    ("bf16", Storage::Bf16),
    ("bfloat16", Storage::Bf16),
    ("f16", Storage::F16),
    ("fp16", Storage::F16),
    ("float16", Storage::F16),
    ("f32", Storage::F32),
    ("fp8", Storage::Fp8Tiles(128, 128)),
    ("fp8-block", Storage::Fp8Tiles(128, 128)),
    ("fp8-dynamic", Storage::Fp8Rows),
    ("fp8-row", Storage::Fp8Rows),
    ("fp8-tensor", Storage::Fp8),
    ("int8", Storage::Int8Rows),
    ("w8a8", Storage::Int8Rows),
    ("int8-g128", groups(8, 128, true)),
    ("w8a16", groups(8, 128, true)),
    ("int4-g128", groups(4, 128, true)),
    ("int4", groups(4, 128, true)),
    ("w4a16", groups(4, 128, true)),
    ("int4-g64", groups(4, 64, true)),
    ("int4-g32", groups(4, 32, true)),
    ("awq", groups(4, 128, false)),
    ("gptq", groups(4, 128, false)),
    ("mxfp4", Storage::Mxfp4),
    ("nvfp4", Storage::Nvfp4),
];

impl WeightScheme {
    /// Reads `released`, a format (`bf16`, `fp8`, `int4-g128`, …), a format for the routed experts
    /// alone (`experts-int4`), or a GGUF mix (`gguf:Q4_K_M` or `Q4_K_M`).
    ///
    /// # Errors
    ///
    /// The name is none of these; the message lists them.
    pub fn parse(name: &str) -> Result<WeightScheme, Error> {
        let lower = name.trim().to_ascii_lowercase();
        if ["released", "auto", "none"].contains(&lower.as_str()) {
            return Ok(WeightScheme::Released);
        }
        let format = |wanted: &str| FORMATS.iter().find(|f| f.0 == wanted).map(|f| f.1);
        if let Some(storage) = format(&lower) {
            return Ok(WeightScheme::Linear(storage));
        }
        if let Some(storage) = lower.strip_prefix("experts-").and_then(format) {
            return Ok(WeightScheme::Experts(storage));
        }
        let mix = lower
            .strip_prefix("gguf:")
            .or_else(|| lower.strip_prefix("gguf_"))
            .unwrap_or(&lower);
        match gguf_mix::canonical(mix) {
            Some(mix) => Ok(WeightScheme::Gguf(mix.to_owned())),
            None => Err(Error::Unknown {
                kind: "weight scheme",
                name: name.to_owned(),
                nearest: WeightScheme::names(),
            }),
        }
    }

    /// Every accepted name, for messages.
    pub fn names() -> String {
        let formats: Vec<&str> = FORMATS.iter().map(|f| f.0).collect();
        format!(
            "released, {}, experts-FORMAT with one of these, gguf:MIX with one of {}",
            formats.join(", "),
            gguf_mix::names().join(", ")
        )
    }

    /// The name to print, which [`parse`](Self::parse) reads back where there is one.
    pub fn label(&self) -> String {
        let format = |storage: &Storage| {
            let known = FORMATS.iter().find(|f| f.1 == *storage);
            match (known, storage) {
                (Some(known), _) => known.0.to_owned(),
                (None, Storage::Ggml(ggml)) => ggml_label(*ggml),
                (None, other) => format!("{other:?}").to_ascii_lowercase(),
            }
        };
        match self {
            WeightScheme::Released => "released".to_owned(),
            WeightScheme::Linear(storage) => format(storage),
            WeightScheme::Experts(storage) => format!("experts-{}", format(storage)),
            WeightScheme::Gguf(mix) => format!("gguf:{mix}"),
        }
    }
}

fn ggml_label(ggml: GgmlType) -> String {
    format!("gguf:{}", ggml.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_read_back() {
        for (name, _) in FORMATS {
            for name in [name.to_string(), format!("experts-{name}")] {
                let scheme = WeightScheme::parse(&name).unwrap();
                assert_eq!(
                    WeightScheme::parse(&scheme.label()).unwrap(),
                    scheme,
                    "{name}"
                );
            }
        }
        for mix in gguf_mix::names() {
            let scheme = WeightScheme::parse(&format!("gguf:{mix}")).unwrap();
            assert_eq!(scheme.label(), format!("gguf:{mix}"));
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let message = WeightScheme::parse("int3-g7").unwrap_err().to_string();
        assert!(
            message.contains("int3-g7") && message.contains("int4-g128"),
            "{message}"
        );
        assert!(message.contains("Q4_K_M"), "{message}");
    }
}

//! Normalizers: what happens to text before it is split.

use std::borrow::Cow;

use serde_json::Value;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// One normalization step of tokenizer.json.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Normalizer {
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
    /// Puts a string before every text that is not empty.
    Prepend(String),
    /// Replaces every occurrence of a string.
    Replace(String, String),
}

impl Normalizer {
    pub fn apply<'t>(&self, text: Cow<'t, str>) -> Cow<'t, str> {
        match self {
            Self::Nfc if is_nfc_quick(text.chars()) == IsNormalized::Yes => text,
            Self::Nfc => Cow::Owned(text.nfc().collect()),
            Self::Nfd => Cow::Owned(text.nfd().collect()),
            Self::Nfkc => Cow::Owned(text.nfkc().collect()),
            Self::Nfkd => Cow::Owned(text.nfkd().collect()),
            Self::Prepend(_) if text.is_empty() => text,
            Self::Prepend(prefix) => Cow::Owned(format!("{prefix}{text}")),
            Self::Replace(from, _) if !text.contains(from.as_str()) => text,
            Self::Replace(from, to) => Cow::Owned(text.replace(from.as_str(), to)),
        }
    }
}

/// Applies all steps in order.
pub(super) fn apply_all<'t>(steps: &[Normalizer], text: &'t str) -> Cow<'t, str> {
    steps
        .iter()
        .fold(Cow::Borrowed(text), |text, step| step.apply(text))
}

/// Reads tokenizer.json's `normalizer`. `None`: it has a step that is not in [`Normalizer`].
pub(super) fn parse(normalizer: &Value) -> Option<Vec<Normalizer>> {
    let mut steps = Vec::new();
    parse_into(normalizer, &mut steps)?;
    Some(steps)
}

fn parse_into(normalizer: &Value, steps: &mut Vec<Normalizer>) -> Option<()> {
    if normalizer.is_null() {
        return Some(());
    }
    let text = |key: &str| normalizer.get(key)?.as_str().map(str::to_owned);
    steps.push(match normalizer.get("type")?.as_str()? {
        "Sequence" => {
            let parts = normalizer.get("normalizers")?.as_array()?;
            return parts.iter().try_for_each(|part| parse_into(part, steps));
        }
        "NFC" => Normalizer::Nfc,
        "NFD" => Normalizer::Nfd,
        "NFKC" => Normalizer::Nfkc,
        "NFKD" => Normalizer::Nfkd,
        "Prepend" => Normalizer::Prepend(text("prepend")?),
        "Replace" => {
            let from = normalizer.get("pattern")?.get("String")?.as_str()?;
            if from.is_empty() {
                return None;
            }
            Normalizer::Replace(from.to_owned(), text("content")?)
        }
        _ => return None,
    });
    Some(())
}

/// How many times longer a tokenizer.json's `normalizer` may make a text by what it inserts, also
/// by steps that are not in [`Normalizer`].
pub(super) fn growth(normalizer: &Value) -> usize {
    let len = |key: &str| normalizer.get(key).and_then(Value::as_str).map(str::len);
    match normalizer.get("type").and_then(Value::as_str) {
        Some("Sequence") => match normalizer.get("normalizers").and_then(Value::as_array) {
            Some(parts) => parts
                .iter()
                .fold(1, |all, part| all.saturating_mul(growth(part))),
            None => 1,
        },
        Some("Prepend") => 1 + len("prepend").unwrap_or(0),
        Some("Replace") => {
            let pattern = normalizer.get("pattern");
            let from = pattern.and_then(|p| p.get("String")?.as_str());
            let content = len("content").unwrap_or(0);
            match from.map_or(0, str::len) {
                // A regular expression may match between any two bytes.
                0 => 1 + content,
                from => content.div_ceil(from).max(1),
            }
        }
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sentencepiece_sequence() {
        let steps = parse(&json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}))
        .unwrap();
        assert_eq!(apply_all(&steps, "a b"), "▁a▁b");
        assert_eq!(apply_all(&steps, ""), "");
    }

    #[test]
    fn composition_and_unknown_steps() {
        let nfc = parse(&json!({"type": "NFC"})).unwrap();
        assert_eq!(apply_all(&nfc, "e\u{301}"), "é");
        assert_eq!(parse(&json!(null)), Some(vec![]));
        assert_eq!(parse(&json!({"type": "BertNormalizer"})), None);
        assert_eq!(
            parse(&json!({"type": "Replace", "pattern": {"Regex": "a"}, "content": ""})),
            None
        );
    }
}

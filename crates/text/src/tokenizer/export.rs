//! A GGUF file's tokenizer as the `tokenizer.json` that other tools read.

use serde_json::{Map, Value, json};

use super::GgufTokenizer;
use super::gguf::{adds_bos, listed_merges, special_tokens};
use super::pre;
use super::vocab::SPACE_MARK;
use crate::TokenizerError;

impl GgufTokenizer {
    /// The contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// When the tokenizer is of an unknown kind, its splitting rules are not known, or it has no
    /// scores where it needs them.
    pub fn to_json(&self) -> Result<Value, TokenizerError> {
        let parts = match self.model.as_str() {
            "gpt2" => self.byte_level_json()?,
            "llama" if self.scores.len() == self.tokens.len() => self.sentencepiece_json(),
            other => {
                let what = format!("writing a tokenizer.ggml.model of {other:?}");
                return Err(TokenizerError::unsupported(what));
            }
        };
        let added: Vec<Value> = special_tokens(self)
            .map(|(id, content, special)| {
                json!({
                    "id": id, "content": content, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": special,
                })
            })
            .collect();
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": parts.normalizer,
            "pre_tokenizer": parts.pre_tokenizer,
            "post_processor": self.post_processor(),
            "decoder": parts.decoder,
            "model": parts.model,
        }))
    }

    fn byte_level_json(&self) -> Result<Parts, TokenizerError> {
        let name = self.pre.as_deref().unwrap_or("default");
        let rules = pre::named(name).ok_or_else(|| {
            TokenizerError::unsupported(format!("tokenizer.ggml.pre {name:?} is not known"))
        })?;
        let mut steps: Vec<Value> = rules.patterns.iter().map(|p| split(p)).collect();
        steps.push(json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
        }));
        let mut model = self.bpe_json(json!(self.merges), false);
        model["ignore_merges"] = json!(rules.ignore_merges);
        Ok(Parts {
            normalizer: Value::Null,
            pre_tokenizer: json!({"type": "Sequence", "pretokenizers": steps}),
            decoder: byte_level(),
            model,
        })
    }

    fn sentencepiece_json(&self) -> Parts {
        let prefixes = self.add_space_prefix.unwrap_or(true);
        let mark = SPACE_MARK.to_string();
        let mut normalizers = Vec::new();
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": mark}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if prefixes {
            normalizers.push(json!({"type": "Prepend", "prepend": mark}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        normalizers.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": mark}));
        let mut model = self.bpe_json(json!(listed_merges(self)), true);
        model["unk_token"] = json!(self.unk.and_then(|id| self.tokens.get(id as usize)));
        Parts {
            normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
            pre_tokenizer: Value::Null,
            decoder: json!({"type": "Sequence", "decoders": decoders}),
            model,
        }
    }

    fn bpe_json(&self, merges: Value, bytes: bool) -> Value {
        let ids = self.tokens.iter().enumerate();
        let vocab: Map<String, Value> = ids.map(|(id, t)| (t.clone(), json!(id))).collect();
        json!({
            "type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": bytes,
            "byte_fallback": bytes, "ignore_merges": false, "vocab": vocab, "merges": merges,
        })
    }

    /// Puts the beginning-of-text token in front, where the model wants it.
    fn post_processor(&self) -> Value {
        let bos = self
            .bos
            .and_then(|id| Some((id, self.tokens.get(id as usize)?)));
        let Some((id, token)) = bos.filter(|_| adds_bos(self)) else {
            return Value::Null;
        };
        let special = |type_id: usize| json!({"SpecialToken": {"id": token, "type_id": type_id}});
        let sequence =
            |name: &str, type_id: usize| json!({"Sequence": {"id": name, "type_id": type_id}});
        json!({
            "type": "TemplateProcessing",
            "single": [special(0), sequence("A", 0)],
            "pair": [special(0), sequence("A", 0), special(1), sequence("B", 1)],
            "special_tokens": {token.as_str(): {"id": token, "ids": [id], "tokens": [token]}},
        })
    }
}

/// What differs between the kinds.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
}

fn byte_level() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true})
}

fn split(pattern: &str) -> Value {
    json!({
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tokenizer, TokenizerConfig};

    fn tiny() -> GgufTokenizer {
        let letters = [
            "a", "b", "c", "Ġ", "1", "2", "ab", "Ġc", "abc", "<s>", "<x>",
        ];
        GgufTokenizer {
            model: "gpt2".into(),
            pre: Some("gpt-2".into()),
            tokens: letters.map(String::from).to_vec(),
            token_types: vec![1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 4],
            merges: ["a b", "Ġ c", "ab c"].map(String::from).to_vec(),
            bos: Some(9),
            add_bos: Some(true),
            ..GgufTokenizer::default()
        }
    }

    #[test]
    fn the_written_tokenizer_is_the_same_tokenizer() {
        let json = serde_json::to_vec(&tiny().to_json().unwrap()).unwrap();
        let written = Tokenizer::from_json(&json, &TokenizerConfig::default()).unwrap();
        let own = Tokenizer::from_gguf(tiny()).unwrap();
        for text in ["abc abc", "cab 12<x>a", "", " ccc", "<s>ab"] {
            for special in [false, true] {
                let (a, b) = (
                    own.encode(text, special).unwrap(),
                    written.encode(text, special).unwrap(),
                );
                assert_eq!(a, b, "{text:?}");
            }
        }
        assert_eq!(written.encode("ab", true).unwrap(), [9, 6]);
    }

    #[test]
    fn sentencepiece_is_written_with_its_merges() {
        let tokens = ["<unk>", "<s>", "▁", "a", "b", "▁a", "ab", "▁ab", "<0x41>"];
        let gguf = GgufTokenizer {
            model: "llama".into(),
            pre: None,
            tokens: tokens.map(String::from).to_vec(),
            scores: vec![0.0, 0.0, -9.0, -8.0, -7.0, -3.0, -2.0, -1.0, 0.0],
            token_types: vec![2, 3, 1, 1, 1, 1, 1, 1, 6],
            bos: Some(1),
            unk: Some(0),
            merges: Vec::new(),
            ..tiny()
        };
        let json = serde_json::to_vec(&gguf.to_json().unwrap()).unwrap();
        let written = Tokenizer::from_json(&json, &TokenizerConfig::default()).unwrap();
        let own = Tokenizer::from_gguf(gguf).unwrap();
        for text in ["ab ab", "aab A", "b"] {
            let (a, b) = (
                own.encode(text, true).unwrap(),
                written.encode(text, true).unwrap(),
            );
            assert_eq!(a, b, "{text:?}");
            assert_eq!(own.decode(&a, true), written.decode(&b, true));
        }
    }

    #[test]
    fn other_kinds_are_refused() {
        let unknown = GgufTokenizer {
            model: "rwkv".into(),
            ..tiny()
        };
        assert!(unknown.to_json().is_err());
    }
}

//! A `tokenizer.json` as the key-values of a GGUF file: the way back from `export`.
//!
//! GGUF has less to say: splitting rules have to be among those that have a name, SentencePiece's
//! merges have to follow from scores, and a text begins with at most one token of its own. What does
//! not fit is refused with what it is, and what fits is tried on a text: a file never gets a
//! tokenizer that splits otherwise.

use std::collections::HashMap;

use serde_json::Value;

use super::json::{affixes, brief, decoder};
use super::vocab::{SPACE_MARK, Spelling};
use super::{GgufTokenizer, Tokenizer, TokenizerConfig, pre};
use crate::TokenizerError;

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Words, numbers, marks, spaces, lines, scripts and bytes: where splitting rules differ.
const SAMPLE: &str = "The cat's 12345 hats, it'LL cost $3.50 (about 1,000,000 things)!\n\n\tdef f(x):\n        \
    return x**2  # ok\r\n  two  spaces   three; e-mail_me@x.org/a?b=c&d=7 \"quoted\" 'x' — … “q” 3rd v2.0.1 \
    ÄÖÜ ß naïve Ωμέγα Привет мир שלום مرحبا 你好，世界。 こんにちは 한국어 ๑๒๓ ½ x² 🙂👍🏽 aB CamelCase HTTPServer I've YOU'RE we'd\n \n end ";

impl GgufTokenizer {
    /// Reads a `tokenizer.json`, with what `tokenizer_config.json` says beside it, for a model whose
    /// embedding has `rows` rows: ids without a token are filled up.
    ///
    /// # Errors
    /// When the file is damaged, or describes a tokenizer that GGUF has no words for.
    pub fn from_json(
        json: &[u8],
        config: &TokenizerConfig,
        rows: usize,
    ) -> Result<GgufTokenizer, TokenizerError> {
        let file: Value = serde_json::from_slice(json).map_err(|source| TokenizerError::Json {
            file: "tokenizer.json",
            source,
        })?;
        let original = Tokenizer::from_json(json, config)?;
        let (spelling, _) = decoder(&file["decoder"])
            .ok_or_else(|| unsaid(format!("its decoder is {}", brief(&file["decoder"]))))?;
        let model = &file["model"];
        let mut gguf = GgufTokenizer {
            bos: config.bos_token().and_then(|token| original.id(token)),
            eos: config.eos_token().and_then(|token| original.id(token)),
            unk: unknown_token(model, config).and_then(|token| original.id(token)),
            ..GgufTokenizer::default()
        };
        gguf.fill_tokens(&file, rows)?;
        let merges = merges(&model["merges"])?;
        match spelling {
            Spelling::ByteLevel => gguf.byte_level(&file, merges)?,
            Spelling::SentencePiece => gguf.sentencepiece(&file, &merges)?,
        }
        gguf.fill_affixes(&file["post_processor"], config)?;
        gguf.check_against(&original)?;
        Ok(gguf)
    }

    fn fill_tokens(&mut self, file: &Value, rows: usize) -> Result<(), TokenizerError> {
        let unused = |id| (format!("[PAD{id}]"), UNUSED);
        let (mut tokens, mut kinds): (Vec<String>, Vec<i32>) = (0..rows).map(unused).unzip();
        let mut put = |id: Option<u64>, text: &str, kind| {
            let at = id
                .and_then(|id| usize::try_from(id).ok())
                .filter(|at| *at < rows);
            let at = at.ok_or_else(|| {
                unsaid(format!(
                    "its token {text:?} has id {}, and the model {rows} rows",
                    id.map_or("none".to_owned(), |id| id.to_string())
                ))
            })?;
            (tokens[at], kinds[at]) = (text.to_owned(), kind);
            Ok::<_, TokenizerError>(())
        };
        for (text, id) in file["model"]["vocab"].as_object().into_iter().flatten() {
            let byte = text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
            put(id.as_u64(), text, if byte { BYTE } else { NORMAL })?;
        }
        for token in file["added_tokens"].as_array().into_iter().flatten() {
            let special = token["special"].as_bool().unwrap_or(false);
            let kind = if special { CONTROL } else { USER_DEFINED };
            let text = token["content"].as_str().unwrap_or_default();
            put(token["id"].as_u64(), text, kind)?;
        }
        self.tokens = tokens;
        self.token_types = kinds;
        Ok(())
    }

    fn byte_level(&mut self, file: &Value, merges: Vec<Merge>) -> Result<(), TokenizerError> {
        match &file["normalizer"] {
            Value::Null => {}
            // Qwen's, which no reader of GGUF applies either; text is composed as a rule.
            normalizer if normalizer["type"] == "NFC" => {}
            other => {
                return Err(unsaid(format!("it normalizes text by {}", brief(other))));
            }
        }
        let rules = &file["pre_tokenizer"];
        let ignore_merges = file["model"]["ignore_merges"].as_bool().unwrap_or(false);
        let name = patterns(rules).and_then(|patterns| pre::name_of(&patterns, ignore_merges));
        let name = name.ok_or_else(|| {
            unsaid(format!(
                "its splitting rules are none of those that tokenizer.ggml.pre can name: {}",
                brief(rules)
            ))
        })?;
        if let Some((left, right)) = merges
            .iter()
            .find(|(l, r)| l.contains(' ') || r.contains(' '))
        {
            return Err(unsaid(format!(
                "it merges {left:?} and {right:?}, which have spaces in them"
            )));
        }
        self.model = "gpt2".to_owned();
        self.pre = Some(name.to_owned());
        self.merges = merges.into_iter().map(|(l, r)| l + " " + &r).collect();
        Ok(())
    }

    fn sentencepiece(&mut self, file: &Value, merges: &[Merge]) -> Result<(), TokenizerError> {
        if !file["model"]["byte_fallback"].as_bool().unwrap_or(false) {
            return Err(unsaid(
                "it has SentencePiece's spaces, but no tokens for single bytes".to_owned(),
            ));
        }
        if let Some(kind) = self
            .unk
            .and_then(|id| self.token_types.get_mut(id as usize))
        {
            *kind = UNKNOWN;
        }
        self.model = "llama".to_owned();
        self.scores = scores(&self.tokens, merges)?;
        self.add_space_prefix = Some(prefixes_space(&file["normalizer"], &file["pre_tokenizer"]));
        Ok(())
    }

    fn fill_affixes(
        &mut self,
        post_processor: &Value,
        config: &TokenizerConfig,
    ) -> Result<(), TokenizerError> {
        let (prefix, suffix) = affixes(post_processor);
        let one = |ids: &[u32], known: &mut Option<u32>, wanted: Option<bool>, which: &str| match (
            wanted, ids,
        ) {
            (Some(wanted), _) => Ok(wanted && known.is_some()),
            (None, []) => Ok(false),
            (None, [id]) if known.is_none_or(|known| known == *id) => {
                *known = Some(*id);
                Ok(true)
            }
            (None, ids) => Err(unsaid(format!(
                "a text {which} with the tokens {ids:?}, of which one alone can be said"
            ))),
        };
        let begins = one(&prefix, &mut self.bos, config.add_bos_token, "begins")?;
        let ends = one(&suffix, &mut self.eos, config.add_eos_token, "ends")?;
        self.add_bos = Some(begins);
        self.add_eos = Some(ends);
        Ok(())
    }

    /// Tries what a reader of the file will have against what the folder has.
    fn check_against(&self, original: &Tokenizer) -> Result<(), TokenizerError> {
        let written = Tokenizer::from_gguf(self.clone())?;
        let ids = original.encode(SAMPLE, true)?;
        if written.encode(SAMPLE, true)? != ids {
            return Err(unsaid(format!(
                "as {:?} with the rules {:?} it would split a text otherwise",
                self.model,
                self.pre.as_deref().unwrap_or("of SentencePiece")
            )));
        }
        Ok(())
    }
}

/// Left and right.
type Merge = (String, String);

fn unsaid(what: String) -> TokenizerError {
    TokenizerError::NotInGguf { what }
}

fn unknown_token<'a>(model: &'a Value, config: &'a TokenizerConfig) -> Option<&'a str> {
    model["unk_token"].as_str().or_else(|| config.unk_token())
}

fn merges(listed: &Value) -> Result<Vec<Merge>, TokenizerError> {
    let merge = |(i, merge): (usize, &Value)| match merge {
        Value::String(text) => super::bpe::parse_merge(i, text),
        other => {
            let part = |at: usize| other[at].as_str().map(str::to_owned);
            part(0)
                .zip(part(1))
                .ok_or_else(|| TokenizerError::invalid(format!("merge {i} is {}", brief(other))))
        }
    };
    let listed = listed.as_array().into_iter().flatten();
    listed.enumerate().map(merge).collect()
}

/// The regular expressions that a text is split by, one after another; `None` where it is split in
/// another way.
fn patterns(pre_tokenizer: &Value) -> Option<Vec<String>> {
    let parts = match pre_tokenizer.get("pretokenizers") {
        Some(parts) => parts.as_array()?.as_slice(),
        None => std::slice::from_ref(pre_tokenizer),
    };
    let mut patterns = Vec::new();
    for part in parts {
        let flag = |key: &str, unset: bool| part[key].as_bool().unwrap_or(unset);
        match part["type"].as_str()? {
            "Split" => {
                let pattern = part["pattern"]["Regex"].as_str()?;
                let whole = parts.len() <= 2 && pattern.ends_with(r"|\s+");
                match (part["behavior"].as_str()?, flag("invert", false)) {
                    ("Isolated", _) => {}
                    // Nothing is between the matches of a pattern that matches everything.
                    ("Removed", true) if whole => {}
                    _ => return None,
                }
                patterns.push(pattern.to_owned());
            }
            "Digits" if flag("individual_digits", false) => patterns.push(r"\p{N}".to_owned()),
            "Digits" => patterns.push(r"\p{N}+".to_owned()),
            "ByteLevel" if !flag("add_prefix_space", true) => {
                if flag("use_regex", true) {
                    patterns.push(pre::BYTE_LEVEL.to_owned());
                }
            }
            _ => return None,
        }
    }
    Some(patterns)
}

/// Scores that give these merges: a token's is the better, the earlier it is merged.
fn scores(tokens: &[String], merges: &[Merge]) -> Result<Vec<f32>, TokenizerError> {
    let mut ranks: HashMap<String, usize> = HashMap::new();
    let mut last = None;
    for (left, right) in merges {
        let token = format!("{left}{right}");
        let next = ranks.len();
        if last.as_ref() != Some(&token) && ranks.insert(token.clone(), next).is_some() {
            return Err(unsaid(format!(
                "{token:?} is merged of several pairs that are not in one place, so that no score stands for them"
            )));
        }
        last = Some(token);
    }
    // Tokens that nothing makes come last: no pair asks for their score.
    let lowest = -(ranks.len() as f32);
    let score = |token: &String| ranks.get(token).map_or(lowest, |rank| -(*rank as f32));
    Ok(tokens.iter().map(score).collect())
}

/// Whether a space is put before a text.
fn prefixes_space(normalizer: &Value, pre_tokenizer: &Value) -> bool {
    let parts = |value: &Value, key: &str| match value[key].as_array() {
        Some(parts) => parts.clone(),
        None => vec![value.clone()],
    };
    let mark = SPACE_MARK.to_string();
    let prepends = |part: &Value| part["type"] == "Prepend" && part["prepend"] == mark.as_str();
    let marks = |part: &Value| {
        part["type"] == "Metaspace"
            && match part["prepend_scheme"].as_str() {
                Some(scheme) => scheme != "never",
                None => part["add_prefix_space"].as_bool().unwrap_or(true),
            }
    };
    parts(normalizer, "normalizers").iter().any(prepends)
        || parts(pre_tokenizer, "pretokenizers").iter().any(marks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bytes() -> Vec<String> {
        // The letters that GPT-2 writes bytes as.
        let printable = (33..=126).chain(161..=172).chain(174..=255);
        let others = (0..=255u32).filter(|b| !printable.clone().any(|p| p == *b));
        let shifted = others.enumerate().map(|(i, _)| 256 + i as u32);
        let all = printable.clone().chain(shifted).filter_map(char::from_u32);
        all.map(String::from).collect()
    }

    fn byte_level(pre_tokenizer: &Value) -> Value {
        let mut tokens = bytes();
        tokens.extend(["Ġt", "he", "Ġthe", "12"].map(String::from));
        let vocab: serde_json::Map<String, Value> = tokens
            .into_iter()
            .enumerate()
            .map(|(i, t)| (t, json!(i)))
            .collect();
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
        json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [
                {"id": 260, "content": "<s>", "single_word": false, "lstrip": false,
                 "rstrip": false, "normalized": false, "special": true},
                {"id": 262, "content": "<x>", "single_word": false, "lstrip": false,
                 "rstrip": false, "normalized": false, "special": false},
            ],
            "normalizer": null, "pre_tokenizer": pre_tokenizer,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                           {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                         {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [260], "tokens": ["<s>"]}},
            },
            "decoder": bytes,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                "byte_fallback": false, "ignore_merges": false, "vocab": vocab,
                "merges": [["Ġ", "t"], ["h", "e"], ["Ġt", "he"], "1 2"],
            },
        })
    }

    fn read(json: &Value, rows: usize) -> Result<GgufTokenizer, String> {
        let json = serde_json::to_vec(json).unwrap();
        let config = TokenizerConfig::default();
        GgufTokenizer::from_json(&json, &config, rows).map_err(|e| e.to_string())
    }

    #[test]
    fn rules_get_the_name_that_stands_for_them() {
        let bytes = |regex| {
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                   "use_regex": regex})
        };
        let digits = json!({"type": "Digits", "individual_digits": true});
        let sequence = |parts: &[Value]| json!({"type": "Sequence", "pretokenizers": parts});
        let qwen = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let split = json!({"type": "Split", "pattern": {"Regex": qwen}, "behavior": "Isolated",
                           "invert": false});
        for (rules, name) in [
            (bytes(true), "gpt-2"),
            (sequence(&[digits, bytes(true)]), "smollm"),
            (sequence(&[split, bytes(false)]), "qwen2"),
        ] {
            let gguf = read(&byte_level(&rules), 264).unwrap();
            assert_eq!(gguf.pre.as_deref(), Some(name));
            assert_eq!(
                (gguf.bos, gguf.add_bos, gguf.add_eos),
                (Some(260), Some(true), Some(false))
            );
            assert_eq!(gguf.tokens[261], "[PAD261]");
            assert_eq!(gguf.token_types[259..], [1, 3, 5, 4, 5]);
            assert_eq!(gguf.merges, ["Ġ t", "h e", "Ġt he", "1 2"]);
            // There and back.
            let again = read(&gguf.to_json().unwrap(), 264).unwrap();
            assert_eq!(again.merges, gguf.merges);
            assert_eq!(again.pre, gguf.pre);
        }
        let refused = read(&byte_level(&bytes(true)), 262).unwrap_err();
        assert!(refused.contains("\"<x>\" has id 262"), "{refused}");
        let spaced = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                            "use_regex": true});
        let refused = read(&byte_level(&spaced), 264).unwrap_err();
        assert!(refused.contains("tokenizer.ggml.pre"), "{refused}");
        let mut lower = byte_level(&bytes(true));
        lower["normalizer"] = json!({"type": "Lowercase"});
        assert!(read(&lower, 264).is_err());
    }

    #[test]
    fn merges_become_scores_where_scores_can_say_them() {
        let pieces = ["<unk>", "<s>", "▁", "a", "b", "▁a", "ab", "▁ab"];
        let bytes = (0..256).map(|b| format!("<0x{b:02X}>"));
        let tokens: Vec<String> = pieces
            .into_iter()
            .map(String::from)
            .chain(bytes.clone())
            .collect();
        let kinds = [2, 3, 1, 1, 1, 1, 1, 1].into_iter().chain([6; 256]);
        let own = GgufTokenizer {
            model: "llama".into(),
            scores: [0.0, 0.0, -9.0, -8.0, -7.0, -3.0, -2.0, -1.0]
                .into_iter()
                .chain([0.0; 256])
                .collect(),
            token_types: kinds.collect(),
            tokens,
            bos: Some(1),
            unk: Some(0),
            ..GgufTokenizer::default()
        };
        let mut json = own.to_json().unwrap();
        let gguf = read(&json, 264).unwrap();
        assert_eq!(gguf.tokens, own.tokens);
        assert_eq!(gguf.token_types, own.token_types);
        assert_eq!((gguf.unk, gguf.bos), (Some(0), Some(1)));
        assert_eq!(gguf.add_space_prefix, Some(true));
        let best = |g: &GgufTokenizer| {
            let mut order: Vec<usize> = vec![5, 6, 7];
            order.sort_by(|a, b| g.scores[*b].total_cmp(&g.scores[*a]));
            order
        };
        assert_eq!(best(&gguf), best(&own));
        // Pairs of one token apart from each other have no common score.
        json["model"]["merges"] = json!([["▁", "ab"], ["a", "b"], ["▁a", "b"], ["▁", "a"]]);
        assert!(read(&json, 264).unwrap_err().contains("no score"));
    }
}

//! tokenizer.json → the parts of a tokenizer.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::added::AddedToken;
use super::bpe::{self, BpeParts};
use super::normalize;
use super::pipeline::Pipeline;
use super::pre;
use super::split::{Keep, Prepend, Splitter, Step};
use super::vocab::{Entry, SPACE_MARK, Spelling, Vocab};
use super::{Encoder, Inner};
use crate::TokenizerError;

#[derive(Deserialize)]
struct File<'a> {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(borrow)]
    model: ModelFile<'a>,
}

#[derive(Deserialize)]
struct ModelFile<'a> {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    /// An object for BPE, an array for other models.
    #[serde(borrow)]
    vocab: Option<&'a RawValue>,
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
}

/// `"Ġ t"` or `["Ġ", "t"]`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Text(String),
    Pair(String, String),
}

/// Steps that a normalizer or a pre-tokenizer may have: published ones have at most 6, and each
/// costs a stack frame.
const MAX_STEPS: usize = 64;

/// How many times longer a normalizer may make a text; SentencePiece's makes it up to 12.
const MAX_GROWTH: usize = 64;

/// Reads tokenizer.json.
pub(super) fn load(json: &[u8]) -> Result<Inner, TokenizerError> {
    let file: File = serde_json::from_slice(json).map_err(|source| TokenizerError::Json {
        file: "tokenizer.json",
        source,
    })?;
    let (spelling, strips_space) = decoder(&file.decoder).ok_or_else(|| {
        TokenizerError::unsupported(format!("its decoder is {}", brief(&file.decoder)))
    })?;
    check_steps(&file)?;
    let parts = model(file.model)?;
    let vocab = vocab(&parts, &file.added_tokens, spelling)?;
    let (prefix, suffix) = affixes(&file.post_processor);
    let added_ids = file
        .added_tokens
        .iter()
        .map(|t| (t.content.clone(), t.id))
        .collect();

    let bpe = parts.build()?;
    let steps = steps(&file.pre_tokenizer, spelling);
    let encoder = match (normalize::parse(&file.normalizer), steps) {
        (Some(normalizers), Some(steps)) => {
            let added = file.added_tokens;
            Encoder::Pipeline(Box::new(Pipeline::new(
                bpe,
                spelling,
                added,
                normalizers,
                steps,
            )?))
        }
        // The library runs what we do not; `bpe` has shown that its merges are sound.
        _ => Encoder::Library(Box::new(library(json)?)),
    };
    Ok(Inner {
        encoder,
        vocab,
        added_ids,
        prefix,
        suffix,
        bos: None,
        strips_space,
    })
}

/// Refuses steps that would exhaust the stack or the memory, whoever runs them.
fn check_steps(file: &File) -> Result<(), TokenizerError> {
    let steps = [
        (&file.normalizer, "normalizers"),
        (&file.pre_tokenizer, "pretokenizers"),
    ];
    for (part, name) in steps {
        let count = leaves(part, name);
        if count > MAX_STEPS {
            let what = format!("it has {count} {name}, over {MAX_STEPS}");
            return Err(TokenizerError::invalid(what));
        }
    }
    let growth = normalize::growth(&file.normalizer);
    if growth > MAX_GROWTH {
        let what =
            format!("its normalizer makes text up to {growth} times longer, over {MAX_GROWTH}");
        return Err(TokenizerError::invalid(what));
    }
    Ok(())
}

/// The parts of a sequence, and of the sequences in it.
fn leaves(part: &Value, name: &str) -> usize {
    match part.get(name).and_then(Value::as_array) {
        Some(parts) => parts.iter().map(|part| leaves(part, name)).sum(),
        None => 1,
    }
}

/// The library's own tokenizer, without the padding and the truncation that a file may ask for:
/// those are for training, and padding may be of any length.
fn library(json: &[u8]) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let mut library = tokenizers::Tokenizer::from_bytes(json).map_err(TokenizerError::library)?;
    library.with_padding(None);
    library
        .with_truncation(None)
        .map_err(TokenizerError::library)?;
    Ok(library)
}

fn model(file: ModelFile) -> Result<BpeParts, TokenizerError> {
    let vocab = file.vocab.map_or("null", RawValue::get);
    if file.kind.as_deref().is_some_and(|kind| kind != "BPE") || !vocab.starts_with('{') {
        let what = match file.kind.as_deref() {
            Some("BPE") => "its BPE model has no vocabulary".into(),
            Some(kind) => format!("its model is {kind}, not BPE"),
            None => "its model is of no kind, and has no vocabulary".into(),
        };
        return Err(TokenizerError::unsupported(what));
    }
    for affix in [&file.continuing_subword_prefix, &file.end_of_word_suffix] {
        if let Some(affix) = affix.as_ref().filter(|affix| !affix.is_empty()) {
            return Err(TokenizerError::unsupported(format!(
                "it marks words with {affix:?}"
            )));
        }
    }
    let vocab = serde_json::from_str::<HashMap<String, u32>>(vocab).map_err(|source| {
        TokenizerError::Json {
            file: "tokenizer.json (model.vocab)",
            source,
        }
    })?;
    let merges = file
        .merges
        .into_iter()
        .enumerate()
        .map(|(i, merge)| match merge {
            Merge::Text(text) => bpe::parse_merge(i, &text),
            Merge::Pair(left, right) => Ok((left, right)),
        });
    Ok(BpeParts {
        vocab: vocab.into_iter().collect(),
        merges: merges.collect::<Result<_, _>>()?,
        unk_token: file.unk_token,
        fuse_unk: file.fuse_unk,
        byte_fallback: file.byte_fallback,
        ignore_merges: file.ignore_merges,
    })
}

fn vocab(
    parts: &BpeParts,
    added: &[AddedToken],
    spelling: Spelling,
) -> Result<Vocab, TokenizerError> {
    let plain = parts.vocab.iter().map(|(text, &id)| Entry {
        id,
        text,
        is_literal: false,
        is_special: false,
    });
    // Later entries win. GPT-2 spelling falls back to the text itself, as Hugging Face does.
    let added = added.iter().map(|token| Entry {
        id: token.id,
        text: &token.content,
        is_literal: spelling == Spelling::SentencePiece && token.special,
        is_special: token.special,
    });
    Vocab::new(plain.chain(added).collect(), spelling)
}

/// How ids turn back into text, and whether the first space of a text is dropped.
pub(super) fn decoder(decoder: &Value) -> Option<(Spelling, bool)> {
    let kind = |part: &Value| part.get("type").and_then(Value::as_str).map(str::to_owned);
    match kind(decoder)?.as_str() {
        "ByteLevel" => Some((Spelling::ByteLevel, false)),
        "Metaspace" if is_space_mark(decoder) => {
            Some((Spelling::SentencePiece, scheme(decoder)? != Prepend::Never))
        }
        "Sequence" => {
            let parts = decoder.get("decoders")?.as_array()?;
            if let [only] = parts.as_slice() {
                return self::decoder(only);
            }
            let mut strips_space = false;
            let mut marks = false;
            for part in parts {
                match kind(part)?.as_str() {
                    "Replace" => {
                        let from = part.get("pattern")?.get("String")?.as_str()?;
                        let to = part.get("content")?.as_str()?;
                        marks = from.chars().eq([SPACE_MARK]) && to == " ";
                    }
                    "Strip" => strips_space = part.get("start")?.as_u64()? > 0,
                    "ByteFallback" | "Fuse" => {}
                    _ => return None,
                }
            }
            marks.then_some((Spelling::SentencePiece, strips_space))
        }
        _ => None,
    }
}

/// The splitting steps; `None` if one of them is not ours to run.
fn steps(pre_tokenizer: &Value, spelling: Spelling) -> Option<Vec<Step>> {
    let parts = match pre_tokenizer.get("pretokenizers") {
        Some(parts) => parts.as_array()?.as_slice(),
        None if pre_tokenizer.is_null() => &[],
        None => std::slice::from_ref(pre_tokenizer),
    };
    let mut steps = Vec::new();
    let mut spells_bytes = false;
    for part in parts {
        if spells_bytes {
            return None;
        }
        let flag = |key: &str| part.get(key).and_then(Value::as_bool);
        match part.get("type")?.as_str()? {
            "Split" => steps.push(Step::Split(splitter(part)?)),
            "Digits" => {
                let each = flag("individual_digits").unwrap_or(false);
                let pattern = if each { r"\p{N}" } else { r"\p{N}+" };
                steps.push(Step::Split(Splitter::new(pattern, Keep::All).ok()?));
            }
            "ByteLevel" => {
                if flag("add_prefix_space")? {
                    steps.push(Step::SpaceBefore);
                }
                if flag("use_regex").unwrap_or(true) {
                    steps.push(Step::Split(Splitter::new(pre::BYTE_LEVEL, Keep::All).ok()?));
                }
                spells_bytes = true;
            }
            "Metaspace" if is_space_mark(part) => steps.push(Step::Metaspace {
                mark: SPACE_MARK,
                prepend: scheme(part)?,
                split: flag("split").unwrap_or(true),
            }),
            _ => return None,
        }
    }
    (spells_bytes == (spelling == Spelling::ByteLevel)).then_some(steps)
}

fn splitter(split: &Value) -> Option<Splitter> {
    let is_inverted = split
        .get("invert")
        .and_then(Value::as_bool)
        .unwrap_or(false);
    let keep = match (split.get("behavior")?.as_str()?, is_inverted) {
        ("Isolated", _) => Keep::All,
        ("Removed", false) => Keep::Gaps,
        ("Removed", true) => Keep::Matches,
        _ => return None,
    };
    let pattern = split.get("pattern")?;
    match (pattern.get("Regex"), pattern.get("String")) {
        (Some(regex), _) => Splitter::new(regex.as_str()?, keep).ok(),
        (_, Some(text)) => Splitter::literal(text.as_str().filter(|t| !t.is_empty())?, keep).ok(),
        _ => None,
    }
}

/// Whether a Metaspace marks spaces as SentencePiece does.
fn is_space_mark(metaspace: &Value) -> bool {
    let mark = metaspace.get("replacement").and_then(Value::as_str);
    mark.is_some_and(|mark| mark.chars().eq([SPACE_MARK]))
}

/// Metaspace's `prepend_scheme`, or the older `add_prefix_space`.
fn scheme(metaspace: &Value) -> Option<Prepend> {
    match metaspace.get("prepend_scheme").and_then(Value::as_str) {
        Some("always") => Some(Prepend::Always),
        Some("first") => Some(Prepend::First),
        Some("never") => Some(Prepend::Never),
        Some(_) => None,
        None => match metaspace.get("add_prefix_space").and_then(Value::as_bool) {
            Some(false) => Some(Prepend::Never),
            _ => Some(Prepend::Always),
        },
    }
}

/// Ids put before and after every text.
pub(super) fn affixes(post_processor: &Value) -> (Vec<u32>, Vec<u32>) {
    let (mut prefix, mut suffix) = (vec![], vec![]);
    let parts = match post_processor.get("processors").and_then(Value::as_array) {
        Some(parts) => parts.as_slice(),
        None => std::slice::from_ref(post_processor),
    };
    for part in parts {
        let Some(single) = part.get("single").and_then(Value::as_array) else {
            continue;
        };
        let mut target = &mut prefix;
        for piece in single {
            if piece.get("Sequence").is_some() {
                target = &mut suffix;
            }
            let name = piece
                .get("SpecialToken")
                .and_then(|t| t.get("id"))
                .and_then(Value::as_str);
            let ids = name.and_then(|name| {
                part.get("special_tokens")?
                    .get(name)?
                    .get("ids")?
                    .as_array()
            });
            let ids = ids.into_iter().flatten().filter_map(Value::as_u64);
            target.extend(ids.filter_map(|id| u32::try_from(id).ok()));
        }
    }
    (prefix, suffix)
}

/// A JSON value short enough for a message.
pub(super) fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(200) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

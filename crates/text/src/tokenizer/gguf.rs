//! A tokenizer out of GGUF metadata.

use tokenizers::models::bpe::Vocab as TokenIds;

use super::added::AddedToken;
use super::bpe::{self, BpeParts};
use super::normalize::Normalizer;
use super::pipeline::Pipeline;
use super::pre;
use super::split::{Keep, Splitter, Step};
use super::vocab::{Entry, SPACE_MARK, Spelling, Vocab};
use super::{Encoder, Inner};
use crate::TokenizerError;

/// The `tokenizer.*` keys of a GGUF file, as plain data: whoever reads the file fills it in.
#[derive(Debug, Clone, Default)]
pub struct GgufTokenizer {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: String,
    /// `tokenizer.ggml.pre`: the name of the splitting rules, for `gpt2`.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`: the text of each id.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`: one a token, for `llama`; may be empty otherwise.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`: one a token (1 normal, 2 unknown, 3 control, 4 user-defined,
    /// 5 unused, 6 byte); empty: all normal.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`: `"left right"`, the most urgent first; for `gpt2`.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`: end of turn, where it is not `eos`.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unk: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`; unset: the model's habit.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`; unset: no.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`, for `llama`; unset: yes.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`. Not used here: see [`crate::ChatTemplate::from_source`].
    pub chat_template: Option<String>,
}

const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

/// Control tokens that end a turn whatever `eos_token_id` says.
const END_OF_TURN: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
    "<|EOT|>",
    "<|eom_id|>",
    "</s>",
];

/// Tokens longer than this take no part in merges made from scores; real ones have under 100 bytes.
const MAX_SCORED_BYTES: usize = 512;

/// Builds the parts of a tokenizer, and the ids that end a text.
pub(super) fn load(gguf: GgufTokenizer) -> Result<(Inner, Vec<u32>), TokenizerError> {
    check_lengths(&gguf)?;
    let added = added_tokens(&gguf);
    let spelling = match gguf.model.as_str() {
        "gpt2" => Spelling::ByteLevel,
        "llama" => Spelling::SentencePiece,
        other => {
            let what = format!("tokenizer.ggml.model is {other:?}, not \"gpt2\" or \"llama\"");
            return Err(TokenizerError::unsupported(what));
        }
    };
    let vocab = vocab(&gguf, spelling)?;
    let ids: TokenIds = gguf.tokens.iter().cloned().zip(0..).collect();
    let unk_token = gguf
        .unk
        .and_then(|id| gguf.tokens.get(id as usize))
        .cloned();
    let (pipeline, adds_bos, strips_space) = match spelling {
        Spelling::ByteLevel => {
            let (pipeline, adds_bos) = byte_level(&gguf, ids, added.clone())?;
            (pipeline, adds_bos, false)
        }
        Spelling::SentencePiece => {
            let prefixes = gguf.add_space_prefix.unwrap_or(true);
            (
                sentencepiece(&gguf, ids, unk_token, added.clone())?,
                true,
                prefixes,
            )
        }
    };
    let once = |wanted: bool, id: Option<u32>| id.filter(|_| wanted).into_iter().collect();
    let eos = end_of_text(&gguf, &added);
    let inner = Inner {
        encoder: Encoder::Pipeline(Box::new(pipeline)),
        vocab,
        prefix: once(gguf.add_bos.unwrap_or(adds_bos), gguf.bos),
        suffix: once(gguf.add_eos.unwrap_or(false), gguf.eos),
        bos: gguf.bos,
        added_ids: added
            .into_iter()
            .map(|token| (token.content, token.id))
            .collect(),
        strips_space,
    };
    Ok((inner, eos))
}

fn check_lengths(gguf: &GgufTokenizer) -> Result<(), TokenizerError> {
    let tokens = gguf.tokens.len();
    for (name, len) in [
        ("token_type", gguf.token_types.len()),
        ("scores", gguf.scores.len()),
    ] {
        if len != 0 && len != tokens {
            let what = format!("tokenizer.ggml.{name} has {len} entries for {tokens} tokens");
            return Err(TokenizerError::invalid(what));
        }
    }
    for (name, id) in [("bos", gguf.bos), ("eos", gguf.eos), ("eot", gguf.eot)] {
        if id.is_some_and(|id| id as usize >= tokens) {
            let what = format!("the {name} token's id is {id:?}, but there are {tokens} tokens");
            return Err(TokenizerError::invalid(what));
        }
    }
    Ok(())
}

fn token_type(gguf: &GgufTokenizer, id: usize) -> i32 {
    gguf.token_types.get(id).copied().unwrap_or(1)
}

/// Tokens that are found in the text as they stand.
fn added_tokens(gguf: &GgufTokenizer) -> Vec<AddedToken> {
    let is_added = |kind| matches!(kind, UNKNOWN | CONTROL | USER_DEFINED);
    let ids = (0..gguf.tokens.len()).filter(|&id| is_added(token_type(gguf, id)));
    ids.map(|id| AddedToken {
        id: id as u32,
        content: gguf.tokens[id].clone(),
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: token_type(gguf, id) != USER_DEFINED,
    })
    .collect()
}

/// The same as a `tokenizer.json` lists them: id, text, and whether decoding may skip it.
pub(super) fn special_tokens(gguf: &GgufTokenizer) -> impl Iterator<Item = (u32, &str, bool)> {
    let added = added_tokens(gguf).into_iter();
    added.map(|token| {
        (
            token.id,
            gguf.tokens[token.id as usize].as_str(),
            token.special,
        )
    })
}

/// Whether a text starts with the beginning-of-text token.
pub(super) fn adds_bos(gguf: &GgufTokenizer) -> bool {
    let habit = match gguf.model.as_str() {
        "gpt2" => starts_with_bos(gguf.pre.as_deref().unwrap_or("default")),
        _ => true,
    };
    gguf.add_bos.unwrap_or(habit)
}

/// Whether models of this pre-tokenizer start a text with the beginning-of-text token.
fn starts_with_bos(pre: &str) -> bool {
    matches!(pre, "llama-bpe" | "llama3" | "llama-v3" | "tekken")
}

/// SentencePiece's merges, as a `tokenizer.json` lists them.
pub(super) fn listed_merges(gguf: &GgufTokenizer) -> Vec<(String, String)> {
    let ids: TokenIds = gguf.tokens.iter().cloned().zip(0..).collect();
    merges_from_scores(gguf, &ids)
}

fn vocab(gguf: &GgufTokenizer, spelling: Spelling) -> Result<Vocab, TokenizerError> {
    let entries = gguf.tokens.iter().zip(0u32..).map(|(text, id)| {
        let is_special = matches!(token_type(gguf, id as usize), UNKNOWN | CONTROL);
        let is_literal = is_special && spelling == Spelling::SentencePiece;
        Entry {
            id,
            text,
            is_literal,
            is_special,
        }
    });
    Vocab::new(entries.collect(), spelling)
}

/// The pipeline, and whether such models start a text with the beginning-of-text token.
fn byte_level(
    gguf: &GgufTokenizer,
    vocab: TokenIds,
    added: Vec<AddedToken>,
) -> Result<(Pipeline, bool), TokenizerError> {
    let name = gguf.pre.as_deref().unwrap_or("default");
    let rules = pre::named(name).ok_or_else(|| {
        TokenizerError::unsupported(format!("tokenizer.ggml.pre {name:?} is not known"))
    })?;
    let steps = rules
        .patterns
        .iter()
        .map(|p| Splitter::new(p, Keep::All).map(Step::Split));
    let merges = gguf
        .merges
        .iter()
        .enumerate()
        .map(|(i, merge)| bpe::parse_merge(i, merge));
    let parts = BpeParts {
        vocab,
        merges: merges.collect::<Result<_, _>>()?,
        unk_token: None,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: rules.ignore_merges,
    };
    let steps = steps.collect::<Result<_, _>>()?;
    let pipeline = Pipeline::new(parts.build()?, Spelling::ByteLevel, added, vec![], steps)?;
    Ok((pipeline, starts_with_bos(name)))
}

fn sentencepiece(
    gguf: &GgufTokenizer,
    vocab: TokenIds,
    unk_token: Option<String>,
    added: Vec<AddedToken>,
) -> Result<Pipeline, TokenizerError> {
    if gguf.scores.is_empty() {
        let what = "tokenizer.ggml.scores is missing, which SentencePiece needs";
        return Err(TokenizerError::invalid(what));
    }
    let parts = BpeParts {
        merges: merges_from_scores(gguf, &vocab),
        vocab,
        unk_token,
        fuse_unk: true,
        byte_fallback: true,
        ignore_merges: false,
    };
    let mut normalizers = Vec::new();
    if gguf.add_space_prefix.unwrap_or(true) {
        normalizers.push(Normalizer::Prepend(SPACE_MARK.into()));
    }
    normalizers.push(Normalizer::Replace(" ".into(), SPACE_MARK.into()));
    Pipeline::new(
        parts.build()?,
        Spelling::SentencePiece,
        added,
        normalizers,
        vec![],
    )
}

/// SentencePiece merges whatever pair makes the best-scored token; as a list of pairs: every way
/// to cut a token into two tokens, by the token's score.
fn merges_from_scores(gguf: &GgufTokenizer, vocab: &TokenIds) -> Vec<(String, String)> {
    let is_text = |id: usize| !matches!(token_type(gguf, id), UNKNOWN | CONTROL | BYTE);
    let id_of = |token: &str| vocab.get(token).copied().filter(|&id| is_text(id as usize));
    let mut merges = Vec::new();
    for (id, token) in gguf.tokens.iter().enumerate() {
        if !is_text(id) || token.len() > MAX_SCORED_BYTES {
            continue;
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(left_id), Some(right_id)) = (id_of(left), id_of(right)) {
                merges.push((gguf.scores[id], left_id, right_id, left, right));
            }
        }
    }
    // Best score first; the order within a score is Hugging Face's.
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((b.1, b.2).cmp(&(a.1, a.2))));
    merges
        .into_iter()
        .map(|m| (m.3.to_owned(), m.4.to_owned()))
        .collect()
}

fn end_of_text(gguf: &GgufTokenizer, added: &[AddedToken]) -> Vec<u32> {
    let named = added
        .iter()
        .filter(|token| token.special && END_OF_TURN.contains(&token.content.as_str()))
        .map(|token| token.id);
    let mut ids = Vec::new();
    for id in gguf.eos.into_iter().chain(gguf.eot).chain(named) {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

//! Text to token ids and back.
//!
//! Two sources, tokenizer.json (`json`) and GGUF metadata (`gguf`), give the same parts: a
//! [`pipeline`] that encodes and a [`vocab`] that decodes. Nothing here knows what a model does
//! with the ids.

mod added;
mod bpe;
mod bytes;
mod config;
mod export;
mod gguf;
mod import;
mod json;
mod normalize;
mod pipeline;
mod pre;
mod split;
mod vocab;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

pub use config::TokenizerConfig;
pub use gguf::GgufTokenizer;
use pipeline::{Pipeline, Sink};
use vocab::Vocab;

use crate::TokenizerError;

/// A piece (a run of letters, say) longer than this is cut before it is merged, so that memory
/// and time stay linear in the text. Only there can tokens differ from the reference's.
pub const MAX_PIECE_BYTES: usize = 256 << 10;

/// The longest text for tokenizers that only the library's own, slower pipeline can run.
const MAX_LIBRARY_BYTES: usize = 512 << 10;

/// A model's tokenizer. Cheap to clone: clones share everything.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
    /// Ids that end a text.
    eos: Arc<[u32]>,
}

struct Inner {
    encoder: Encoder,
    vocab: Vocab,
    /// Added tokens by their text.
    added_ids: HashMap<String, u32>,
    /// Ids put before every text when special tokens are asked for.
    prefix: Vec<u32>,
    /// Ids put after.
    suffix: Vec<u32>,
    bos: Option<u32>,
    /// Whether decoding drops one space at the very start (SentencePiece puts it there).
    strips_space: bool,
}

enum Encoder {
    Pipeline(Box<Pipeline>),
    /// For splitting rules that need a backtracking engine.
    Library(Box<tokenizers::Tokenizer>),
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos())
            .field("eos", &self.eos())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads tokenizer.json, with what tokenizer_config.json says about its first and last tokens.
    ///
    /// # Errors
    /// [`TokenizerError::Json`], [`TokenizerError::Unsupported`] or [`TokenizerError::Invalid`].
    pub fn from_json(json: &[u8], config: &TokenizerConfig) -> Result<Self, TokenizerError> {
        let mut inner = json::load(json)?;
        let id = |token: Option<&str>| token.and_then(|token| inner.id(token));
        let (bos, eos) = (id(config.bos_token()), id(config.eos_token()));
        set_affix(&mut inner.prefix, config.add_bos_token, bos);
        set_affix(&mut inner.suffix, config.add_eos_token, eos);
        inner.bos = bos;
        Ok(Self::new(inner, eos.into_iter().collect()))
    }

    fn new(inner: Inner, eos: Vec<u32>) -> Self {
        Self {
            inner: Arc::new(inner),
            eos: eos.into(),
        }
    }

    /// Reads `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` of a folder;
    /// the last two may be missing.
    ///
    /// # Errors
    /// As [`Tokenizer::from_json`], and [`TokenizerError::Read`] if a file cannot be read.
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer.json");
        let json = std::fs::read(&path).map_err(|source| TokenizerError::Read { path, source })?;
        let tokenizer = Self::from_json(&json, &TokenizerConfig::from_folder(folder)?)?;
        Ok(tokenizer.with_eos(&config::generation_eos(folder)?))
    }

    /// Builds the tokenizer that a GGUF file describes.
    ///
    /// # Errors
    /// [`TokenizerError::Unsupported`] or [`TokenizerError::Invalid`].
    pub fn from_gguf(gguf: GgufTokenizer) -> Result<Self, TokenizerError> {
        gguf::load(gguf).map(|(inner, eos)| Self::new(inner, eos))
    }

    /// The same tokenizer with more ids that end a text; ids it has already, or that are outside
    /// its vocabulary, are passed over.
    #[must_use]
    pub fn with_eos(self, ids: &[u32]) -> Self {
        let mut eos = self.eos.to_vec();
        for &id in ids {
            if !eos.contains(&id) && (id as usize) < self.vocab_size() {
                eos.push(id);
            }
        }
        Self {
            eos: eos.into(),
            ..self
        }
    }

    /// The tokens of `text`; with those that start and end a text if `add_special_tokens`.
    /// Special tokens written out in the text are taken as such.
    ///
    /// Time is linear in the text (with a logarithmic factor inside one piece), memory is the text
    /// and its ids.
    ///
    /// # Errors
    /// [`TokenizerError::TooLong`], only for the few tokenizers whose splitting rules need
    /// look-around, over 512 KiB.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        self.encode_within(text, add_special_tokens, usize::MAX)
    }

    /// As [`Tokenizer::encode`], but gives up as soon as there are more than `max_tokens`: what a
    /// server wants for a prompt that may be 10 MB.
    ///
    /// # Errors
    /// [`TokenizerError::TooManyTokens`], and those of [`Tokenizer::encode`].
    pub fn encode_within(
        &self,
        text: &str,
        add_special_tokens: bool,
        max_tokens: usize,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut sink = Sink {
            ids: vec![],
            limit: max_tokens,
            bytes: text.len(),
        };
        let (prefix, suffix) = match add_special_tokens {
            true => (self.inner.prefix.as_slice(), self.inner.suffix.as_slice()),
            false => (&[][..], &[][..]),
        };
        prefix.iter().try_for_each(|&id| sink.push(id))?;
        match &self.inner.encoder {
            Encoder::Pipeline(pipeline) => pipeline.encode(text, &mut sink)?,
            Encoder::Library(_) if text.len() > MAX_LIBRARY_BYTES => {
                return Err(TokenizerError::TooLong {
                    bytes: text.len(),
                    limit: MAX_LIBRARY_BYTES,
                });
            }
            Encoder::Library(library) => {
                let encoding = library
                    .encode_fast(text, false)
                    .map_err(TokenizerError::library)?;
                encoding
                    .get_ids()
                    .iter()
                    .try_for_each(|&id| sink.push(id))?;
            }
        }
        suffix.iter().try_for_each(|&id| sink.push(id))?;
        Ok(sink.ids)
    }

    /// The text of `ids`, without special tokens if `skip_special`. Bytes that are not UTF-8 become
    /// U+FFFD; ids outside the vocabulary are passed over.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut bytes = Vec::with_capacity(ids.len().saturating_mul(4));
        for &id in ids {
            if !(skip_special && self.is_special(id)) {
                bytes.extend_from_slice(self.token_bytes(id).unwrap_or_default());
            }
        }
        let text = match self.inner.strips_space {
            true => bytes.strip_prefix(b" ").unwrap_or(&bytes),
            false => &bytes,
        };
        String::from_utf8_lossy(text).into_owned()
    }

    /// The bytes that a token stands for, whatever its neighbours; `None` if there is none of that
    /// id.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.inner.vocab.bytes(id)
    }

    /// The id of a token by its text as the model's files spell it (`<think>`, `Ġthe`, `▁the`).
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.id(token)
    }

    /// Whether a token is special: it steers the model and is no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.vocab.is_special(id)
    }

    /// One more than the largest id. The model's own embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab.len()
    }

    /// The most bytes that one token stands for: a text of `n` bytes has at least
    /// `n / longest_token` tokens where nothing shortens it first.
    pub fn longest_token(&self) -> usize {
        self.inner.vocab.longest()
    }

    /// The beginning-of-text token.
    pub fn bos(&self) -> Option<u32> {
        self.inner.bos
    }

    /// The tokens that end a text, the main one first. May be empty.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// Whether decoding drops one space at the very start of a text.
    pub(crate) fn strips_space(&self) -> bool {
        self.inner.strips_space
    }
}

impl Inner {
    fn id(&self, token: &str) -> Option<u32> {
        self.added_ids
            .get(token)
            .copied()
            .or_else(|| match &self.encoder {
                Encoder::Pipeline(pipeline) => pipeline.id(token),
                Encoder::Library(library) => library.token_to_id(token),
            })
    }
}

/// tokenizer_config.json overrules the post-processor of tokenizer.json.
fn set_affix(affix: &mut Vec<u32>, wanted: Option<bool>, id: Option<u32>) {
    match (wanted, id) {
        (Some(true), Some(id)) if !affix.contains(&id) => *affix = vec![id],
        (Some(false), _) => affix.clear(),
        _ => {}
    }
}

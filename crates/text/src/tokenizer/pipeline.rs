//! From text to token ids: added tokens, normalizers, splitting, merging.
//!
//! The text streams through piece by piece: memory is the text plus one piece, and encoding stops
//! at the caller's token limit. The `tokenizers` crate does the merging; its own pipeline is not
//! used because it keeps some 40 bytes of bookkeeping per byte of text and its splitting engine
//! fails silently on long runs (see `split`).

use tokenizers::Model;
use tokenizers::models::bpe::BPE;

use super::added::{AddedToken, AddedTokens, Segment};
use super::normalize::{self, Normalizer};
use super::split::{self, Step};
use super::vocab::{SPACE_MARK, Spelling};
use super::{MAX_PIECE_BYTES, bytes};
use crate::TokenizerError;

/// A whole encoder.
pub(super) struct Pipeline {
    bpe: BPE,
    spelling: Spelling,
    /// Searched for in the text as it comes.
    raw: AddedTokens,
    normalizers: Vec<Normalizer>,
    /// Searched for after normalization.
    normalized: AddedTokens,
    steps: Vec<Step>,
}

/// The ids so far and how many there may be.
pub(super) struct Sink {
    pub ids: Vec<u32>,
    pub limit: usize,
    /// Bytes of the whole text, for the error message.
    pub bytes: usize,
}

impl Sink {
    pub fn push(&mut self, id: u32) -> Result<(), TokenizerError> {
        if self.ids.len() >= self.limit {
            return Err(TokenizerError::TooManyTokens {
                limit: self.limit,
                bytes: self.bytes,
            });
        }
        self.ids.push(id);
        Ok(())
    }
}

impl Pipeline {
    pub fn new(
        bpe: BPE,
        spelling: Spelling,
        added: Vec<AddedToken>,
        normalizers: Vec<Normalizer>,
        mut steps: Vec<Step>,
    ) -> Result<Self, TokenizerError> {
        let (mut normalized, raw): (Vec<_>, Vec<_>) =
            added.into_iter().partition(|token| token.normalized);
        for token in &mut normalized {
            token.content = normalize::apply_all(&normalizers, &token.content).into_owned();
        }
        let marks_spaces =
            normalizers.contains(&Normalizer::Replace(" ".into(), SPACE_MARK.into()));
        if steps.is_empty() && marks_spaces && is_separable(&bpe) {
            steps.push(Step::BeforeWord { mark: SPACE_MARK });
        }
        Ok(Self {
            bpe,
            spelling,
            raw: AddedTokens::new(raw)?,
            normalizers,
            normalized: AddedTokens::new(normalized)?,
            steps,
        })
    }

    /// Appends the tokens of `text`, without the ones that start and end a prompt.
    pub fn encode(&self, text: &str, sink: &mut Sink) -> Result<(), TokenizerError> {
        let mut spelled = String::new();
        self.raw.split(text, &mut |segment| match segment {
            Segment::Token(id) => sink.push(id),
            Segment::Text(at, text) => {
                let text = normalize::apply_all(&self.normalizers, text);
                self.normalized.split(&text, &mut |segment| match segment {
                    Segment::Token(id) => sink.push(id),
                    Segment::Text(inner, text) => {
                        let is_first = at == 0 && inner == 0;
                        split::run(&self.steps, text, is_first, &mut |piece| {
                            self.encode_piece(piece, &mut spelled, sink)
                        })
                    }
                })
            }
        })
    }

    fn encode_piece(
        &self,
        piece: &str,
        spelled: &mut String,
        sink: &mut Sink,
    ) -> Result<(), TokenizerError> {
        for part in parts(piece, MAX_PIECE_BYTES) {
            let part = match self.spelling {
                Spelling::SentencePiece => part,
                Spelling::ByteLevel => {
                    spelled.clear();
                    bytes::encode(part, spelled);
                    &*spelled
                }
            };
            let tokens = self.bpe.tokenize(part).map_err(TokenizerError::library)?;
            tokens.iter().try_for_each(|token| sink.push(token.id))?;
        }
        Ok(())
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        self.bpe.token_to_id(token)
    }
}

/// Cuts a piece into parts of at most `limit` bytes, between characters. No real text has such
/// long pieces; text made to hurt does.
fn parts(piece: &str, limit: usize) -> impl Iterator<Item = &str> {
    let mut rest = piece;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut cut = limit.min(rest.len());
        while !rest.is_char_boundary(cut) {
            cut -= 1;
        }
        let (part, after) = rest.split_at(cut);
        rest = after;
        Some(part)
    })
}

/// Whether text can be cut before each word mark that follows another character without changing
/// its tokens: no token contains such a place, and no unknown character needs its neighbours.
fn is_separable(bpe: &BPE) -> bool {
    let has_all_bytes =
        (0..=255u8).all(|byte| bpe.token_to_id(&format!("<0x{byte:02X}>")).is_some());
    let crosses = |token: &String| {
        let mut chars = token.chars().peekable();
        std::iter::from_fn(|| chars.next().map(|c| (c, chars.peek().copied())))
            .any(|(c, next)| c != SPACE_MARK && next == Some(SPACE_MARK))
    };
    bpe.byte_fallback && has_all_bytes && !bpe.get_vocab().keys().any(crosses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cut_between_characters() {
        let text = "aé€😀b";
        assert_eq!(parts(text, 4).collect::<Vec<_>>(), ["aé", "€", "😀", "b"]);
        assert_eq!(parts(text, 100).collect::<Vec<_>>(), [text]);
        assert_eq!(parts("", 4).count(), 0);
    }
}

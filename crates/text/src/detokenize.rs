//! Token ids, one at a time, to text that is always whole characters.
//!
//! A token is a run of bytes that need not end where a character does. Token bytes do not depend
//! on their neighbours, so the state is the at most three bytes of a character that has begun:
//! each token costs its own length, however long the text is.

use crate::Tokenizer;

/// Turns a stream of token ids into text. All pieces together equal [`Tokenizer::decode`] of all
/// ids.
#[derive(Debug, Clone)]
pub struct IncrementalDetokenizer {
    tokenizer: Tokenizer,
    skips_special: bool,
    /// Special tokens whose text is wanted all the same.
    visible: Vec<u32>,
    /// Bytes of a character that is not complete: at most 3 between calls.
    pending: Vec<u8>,
    /// What the last call gave out.
    piece: String,
    /// Whether a space that comes first is dropped: SentencePiece put it there.
    strips_space: bool,
}

impl IncrementalDetokenizer {
    /// A stream that begins a text, as [`Tokenizer::decode`] sees it. `skips_special`: special
    /// tokens give no text.
    pub fn new(tokenizer: &Tokenizer, skips_special: bool) -> Self {
        Self {
            strips_space: tokenizer.strips_space(),
            tokenizer: tokenizer.clone(),
            skips_special,
            visible: vec![],
            pending: vec![],
            piece: String::new(),
        }
    }

    /// A stream that goes on after a prompt: a leading space is part of the text and kept.
    pub fn after_prompt(tokenizer: &Tokenizer, skips_special: bool) -> Self {
        Self {
            strips_space: false,
            ..Self::new(tokenizer, skips_special)
        }
    }

    /// Gives out the text of these tokens even where special ones are skipped: the tags that a
    /// [`crate::ReasoningParser`] looks for.
    #[must_use]
    pub fn showing(mut self, ids: &[u32]) -> Self {
        self.visible.extend_from_slice(ids);
        self
    }

    /// Takes the next token and returns the text that is now complete; it may be empty. An id
    /// outside the vocabulary gives nothing.
    pub fn push(&mut self, id: u32) -> &str {
        self.piece.clear();
        let is_hidden =
            self.skips_special && self.tokenizer.is_special(id) && !self.visible.contains(&id);
        if is_hidden {
            return &self.piece;
        }
        let mut bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
        if self.strips_space && !bytes.is_empty() {
            self.strips_space = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.pending.extend_from_slice(bytes);
        let used = complete(&self.pending, &mut self.piece);
        self.pending.drain(..used);
        &self.piece
    }

    /// Ends the stream: a character that stayed incomplete becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }
}

/// Appends to `text` all of `bytes` that is decided: whole characters, and U+FFFD for what can
/// never become one. Returns the number of bytes used; the rest is the start of a character.
fn complete(bytes: &[u8], text: &mut String) -> usize {
    let mut used = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        used += chunk.valid().len();
        let invalid = chunk.invalid();
        let is_last = used + invalid.len() == bytes.len();
        if invalid.is_empty() || (is_last && is_start(invalid)) {
            continue;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        used += invalid.len();
    }
    used
}

/// Whether more bytes could still make a character of these.
fn is_start(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `bytes` in pieces as `push` does.
    fn stream(bytes: &[u8], cuts: &[usize]) -> (Vec<String>, String) {
        let (mut pending, mut pieces, mut at) = (Vec::new(), Vec::new(), 0);
        for &cut in cuts.iter().chain([&bytes.len()]) {
            let cut = cut.clamp(at, bytes.len());
            pending.extend_from_slice(&bytes[at..cut]);
            at = cut;
            let mut piece = String::new();
            let used = complete(&pending, &mut piece);
            pending.drain(..used);
            assert!(pending.len() <= 3);
            pieces.push(piece);
        }
        (pieces, String::from_utf8_lossy(&pending).into_owned())
    }

    #[test]
    fn an_emoji_in_four_tokens_comes_out_once() {
        let (pieces, rest) = stream("é😀".as_bytes(), &[1, 2, 3, 4, 5]);
        assert_eq!(pieces, ["", "é", "", "", "", "😀"]);
        assert_eq!(rest, "");
    }

    #[test]
    fn what_can_never_be_a_character_is_replaced_at_once() {
        let (pieces, rest) = stream(b"a\xFFb\xE2\x82", &[2]);
        assert_eq!(pieces, ["a\u{FFFD}", "b"]);
        assert_eq!(rest, "\u{FFFD}");
    }

    proptest! {
        #[test]
        fn pieces_join_to_the_lossy_whole(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0xE0..=0xF4u8, 0x80..=0xBFu8], 0..60),
            mut cuts in prop::collection::vec(0usize..60, 0..20),
        ) {
            cuts.sort_unstable();
            let (pieces, rest) = stream(&bytes, &cuts);
            prop_assert_eq!(pieces.concat() + &rest, String::from_utf8_lossy(&bytes));
        }
    }
}

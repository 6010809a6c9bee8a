//! What each token id stands for, in bytes.
//!
//! Token bytes do not depend on their neighbours, so that decoding is concatenation and a stream
//! can be decoded token by token. One flat buffer: 2 MB for 150,000 tokens.

use super::bytes;
use crate::TokenizerError;

/// The largest id accepted from a file. The largest published vocabularies have 260,000 tokens.
const MAX_ID: u32 = 1 << 22;

/// SentencePiece's mark for a space.
pub(super) const SPACE_MARK: char = '▁';

/// How the text of a token stands for bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Spelling {
    /// GPT-2's byte alphabet.
    ByteLevel,
    /// `▁` is a space, `<0x0A>` a byte.
    SentencePiece,
}

/// One token of a vocabulary under construction.
pub(super) struct Entry<'a> {
    pub id: u32,
    pub text: &'a str,
    /// Stands for its own text, whatever the spelling.
    pub is_literal: bool,
    /// Left out of decoded text on request.
    pub is_special: bool,
}

/// Bytes and flags of every token.
#[derive(Debug)]
pub(super) struct Vocab {
    /// All tokens' bytes, in order of id.
    bytes: Vec<u8>,
    /// Per id, where its bytes end.
    ends: Vec<u32>,
    /// Per id.
    kinds: Vec<Kind>,
    /// The most bytes of any token.
    longest: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Absent,
    Plain,
    Special,
}

impl Vocab {
    /// Builds the table. A later entry of the same id replaces an earlier one.
    pub fn new(mut entries: Vec<Entry>, spelling: Spelling) -> Result<Self, TokenizerError> {
        entries.sort_by_key(|entry| entry.id);
        let size = match entries.last() {
            Some(last) if last.id > MAX_ID => {
                let what = format!("token id {} is over {MAX_ID}", last.id);
                return Err(TokenizerError::invalid(what));
            }
            Some(last) => last.id as usize + 1,
            None => return Err(TokenizerError::invalid("the vocabulary is empty")),
        };
        let mut vocab = Self {
            bytes: vec![],
            ends: vec![],
            kinds: vec![],
            longest: 1,
        };
        for (i, entry) in entries.iter().enumerate() {
            if entries.get(i + 1).is_some_and(|next| next.id == entry.id) {
                continue;
            }
            let start = vocab.bytes.len();
            vocab.ends.resize(entry.id as usize, start as u32);
            vocab.kinds.resize(entry.id as usize, Kind::Absent);
            match spelling {
                _ if entry.is_literal => vocab.bytes.extend_from_slice(entry.text.as_bytes()),
                Spelling::ByteLevel => bytes::decode(entry.text, &mut vocab.bytes),
                Spelling::SentencePiece => decode_sentencepiece(entry.text, &mut vocab.bytes),
            }
            let end = u32::try_from(vocab.bytes.len())
                .map_err(|_| TokenizerError::invalid("the tokens' text is over 4 GiB"))?;
            vocab.ends.push(end);
            vocab.kinds.push(if entry.is_special {
                Kind::Special
            } else {
                Kind::Plain
            });
            vocab.longest = vocab.longest.max(vocab.bytes.len() - start);
        }
        debug_assert_eq!(vocab.ends.len(), size);
        Ok(vocab)
    }

    /// One more than the largest id.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of a token; `None` if there is none of that id.
    pub fn bytes(&self, id: u32) -> Option<&[u8]> {
        let i = id as usize;
        if *self.kinds.get(i)? == Kind::Absent {
            return None;
        }
        let start = i
            .checked_sub(1)
            .map_or(0, |before| self.ends[before] as usize);
        Some(&self.bytes[start..self.ends[i] as usize])
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.kinds.get(id as usize) == Some(&Kind::Special)
    }

    /// The most bytes that one token stands for.
    pub fn longest(&self) -> usize {
        self.longest
    }
}

/// `<0x0A>` is one byte; everything else is text with marks for spaces.
fn decode_sentencepiece(token: &str, out: &mut Vec<u8>) {
    match byte_token(token) {
        Some(byte) => out.push(byte),
        None => {
            let mut utf8 = [0; 4];
            for c in token.chars() {
                let c = if c == SPACE_MARK { ' ' } else { c };
                out.extend_from_slice(c.encode_utf8(&mut utf8).as_bytes());
            }
        }
    }
}

/// The byte that `<0xNN>` names.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    is_hex
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u32, text: &str) -> Entry<'_> {
        Entry {
            id,
            text,
            is_literal: false,
            is_special: false,
        }
    }

    #[test]
    fn holes_duplicates_and_flags() {
        let special = Entry {
            is_special: true,
            is_literal: true,
            ..entry(5, "<▁s>")
        };
        let entries = vec![entry(3, "▁a"), entry(1, "<0xE2>"), special, entry(3, "b▁")];
        let vocab = Vocab::new(entries, Spelling::SentencePiece).unwrap();
        assert_eq!(vocab.len(), 6);
        assert_eq!(vocab.bytes(0), None);
        assert_eq!(vocab.bytes(1), Some(&[0xE2][..]));
        assert_eq!(vocab.bytes(3), Some(&b"b "[..]));
        assert_eq!(vocab.bytes(5), Some("<▁s>".as_bytes()));
        assert!(vocab.is_special(5) && !vocab.is_special(3) && !vocab.is_special(99));
        assert_eq!(vocab.bytes(6), None);
        assert_eq!(vocab.longest(), 6);
    }

    #[test]
    fn absurd_ids_are_refused_before_anything_is_allocated() {
        assert!(Vocab::new(vec![entry(u32::MAX, "a")], Spelling::ByteLevel).is_err());
        assert!(Vocab::new(vec![], Spelling::ByteLevel).is_err());
    }

    #[test]
    fn byte_tokens() {
        assert_eq!(byte_token("<0x0A>"), Some(10));
        assert_eq!(byte_token("<0x+A>"), None);
        assert_eq!(byte_token("<0x0AB>"), None);
    }
}

//! Added tokens (`<|im_start|>`, `<think>`, …): found in the text before anything else splits it.
//!
//! Semantics are Hugging Face's: leftmost-longest matches; `lstrip`/`rstrip` swallow the white
//! space beside the token; `single_word` only matches between non-word characters.

use aho_corasick::{AhoCorasick, MatchKind};
use serde::Deserialize;

use crate::TokenizerError;

/// One added token, as tokenizer.json writes it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct AddedToken {
    pub id: u32,
    pub content: String,
    #[serde(default)]
    pub single_word: bool,
    #[serde(default)]
    pub lstrip: bool,
    #[serde(default)]
    pub rstrip: bool,
    /// Searched for in the normalized text instead of the original one.
    #[serde(default)]
    pub normalized: bool,
    /// Left out of decoded text on request.
    #[serde(default)]
    pub special: bool,
}

/// A part of a text: an added token, or what lies between, with its byte offset.
pub(super) enum Segment<'t> {
    Token(u32),
    Text(usize, &'t str),
}

/// The added tokens to be searched for in one kind of text.
#[derive(Debug)]
pub(super) struct AddedTokens {
    automaton: Option<AhoCorasick>,
    /// Parallel to the automaton's patterns.
    tokens: Vec<AddedToken>,
}

impl AddedTokens {
    pub fn new(tokens: Vec<AddedToken>) -> Result<Self, TokenizerError> {
        let tokens: Vec<_> = tokens
            .into_iter()
            .filter(|t| !t.content.is_empty())
            .collect();
        let automaton = match tokens.is_empty() {
            true => None,
            false => Some(
                AhoCorasick::builder()
                    .match_kind(MatchKind::LeftmostLongest)
                    .build(tokens.iter().map(|t| &t.content))
                    .map_err(|e| TokenizerError::invalid(format!("added tokens: {e}")))?,
            ),
        };
        Ok(Self { automaton, tokens })
    }

    /// Calls `each` for every part of `text`, in order; linear time.
    pub fn split<'t>(
        &self,
        text: &'t str,
        each: &mut dyn FnMut(Segment<'t>) -> Result<(), TokenizerError>,
    ) -> Result<(), TokenizerError> {
        let mut done = 0;
        for found in self.automaton.iter().flat_map(|a| a.find_iter(text)) {
            let token = &self.tokens[found.pattern().as_usize()];
            let (mut start, mut end) = (found.start(), found.end());
            if start < done || (token.single_word && !is_alone(text, start, end)) {
                continue;
            }
            if token.lstrip {
                // Never looks behind `done`: white space before many tokens is passed over once.
                start = done + text[done..start].trim_end().len();
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            if done < start {
                each(Segment::Text(done, &text[done..start]))?;
            }
            each(Segment::Token(token.id))?;
            done = end;
        }
        if done < text.len() {
            each(Segment::Text(done, &text[done..]))?;
        }
        Ok(())
    }
}

/// Whether no word character touches `text[start..end]`.
fn is_alone(text: &str, start: usize, end: usize) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    !text[..start].chars().next_back().is_some_and(is_word)
        && !text[end..].chars().next().is_some_and(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, content: &str) -> AddedToken {
        AddedToken {
            id,
            content: content.into(),
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: true,
        }
    }

    fn parts(tokens: Vec<AddedToken>, text: &str) -> Vec<String> {
        let mut parts = Vec::new();
        AddedTokens::new(tokens)
            .unwrap()
            .split(text, &mut |segment| {
                parts.push(match segment {
                    Segment::Token(id) => id.to_string(),
                    Segment::Text(at, t) => format!("{at}:{t}"),
                });
                Ok(())
            })
            .unwrap();
        parts
    }

    #[test]
    fn longest_token_wins_and_text_keeps_its_offset() {
        let tokens = vec![token(1, "<a>"), token(2, "<a><b>")];
        assert_eq!(parts(tokens, "x<a><b>y<a>"), ["0:x", "2", "7:y", "1"]);
    }

    #[test]
    fn stripping_and_single_words() {
        let strip = AddedToken {
            lstrip: true,
            rstrip: true,
            ..token(1, "<m>")
        };
        assert_eq!(
            parts(vec![strip], "a  <m> \n<m> b"),
            ["0:a", "1", "1", "12:b"]
        );
        let word = AddedToken {
            single_word: true,
            ..token(1, "day")
        };
        assert_eq!(parts(vec![word], "monday day"), ["0:monday ", "1"]);
    }

    #[test]
    fn white_space_that_is_a_token_takes_linear_time() {
        let space = AddedToken {
            lstrip: true,
            ..token(1, " ")
        };
        let text = " ".repeat(4_000_000);
        assert_eq!(parts(vec![space], &text).len(), text.len());
    }

    #[test]
    fn no_tokens_no_text() {
        assert!(parts(vec![], "").is_empty());
        assert_eq!(parts(vec![token(3, "")], "abc"), ["0:abc"]);
    }
}

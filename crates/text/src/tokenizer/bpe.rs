//! The merge table, checked and handed to the `tokenizers` crate's BPE.
//!
//! tokenizer.json and GGUF both come through here. The checks matter: the library's builder
//! indexes past its buffer when a merge makes a token that the vocabulary lacks.

use tokenizers::models::bpe::{BPE, Vocab};

use crate::TokenizerError;

/// A BPE model as its file describes it.
pub(super) struct BpeParts {
    /// Token text → id, in the file's spelling.
    pub vocab: Vocab,
    /// Pairs to merge, the most urgent first.
    pub merges: Vec<(String, String)>,
    pub unk_token: Option<String>,
    pub fuse_unk: bool,
    /// Characters that are not in the vocabulary become `<0xNN>` tokens.
    pub byte_fallback: bool,
    /// A piece that is a token as a whole is taken as it is.
    pub ignore_merges: bool,
}

impl BpeParts {
    /// Checks every merge and builds the model.
    pub fn build(self) -> Result<BPE, TokenizerError> {
        let mut merged = String::new();
        for (i, (left, right)) in self.merges.iter().enumerate() {
            merged.clear();
            merged.push_str(left);
            merged.push_str(right);
            for token in [left, right, &merged] {
                if !self.vocab.contains_key(token) {
                    return Err(TokenizerError::invalid(format!(
                        "merge {i} ({left:?} + {right:?}) needs the token {token:?}, which the vocabulary lacks"
                    )));
                }
            }
        }
        let unk_token = self.unk_token.filter(|unk| self.vocab.contains_key(unk));
        let mut builder = BPE::builder()
            .vocab_and_merges(self.vocab, self.merges)
            .fuse_unk(self.fuse_unk)
            .byte_fallback(self.byte_fallback)
            .ignore_merges(self.ignore_merges);
        if let Some(unk) = unk_token {
            builder = builder.unk_token(unk);
        }
        builder.build().map_err(TokenizerError::library)
    }
}

/// Splits a merge written as one string, `"Ġ t"`.
pub(super) fn parse_merge(index: usize, merge: &str) -> Result<(String, String), TokenizerError> {
    merge
        .split_once(' ')
        .filter(|(left, right)| !left.is_empty() && !right.is_empty() && !right.contains(' '))
        .map(|(left, right)| (left.to_owned(), right.to_owned()))
        .ok_or_else(|| {
            TokenizerError::invalid(format!(
                "merge {index} is {merge:?}, not two tokens and a space"
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(merges: &[(&str, &str)]) -> BpeParts {
        BpeParts {
            vocab: ["a", "b", "ab"]
                .iter()
                .zip(0..)
                .map(|(t, i)| (t.to_string(), i))
                .collect(),
            merges: merges
                .iter()
                .map(|(l, r)| (l.to_string(), r.to_string()))
                .collect(),
            unk_token: Some("<unk>".into()),
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: false,
        }
    }

    #[test]
    fn a_merge_into_nothing_is_an_error_not_a_panic() {
        assert!(parts(&[("a", "b")]).build().is_ok());
        let error = parts(&[("a", "b"), ("ab", "b")])
            .build()
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("merge 1") && error.contains("\"abb\""),
            "{error}"
        );
    }

    #[test]
    fn merges_as_text() {
        assert_eq!(parse_merge(0, "Ġ t").unwrap(), ("Ġ".into(), "t".into()));
        for bad in ["", "ab", " a", "a ", "a b c"] {
            assert!(parse_merge(7, bad).is_err(), "{bad:?}");
        }
    }
}

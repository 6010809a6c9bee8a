//! Splitting text into the pieces that BPE merges inside of, in linear time.
//!
//! Tokenizers of the GPT family split with a regular expression that ends in
//! `\s+(?!\S)|\s+`: a run of white space, less its last character when a word follows. The
//! look-ahead forces a backtracking engine, which on a megabyte of spaces overflows its stack, and
//! the `tokenizers` library then goes on with the rest unsplit. So the tail is taken off, the rest
//! is run on `regex-automata` (finite automata, linear time), and the one step back is done here.

use regex_automata::{Input, meta::Regex};

use crate::TokenizerError;

/// The tail that stands for "white space, leaving one for the word that follows".
const WHITESPACE_TAIL: &str = r"|\s+(?!\S)|\s+";

/// What happens to the matches of a [`Splitter`] and to the text between them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Keep {
    /// Both become pieces.
    All,
    /// Only the matches do.
    Matches,
    /// Only what lies between does.
    Gaps,
}

/// A splitting regular expression.
#[derive(Debug)]
pub(super) struct Splitter {
    /// Pattern 0 is the expression; pattern 1, if there, is `\s+` with the step back.
    regex: Regex,
    keep: Keep,
}

impl Splitter {
    /// Compiles `pattern`; fails if it needs look-around anywhere but in the usual tail.
    pub fn new(pattern: &str, keep: Keep) -> Result<Self, TokenizerError> {
        let regex = match pattern.strip_suffix(WHITESPACE_TAIL) {
            Some(main) => Regex::new_many(&[main, r"\s+"]),
            None => Regex::new(pattern),
        };
        let regex = regex.map_err(|e| {
            TokenizerError::unsupported(format!("splitting pattern {pattern:?} ({e})"))
        })?;
        Ok(Self { regex, keep })
    }

    /// Splits on every occurrence of a plain string.
    pub fn literal(text: &str, keep: Keep) -> Result<Self, TokenizerError> {
        let escaped: String = text
            .chars()
            .map(|c| format!("\\x{{{:x}}}", c as u32))
            .collect();
        Self::new(&escaped, keep)
    }

    /// Calls `each` for every piece of `text`, in order.
    fn split(&self, text: &str, each: Each) -> Result<(), TokenizerError> {
        let (mut at, mut done) = (0, 0);
        while at < text.len() {
            let Some((start, end)) = self.find(text, at) else {
                break;
            };
            if start == end {
                at = end + text[end..].chars().next().map_or(1, char::len_utf8);
                continue;
            }
            if done < start && self.keep != Keep::Matches {
                each(&text[done..start])?;
            }
            if self.keep != Keep::Gaps {
                each(&text[start..end])?;
            }
            (at, done) = (end, end);
        }
        if done < text.len() && self.keep != Keep::Matches {
            each(&text[done..])?;
        }
        Ok(())
    }

    fn find(&self, text: &str, at: usize) -> Option<(usize, usize)> {
        let found = self.regex.find(Input::new(text).range(at..))?;
        let (start, mut end) = (found.start(), found.end());
        if found.pattern().as_usize() == 1 && end < text.len() {
            let last = text[start..end]
                .chars()
                .next_back()
                .map_or(0, char::len_utf8);
            if start + last < end {
                end -= last;
            }
        }
        Some((start, end))
    }
}

type Each<'a> = &'a mut dyn FnMut(&str) -> Result<(), TokenizerError>;

/// One pre-tokenization step; each works on every piece of the one before.
#[derive(Debug)]
pub(super) enum Step {
    Split(Splitter),
    /// Puts a space before a piece that does not start with one.
    SpaceBefore,
    /// SentencePiece's space mark.
    Metaspace {
        mark: char,
        prepend: Prepend,
        split: bool,
    },
    /// Splits before each word mark that follows something else. Only added where no token of the
    /// vocabulary crosses such a place: then it changes no result, and bounds the work per piece.
    BeforeWord {
        mark: char,
    },
}

/// When [`Step::Metaspace`] puts a mark before the text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Prepend {
    Always,
    /// Only before a piece at the very start of the text.
    First,
    Never,
}

/// Runs `steps` over `piece`; `is_first` says whether it starts the whole text.
pub(super) fn run(
    steps: &[Step],
    piece: &str,
    is_first: bool,
    each: Each,
) -> Result<(), TokenizerError> {
    let Some((step, rest)) = steps.split_first() else {
        return each(piece);
    };
    let starts_text = is_first;
    let mut is_first = is_first;
    let mut next = |piece: &str| run(rest, piece, std::mem::take(&mut is_first), &mut *each);
    match step {
        Step::Split(splitter) => splitter.split(piece, &mut next),
        Step::SpaceBefore if !piece.starts_with(' ') => next(&format!(" {piece}")),
        Step::SpaceBefore => next(piece),
        Step::Metaspace {
            mark,
            prepend,
            split,
        } => {
            let mut marked = piece.replace(' ', mark.encode_utf8(&mut [0; 4]));
            let wanted = match prepend {
                Prepend::Always => true,
                Prepend::First => starts_text,
                Prepend::Never => false,
            };
            if wanted && !marked.starts_with(*mark) {
                marked.insert(0, *mark);
            }
            match split {
                true => split_before(&marked, |_, next| next == *mark, &mut next),
                false => next(&marked),
            }
        }
        Step::BeforeWord { mark } => split_before(
            piece,
            |last, next| next == *mark && last != *mark,
            &mut next,
        ),
    }
}

/// Cuts `text` wherever `is_cut(character before, character after)`.
fn split_before(
    text: &str,
    is_cut: impl Fn(char, char) -> bool,
    each: Each,
) -> Result<(), TokenizerError> {
    let (mut start, mut last) = (0, None);
    for (at, c) in text.char_indices() {
        if last.is_some_and(|last| is_cut(last, c)) {
            each(&text[start..at])?;
            start = at;
        }
        last = Some(c);
    }
    each(&text[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPT2: &str =
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

    fn pieces(steps: &[Step], text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        run(steps, text, true, &mut |piece| {
            pieces.push(piece.to_owned());
            Ok(())
        })
        .unwrap();
        pieces
    }

    fn splitter(pattern: &str, keep: Keep) -> Step {
        Step::Split(Splitter::new(pattern, keep).unwrap())
    }

    #[test]
    fn white_space_leaves_one_for_the_word() {
        let gpt2 = [splitter(GPT2, Keep::All)];
        assert_eq!(pieces(&gpt2, "a   b"), ["a", "  ", " b"]);
        assert_eq!(pieces(&gpt2, "a\n\nb \t"), ["a", "\n", "\n", "b", " \t"]);
        assert_eq!(pieces(&gpt2, "   "), ["   "]);
        assert_eq!(
            pieces(&gpt2, "x\u{3000}\u{3000}y"),
            ["x", "\u{3000}", "\u{3000}", "y"]
        );
        assert!(pieces(&gpt2, "").is_empty() || pieces(&gpt2, "") == [""]);
    }

    #[test]
    fn gaps_and_matches() {
        assert_eq!(
            pieces(&[splitter(r"\d", Keep::All)], "a12b"),
            ["a", "1", "2", "b"]
        );
        assert_eq!(pieces(&[splitter(r"\d", Keep::Gaps)], "a12b"), ["a", "b"]);
        assert_eq!(
            pieces(&[splitter(r"\d", Keep::Matches)], "a12b"),
            ["1", "2"]
        );
        assert_eq!(
            pieces(&[splitter("x*", Keep::All)], "aéxxb"),
            ["aé", "xx", "b"]
        );
    }

    #[test]
    fn literals_are_not_patterns() {
        let dots = [Step::Split(Splitter::literal(".*", Keep::All).unwrap())];
        assert_eq!(pieces(&dots, "a.*b"), ["a", ".*", "b"]);
    }

    #[test]
    fn look_around_elsewhere_is_refused() {
        assert!(Splitter::new(r"(?=a)b", Keep::All).is_err());
        assert!(Splitter::new("(", Keep::All).is_err());
    }

    #[test]
    fn sentencepiece_marks() {
        let first = [Step::Metaspace {
            mark: '▁',
            prepend: Prepend::First,
            split: true,
        }];
        assert_eq!(pieces(&first, "a  b"), ["▁a", "▁", "▁b"]);
        let words = [Step::BeforeWord { mark: '▁' }];
        assert_eq!(pieces(&words, "▁a▁▁b"), ["▁a", "▁▁b"]);
    }
}

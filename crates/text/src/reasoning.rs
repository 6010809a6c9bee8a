//! Thinking told apart from the answer, while the text streams.
//!
//! A reasoning model writes `<think>` chain of thought `</think>` answer. Rules, those that
//! DeepSeek's API shows:
//! - The opening tag counts only at the very start, after nothing but white space; or the chat
//!   template wrote it and the text starts inside the chain. A later one is plain text.
//! - The first closing tag ends the chain, however many tokens it is spread over.
//! - Newlines right after the opening tag, before the closing tag and after it belong to neither
//!   part and are dropped.
//! - A chain that is cut short is reasoning to its end; a model that never opens one only answers.

use crate::{ChatTemplate, StopMatcher, Tokenizer};

/// The tags around a model's chain of thought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReasoningFormat {
    /// Opens the chain, e.g. `<think>`.
    pub start: String,
    /// Closes it, e.g. `</think>`.
    pub end: String,
    /// The tokens of `start`; usually one.
    pub start_ids: Vec<u32>,
    /// The tokens of `end`: what to force to close a chain over its budget.
    pub end_ids: Vec<u32>,
}

/// Tags in use, commonest first.
const TAGS: &[(&str, &str)] = &[
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<reasoning>", "</reasoning>"),
    ("<thought>", "</thought>"),
];

impl ReasoningFormat {
    /// Finds a model's tags: both are tokens of its own, or its chat template names the closing
    /// one. `None`: it does not reason in tags that scrimp knows.
    pub fn discover(tokenizer: &Tokenizer, template: Option<&ChatTemplate>) -> Option<Self> {
        let is_token = |tag: &str| tokenizer.id(tag).is_some();
        let is_known = |&&(start, end): &&(&str, &str)| {
            (is_token(start) && is_token(end))
                || template.is_some_and(|template| template.source().contains(end))
        };
        let (start, end) = TAGS.iter().find(is_known)?;
        Self::new(tokenizer, start, end)
    }

    /// Tags named by the user. `None` if a tag is empty or has no tokens.
    pub fn new(tokenizer: &Tokenizer, start: &str, end: &str) -> Option<Self> {
        let ids = |tag: &str| match tokenizer.id(tag) {
            Some(id) => Some(vec![id]),
            None => tokenizer
                .encode(tag, false)
                .ok()
                .filter(|ids| !ids.is_empty()),
        };
        (!start.is_empty() && !end.is_empty()).then_some(())?;
        Some(Self {
            start_ids: ids(start)?,
            end_ids: ids(end)?,
            start: start.to_owned(),
            end: end.to_owned(),
        })
    }

    /// Whether generation starts inside a chain, because the prompt ends with the opening tag.
    pub fn is_open_after(&self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(&self.start)
    }

    /// The tags' tokens, for [`crate::IncrementalDetokenizer::showing`].
    pub fn ids(&self) -> Vec<u32> {
        [self.start_ids.as_slice(), &self.end_ids].concat()
    }
}

/// A piece of text and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// Chain of thought.
    Reasoning(String),
    /// The answer.
    Answer(String),
}

/// Splits a stream of text into reasoning and answer.
///
/// Give it the text of one token a call, empty ones too, if [`Self::reasoning_tokens`] is to count.
#[derive(Debug, Clone)]
pub struct ReasoningParser {
    /// `None`: everything is answer.
    format: Option<ReasoningFormat>,
    state: State,
    reasoning_tokens: usize,
}

#[derive(Debug, Clone)]
enum State {
    /// Only white space and perhaps the beginning of the opening tag so far.
    Start {
        held: String,
        /// Bytes of `held` that are white space before anything else.
        blank: usize,
    },
    Thinking {
        end: StopMatcher,
        newlines: Newlines,
    },
    Answering {
        newlines: Newlines,
    },
}

impl ReasoningParser {
    /// A parser for one response. `is_open`: the prompt has opened the chain (see
    /// [`ReasoningFormat::is_open_after`]). Without a format, everything is answer, untouched.
    pub fn new(format: Option<ReasoningFormat>, is_open: bool) -> Self {
        let state = match &format {
            None => State::Answering {
                newlines: Newlines::kept(),
            },
            Some(format) if is_open => thinking(format),
            Some(_) => State::Start {
                held: String::new(),
                blank: 0,
            },
        };
        Self {
            format,
            state,
            reasoning_tokens: 0,
        }
    }

    /// Takes the text of the next token.
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        let was_thinking = self.is_thinking();
        let mut deltas = Vec::new();
        self.feed(text, &mut deltas);
        if was_thinking && self.is_thinking() {
            self.reasoning_tokens += 1;
        }
        deltas
    }

    /// Ends the stream with `rest`, text that was due to tokens already taken; what was held back
    /// comes out as what it would have been.
    pub fn finish(&mut self, rest: &str) -> Vec<Delta> {
        let mut deltas = Vec::new();
        self.feed(rest, &mut deltas);
        match &mut self.state {
            State::Start { held, .. } => emit(&mut deltas, Delta::Answer(std::mem::take(held))),
            State::Thinking { end, newlines } => {
                let mut text = newlines.push(&end.finish());
                text.push_str(&newlines.finish());
                emit(&mut deltas, Delta::Reasoning(text));
            }
            State::Answering { .. } => {}
        }
        deltas
    }

    /// Whether the text so far ends inside a chain of thought.
    pub fn is_thinking(&self) -> bool {
        matches!(self.state, State::Thinking { .. })
    }

    /// Calls of [`Self::push`] that began and ended inside the chain: its tokens, without its tags
    /// where each is one token.
    pub fn reasoning_tokens(&self) -> usize {
        self.reasoning_tokens
    }

    fn feed(&mut self, text: &str, deltas: &mut Vec<Delta>) {
        match &mut self.state {
            State::Start { held, blank } => {
                held.push_str(text);
                let Some(format) = &self.format else { return };
                let written = held[*blank..].trim_start();
                *blank = held.len() - written.len();
                if let Some(rest) = written.strip_prefix(&format.start) {
                    let rest = rest.to_owned();
                    self.state = thinking(format);
                    self.feed(&rest, deltas);
                } else if !format.start.starts_with(written) {
                    emit(deltas, Delta::Answer(std::mem::take(held)));
                    self.state = State::Answering {
                        newlines: Newlines::kept(),
                    };
                }
            }
            State::Thinking { end, newlines } => {
                let out = end.push(text);
                emit(deltas, Delta::Reasoning(newlines.push(&out.text)));
                if out.stop.is_some() {
                    self.state = State::Answering {
                        newlines: Newlines::after_tag(),
                    };
                    self.feed(&text[out.used..], deltas);
                }
            }
            State::Answering { newlines } => {
                emit(deltas, Delta::Answer(newlines.push(text)));
            }
        }
    }
}

fn thinking(format: &ReasoningFormat) -> State {
    State::Thinking {
        end: StopMatcher::new(&[&format.end]),
        newlines: Newlines {
            is_start: true,
            holds_last: true,
            held: 0,
        },
    }
}

fn emit(deltas: &mut Vec<Delta>, delta: Delta) {
    let (Delta::Reasoning(text) | Delta::Answer(text)) = &delta;
    if !text.is_empty() {
        deltas.push(delta);
    }
}

/// Drops newlines at the start, and holds those at the end back, as far as asked for.
#[derive(Debug, Clone)]
struct Newlines {
    /// Nothing but newlines so far, and those are dropped.
    is_start: bool,
    /// Newlines at the end are held back.
    holds_last: bool,
    /// How many are.
    held: usize,
}

impl Newlines {
    fn kept() -> Self {
        Self {
            is_start: false,
            holds_last: false,
            held: 0,
        }
    }

    fn after_tag() -> Self {
        Self {
            is_start: true,
            ..Self::kept()
        }
    }

    fn push(&mut self, text: &str) -> String {
        let text = match self.is_start {
            true => text.trim_start_matches('\n'),
            false => text,
        };
        if text.is_empty() {
            return String::new();
        }
        self.is_start = false;
        let kept = match self.holds_last {
            true => text.trim_end_matches('\n'),
            false => text,
        };
        let mut out = String::new();
        if !kept.is_empty() {
            out = self.finish();
            out.push_str(kept);
        }
        self.held += text.len() - kept.len();
        out
    }

    fn finish(&mut self) -> String {
        "\n".repeat(std::mem::take(&mut self.held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn format() -> ReasoningFormat {
        ReasoningFormat {
            start: "<think>".into(),
            end: "</think>".into(),
            start_ids: vec![1],
            end_ids: vec![2],
        }
    }

    fn run(pieces: &[&str], is_open: bool) -> (String, String, usize) {
        let mut parser = ReasoningParser::new(Some(format()), is_open);
        let (mut reasoning, mut answer) = (String::new(), String::new());
        let mut deltas: Vec<Delta> = pieces.iter().flat_map(|p| parser.push(p)).collect();
        deltas.extend(parser.finish(""));
        for delta in deltas {
            match delta {
                Delta::Reasoning(text) => {
                    assert!(answer.is_empty(), "reasoning after the answer");
                    reasoning.push_str(&text);
                }
                Delta::Answer(text) => answer.push_str(&text),
            }
        }
        (reasoning, answer, parser.reasoning_tokens())
    }

    /// The same rules on the whole text.
    fn naive(text: &str, is_open: bool) -> (String, String) {
        let inside = match text.trim_start().strip_prefix("<think>") {
            _ if is_open => text,
            Some(inside) => inside,
            None => return (String::new(), text.to_owned()),
        };
        match inside.split_once("</think>") {
            Some((chain, answer)) => (
                chain.trim_matches('\n').to_owned(),
                answer.trim_start_matches('\n').to_owned(),
            ),
            None => (inside.trim_start_matches('\n').to_owned(), String::new()),
        }
    }

    #[test]
    fn a_whole_response() {
        let pieces = [
            "<think>", "\n", "So", " 2", "\n", "</think>", "\n\n", "Four", "\n",
        ];
        assert_eq!(run(&pieces, false), ("So 2".into(), "Four\n".into(), 4));
    }

    #[test]
    fn the_prompt_opened_the_chain() {
        let pieces = ["\n", "hm", "\n\n", "still", "</think>", "ok"];
        assert_eq!(run(&pieces, true), ("hm\n\nstill".into(), "ok".into(), 4));
    }

    #[test]
    fn a_closing_tag_in_pieces_and_one_that_is_not() {
        let pieces = ["a<", "/th", "ere", "</", "think", ">b", "</think>"];
        assert_eq!(
            run(&pieces, true),
            ("a</there".into(), "b</think>".into(), 5)
        );
    }

    #[test]
    fn a_chain_that_is_cut_is_all_reasoning() {
        assert_eq!(
            run(&["x\n", "</thi"], true),
            ("x\n</thi".into(), String::new(), 2)
        );
        assert_eq!(
            run(&["<think>", "x"], false),
            ("x".into(), String::new(), 1)
        );
    }

    #[test]
    fn a_model_that_never_thinks_only_answers() {
        let pieces = [" \n", "<", "thin", "g>", " <think>"];
        assert_eq!(
            run(&pieces, false),
            (String::new(), " \n<thing> <think>".into(), 0)
        );
        assert_eq!(run(&["<thi"], false), (String::new(), "<thi".into(), 0));
    }

    #[test]
    fn an_empty_chain_leaves_no_reasoning() {
        let pieces = ["<think>", "\n\n", "</think>", "\n\n", "Hi"];
        assert_eq!(run(&pieces, false), (String::new(), "Hi".into(), 1));
    }

    #[test]
    fn without_tags_nothing_is_touched() {
        let mut parser = ReasoningParser::new(None, false);
        let text = "\n<think>\nx</think>\n";
        assert_eq!(parser.push(text), [Delta::Answer(text.into())]);
        assert!(parser.finish("").is_empty());
    }

    #[test]
    fn open_prompts() {
        assert!(format().is_open_after("<｜Assistant｜><think>\n"));
        assert!(!format().is_open_after("<think>\n\n</think>\n\n"));
        assert!(!format().is_open_after("what is <think> for?<｜Assistant｜>"));
    }

    proptest! {
        #[test]
        fn equals_naive_under_every_chunking(
            parts in prop::collection::vec(
                prop_oneof![
                    Just("<think>"), Just("</think>"), Just("\n"), Just("\n\n"), Just("<"),
                    Just("</thi"), Just("nk>"), Just("é"), Just(" "), Just("word"),
                ], 0..14),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..14),
            is_open in any::<bool>(),
        ) {
            let text = parts.concat();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            cuts.extend([0, text.len()]);
            cuts.retain(|&cut| text.is_char_boundary(cut));
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            let (reasoning, answer, _) = run(&pieces, is_open);
            prop_assert_eq!((reasoning, answer), naive(&text, is_open));
        }
    }
}

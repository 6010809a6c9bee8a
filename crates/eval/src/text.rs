//! What a model makes of a text, token by token: perplexity, and the distance to another model.
//!
//! The text is cut into windows, each a context of its own. A window begins `stride` tokens after
//! the one before; what overlaps is context only, so that every token is scored once, and all but
//! the first window's with at least `window - stride` tokens before it.

use std::ops::Range;
use std::time::Instant;

use crate::divergence::{Comparison, compare};
use crate::text_report::{TextReport, TokenScore};

/// A model that scores a text, one context at a time.
pub trait Scorer {
    /// Computes `tokens`, which follow the `computed` tokens of the same context that were given
    /// before (0 begins another context). With `wanted`, hands every row's logits, `[vocab_size]`,
    /// to `sink` with its index into `tokens`, in order.
    ///
    /// # Errors
    /// When the model refuses; the message is for people.
    fn score(
        &mut self,
        tokens: &[u32],
        computed: usize,
        wanted: bool,
        sink: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), String>;

    /// Logits in a row.
    fn vocab_size(&self) -> usize;

    /// Most tokens of one call.
    fn max_tokens(&self) -> usize;
}

/// Which text, and how it is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextTask {
    /// The text, or the texts one after the other.
    pub tokens: Vec<u32>,
    /// The texts that `tokens` is made of, each a beginning of its own; none: it is one text.
    pub documents: Vec<Document>,
    /// What every window begins with: the model's begin-of-text token, where it has one.
    pub prefix: Vec<u32>,
    /// Tokens of a window, the prefix included.
    pub window: usize,
    /// Tokens from the beginning of a window to that of the next.
    pub stride: usize,
}

/// Why a text could not be scored.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// Windows that cannot be.
    #[error("windows of {window} tokens with a stride of {stride}: {what}")]
    Windows {
        /// Tokens of a window.
        window: usize,
        /// Tokens between beginnings.
        stride: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// Nothing to predict.
    #[error("the text has {tokens} tokens: at least 2 are needed")]
    TooShort {
        /// Its tokens.
        tokens: usize,
    },
    /// Two models that do not speak of the same tokens.
    #[error(
        "the model's vocabulary has {model} tokens and the reference's {reference}: \
         divergence is defined over one vocabulary"
    )]
    Vocabulary {
        /// The model's.
        model: usize,
        /// The reference's.
        reference: usize,
    },
    /// A model failed.
    #[error("scoring token {position}: {message}")]
    Model {
        /// Where, in tokens from the text's beginning.
        position: usize,
        /// What happened.
        message: String,
    },
    /// A model computed something that is no number.
    #[error("{who} gave logits that are not finite before token {position}")]
    NotFinite {
        /// Which of the two.
        who: &'static str,
        /// Where, in tokens from the text's beginning.
        position: usize,
    },
}

/// One of several texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its tokens among all.
    pub tokens: Range<usize>,
    /// The first of them that is scored: what is before it is a prompt.
    pub scored_from: usize,
}

/// A window: its tokens in the text, and those of them that are scored in it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Window {
    tokens: Range<usize>,
    scored: Range<usize>,
}

impl TextTask {
    /// Tokens that are scored.
    pub fn scored_tokens(&self) -> usize {
        self.windows().map(|w| w.scored.len()).sum()
    }

    /// Scores the text with `model`, and against `reference` where there is one; `progress` hears
    /// how many tokens are scored.
    ///
    /// # Errors
    /// When the windows make no sense, the vocabularies differ, or a model fails.
    pub fn run(
        &self,
        model: &mut dyn Scorer,
        mut reference: Option<&mut dyn Scorer>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<TextReport, TextError> {
        self.check(model, reference.as_deref())?;
        let started = Instant::now();
        let mut scores = Vec::with_capacity(self.tokens.len());
        let mut rows = ReferenceRows::default();
        for window in self.windows() {
            let context: Vec<u32> = self.context(&window);
            let chunk = reference.as_ref().map_or(usize::MAX, |r| r.max_tokens());
            let chunk = chunk.min(model.max_tokens());
            for rows_of in self.chunks(&window, chunk) {
                let wanted = rows_of.start >= self.first_scored_row(&window);
                let tokens = &context[rows_of.clone()];
                // The token that row `r` of the context predicts, from the text's beginning.
                let target = |r: usize| window.tokens.start + r + 1 - self.prefix.len();
                let failed = |message: String| TextError::Model {
                    position: target(rows_of.start),
                    message,
                };
                if let Some(reference) = reference.as_deref_mut() {
                    rows.compute(reference, tokens, rows_of.start, wanted)
                        .map_err(failed)?;
                }
                let mut broken = None;
                let mut sink = |i: usize, row: &[f32]| {
                    let position = target(rows_of.start + i);
                    if !wanted || !window.scored.contains(&position) {
                        return;
                    }
                    let token = self.tokens[position];
                    match compare(row, rows.row(i), token) {
                        Ok(comparison) => scores.push(score(position, token, &comparison)),
                        Err(who) => {
                            broken.get_or_insert(TextError::NotFinite { who, position });
                        }
                    }
                };
                model
                    .score(tokens, rows_of.start, wanted, &mut sink)
                    .map_err(failed)?;
                if let Some(error) = broken {
                    return Err(error);
                }
                progress(scores.len());
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        Ok(TextReport::of(scores, self.window, self.stride, seconds))
    }

    fn check(&self, model: &dyn Scorer, reference: Option<&dyn Scorer>) -> Result<(), TextError> {
        let (window, stride) = (self.window, self.stride);
        let wrong = |what| {
            Err(TextError::Windows {
                window,
                stride,
                what,
            })
        };
        if window < self.prefix.len() + 2 {
            return wrong("a window holds at least two tokens of the text");
        }
        if stride == 0 || stride > window - self.prefix.len() {
            return wrong("the stride is at least 1 and at most the window");
        }
        if self.tokens.len() < 2 || self.scored_tokens() == 0 {
            let tokens = self.tokens.len();
            return Err(TextError::TooShort { tokens });
        }
        match reference.map(Scorer::vocab_size) {
            Some(reference) if reference != model.vocab_size() => Err(TextError::Vocabulary {
                model: model.vocab_size(),
                reference,
            }),
            _ => Ok(()),
        }
    }

    fn windows(&self) -> impl Iterator<Item = Window> + '_ {
        let whole = Document {
            tokens: 0..self.tokens.len(),
            scored_from: 0,
        };
        let whole = self.documents.is_empty().then_some(whole);
        let documents = self.documents.iter().cloned().chain(whole);
        documents.flat_map(|document| self.windows_of(document))
    }

    /// A document's windows, without those that are prompt only.
    fn windows_of(&self, document: Document) -> impl Iterator<Item = Window> + use<> {
        let width = self.window - self.prefix.len();
        // The first token of a window has nothing before it, unless there is a prefix.
        let alone = usize::from(self.prefix.is_empty());
        let stride = self.stride;
        let Document {
            tokens,
            scored_from,
        } = document;
        let mut next = (!tokens.is_empty()).then_some((tokens.start, scored_from));
        std::iter::from_fn(move || {
            let (start, done) = next?;
            let end = (start + width).min(tokens.end);
            let first = done.max(start + alone).min(end);
            next = (end < tokens.end).then_some((start + stride, done.max(end)));
            Some(Window {
                tokens: start..end,
                scored: first..end,
            })
        })
        .filter(|window| !window.scored.is_empty())
    }

    /// The prefix and the window's tokens, without the last: nothing is predicted from it.
    fn context(&self, window: &Window) -> Vec<u32> {
        let text = &self.tokens[window.tokens.start..window.tokens.end - 1];
        [&self.prefix, text].concat()
    }

    /// The row of the context that predicts the first scored token.
    fn first_scored_row(&self, window: &Window) -> usize {
        window.scored.start - window.tokens.start + self.prefix.len() - 1
    }

    /// Rows of the context in pieces of at most `most`, cut where scoring begins.
    fn chunks(&self, window: &Window, most: usize) -> Vec<Range<usize>> {
        let rows = self.prefix.len() + window.tokens.len() - 1;
        let cut = self.first_scored_row(window).min(rows);
        let pieces = |from: usize, to: usize| {
            (from..to)
                .step_by(most.max(1))
                .map(move |start| start..(start.saturating_add(most)).min(to))
        };
        pieces(0, cut).chain(pieces(cut, rows)).collect()
    }
}

fn score(position: usize, token: u32, comparison: &Comparison) -> TokenScore {
    TokenScore {
        position,
        token,
        nll: comparison.nll,
        top: comparison.top,
        reference: comparison.reference,
    }
}

/// The reference's logits of one chunk.
#[derive(Default)]
struct ReferenceRows {
    values: Vec<f32>,
    vocab_size: usize,
}

impl ReferenceRows {
    fn compute(
        &mut self,
        reference: &mut dyn Scorer,
        tokens: &[u32],
        computed: usize,
        wanted: bool,
    ) -> Result<(), String> {
        self.values.clear();
        self.vocab_size = reference.vocab_size();
        reference.score(tokens, computed, wanted, &mut |_, row| {
            self.values.extend_from_slice(row);
        })
    }

    fn row(&self, i: usize) -> Option<&[f32]> {
        self.values.chunks_exact(self.vocab_size.max(1)).nth(i)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Predicts from the last two tokens alone, so that windows change nothing but beginnings.
    struct Bigrams {
        sharpness: f32,
        context: Vec<u32>,
        calls: usize,
    }

    impl Bigrams {
        fn new(sharpness: f32) -> Bigrams {
            Bigrams {
                sharpness,
                context: Vec::new(),
                calls: 0,
            }
        }
    }

    impl Scorer for Bigrams {
        fn score(
            &mut self,
            tokens: &[u32],
            computed: usize,
            wanted: bool,
            sink: &mut dyn FnMut(usize, &[f32]),
        ) -> Result<(), String> {
            assert!(!tokens.is_empty() && tokens.len() <= 3);
            assert!(computed == 0 || computed == self.context.len(), "in order");
            self.context.truncate(computed);
            self.calls += 1;
            for (i, &token) in tokens.iter().enumerate() {
                self.context.push(token);
                let row: Vec<f32> = (0..7)
                    .map(|t| self.sharpness * ((token * 3 + t * 5) % 7) as f32)
                    .collect();
                if wanted {
                    sink(i, &row);
                }
            }
            Ok(())
        }

        fn vocab_size(&self) -> usize {
            7
        }

        fn max_tokens(&self) -> usize {
            3
        }
    }

    fn task(window: usize, stride: usize, prefix: Vec<u32>) -> TextTask {
        TextTask {
            tokens: (0..53).map(|i| i * i % 7).collect(),
            documents: Vec::new(),
            prefix,
            window,
            stride,
        }
    }

    /// What [`Bigrams`] says of the token at `i`.
    fn nll(tokens: &[u32], i: usize) -> f64 {
        let logit = |t: u32| f64::from((tokens[i - 1] * 3 + t * 5) % 7) * 0.5;
        let sum: f64 = (0..7).map(|t| logit(t).exp()).sum();
        sum.ln() - logit(tokens[i])
    }

    #[test]
    fn every_token_is_scored_once_whatever_the_windows() {
        for (window, stride) in [(53, 53), (100, 100), (10, 5), (7, 3), (8, 1)] {
            let task = task(window, stride, Vec::new());
            let mut seen = 0;
            let report = task
                .run(&mut Bigrams::new(0.5), None, &mut |n| seen = n)
                .unwrap();
            let positions: Vec<usize> = report.scores.iter().map(|s| s.position).collect();
            assert_eq!(positions, (1..53).collect::<Vec<_>>(), "{window} {stride}");
            assert_eq!((report.tokens, seen, task.scored_tokens()), (52, 52, 52));
            let mean = (1..53).map(|i| nll(&task.tokens, i)).sum::<f64>() / 52.0;
            assert!((report.perplexity.ln() - mean).abs() < 1e-6);
        }
    }

    #[test]
    fn documents_begin_anew_and_their_prompts_are_not_scored() {
        let documents = [(0..20, 12), (20..21, 20), (21..40, 38), (40..53, 40)];
        let documents = documents.map(|(tokens, scored_from)| Document {
            tokens,
            scored_from,
        });
        for (window, stride) in [(53, 53), (8, 4), (5, 1)] {
            let task = TextTask {
                documents: documents.to_vec(),
                ..task(window, stride, Vec::new())
            };
            let report = task.run(&mut Bigrams::new(0.5), None, &mut |_| {}).unwrap();
            let positions: Vec<usize> = report.scores.iter().map(|s| s.position).collect();
            let wanted: Vec<usize> = (12..20).chain(38..40).chain(41..53).collect();
            assert_eq!(positions, wanted, "{window} {stride}");
            assert_eq!(task.scored_tokens(), wanted.len());
            let mean = wanted.iter().map(|&i| nll(&task.tokens, i)).sum::<f64>();
            assert!((report.perplexity.ln() - mean / wanted.len() as f64).abs() < 1e-6);
        }
    }

    #[test]
    fn a_prefix_begins_every_window_and_lets_first_tokens_be_scored() {
        let task = task(9, 8, vec![2]);
        let report = task.run(&mut Bigrams::new(0.5), None, &mut |_| {}).unwrap();
        assert_eq!(report.tokens, 53);
        let first = [2, task.tokens[0]];
        assert!((f64::from(report.scores[0].nll) - nll(&first, 1)).abs() < 1e-6);
        // Windows that do not overlap lose nothing either: the prefix is before each.
        assert_eq!(report.scores[8].position, 8);
        let after_prefix = [2, task.tokens[8]];
        assert!((f64::from(report.scores[8].nll) - nll(&after_prefix, 1)).abs() < 1e-6);
    }

    #[test]
    fn a_model_does_not_differ_from_itself_and_does_from_another() {
        let task = task(10, 5, Vec::new());
        let mut reference = Bigrams::new(0.5);
        let same = task
            .run(&mut Bigrams::new(0.5), Some(&mut reference), &mut |_| {})
            .unwrap();
        assert_eq!(same.kl_mean, Some(0.0));
        assert_eq!(same.top1_agreement, Some(1.0));
        assert_eq!(same.reference_perplexity, Some(same.perplexity));
        let other = task
            .run(&mut Bigrams::new(-0.5), Some(&mut reference), &mut |_| {})
            .unwrap();
        assert!(other.kl_mean.unwrap() > 0.1);
        assert_eq!(other.top1_agreement, Some(0.0));
        assert_eq!(other.reference_perplexity, same.reference_perplexity);
    }

    #[test]
    fn windows_that_cannot_be_are_refused() {
        let model = &mut Bigrams::new(1.0);
        for (window, stride) in [(1, 1), (4, 0), (4, 5)] {
            let task = task(window, stride, Vec::new());
            let refused = task.run(model, None, &mut |_| {});
            assert!(matches!(refused, Err(TextError::Windows { .. })));
        }
        let short = TextTask {
            tokens: vec![1],
            ..task(4, 2, Vec::new())
        };
        let refused = short.run(model, None, &mut |_| {}).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the text has 1 tokens: at least 2 are needed"
        );
    }
}

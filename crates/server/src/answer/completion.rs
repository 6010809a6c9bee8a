//! Answers of plain completions.

use scrimp_engine::{Event, Update};
use scrimp_text::Tokenizer;

use super::stream::Chunks;
use super::{Heading, StreamUsage, fingerprint, logprobs};
use crate::api::{Completion, CompletionChoice, Usage};
use crate::inflight::Answer;

/// The whole answer. `echoes` holds each prompt's text where it is to be put in front.
pub(crate) fn whole_completion(
    heading: Heading,
    tokenizer: Option<&Tokenizer>,
    answers: Vec<Answer>,
    echoes: &[String],
    n: usize,
    usage: Usage,
) -> Completion {
    let choice = |(index, answer): (usize, Answer)| {
        let echo = echoes.get(index / n.max(1)).map_or("", String::as_str);
        let logprobs = tokenizer.map(|t| logprobs::for_completion(t, &answer.tokens, &mut 0));
        CompletionChoice {
            index,
            // Plain completions tell no thinking apart: all text is the answer's.
            text: format!("{echo}{}{}", answer.reasoning, answer.content),
            logprobs,
            finish_reason: Some(answer.finish_reason.into()),
        }
    };
    let choices = answers.into_iter().enumerate().map(choice).collect();
    completion(&heading, choices, Some(Some(usage)))
}

fn completion(
    heading: &Heading,
    choices: Vec<CompletionChoice>,
    usage: Option<Option<Usage>>,
) -> Completion {
    Completion {
        id: heading.id.clone(),
        object: "text_completion".into(),
        created: heading.created,
        model: heading.model.clone(),
        choices,
        usage,
        system_fingerprint: fingerprint(),
    }
}

/// A streamed answer's chunks.
pub(crate) struct CompletionChunks {
    pub(crate) heading: Heading,
    pub(crate) n: usize,
    /// Each prompt's text, where it is to be put in front.
    pub(crate) echoes: Vec<String>,
    /// Where log probabilities are asked for.
    pub(crate) tokenizer: Option<Tokenizer>,
    pub(crate) usage: StreamUsage,
    /// Characters of each answer's tokens so far.
    pub(crate) offsets: Vec<usize>,
}

impl Chunks for CompletionChunks {
    type Chunk = Completion;

    fn opening(&mut self) -> Vec<Completion> {
        let echo = |index: usize| {
            let text = self.echoes[index / self.n].clone();
            let choice = CompletionChoice {
                index,
                text,
                logprobs: None,
                finish_reason: None,
            };
            completion(&self.heading, vec![choice], self.usage.on_the_way())
        };
        (0..self.echoes.len() * self.n).map(echo).collect()
    }

    fn next(&mut self, update: Update) -> Option<Completion> {
        self.usage.see(&update);
        let index = update.index;
        let choice = match update.event {
            Event::Delta(news) => {
                let text = news.reasoning + &news.answer;
                let logprobs = match (&self.tokenizer, self.offsets.get_mut(index)) {
                    (Some(tokenizer), Some(offset)) if !news.tokens.is_empty() => {
                        Some(logprobs::for_completion(tokenizer, &news.tokens, offset))
                    }
                    _ => None,
                };
                if text.is_empty() && logprobs.is_none() {
                    return None;
                }
                CompletionChoice {
                    index,
                    text,
                    logprobs,
                    finish_reason: None,
                }
            }
            Event::Finished(end) => {
                let finish_reason = Some(end.reason.name().into());
                CompletionChoice {
                    index,
                    text: String::new(),
                    logprobs: None,
                    finish_reason,
                }
            }
            Event::Failed(_) => return None,
        };
        Some(completion(
            &self.heading,
            vec![choice],
            self.usage.on_the_way(),
        ))
    }

    fn closing(&mut self) -> Option<Completion> {
        let usage = self.usage.at_the_end()?;
        Some(completion(&self.heading, Vec::new(), Some(Some(usage))))
    }
}

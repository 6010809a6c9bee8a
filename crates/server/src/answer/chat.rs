//! Chat answers.

use scrimp_engine::{Event, Update};
use scrimp_text::Tokenizer;

use super::stream::Chunks;
use super::{Heading, StreamUsage, fingerprint, logprobs};
use crate::api::{ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, Delta, Message, Usage};
use crate::inflight::Answer;

/// The whole answer.
pub(crate) fn whole_chat(
    heading: Heading,
    tokenizer: Option<&Tokenizer>,
    answers: Vec<Answer>,
    usage: Usage,
) -> ChatCompletion {
    let choice = |(index, answer): (usize, Answer)| {
        let reasoning = (!answer.reasoning.is_empty()).then_some(answer.reasoning);
        let message = Message {
            role: "assistant".into(),
            content: answer.content,
            refusal: None,
            reasoning_content: reasoning.clone(),
            reasoning,
        };
        let logprobs = tokenizer.map(|t| logprobs::for_chat(t, &answer.tokens));
        ChatChoice {
            index,
            message,
            logprobs,
            finish_reason: answer.finish_reason.into(),
        }
    };
    ChatCompletion {
        id: heading.id,
        object: "chat.completion".into(),
        created: heading.created,
        model: heading.model,
        choices: answers.into_iter().enumerate().map(choice).collect(),
        usage,
        system_fingerprint: fingerprint(),
    }
}

/// A streamed answer's chunks.
pub(crate) struct ChatChunks {
    pub(crate) heading: Heading,
    pub(crate) n: usize,
    /// Where log probabilities are asked for.
    pub(crate) tokenizer: Option<Tokenizer>,
    pub(crate) usage: StreamUsage,
}

impl ChatChunks {
    fn chunk(&self, choices: Vec<ChatChunkChoice>, usage: Option<Option<Usage>>) -> ChatChunk {
        ChatChunk {
            id: self.heading.id.clone(),
            object: "chat.completion.chunk".into(),
            created: self.heading.created,
            model: self.heading.model.clone(),
            choices,
            usage,
            system_fingerprint: fingerprint(),
        }
    }

    fn choice_for(&self, update: Update) -> Option<ChatChunkChoice> {
        let index = update.index;
        let mut choice = ChatChunkChoice {
            index,
            delta: Delta::default(),
            logprobs: None,
            finish_reason: None,
        };
        match update.event {
            Event::Delta(news) => {
                let text = |text: String| (!text.is_empty()).then_some(text);
                choice.delta.content = text(news.answer);
                choice.delta.reasoning_content = text(news.reasoning);
                choice.delta.reasoning = choice.delta.reasoning_content.clone();
                if let Some(tokenizer) = self.tokenizer.as_ref().filter(|_| !news.tokens.is_empty())
                {
                    choice.logprobs = Some(logprobs::for_chat(tokenizer, &news.tokens));
                }
                let silent = choice.delta == Delta::default() && choice.logprobs.is_none();
                (!silent).then_some(choice)
            }
            Event::Finished(end) => {
                choice.finish_reason = Some(end.reason.name().into());
                Some(choice)
            }
            Event::Failed(_) => None,
        }
    }
}

impl Chunks for ChatChunks {
    type Chunk = ChatChunk;

    fn opening(&mut self) -> Vec<ChatChunk> {
        let role = |index| {
            let (role, content) = (Some("assistant".into()), Some(String::new()));
            let delta = Delta {
                role,
                content,
                ..Delta::default()
            };
            let choice = ChatChunkChoice {
                index,
                delta,
                logprobs: None,
                finish_reason: None,
            };
            self.chunk(vec![choice], self.usage.on_the_way())
        };
        (0..self.n).map(role).collect()
    }

    fn next(&mut self, update: Update) -> Option<ChatChunk> {
        self.usage.see(&update);
        let choice = self.choice_for(update)?;
        Some(self.chunk(vec![choice], self.usage.on_the_way()))
    }

    fn closing(&mut self) -> Option<ChatChunk> {
        let usage = self.usage.at_the_end()?;
        Some(self.chunk(Vec::new(), Some(Some(usage))))
    }
}

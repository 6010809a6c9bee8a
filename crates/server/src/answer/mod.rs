//! News from the engine → answers as the API words them, whole or in chunks.

mod chat;
mod completion;
mod logprobs;
mod stream;

pub(crate) use chat::{ChatChunks, whole_chat};
pub(crate) use completion::{CompletionChunks, whole_completion};
pub(crate) use logprobs::token_text;
pub(crate) use stream::event_stream;

use scrimp_engine::{Event, Update};

use crate::api::Usage;
use crate::app::unix_seconds;
use crate::inflight::Totals;
use crate::parse::Stream;

/// What all chunks of an answer, or the whole one, have in common.
#[derive(Clone, Debug)]
pub(crate) struct Heading {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
}

impl Heading {
    /// A fresh id; `kind` is `chatcmpl` or `cmpl`.
    pub(crate) fn new(kind: &str, model: &str) -> Self {
        let id = format!("{kind}-{:032x}", fastrand::u128(..));
        Heading {
            id,
            created: unix_seconds(),
            model: model.into(),
        }
    }
}

/// The server's version, as `system_fingerprint`.
pub(crate) fn fingerprint() -> String {
    concat!("scrimp-", env!("CARGO_PKG_VERSION")).into()
}

/// Counts a stream's tokens, and says what each chunk tells of them.
#[derive(Clone, Debug)]
pub(crate) struct StreamUsage {
    wanted: Stream,
    totals: Totals,
    prompt_tokens: usize,
    completion: usize,
    reasoning: usize,
}

impl StreamUsage {
    /// For prompts of `prompt_tokens` tokens in all, each answered `n` times.
    pub(crate) fn new(wanted: Stream, prompt_tokens: usize, n: usize) -> Self {
        StreamUsage {
            wanted,
            totals: Totals::new(n),
            prompt_tokens,
            completion: 0,
            reasoning: 0,
        }
    }

    fn see(&mut self, update: &Update) {
        self.totals.see(update);
        if let Event::Delta(delta) = &update.event {
            self.completion += delta.tokens.len();
            self.reasoning += delta.tokens.iter().filter(|token| token.reasoning).count();
        }
    }

    /// The `usage` field of a chunk on the way: absent, null, or the counts so far.
    fn on_the_way(&self) -> Option<Option<Usage>> {
        let Stream {
            include_usage,
            continuous_usage,
        } = self.wanted;
        if continuous_usage {
            let (completion, reasoning) = (self.completion, self.reasoning);
            Some(Some(Usage::of_tokens(
                self.prompt_tokens,
                0,
                completion,
                reasoning,
            )))
        } else {
            include_usage.then_some(None)
        }
    }

    /// The sum for the last chunk, where one is wanted.
    fn at_the_end(&self) -> Option<Usage> {
        self.wanted.include_usage.then(|| self.totals.usage())
    }
}

//! What goes into the engine and what comes out of it.

use std::time::Duration;

use scrimp_scheduler::{AddError, FinishReason};

use crate::params::{SamplingError, SamplingParams};

/// A generation to run: token ids in, everything checked by [`GenerateRequest::validate`].
#[derive(Clone, Debug, Default)]
pub struct GenerateRequest {
    /// Prompt tokens; at least one.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Most tokens to generate, thinking included; `None` goes on to the model's limit.
    pub max_tokens: Option<usize>,
    /// Independent completions of the same prompt; at least 1.
    pub n: usize,
    /// Texts that end a generation; they are not part of the answer.
    pub stop: Vec<String>,
    /// Tokens that end a generation, besides the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Whether the model's end-of-sequence tokens are generated like any other.
    pub ignore_eos: bool,
    /// Whether special tokens are left out of the text.
    pub skip_special_tokens: bool,
    /// How the chain of thought is told from the answer.
    pub reasoning: Reasoning,
    /// Most tokens of thinking; the chain is then closed with the model's own token.
    pub thinking_token_budget: Option<usize>,
    /// Lower goes first.
    pub priority: i32,
    /// Sequences share cached prefixes only under the same salt.
    pub cache_salt: Option<String>,
}

/// Whether a generation is split into thinking and answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reasoning {
    /// All text is answer (plain completions).
    #[default]
    Off,
    /// The model may open a chain itself.
    MayThink,
    /// The prompt ended inside an opened chain.
    Thinking,
}

/// One step of news about a completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// Which of the request's `n` completions.
    pub index: usize,
    /// What happened.
    pub event: Event,
}

/// News about a completion.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Text became certain, or tokens were generated whose text is not complete yet.
    Delta(Delta),
    /// The completion is over; nothing follows for its index.
    Finished(Finished),
    /// The request was refused or broke; nothing follows for any index.
    Failed(RequestError),
}

/// Text and tokens since the last delta.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// New text of the chain of thought.
    pub reasoning: String,
    /// New text of the answer.
    pub answer: String,
    /// Tokens generated, in order; their text may come later.
    pub tokens: Vec<TokenInfo>,
}

/// One generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenInfo {
    /// The token.
    pub id: u32,
    /// Whether it belongs to the chain of thought.
    pub reasoning: bool,
    /// Log probabilities, when asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// Log probabilities (natural) before temperature and penalties.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Of the chosen token.
    pub logprob: f32,
    /// Of the best tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// How a completion ended, and what it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// Counts and costs.
    pub usage: Usage,
}

/// What a completion took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, thinking included.
    pub completion_tokens: usize,
    /// Of those, tokens of thinking.
    pub reasoning_tokens: usize,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: usize,
    /// Most bytes of KV cache held at once.
    pub kv_cache_bytes: usize,
    /// Times its blocks were taken away and recomputed.
    pub preemptions: usize,
    /// Waiting before the first step.
    pub queue_time: Duration,
    /// From the first step to the first token.
    pub prefill_time: Duration,
    /// From the first token to the last.
    pub decode_time: Duration,
}

/// Why a request was refused or broke.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// No prompt.
    #[error("the prompt is empty: at least one token is needed")]
    EmptyPrompt,
    /// A token that the model does not have.
    #[error("token {token} is not in the vocabulary of {vocab_size} tokens")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A prompt that leaves no room for an answer.
    #[error(
        "the prompt has {prompt} tokens, but a sequence holds at most {limit}, \
         its output included: shorten it by {}, or give sequences more room (--max-model-len, \
         --num-blocks, --memory)",
        prompt + 1 - limit
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Most tokens of a sequence.
        limit: usize,
    },
    /// More than the cache or a step can ever hold.
    #[error(transparent)]
    NeverFits(#[from] AddError),
    /// A sampling parameter out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// Another parameter out of range.
    #[error("{field} is {value}, but must be {allowed}")]
    Parameter {
        /// The parameter's name in the API.
        field: &'static str,
        /// The value given.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// More requests than may wait.
    #[error("{waiting} requests are waiting already, the most allowed: try again later")]
    QueueFull {
        /// Requests waiting.
        waiting: usize,
    },
    /// The engine is stopping.
    #[error("the engine is shutting down and takes no new requests")]
    ShuttingDown,
    /// A step failed.
    #[error("generation failed: {0}")]
    Internal(String),
}

impl RequestError {
    /// The API's name for the parameter at fault, where one is.
    pub fn param(&self) -> Option<&'static str> {
        match self {
            RequestError::Sampling(error) => Some(error.field),
            RequestError::Parameter { field, .. } => Some(field),
            RequestError::NeverFits(AddError::BadCount { .. }) => Some("n"),
            RequestError::NeverFits(AddError::NoTokens) => Some("max_tokens"),
            RequestError::NeverFits(_)
            | RequestError::EmptyPrompt
            | RequestError::UnknownToken { .. }
            | RequestError::PromptTooLong { .. } => Some("prompt"),
            _ => None,
        }
    }

    /// Whether the request itself is at fault, so that sending it again cannot help.
    pub fn is_invalid_request(&self) -> bool {
        self.param().is_some()
    }
}

/// Most completions of one request.
pub const MAX_N: usize = 128;

/// Most stop texts of one request, and most bytes of one.
pub const MAX_STOP: (usize, usize) = (64, 1024);

impl GenerateRequest {
    /// Checks everything that does not depend on what else is running.
    ///
    /// # Errors
    /// The first thing wrong, with its value and what is allowed.
    pub fn validate(&self, vocab_size: usize, max_model_len: usize) -> Result<(), RequestError> {
        if self.prompt.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        if self.prompt.len() >= max_model_len {
            return Err(RequestError::PromptTooLong {
                prompt: self.prompt.len(),
                limit: max_model_len,
            });
        }
        let mut ids = self.prompt.iter().chain(&self.stop_token_ids);
        if let Some(&token) = ids.find(|&&id| id as usize >= vocab_size) {
            return Err(RequestError::UnknownToken { token, vocab_size });
        }
        self.sampling.validate(vocab_size)?;
        let parameter = |field, value: String, allowed: String| {
            Err(RequestError::Parameter {
                field,
                value,
                allowed,
            })
        };
        if !(1..=MAX_N).contains(&self.n) {
            return parameter("n", self.n.to_string(), format!("from 1 to {MAX_N}"));
        }
        if self.max_tokens == Some(0) {
            return parameter("max_tokens", "0".into(), "at least 1".into());
        }
        if self.stop.len() > MAX_STOP.0 {
            return parameter(
                "stop",
                format!("a list of {} texts", self.stop.len()),
                format!("at most {}", MAX_STOP.0),
            );
        }
        match self
            .stop
            .iter()
            .find(|s| s.is_empty() || s.len() > MAX_STOP.1)
        {
            Some(text) => parameter(
                "stop",
                format!("a text of {} bytes", text.len()),
                format!("of 1 to {}", MAX_STOP.1),
            ),
            None => Ok(()),
        }
    }
}

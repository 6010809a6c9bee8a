//! Plain completions: request and answer (a streamed piece has the answer's shape).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{GenerationFields, Usage};

/// Body of `POST /v1/completions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CompletionRequest {
    /// The prompts, and what only plain completions have.
    #[serde(flatten)]
    pub completion: CompletionBody,
    /// How to generate; `max_tokens` is 16 if left out.
    #[serde(flatten)]
    pub generation: GenerationFields,
}

/// The fields that only plain completions have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CompletionBody {
    /// One prompt or several, as text or as token ids.
    pub prompt: Prompt,
    /// Put the prompt in front of the answer.
    #[serde(default)]
    pub echo: Option<bool>,
    /// Report the log probabilities of the chosen and of so many best tokens, at most 20.
    #[serde(default)]
    pub logprobs: Option<u32>,
    /// Whether the model's own first token is put in front of a text; true if left out.
    #[serde(default)]
    pub add_special_tokens: Option<bool>,
}

/// One prompt or several, as text or as token ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected a string, a list of strings, a list of token ids, or a list of such lists"
)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// Token ids.
    Tokens(Vec<u32>),
    /// Several prompts of token ids.
    TokenLists(Vec<Vec<u32>>),
}

/// Answer of `POST /v1/completions`, and piece of a streamed one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Completion {
    /// `cmpl-` and a random number.
    pub id: String,
    /// `text_completion`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The served model's name.
    pub model: String,
    /// `n` for each prompt, the first prompt's first.
    pub choices: Vec<CompletionChoice>,
    /// What it took; in a stream only where `stream_options` asks for it, null until known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
    /// The server's version.
    pub system_fingerprint: String,
}

/// One of the answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CompletionChoice {
    /// `prompt * n + completion`.
    pub index: usize,
    /// The text, or in a stream what is new of it.
    pub text: String,
    /// Of its tokens, where asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; in a stream only in the last piece.
    pub finish_reason: Option<String>,
}

/// Log probabilities of an answer's tokens, as parallel lists.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CompletionLogprobs {
    /// Where each token starts, in characters from the start of the answer's tokens.
    pub text_offset: Vec<usize>,
    /// Natural logarithm of each token's probability.
    pub token_logprobs: Vec<f32>,
    /// Each token's text.
    pub tokens: Vec<String>,
    /// The best tokens at each place, by their text.
    pub top_logprobs: Vec<BTreeMap<String, f32>>,
}

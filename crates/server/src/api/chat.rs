//! Chat completions: request, answer, and chunk of a streamed answer.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{GenerationFields, Usage};

/// Body of `POST /v1/chat/completions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChatCompletionRequest {
    /// The conversation, and what only chat has.
    #[serde(flatten)]
    pub chat: ChatBody,
    /// How to generate.
    #[serde(flatten)]
    pub generation: GenerationFields,
}

/// The fields that only chat has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChatBody {
    /// The conversation so far; at least one message.
    pub messages: Vec<InputMessage>,
    /// Functions that the template tells the model of. Calls stay in the answer's text.
    #[serde(default)]
    pub tools: Option<Vec<Value>>,
    /// `auto` or `none`.
    #[serde(default)]
    pub tool_choice: Option<Value>,
    /// Report the log probability of every token.
    #[serde(default)]
    pub logprobs: Option<bool>,
    /// And those of so many best tokens, at most 20; needs `logprobs`.
    #[serde(default)]
    pub top_logprobs: Option<u32>,
    /// Most tokens of thinking; the chain is then closed and the answer follows.
    #[serde(default)]
    pub thinking_token_budget: Option<usize>,
    /// `none` turns thinking off where the template can; other values are not used.
    #[serde(default)]
    pub reasoning_effort: Option<String>,
    /// Variables for the template, such as `enable_thinking` or `thinking`.
    #[serde(default)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Whether the prompt ends by opening the assistant's turn; true if left out.
    #[serde(default)]
    pub add_generation_prompt: Option<bool>,
    /// Go on with the last message instead of starting a new one.
    #[serde(default)]
    pub continue_final_message: Option<bool>,
}

/// A message of the conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InputMessage {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text; may be missing only where an assistant called tools.
    #[serde(default)]
    pub content: Option<Content>,
    /// The thinking of an earlier turn.
    #[serde(default)]
    pub reasoning_content: Option<String>,
    /// The same under its other name.
    #[serde(default)]
    pub reasoning: Option<String>,
    /// Tools that the assistant called.
    #[serde(default)]
    pub tool_calls: Option<Vec<Value>>,
    /// Which call a tool's message answers.
    #[serde(default)]
    pub tool_call_id: Option<String>,
    /// Name of the participant.
    #[serde(default)]
    pub name: Option<String>,
}

/// A text, whole or in parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of text parts")]
pub enum Content {
    /// The whole text.
    Text(String),
    /// Its parts, which are joined.
    Parts(Vec<ContentPart>),
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ContentPart {
    /// Only `text`.
    pub r#type: String,
    /// The text.
    #[serde(default)]
    pub text: Option<String>,
}

/// Answer of `POST /v1/chat/completions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChatCompletion {
    /// `chatcmpl-` and a random number.
    pub id: String,
    /// `chat.completion`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The served model's name.
    pub model: String,
    /// One for each of `n`.
    pub choices: Vec<ChatChoice>,
    /// What it took.
    pub usage: Usage,
    /// The server's version.
    pub system_fingerprint: String,
}

/// One of the answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChatChoice {
    /// From 0 to `n - 1`.
    pub index: usize,
    /// The answer.
    pub message: Message,
    /// Of every token, where asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop` or `length`.
    pub finish_reason: String,
}

/// What the assistant says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Message {
    /// `assistant`.
    pub role: String,
    /// The answer without the thinking; empty, never null, when all tokens went into thinking.
    pub content: String,
    /// Always null.
    pub refusal: Option<String>,
    /// The chain of thought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The same under its other name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
}

/// A piece of a streamed answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChatChunk {
    /// The same in all chunks of an answer.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: String,
    /// Seconds since 1970, the same in all chunks.
    pub created: u64,
    /// The served model's name.
    pub model: String,
    /// One, or none in the chunk that tells the usage.
    pub choices: Vec<ChatChunkChoice>,
    /// Present where `stream_options` asks for it; null until it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
    /// The server's version.
    pub system_fingerprint: String,
}

/// A piece of one of the answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChatChunkChoice {
    /// From 0 to `n - 1`.
    pub index: usize,
    /// What is new.
    pub delta: Delta,
    /// Of the new tokens, where asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// In the last piece: `stop` or `length`.
    pub finish_reason: Option<String>,
}

/// New text of an answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Delta {
    /// `assistant`, in the first piece.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// New text of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// New text of the chain of thought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The same under its other name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
}

/// Log probabilities of an answer's tokens, thinking included, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChatLogprobs {
    /// One for each token.
    pub content: Vec<TokenLogprob>,
    /// Always null.
    pub refusal: Option<Vec<TokenLogprob>>,
}

/// A token's log probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenLogprob {
    /// Its text; bytes that are no text by themselves are shown as U+FFFD.
    pub token: String,
    /// Natural logarithm of its probability, before temperature and penalties.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The best tokens, best first.
    pub top_logprobs: Vec<TopLogprob>,
}

/// One of the best tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TopLogprob {
    /// Its text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

//! Request fields that chat and plain completions share.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How to generate and how to answer; every field may be left out or null.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct GenerationFields {
    /// A served model's name; left out, the model that runs.
    pub model: Option<String>,
    /// Most tokens to generate, thinking included.
    pub max_tokens: Option<usize>,
    /// OpenAI's newer name for `max_tokens`; it wins where both are given.
    pub max_completion_tokens: Option<usize>,
    /// Fewest tokens before the model may end its answer.
    pub min_tokens: Option<u32>,
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// Keep the smallest set of tokens that reaches this probability.
    pub top_p: Option<f32>,
    /// Keep so many best tokens; 0 or -1 keeps all.
    pub top_k: Option<i64>,
    /// Drop tokens below this share of the best one's probability.
    pub min_p: Option<f32>,
    /// Divides the logits of tokens already in prompt or output.
    pub repetition_penalty: Option<f32>,
    /// Subtracted from the logits of tokens already in the output.
    pub presence_penalty: Option<f32>,
    /// Subtracted for each time a token is in the output.
    pub frequency_penalty: Option<f32>,
    /// Same seed, same request: same tokens. Left out, a random one is drawn.
    pub seed: Option<i64>,
    /// Added to the logits of these token ids (as strings).
    pub logit_bias: Option<LogitBias>,
    /// Texts that end a generation.
    pub stop: Option<Stop>,
    /// Token ids that end a generation.
    pub stop_token_ids: Option<Vec<u32>>,
    /// Go on past the model's end-of-sequence token.
    pub ignore_eos: Option<bool>,
    /// Leave special tokens out of the text; true if left out.
    pub skip_special_tokens: Option<bool>,
    /// Independent completions of each prompt; 1 if left out.
    pub n: Option<usize>,
    /// Answer piece by piece, as server-sent events.
    pub stream: Option<bool>,
    /// What else a stream carries.
    pub stream_options: Option<StreamOptions>,
    /// Lower is served first.
    pub priority: Option<i32>,
    /// Cached prefixes are shared only among requests with the same salt.
    pub cache_salt: Option<String>,
    /// Only `{"type": "text"}`.
    pub response_format: Option<ResponseFormat>,
    /// Accepted and not used.
    pub user: Option<String>,
}

/// Biases by token id.
pub type LogitBias = BTreeMap<String, f32>;

/// One text or a list of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub enum Stop {
    /// One text.
    One(String),
    /// Any of these.
    Many(Vec<String>),
}

/// What a stream carries besides text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct StreamOptions {
    /// A last chunk without choices tells the usage.
    pub include_usage: Option<bool>,
    /// Every chunk tells the usage so far.
    pub continuous_usage_stats: Option<bool>,
}

/// The form of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResponseFormat {
    /// `text`.
    pub r#type: String,
}

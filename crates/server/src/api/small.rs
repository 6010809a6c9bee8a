//! The small endpoints: models, tokens, health, version.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::InputMessage;

/// Answer of `GET /v1/models`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelList {
    /// `list`.
    pub object: String,
    /// One for each served name.
    pub data: Vec<Model>,
}

/// A served name of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Model {
    /// The name to ask for.
    pub id: String,
    /// `model`.
    pub object: String,
    /// When the server started, in seconds since 1970.
    pub created: u64,
    /// `scrimp`.
    pub owned_by: String,
    /// Most tokens of a sequence, prompt and output.
    pub max_model_len: usize,
}

/// Body of `POST /tokenize`: a text or a conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct TokenizeRequest {
    /// A served model's name.
    pub model: Option<String>,
    /// The text.
    pub prompt: Option<String>,
    /// Or the conversation, which goes through the chat template.
    pub messages: Option<Vec<InputMessage>>,
    /// Functions for the template.
    pub tools: Option<Vec<Value>>,
    /// Variables for the template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Whether the conversation ends by opening the assistant's turn; true if left out.
    pub add_generation_prompt: Option<bool>,
    /// Whether the model's own first token is put in front of a text; true if left out.
    pub add_special_tokens: Option<bool>,
    /// Whether to answer with each token's text too.
    pub return_token_strs: Option<bool>,
}

/// Answer of `POST /tokenize`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenizeResponse {
    /// How many tokens.
    pub count: usize,
    /// Most tokens of a sequence.
    pub max_model_len: usize,
    /// Their ids.
    pub tokens: Vec<u32>,
    /// Their texts, where asked for.
    pub token_strs: Option<Vec<String>>,
}

/// Body of `POST /detokenize`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DetokenizeRequest {
    /// A served model's name.
    #[serde(default)]
    pub model: Option<String>,
    /// Token ids.
    pub tokens: Vec<u32>,
}

/// Answer of `POST /detokenize`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DetokenizeResponse {
    /// Their text, special tokens included.
    pub prompt: String,
}

/// Answer of `GET /health`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
}

/// Answer of `GET /version`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// scrimp's version.
    pub version: String,
}

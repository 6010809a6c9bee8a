//! What travels over HTTP, as types: requests as clients send them, answers as they read them.
//!
//! Types only describe; [`crate::parse`] turns bytes into them and checks them.

mod chat;
mod completion;
mod fields;
mod small;
mod usage;

pub use chat::{
    ChatBody, ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatCompletionRequest,
    ChatLogprobs, Content, ContentPart, Delta, InputMessage, Message, TokenLogprob, TopLogprob,
};
pub use completion::{
    Completion, CompletionBody, CompletionChoice, CompletionLogprobs, CompletionRequest, Prompt,
};
pub use fields::{GenerationFields, LogitBias, ResponseFormat, Stop, StreamOptions};
pub use small::{
    DetokenizeRequest, DetokenizeResponse, Health, Model, ModelList, TokenizeRequest,
    TokenizeResponse, Version,
};
pub use usage::{CompletionTokensDetails, PromptTokensDetails, ScrimpUsage, Usage};

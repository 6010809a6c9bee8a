//! Bytes of a request → checked values. What comes out of here needs no second look, except for
//! what only a running model knows (its vocabulary and its longest sequence), which
//! [`scrimp_engine::EngineHandle::submit`] checks.
//!
//! Nothing here needs a model or a socket, so that all of it can be fuzzed. Unknown fields are
//! ignored, as OpenAI's servers do; fields that would change the answer and are not supported
//! are refused by name (`unsupported.rs`).

mod chat;
mod completion;
mod generation;
mod unsupported;

pub use chat::{ChatMessage, ChatRequest, Role, TemplateOptions, parse_chat_request};
pub use chat::{TokenizeInput, parse_tokenize_request};
pub use completion::{CompletionRequest, Prompts, parse_completion_request};
pub use generation::{Generation, Stream};

use serde::Deserialize;
use serde_json::Value;

use crate::api::DetokenizeRequest;
use crate::error::ApiError;

/// Most completions of one HTTP request: prompts times `n`.
pub const MAX_CHOICES: usize = 256;

/// Most entries of a `logit_bias`, which is applied at every token.
pub const MAX_LOGIT_BIAS: usize = 4096;

/// Most values in a body. A value takes far more memory than the two bytes that `0,` has; a
/// prompt of token ids is a value a token.
pub const MAX_VALUES: usize = 1 << 19;

/// The body of `POST /detokenize`.
///
/// # Errors
/// Says where the JSON is broken, or which field is missing or has the wrong type.
pub fn parse_detokenize_request(body: &[u8]) -> Result<DetokenizeRequest, ApiError> {
    read(&object(body)?)
}

/// The body as a JSON object. Nesting is bounded by the JSON reader (128 levels).
fn object(body: &[u8]) -> Result<Value, ApiError> {
    let values = count_values(body);
    if values > MAX_VALUES {
        let message = format!("the body holds {values} JSON values, but at most {MAX_VALUES} may");
        return Err(ApiError::bad_request(message).with_code("too_many_values"));
    }
    let value: Value = serde_json::from_slice(body).map_err(|error| {
        ApiError::bad_request(format!("the body is not valid JSON: {error}"))
            .with_code("invalid_json")
    })?;
    match value {
        Value::Object(_) => Ok(value),
        _ => Err(ApiError::bad_request("the body must be a JSON object").with_code("invalid_json")),
    }
}

/// Values in a JSON text, give or take one a list: what stands between two marks outside strings.
fn count_values(body: &[u8]) -> usize {
    let (mut count, mut in_string, mut escaped) = (0, false, false);
    for &byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b',' | b'[' | b'{' | b':' if !in_string => count += 1,
            _ => {}
        }
    }
    count
}

/// One of the types of [`crate::api`] from a JSON object; an error names the field.
fn read<'a, T: Deserialize<'a>>(object: &'a Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(object).map_err(|error| {
        let reason = error.inner().to_string();
        let path = error.path().to_string();
        // A missing field has no path of its own; serde quotes its name.
        if let Some(field) = reason
            .strip_prefix("missing field `")
            .and_then(|r| r.split('`').next())
        {
            let path = if path == "." {
                field.into()
            } else {
                format!("{path}.{field}")
            };
            return ApiError::invalid(&path, format!("{path} is missing"))
                .with_code("missing_field");
        }
        match path.as_str() {
            "." => ApiError::bad_request(reason),
            path => ApiError::invalid(path, format!("{path}: {reason}")),
        }
        .with_code("invalid_type")
    })
}

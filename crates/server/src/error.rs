//! Errors as the OpenAI API words them: `{"error": {"message", "type", "param", "code"}}`.
//!
//! Every refusal of the server is an [`ApiError`]; nothing else chooses an HTTP status.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use scrimp_engine::RequestError;
use scrimp_text::{TemplateError, TokenizerError};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorResponse {
    /// What went wrong.
    pub error: ErrorBody,
}

/// What went wrong, in the OpenAI API's four fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// For people: what, where, and what to do.
    pub message: String,
    /// The class of error.
    pub r#type: String,
    /// The request field at fault, where one is.
    pub param: Option<String>,
    /// For programs: which error of its class.
    pub code: Option<String>,
}

/// A refusal, with the HTTP status it is sent under.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{} ({status})", body.message)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// What the client reads.
    pub body: Box<ErrorBody>,
    /// Seconds after which trying again makes sense; sent as `Retry-After`.
    pub retry_after: Option<u32>,
}

impl ApiError {
    /// An error of a class, with its machine-readable code.
    pub fn new(status: StatusCode, kind: &str, code: &str, message: impl Into<String>) -> Self {
        let body = ErrorBody {
            message: message.into(),
            r#type: kind.into(),
            param: None,
            code: Some(code.into()),
        };
        ApiError {
            status,
            body: Box::new(body),
            retry_after: None,
        }
    }

    /// The request is at fault, in field `param`.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::bad_request(message);
        error.body.param = Some(param.into());
        error
    }

    /// The request is at fault as a whole.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            "invalid_value",
            message,
        )
    }

    /// A field asks for something that this version cannot do.
    pub fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self::invalid(param, message).with_code("unsupported_parameter")
    }

    /// The same error under another code.
    pub fn with_code(mut self, code: &str) -> Self {
        self.body.code = Some(code.into());
        self
    }

    /// The same error, naming the field at fault.
    pub fn with_param(mut self, param: &str) -> Self {
        self.body.param = Some(param.into());
        self
    }

    /// No such model here.
    pub fn model_not_found(asked: &str, served: &[String]) -> Self {
        let shown: String = asked.chars().take(200).collect();
        let message = format!(
            "the model {shown:?} is not served here; served: {}",
            served.join(", ")
        );
        let status = StatusCode::NOT_FOUND;
        Self::new(status, "invalid_request_error", "model_not_found", message).with_param("model")
    }

    /// No such address.
    pub fn no_such_path(method: &str, path: &str) -> Self {
        let message = format!("there is no {method} {path}; see /openapi.json for what there is");
        Self::new(
            StatusCode::NOT_FOUND,
            "invalid_request_error",
            "not_found",
            message,
        )
    }

    /// The address exists, but not with this method.
    pub fn wrong_method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not take {method}; see /openapi.json");
        let status = StatusCode::METHOD_NOT_ALLOWED;
        Self::new(
            status,
            "invalid_request_error",
            "method_not_allowed",
            message,
        )
    }

    /// A missing or wrong API key.
    pub fn unauthorized() -> Self {
        let message = "a valid API key is needed: send it as \"Authorization: Bearer KEY\"";
        Self::new(
            StatusCode::UNAUTHORIZED,
            "authentication_error",
            "invalid_api_key",
            message,
        )
    }

    /// A body over the limit.
    pub fn body_too_large(limit: usize) -> Self {
        let message = format!("the request body is larger than the {limit} bytes allowed");
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        Self::new(status, "invalid_request_error", "body_too_large", message)
    }

    /// A body that did not arrive in time.
    pub fn body_too_slow(seconds: f64) -> Self {
        let message = format!("the request body did not arrive within {seconds} s");
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "timeout_error",
            "body_timeout",
            message,
        )
    }

    /// More requests than may wait.
    pub fn queue_full(waiting: usize, limit: usize) -> Self {
        let message = format!(
            "{waiting} completions are waiting already and at most {limit} may: try again later"
        );
        let mut error = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limit_error",
            "queue_full",
            message,
        );
        error.retry_after = Some(1);
        error
    }

    /// Too many bytes of request bodies are being read at once.
    pub fn too_many_bodies() -> Self {
        let message = "the server is busy reading other large requests: try again later";
        let mut error = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "service_unavailable",
            "busy",
            message,
        );
        error.retry_after = Some(1);
        error
    }

    /// The server is on its way down.
    pub fn shutting_down() -> Self {
        let message = "the server is shutting down";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self::new(status, "service_unavailable", "shutting_down", message)
    }

    /// A request over its time limit.
    pub fn timed_out(seconds: f64) -> Self {
        let message = format!(
            "the request took longer than the {seconds} s allowed and was stopped: ask for fewer \
             tokens, or start the server with a longer time limit"
        );
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "timeout_error",
            "request_timeout",
            message,
        )
    }

    /// The server is at fault.
    pub fn internal(message: impl Into<String>) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(status, "server_error", "internal_error", message)
    }

    /// What the client reads.
    pub fn to_response_body(&self) -> ErrorResponse {
        ErrorResponse {
            error: (*self.body).clone(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.to_response_body())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::GATEWAY_TIMEOUT {
            // OpenAI's clients retry a 5xx by themselves; this one would only time out again.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let message = error.to_string();
        match &error {
            RequestError::QueueFull { waiting } => ApiError::queue_full(*waiting, *waiting),
            RequestError::ShuttingDown => ApiError::shutting_down(),
            RequestError::PromptTooLong { .. } => {
                ApiError::bad_request(message).with_code("context_length_exceeded")
            }
            _ if error.is_invalid_request() => ApiError::bad_request(message),
            _ => ApiError::internal(message),
        }
        .with_request_param(&error)
    }
}

impl ApiError {
    fn with_request_param(self, error: &RequestError) -> Self {
        match error.param() {
            Some(param) => self.with_param(param),
            None => self,
        }
    }
}

impl From<TokenizerError> for ApiError {
    fn from(error: TokenizerError) -> Self {
        let message = error.to_string();
        match error {
            TokenizerError::TooManyTokens { .. } | TokenizerError::TooLong { .. } => {
                ApiError::bad_request(message).with_code("context_length_exceeded")
            }
            _ => ApiError::internal(message),
        }
    }
}

impl From<TemplateError> for ApiError {
    fn from(error: TemplateError) -> Self {
        let message = error.to_string();
        match error {
            TemplateError::Missing => ApiError::bad_request(message)
                .with_code("no_chat_template")
                .with_param("messages"),
            TemplateError::Refused { .. }
            | TemplateError::Render { .. }
            | TemplateError::OutOfFuel { .. }
            | TemplateError::TooMuchOutput { .. } => ApiError::invalid("messages", message),
            _ => ApiError::internal(message),
        }
    }
}

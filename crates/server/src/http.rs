//! What is the same for every request: reading the body, the API key, request ids, error pages.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use subtle::ConstantTimeEq;
use tokio::sync::OwnedSemaphorePermit;

use crate::app::App;
use crate::error::ApiError;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Paths that need no API key: nothing there costs or tells anything of a user's.
const OPEN_PATHS: [&str; 4] = ["/health", "/metrics", "/openapi.json", "/version"];

/// A request's body, and its share of the bytes that all bodies may take together.
pub(crate) struct ReceivedBody {
    pub(crate) bytes: Vec<u8>,
    _share: Option<OwnedSemaphorePermit>,
}

/// The whole body, if it is JSON, not too large, and arrives in time.
pub(crate) async fn read_json_body(app: &App, request: Request) -> Result<ReceivedBody, ApiError> {
    if app.draining.load(Ordering::Relaxed) {
        return Err(ApiError::shutting_down());
    }
    check_content_type(request.headers())?;
    let body = request.into_body();
    // A declared length is refused before the first byte of it is read.
    if body.size_hint().lower() > app.config.max_body_bytes as u64 {
        return Err(ApiError::body_too_large(app.config.max_body_bytes));
    }
    let time = app.config.read_timeout;
    let read = tokio::time::timeout(time, read_frames(app, body));
    read.await
        .map_err(|_| ApiError::body_too_slow(time.as_secs_f64()))?
}

async fn read_frames(app: &App, mut body: Body) -> Result<ReceivedBody, ApiError> {
    let limit = app.config.max_body_bytes;
    let mut received = ReceivedBody {
        bytes: Vec::new(),
        _share: None,
    };
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            ApiError::bad_request(format!("the body could not be read: {error}"))
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if data.len() > limit - received.bytes.len() {
            return Err(ApiError::body_too_large(limit));
        }
        let share = app.share_of_bodies(data.len())?;
        match &mut received._share {
            Some(held) => held.merge(share),
            none => *none = Some(share),
        }
        received.bytes.extend_from_slice(&data);
    }
    Ok(received)
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(given) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let given = given.to_str().unwrap_or("(not ASCII)");
    let essence = given
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    if essence == "application/json" || essence.ends_with("+json") {
        return Ok(());
    }
    let shown: String = given.chars().take(100).collect();
    let message = format!(
        "the body's Content-Type is {shown:?}, but must be application/json (curl: -H \
         'Content-Type: application/json')"
    );
    let status = axum::http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
    Err(ApiError::new(
        status,
        "invalid_request_error",
        "unsupported_media_type",
        message,
    ))
}

/// Lets a request in if it has the key, and gives its answer a request id.
pub(crate) async fn admit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let id = request.headers().get(&REQUEST_ID).cloned();
    let id = id.filter(|id| id.len() <= 128).unwrap_or_else(fresh_id);
    let mut response = match check_key(&app, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

fn fresh_id() -> HeaderValue {
    let id = format!("req-{:032x}", fastrand::u128(..));
    HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("req"))
}

fn check_key(app: &App, request: &Request) -> Result<(), ApiError> {
    let Some(key) = &app.config.api_key else {
        return Ok(());
    };
    // A preflight carries no key; the CORS layer answers it.
    if request.method() == Method::OPTIONS || OPEN_PATHS.contains(&request.uri().path()) {
        return Ok(());
    }
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .map(HeaderValue::as_bytes);
    let given = given.and_then(|value| value.split_at_checked("Bearer ".len()));
    match given {
        Some((scheme, given))
            if scheme.eq_ignore_ascii_case(b"Bearer ")
                && bool::from(given.ct_eq(key.as_bytes())) =>
        {
            Ok(())
        }
        _ => Err(ApiError::unauthorized()),
    }
}

/// The answer for addresses that do not exist.
pub(crate) async fn no_such_path(method: Method, uri: Uri) -> ApiError {
    ApiError::no_such_path(method.as_str(), &shown(&uri))
}

/// The answer for addresses that exist, but not with this method.
pub(crate) async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::wrong_method(method.as_str(), &shown(&uri))
}

fn shown(uri: &Uri) -> String {
    uri.path().chars().take(200).collect()
}

/// The answer when a handler panicked: an error like any other, and the server lives on.
pub(crate) fn after_panic(payload: Box<dyn std::any::Any + Send>) -> Response<Body> {
    let reason = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("no reason given");
    tracing::error!(reason, "a request handler panicked");
    ApiError::internal("the server failed on this request; its log says why").into_response()
}

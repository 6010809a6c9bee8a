//! The endpoints.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::{Path, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::CorsLayer;

use crate::answer::{
    ChatChunks, CompletionChunks, Heading, StreamUsage, event_stream, whole_chat, whole_completion,
};
use crate::api::{
    ChatChunk, ChatCompletion, ChatCompletionRequest, Completion, CompletionRequest,
    DetokenizeRequest, DetokenizeResponse, Health, Model, ModelList, TokenizeRequest,
    TokenizeResponse, Version,
};
use crate::app::App;
use crate::error::{ApiError, ErrorResponse};
use crate::http::{admit, after_panic, no_such_path, read_json_body, wrong_method};
use crate::inflight::Inflight;
use crate::{metrics, openapi, parse};

/// All endpoints, with what is the same for all of them around them.
pub(crate) fn router(app: Arc<App>) -> Router {
    let allow_any_origin = app.config.allow_any_origin;
    let router = Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(list_models))
        .route("/v1/models/{*id}", get(get_model))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/health", get(health))
        .route("/metrics", get(show_metrics))
        .route("/version", get(version))
        .route("/openapi.json", get(openapi::document))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), admit))
        .layer(CatchPanicLayer::custom(after_panic))
        .with_state(app);
    if allow_any_origin {
        router.layer(CorsLayer::permissive())
    } else {
        router
    }
}

type Shared = State<Arc<App>>;

#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    description = "Answers a conversation. Streams `ChatChunk`s, and `[DONE]` in the end, where \
                   `stream` is true.",
    request_body = ChatCompletionRequest,
    responses(
        (status = 200, description = "The answer", content(
            (ChatCompletion = "application/json"),
            (ChatChunk = "text/event-stream"),
        )),
        (status = "4XX", description = "The request is at fault", body = ErrorResponse),
        (status = "5XX", description = "The server is at fault, full, or stopping", body = ErrorResponse),
    ),
)]
async fn chat_completions(State(app): Shared, request: Request) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let body = read_json_body(&app, request).await?;
    let (parsed, place, request) = app
        .off_thread(&deadline, move |app| {
            let parsed = parse::parse_chat_request(&body.bytes, &app.config.default_sampling)?;
            app.check_model(parsed.generation.model.as_deref())?;
            let place = app.take_place(parsed.generation.request.n)?;
            let request = app
                .text
                .chat_request(&parsed, app.engine.info().max_model_len)?;
            Ok((parsed.generation, place, request))
        })
        .await?;
    let n = request.n;
    let heading = Heading::new("chatcmpl", app.config.model_name());
    let tokenizer = request
        .sampling
        .logprobs
        .map(|_| app.text.tokenizer.clone());
    let prompt_tokens = request.prompt.len();
    let inflight = Inflight::start(&app, vec![request], place, deadline)?;
    if let Some(stream) = parsed.stream {
        let usage = StreamUsage::new(stream, prompt_tokens, n);
        let chunks = ChatChunks {
            heading,
            n,
            tokenizer,
            usage,
        };
        return Ok(event_stream(inflight, chunks, app.config.keep_alive));
    }
    let (answers, usage) = inflight.collect(n, n).await?;
    Ok(Json(whole_chat(heading, tokenizer.as_ref(), answers, usage)).into_response())
}

#[utoipa::path(
    post,
    path = "/v1/completions",
    description = "Continues prompts. Streams `Completion`s, and `[DONE]` in the end, where \
                   `stream` is true.",
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "The continuations", content(
            (Completion = "application/json"),
            (Completion = "text/event-stream"),
        )),
        (status = "4XX", description = "The request is at fault", body = ErrorResponse),
        (status = "5XX", description = "The server is at fault, full, or stopping", body = ErrorResponse),
    ),
)]
async fn completions(State(app): Shared, request: Request) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let body = read_json_body(&app, request).await?;
    let (parsed, place, requests, echoes) = app
        .off_thread(&deadline, move |app| {
            let parsed =
                parse::parse_completion_request(&body.bytes, &app.config.default_sampling)?;
            app.check_model(parsed.generation.model.as_deref())?;
            let place = app.take_place(parsed.completions())?;
            let limit = app.engine.info().max_model_len;
            let (requests, echoes) = app.text.completion_requests(&parsed, limit)?;
            Ok((parsed.generation, place, requests, echoes))
        })
        .await?;
    let (n, completions) = (parsed.request.n, requests.len() * parsed.request.n);
    let heading = Heading::new("cmpl", app.config.model_name());
    let tokenizer = parsed
        .request
        .sampling
        .logprobs
        .map(|_| app.text.tokenizer.clone());
    let prompt_tokens = requests.iter().map(|request| request.prompt.len()).sum();
    let inflight = Inflight::start(&app, requests, place, deadline)?;
    if let Some(stream) = parsed.stream {
        let usage = StreamUsage::new(stream, prompt_tokens, n);
        let offsets = vec![0; completions];
        let chunks = CompletionChunks {
            heading,
            n,
            echoes,
            tokenizer,
            usage,
            offsets,
        };
        return Ok(event_stream(inflight, chunks, app.config.keep_alive));
    }
    let (answers, usage) = inflight.collect(n, completions).await?;
    let answer = whole_completion(heading, tokenizer.as_ref(), answers, &echoes, n, usage);
    Ok(Json(answer).into_response())
}

#[utoipa::path(
    post,
    path = "/tokenize",
    description = "Turns a text or a conversation into tokens.",
    request_body = TokenizeRequest,
    responses(
        (status = 200, body = TokenizeResponse),
        (status = "4XX", description = "The request is at fault", body = ErrorResponse),
    ),
)]
async fn tokenize(
    State(app): Shared,
    request: Request,
) -> Result<Json<TokenizeResponse>, ApiError> {
    let body = read_json_body(&app, request).await?;
    let deadline = app.deadline();
    let response = app.off_thread(&deadline, move |app| {
        let (model, input, return_token_strs) = parse::parse_tokenize_request(&body.bytes)?;
        app.check_model(model.as_deref())?;
        let tokens = app.text.tokenize(&input)?;
        let token_strs = return_token_strs.then(|| app.text.token_texts(&tokens));
        let max_model_len = app.engine.info().max_model_len;
        Ok(TokenizeResponse {
            count: tokens.len(),
            max_model_len,
            tokens,
            token_strs,
        })
    });
    response.await.map(Json)
}

#[utoipa::path(
    post,
    path = "/detokenize",
    description = "Turns tokens into text.",
    request_body = DetokenizeRequest,
    responses(
        (status = 200, body = DetokenizeResponse),
        (status = "4XX", description = "The request is at fault", body = ErrorResponse),
    ),
)]
async fn detokenize(
    State(app): Shared,
    request: Request,
) -> Result<Json<DetokenizeResponse>, ApiError> {
    let body = read_json_body(&app, request).await?;
    let deadline = app.deadline();
    let response = app.off_thread(&deadline, move |app| {
        let request = parse::parse_detokenize_request(&body.bytes)?;
        app.check_model(request.model.as_deref())?;
        Ok(DetokenizeResponse {
            prompt: app.text.detokenize(&request.tokens)?,
        })
    });
    response.await.map(Json)
}

#[utoipa::path(
    get,
    path = "/v1/models",
    description = "Lists the names that the model is served under.",
    responses((status = 200, body = ModelList)),
)]
async fn list_models(State(app): Shared) -> Json<ModelList> {
    let names = app.config.served_model_names.iter();
    let data = names.map(|name| model(&app, name)).collect();
    Json(ModelList {
        object: "list".into(),
        data,
    })
}

#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    description = "Describes one served name.",
    params(("id" = String, Path, description = "The name; it may contain slashes")),
    responses((status = 200, body = Model), (status = 404, body = ErrorResponse)),
)]
async fn get_model(State(app): Shared, Path(id): Path<String>) -> Result<Json<Model>, ApiError> {
    app.check_model(Some(&id))?;
    Ok(Json(model(&app, &id)))
}

fn model(app: &App, name: &str) -> Model {
    Model {
        id: name.into(),
        object: "model".into(),
        created: app.started,
        owned_by: "scrimp".into(),
        max_model_len: app.engine.info().max_model_len,
    }
}

#[utoipa::path(
    get,
    path = "/health",
    description = "Says whether requests are taken.",
    responses((status = 200, body = Health), (status = 503, body = ErrorResponse)),
)]
async fn health(State(app): Shared) -> Result<Json<Health>, ApiError> {
    if app.draining.load(Ordering::Relaxed) || !app.engine.is_running() {
        return Err(ApiError::shutting_down());
    }
    Ok(Json(Health {
        status: "ok".into(),
    }))
}

#[utoipa::path(
    get,
    path = "/metrics",
    description = "Counts everything, in OpenMetrics' text format.",
    responses((status = 200, body = String, content_type = "application/openmetrics-text")),
)]
async fn show_metrics(State(app): Shared) -> Result<Response, ApiError> {
    let block_size = app.engine.info().plan.kv.block_size;
    let text = app.metrics.render(&app.engine.stats(), block_size);
    let text =
        text.map_err(|error| ApiError::internal(format!("cannot write metrics: {error}")))?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

#[utoipa::path(
    get,
    path = "/version",
    description = "Says which scrimp this is.",
    responses((status = 200, body = Version)),
)]
async fn version() -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION").into(),
    })
}

//! The OpenAPI document, made from the types and handlers themselves.

use axum::Json;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;

use crate::{api, error, routes};

/// Collects the document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "scrimp",
        description = "Serves reasoning models in the memory you have, over the OpenAI API",
    ),
    paths(
        routes::chat_completions,
        routes::completions,
        routes::list_models,
        routes::get_model,
        routes::tokenize,
        routes::detokenize,
        routes::health,
        routes::show_metrics,
        routes::version,
    ),
    components(schemas(api::ChatChunk, error::ErrorResponse))
)]
struct Api;

/// `GET /openapi.json`.
pub(crate) async fn document() -> Json<Document> {
    Json(openapi())
}

/// The document that `/openapi.json` serves.
pub fn openapi() -> Document {
    Api::openapi()
}

//! The OpenAI API over HTTP, in front of an engine.
//!
//! A request becomes a checked value ([`parse`]), a prompt ([`ModelText`]), and work in the
//! engine, whose news become an answer, whole or streamed. Nothing here runs a model or knows how
//! one is run: the server talks to a [`scrimp_engine::EngineHandle`] and to nothing else. It reads
//! no arguments and no environment. HTTP and tokio are known only here and to the binary.
//!
//! Whatever a client sends gets an answer of the API's form; whatever a client does, such as
//! hanging up, sending slowly, or asking for too much, costs the others nothing.

mod answer;
pub mod api;
mod app;
mod config;
mod error;
mod http;
mod inflight;
mod metrics;
mod openapi;
pub mod parse;
mod prompt;
mod routes;
mod server;
mod shutdown;

pub use config::ServerConfig;
pub use error::{ApiError, ErrorBody, ErrorResponse};
pub use metrics::Metrics;
pub use openapi::openapi;
pub use prompt::ModelText;
pub use server::{Ending, ServeError, Server, serve};
pub use shutdown::Shutdown;

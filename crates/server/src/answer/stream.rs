//! Server-sent events: one JSON chunk each, comments in silence, `[DONE]` at the end.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use scrimp_engine::Update;
use serde::Serialize;

use crate::error::ApiError;
use crate::inflight::Inflight;

/// Turns news into chunks.
pub(crate) trait Chunks: Send + 'static {
    /// What an event carries, as JSON.
    type Chunk: Serialize;

    /// Chunks before any news.
    fn opening(&mut self) -> Vec<Self::Chunk>;

    /// The chunk that tells `update`, unless there is nothing to tell yet.
    fn next(&mut self, update: Update) -> Option<Self::Chunk>;

    /// The chunk after all news.
    fn closing(&mut self) -> Option<Self::Chunk>;
}

/// The stream's state between two events.
struct State<C> {
    inflight: Inflight,
    chunks: C,
    ready: VecDeque<Event>,
    over: bool,
}

/// An answer that sends every chunk as soon as it is known. Its body owns `inflight`: when the
/// client goes away, the body is dropped and the work is aborted.
pub(crate) fn event_stream<C: Chunks>(
    inflight: Inflight,
    mut chunks: C,
    keep_alive: Duration,
) -> Response {
    let ready = chunks.opening().iter().map(event).collect();
    let state = State {
        inflight,
        chunks,
        ready,
        over: false,
    };
    let events = stream::unfold(state, |mut state| async {
        state.fill().await;
        let event = state.ready.pop_front()?;
        Some((Ok::<_, Infallible>(event), state))
    });
    Sse::new(events)
        .keep_alive(KeepAlive::new().interval(keep_alive).text("keep-alive"))
        .into_response()
}

impl<C: Chunks> State<C> {
    /// Waits until an event is ready, or all is said.
    async fn fill(&mut self) {
        while self.ready.is_empty() && !self.over {
            match self.inflight.next().await {
                Ok(Some(update)) => self
                    .ready
                    .extend(self.chunks.next(update).iter().map(event)),
                Ok(None) => {
                    self.over = true;
                    self.ready.extend(self.chunks.closing().iter().map(event));
                    self.ready.push_back(Event::default().data("[DONE]"));
                }
                Err(error) => {
                    self.over = true;
                    self.ready.push_back(error_event(&error));
                }
            }
        }
    }
}

fn event<T: Serialize>(chunk: &T) -> Event {
    let failed = |error| {
        error_event(&ApiError::internal(format!(
            "cannot write a chunk: {error}"
        )))
    };
    serde_json::to_string(chunk).map_or_else(failed, |json| Event::default().data(json))
}

/// An error in the middle of a stream, whose status is sent already.
fn error_event(error: &ApiError) -> Event {
    let body = serde_json::to_string(&error.to_response_body());
    Event::default().data(body.unwrap_or_else(|_| "{\"error\":{}}".into()))
}

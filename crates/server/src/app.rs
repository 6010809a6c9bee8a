//! What all request handlers share: the engine, the model's text side, limits and metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use scrimp_engine::EngineHandle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::config::ServerConfig;
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::prompt::ModelText;

/// Prompts made at once. Making one is work for a core, of which the engine needs most.
const PROMPTS_AT_ONCE: usize = 2;

/// Bytes that all bodies may take together while they are read, in largest bodies.
const LARGEST_BODIES_AT_ONCE: usize = 4;

/// The handlers' common state.
pub(crate) struct App {
    pub(crate) config: ServerConfig,
    pub(crate) engine: EngineHandle,
    pub(crate) text: ModelText,
    pub(crate) metrics: Metrics,
    /// When the server started, in seconds since 1970.
    pub(crate) started: u64,
    /// Whether the server takes no new requests any more.
    pub(crate) draining: AtomicBool,
    /// Completions taken in and not over.
    in_flight: Arc<AtomicUsize>,
    prompts: Arc<Semaphore>,
    body_bytes: Arc<Semaphore>,
}

impl App {
    pub(crate) fn new(
        config: ServerConfig,
        engine: EngineHandle,
        text: ModelText,
        metrics: Metrics,
    ) -> Arc<Self> {
        metrics.describe(engine.info());
        let body_bytes = config.max_body_bytes.saturating_mul(LARGEST_BODIES_AT_ONCE);
        Arc::new(App {
            config,
            engine,
            text,
            metrics,
            started: unix_seconds(),
            draining: AtomicBool::new(false),
            in_flight: Arc::default(),
            prompts: Arc::new(Semaphore::new(PROMPTS_AT_ONCE)),
            body_bytes: Arc::new(Semaphore::new(body_bytes.min(Semaphore::MAX_PERMITS))),
        })
    }

    /// Whether the model goes by the name `asked`; no name is any model.
    pub(crate) fn check_model(&self, asked: Option<&str>) -> Result<(), ApiError> {
        let names = &self.config.served_model_names;
        match asked {
            Some(asked) if !names.iter().any(|name| name == asked) => {
                Err(ApiError::model_not_found(asked, names))
            }
            _ => Ok(()),
        }
    }

    /// A place for so many completions, or a refusal when too many wait already.
    pub(crate) fn take_place(&self, completions: usize) -> Result<Place, ApiError> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(ApiError::shutting_down());
        }
        let running = self.engine.stats().num_requests_running;
        let before = self.in_flight.fetch_add(completions, Ordering::Relaxed);
        let place = Place {
            in_flight: Arc::clone(&self.in_flight),
            completions,
        };
        // What the engine has not started yet waits, whether it has heard of it or not.
        let waiting = before.saturating_sub(running);
        let limit = self.config.max_queue;
        if waiting >= limit {
            Err(ApiError::queue_full(waiting, limit))
        } else {
            Ok(place)
        }
    }

    /// So many bytes of what all bodies may take together.
    pub(crate) fn share_of_bodies(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let share = u32::try_from(bytes).ok();
        let share = share.and_then(|n| Arc::clone(&self.body_bytes).try_acquire_many_owned(n).ok());
        share.ok_or_else(ApiError::too_many_bodies)
    }

    /// When a request that arrives now has to be over.
    pub(crate) fn deadline(&self) -> Deadline {
        let at = self
            .config
            .request_timeout
            .and_then(|limit| Instant::now().checked_add(limit));
        Deadline {
            at,
            seconds: self.config.request_timeout.map_or(0.0, |t| t.as_secs_f64()),
        }
    }

    /// Runs `work`, which may take a core for a while, away from the threads that serve sockets.
    pub(crate) async fn off_thread<T: Send + 'static>(
        self: &Arc<Self>,
        deadline: &Deadline,
        work: impl FnOnce(&App) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = Arc::clone(&self.prompts).acquire_owned();
        let app = Arc::clone(self);
        let whole = async move {
            let permit = permit.await.map_err(|_| ApiError::shutting_down())?;
            let work = tokio::task::spawn_blocking(move || {
                // Held by the work itself: a client that goes away does not free the core.
                let _permit = permit;
                work(&app)
            });
            work.await
                .map_err(|error| ApiError::internal(format!("preparing failed: {error}")))?
        };
        deadline.limit(whole).await?
    }
}

/// When a request has to be over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    at: Option<Instant>,
    seconds: f64,
}

impl Deadline {
    /// What `future` gives, unless the time is up first.
    pub(crate) async fn limit<F: Future>(&self, future: F) -> Result<F::Output, ApiError> {
        match self.at {
            None => Ok(future.await),
            Some(at) => tokio::time::timeout_at(at, future)
                .await
                .map_err(|_| ApiError::timed_out(self.seconds)),
        }
    }
}

/// Completions counted as taken in, until dropped.
#[derive(Debug)]
pub(crate) struct Place {
    in_flight: Arc<AtomicUsize>,
    completions: usize,
}

impl Place {
    /// Splits off the place of `completions` of these.
    pub(crate) fn split(&mut self, completions: usize) -> Place {
        let completions = completions.min(self.completions);
        self.completions -= completions;
        Place {
            in_flight: Arc::clone(&self.in_flight),
            completions,
        }
    }

    /// One completion is over.
    pub(crate) fn leave_one(&mut self) {
        drop(self.split(1));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.in_flight
            .fetch_sub(self.completions, Ordering::Relaxed);
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

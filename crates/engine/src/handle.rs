//! The engine's edge: how other threads give it work, hear back, and watch it.
//!
//! The engine is one thread that owns the model and the cache. Everybody else holds a cheap
//! [`EngineHandle`], which sends it commands over a channel.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use scrimp_memory::MemoryPlan;
use scrimp_model::ModelConfig;

use crate::recorder::StepCosts;
use crate::request::{GenerateRequest, RequestError, Update};

/// Identifies a submitted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Receives a request's news, on the engine's thread: it must not block.
///
/// Returning `false` says that nobody listens any more; the request is then aborted and its
/// blocks are freed before the next step.
pub type EventSink = Box<dyn FnMut(Update) -> bool + Send>;

/// What a caller needs to know of a running engine.
#[derive(Clone, Debug)]
pub struct EngineInfo {
    /// The model's shape and constants.
    pub config: ModelConfig,
    /// The plan that the engine runs on.
    pub plan: MemoryPlan,
    /// Most tokens of a sequence, prompt and output.
    pub max_model_len: usize,
    /// Device, instruction set and threads, for people.
    pub device: String,
}

/// Counters and gauges, as of the last step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// Completions being computed.
    pub num_requests_running: usize,
    /// Completions that wait for their first blocks, or to be resumed.
    pub num_requests_waiting: usize,
    /// Blocks held by sequences.
    pub blocks_in_use: usize,
    /// Blocks that hold reusable prefixes and can be evicted.
    pub blocks_evictable: usize,
    /// Blocks of the pool.
    pub blocks_total: usize,
    /// Blocks that were ever in use: the cache's memory behind the others was never written.
    pub blocks_touched: usize,
    /// Tokens held by sequences.
    pub tokens_in_use: usize,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_cache_queries: u64,
    /// Prompt tokens found there.
    pub prefix_cache_hits: u64,
    /// Times a sequence's blocks were taken away.
    pub num_preemptions: u64,
    /// Prompt tokens of requests taken in.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
}

impl EngineStats {
    /// Share of the cache that sequences hold, counted in tokens; 0 when the pool is empty.
    pub fn kv_cache_usage(&self, block_size: usize) -> f64 {
        let capacity = self.blocks_total * block_size;
        if capacity == 0 {
            0.0
        } else {
            self.tokens_in_use as f64 / capacity as f64
        }
    }
}

/// One step of the engine, for whoever counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepReport {
    /// Tokens computed, prompts and outputs.
    pub tokens: usize,
    /// Sequences in the step.
    pub sequences: usize,
    /// How long it took.
    pub elapsed: Duration,
    /// Blocks of the cache that were ever in use.
    pub blocks_touched: usize,
    /// Where its time and bytes went, where that is recorded.
    pub costs: Option<StepCosts>,
}

/// Called after every step, on the engine's thread.
pub type StepObserver = Box<dyn FnMut(&StepReport) + Send>;

/// What the engine's thread is told.
pub enum Command {
    /// Run a request.
    Submit(RequestId, Box<GenerateRequest>, EventSink),
    /// Forget a request.
    Abort(RequestId),
    /// Finish what runs, refuse what is new, and stop; at once when not draining.
    Shutdown {
        /// Whether running requests may finish.
        drain: bool,
    },
}

/// A cheap, cloneable way to talk to a running engine.
#[derive(Clone)]
pub struct EngineHandle {
    pub(crate) commands: Sender<Command>,
    pub(crate) shared: Arc<Shared>,
}

/// State that the engine's thread publishes.
pub(crate) struct Shared {
    pub(crate) info: EngineInfo,
    pub(crate) stats: Mutex<EngineStats>,
    pub(crate) next_id: AtomicU64,
    is_running: AtomicBool,
}

impl Shared {
    pub(crate) fn publish(&self, stats: EngineStats) {
        *self
            .stats
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) = stats;
    }
}

/// The engine's side of its handles: where their commands arrive.
pub struct EngineEnd {
    /// Commands, in order; closed once every handle is gone.
    pub commands: Receiver<Command>,
    shared: Arc<Shared>,
}

impl EngineEnd {
    /// Shows `stats` to every handle.
    pub fn publish(&self, stats: EngineStats) {
        self.shared.publish(stats);
    }
}

impl Drop for EngineEnd {
    /// However the engine ends, its handles know.
    fn drop(&mut self) {
        self.shared.is_running.store(false, Ordering::Release);
    }
}

impl EngineHandle {
    /// Whether anybody serves the commands; never again once it is false.
    pub fn is_running(&self) -> bool {
        self.shared.is_running.load(Ordering::Acquire)
    }

    /// A handle, and the end that serves it. The engine makes one; so may a test that wants a
    /// scripted engine without a model behind the same edge.
    pub fn channel(info: EngineInfo) -> (EngineHandle, EngineEnd) {
        let (sender, commands) = mpsc::channel();
        let (stats, next_id) = (Mutex::default(), AtomicU64::new(0));
        let shared = Arc::new(Shared {
            info,
            stats,
            next_id,
            is_running: AtomicBool::new(true),
        });
        (
            EngineHandle {
                commands: sender,
                shared: Arc::clone(&shared),
            },
            EngineEnd { commands, shared },
        )
    }

    /// What runs, and in how much memory.
    pub fn info(&self) -> &EngineInfo {
        &self.shared.info
    }

    /// Counters and gauges as of the last step.
    pub fn stats(&self) -> EngineStats {
        self.shared
            .stats
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }

    /// Hands over a request; its news go to `sink`, ending with one `Finished` for each of its
    /// completions, or one `Failed`.
    ///
    /// # Errors
    /// At once when the request is invalid or the engine has stopped; `sink` is then not called.
    pub fn submit(
        &self,
        request: GenerateRequest,
        sink: EventSink,
    ) -> Result<RequestId, RequestError> {
        let info = self.info();
        request.validate(info.config.vocab_size, info.max_model_len)?;
        let id = RequestId(self.shared.next_id.fetch_add(1, Ordering::Relaxed));
        self.commands
            .send(Command::Submit(id, Box::new(request), sink))
            .map_err(|_| RequestError::ShuttingDown)?;
        Ok(id)
    }

    /// Ends a request and frees its blocks before the next step; nothing happens if it is over.
    pub fn abort(&self, id: RequestId) {
        // A stopped engine holds no blocks: there is nothing left to abort.
        let _ = self.commands.send(Command::Abort(id));
    }

    /// Asks the engine to stop: when everything taken in is finished, or at once.
    pub fn shutdown(&self, drain: bool) {
        // A failed send means that it has stopped already.
        let _ = self.commands.send(Command::Shutdown { drain });
    }
}

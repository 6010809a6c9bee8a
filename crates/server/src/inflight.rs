//! One HTTP request's work in the engine. Dropping it aborts what is not over: that is how a
//! client that hangs up frees its blocks.

use std::sync::Arc;

use scrimp_engine::{
    EngineHandle, Event, FinishReason, GenerateRequest, RequestId, TokenInfo, Update,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::api::Usage;
use crate::app::{App, Deadline, Place};
use crate::error::ApiError;

/// Prompts being answered, each `n` times; completion `i` of prompt `p` has index `p * n + i`.
pub(crate) struct Inflight {
    engine: EngineHandle,
    ids: Vec<RequestId>,
    updates: UnboundedReceiver<Update>,
    /// Completions not finished.
    open: usize,
    deadline: Deadline,
}

impl Inflight {
    /// Hands `requests` to the engine; all have the same `n`.
    pub(crate) fn start(
        app: &Arc<App>,
        requests: Vec<GenerateRequest>,
        mut place: Place,
        deadline: Deadline,
    ) -> Result<Self, ApiError> {
        // Unbounded, but never longer than the answer: the engine must not wait for a reader.
        let (sender, updates) = unbounded_channel();
        let engine = app.engine.clone();
        let mut this = Inflight {
            engine,
            ids: Vec::new(),
            updates,
            open: 0,
            deadline,
        };
        let mut first_index = 0;
        for request in requests {
            let n = request.n;
            let sink = sink(app, sender.clone(), first_index, place.split(n), n);
            // An error drops `this`, which aborts the prompts handed over before.
            this.ids.push(this.engine.submit(request, sink)?);
            this.open += n;
            first_index += n;
        }
        Ok(this)
    }

    /// The next news; `None` once every completion has finished.
    pub(crate) async fn next(&mut self) -> Result<Option<Update>, ApiError> {
        if self.open == 0 {
            return Ok(None);
        }
        let Some(update) = self.deadline.limit(self.updates.recv()).await? else {
            return Err(ApiError::internal(
                "the engine stopped before the answer was complete",
            ));
        };
        match &update.event {
            Event::Failed(error) => return Err(error.clone().into()),
            // Nobody but the server's end aborts a request whose client still listens.
            Event::Finished(end) if end.reason == FinishReason::Abort => {
                return Err(ApiError::shutting_down());
            }
            Event::Finished(_) => self.open -= 1,
            Event::Delta(_) => {}
        }
        Ok(Some(update))
    }

    /// Waits for everything.
    pub(crate) async fn collect(
        mut self,
        n: usize,
        completions: usize,
    ) -> Result<(Vec<Answer>, Usage), ApiError> {
        let mut answers = vec![Answer::default(); completions];
        let mut totals = Totals::new(n);
        while let Some(update) = self.next().await? {
            totals.see(&update);
            let Some(answer) = answers.get_mut(update.index) else {
                continue;
            };
            match update.event {
                Event::Delta(mut delta) => {
                    answer.reasoning.push_str(&delta.reasoning);
                    answer.content.push_str(&delta.answer);
                    answer.tokens.append(&mut delta.tokens);
                }
                Event::Finished(end) => answer.finish_reason = end.reason.name(),
                Event::Failed(_) => {}
            }
        }
        Ok((answers, totals.usage()))
    }
}

impl Drop for Inflight {
    fn drop(&mut self) {
        if self.open > 0 {
            self.ids.iter().for_each(|&id| self.engine.abort(id));
        }
    }
}

/// What the engine calls with a prompt's news, on its own thread.
fn sink(
    app: &App,
    sender: UnboundedSender<Update>,
    first_index: usize,
    mut place: Place,
    n: usize,
) -> scrimp_engine::EventSink {
    let mut watch = app.metrics.watch(n);
    Box::new(move |mut update| {
        watch.see(&update);
        if matches!(update.event, Event::Finished(_)) {
            place.leave_one();
        }
        update.index += first_index;
        sender.send(update).is_ok()
    })
}

/// A completion, whole.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) reasoning: String,
    pub(crate) content: String,
    pub(crate) tokens: Vec<TokenInfo>,
    pub(crate) finish_reason: &'static str,
}

/// Adds up what completions took.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    n: usize,
    usage: Usage,
}

impl Totals {
    /// For prompts that are each answered `n` times.
    pub(crate) fn new(n: usize) -> Self {
        Totals {
            n,
            usage: Usage::default(),
        }
    }

    /// Counts a finished completion; a prompt counts with its first.
    pub(crate) fn see(&mut self, update: &Update) {
        let Event::Finished(end) = &update.event else {
            return;
        };
        let (total, took) = (&mut self.usage, &end.usage);
        if update.index.is_multiple_of(self.n.max(1)) {
            total.prompt_tokens += took.prompt_tokens;
            total.prompt_tokens_details.cached_tokens += took.cached_tokens;
        }
        total.completion_tokens += took.completion_tokens;
        total.completion_tokens_details.reasoning_tokens += took.reasoning_tokens;
        let cost = total.scrimp.get_or_insert_default();
        cost.kv_cache_bytes = cost.kv_cache_bytes.saturating_add(took.kv_cache_bytes);
        cost.preemptions += took.preemptions;
        cost.queue_time_s = cost.queue_time_s.max(took.queue_time.as_secs_f64());
        cost.prefill_time_s = cost.prefill_time_s.max(took.prefill_time.as_secs_f64());
        cost.decode_time_s = cost.decode_time_s.max(took.decode_time.as_secs_f64());
    }

    /// The sum.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = self.usage.clone();
        usage.total_tokens = usage.prompt_tokens + usage.completion_tokens;
        usage
    }
}

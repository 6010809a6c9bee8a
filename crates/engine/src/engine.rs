//! The loop: commands in, one step after another, news out.
//!
//! One thread owns everything. It takes commands between steps, so an abort frees its blocks
//! before the next step is scheduled, and sleeps when there is nothing to do.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::thread::JoinHandle;
use std::time::Instant;

use scrimp_backend::Backend;
use scrimp_scheduler::{FinishReason, Finished, NewSequence, Scheduler, SchedulerOutput, SeqId};
use scrimp_text::{ReasoningFormat, Tokenizer};

use crate::batch::Batch;
use crate::completion::{Completion, CompletionContext};
use crate::decoder::LogitRows;
use crate::handle::{
    Command, EngineEnd, EngineHandle, EngineInfo, EngineStats, EventSink, RequestId, StepObserver,
    StepReport,
};
use crate::recorder::StepCosts;
use crate::request::{Event, GenerateRequest, Reasoning, RequestError, Update};
use crate::runner::ModelRunner;
use crate::sampler::{SampleError, Sampled, Sampler, SequenceContext};

/// The model as the loop sees it: a step in, logits out.
pub trait StepModel: Send {
    /// Runs a step, copy-on-write copies first, and hands `sink` a row of logits, `[vocab_size]`,
    /// for every scheduled sequence that samples, in order.
    ///
    /// # Errors
    /// When the device fails; the step then counts as not run.
    fn run(&mut self, step: &SchedulerOutput, sink: &mut dyn FnMut(&[f32])) -> Result<(), String>;

    /// What the last step took, where that is recorded.
    fn costs(&self) -> Option<StepCosts> {
        None
    }
}

/// What an engine is made of.
pub struct EngineParts {
    /// Runs steps.
    pub model: Box<dyn StepModel>,
    /// Decides them.
    pub scheduler: Scheduler,
    /// Turns tokens into text.
    pub tokenizer: Tokenizer,
    /// How the model marks its chain of thought, where it does.
    pub reasoning_format: Option<ReasoningFormat>,
    /// What callers may know.
    pub info: EngineInfo,
    /// Most requests that may wait.
    pub max_queue: usize,
    /// Told of every step.
    pub observer: Option<StepObserver>,
}

/// What became of a sequence's row of logits.
type Outcome = (SeqId, Result<Sampled, SampleError>);

/// A request that is not over.
struct Running {
    sink: EventSink,
    /// Its completions that are not over.
    sequences: Vec<SeqId>,
}

/// The engine's thread and its state.
struct Engine {
    parts: EngineParts,
    end: EngineEnd,
    context: CompletionContext,
    sampler: Sampler,
    requests: HashMap<RequestId, Running>,
    completions: HashMap<SeqId, Completion>,
    /// News not yet told: they go out once the books that they change are published.
    outbox: Vec<(RequestId, Update)>,
    /// Counters that the scheduler does not keep.
    prompt_tokens: u64,
    generation_tokens: u64,
    draining: bool,
}

/// Starts an engine on a thread of its own.
///
/// The thread ends after [`EngineHandle::shutdown`], or when the last handle is gone and
/// everything is finished.
///
/// # Errors
/// When the operating system gives no thread.
pub fn start(parts: EngineParts) -> std::io::Result<(EngineHandle, JoinHandle<()>)> {
    let (handle, end) = EngineHandle::channel(parts.info.clone());
    let context = CompletionContext::new(
        parts.tokenizer.clone(),
        parts.reasoning_format.clone(),
        &parts.info.config,
    );
    let engine = Engine {
        parts,
        end,
        context,
        sampler: Sampler::default(),
        requests: HashMap::new(),
        completions: HashMap::new(),
        outbox: Vec::new(),
        prompt_tokens: 0,
        generation_tokens: 0,
        draining: false,
    };
    let thread = std::thread::Builder::new().name("scrimp-engine".into());
    Ok((handle, thread.spawn(move || engine.run())?))
}

impl Engine {
    fn run(mut self) {
        while self.take_commands() {
            self.step();
            self.settle();
        }
        self.stop();
    }

    /// Takes what has arrived, waiting for work if there is none. False when it is time to stop.
    fn take_commands(&mut self) -> bool {
        loop {
            let command = if self.parts.scheduler.has_unfinished() {
                match self.end.commands.try_recv() {
                    Ok(command) => command,
                    Err(TryRecvError::Empty) => return true,
                    Err(TryRecvError::Disconnected) => {
                        self.draining = true;
                        return true;
                    }
                }
            } else {
                self.settle();
                if self.draining {
                    return false;
                }
                match self.end.commands.recv() {
                    Ok(command) => command,
                    Err(_) => return false,
                }
            };
            match command {
                Command::Submit(id, request, sink) => self.submit(id, *request, sink),
                Command::Abort(id) => self.abort(id),
                Command::Shutdown { drain: true } => self.draining = true,
                Command::Shutdown { drain: false } => return false,
            }
        }
    }

    fn submit(&mut self, id: RequestId, request: GenerateRequest, mut sink: EventSink) {
        match self.admit(id, request) {
            Ok(sequences) => {
                self.requests.insert(id, Running { sink, sequences });
                // Its first step may take long, and it waits from now on.
                self.publish();
            }
            Err(error) => {
                // Nobody to tell is nobody's loss.
                let _ = sink(Update {
                    index: 0,
                    event: Event::Failed(error),
                });
            }
        }
    }

    /// Queues a request's sequences.
    fn admit(
        &mut self,
        id: RequestId,
        request: GenerateRequest,
    ) -> Result<Vec<SeqId>, RequestError> {
        if self.draining {
            return Err(RequestError::ShuttingDown);
        }
        let waiting = self.parts.scheduler.stats().num_waiting;
        if waiting >= self.parts.max_queue {
            return Err(RequestError::QueueFull { waiting });
        }
        let request = Arc::new(request);
        let sequences = self.parts.scheduler.add(NewSequence {
            prompt_token_ids: request.prompt.clone(),
            max_tokens: request.max_tokens.unwrap_or(usize::MAX),
            priority: request.priority,
            thinking: request.reasoning != Reasoning::Off,
            extra_keys: request
                .cache_salt
                .as_deref()
                .unwrap_or_default()
                .as_bytes()
                .to_vec(),
            n: request.n,
        })?;
        self.prompt_tokens += request.prompt.len() as u64;
        for (index, &seq) in sequences.iter().enumerate() {
            let completion = Completion::new(&self.context, &request, id, index);
            self.completions.insert(seq, completion);
        }
        Ok(sequences)
    }

    /// Ends a request whose client gave up; its blocks are free when this returns.
    fn abort(&mut self, id: RequestId) {
        let sequences = self
            .requests
            .get(&id)
            .map(|r| r.sequences.clone())
            .unwrap_or_default();
        for seq in sequences {
            if let Some(finished) = self.parts.scheduler.abort(seq) {
                self.finish(&finished);
            }
        }
    }

    fn step(&mut self) {
        let started = Instant::now();
        let step = self.parts.scheduler.schedule();
        for finished in &step.finished {
            self.finish(finished);
        }
        for scheduled in &step.scheduled {
            let Some(completion) = self.completions.get_mut(&scheduled.id) else {
                continue;
            };
            // Those that share its prompt have waited no longer than it.
            let first = completion.started(started);
            for fork in &scheduled.forks {
                if let Some(completion) = self.completions.get_mut(fork) {
                    completion.started(first);
                }
            }
        }
        if step.is_empty() {
            return;
        }
        match self.run_model(&step) {
            Ok(outcomes) => {
                self.parts.scheduler.complete();
                for (seq, outcome) in outcomes {
                    match outcome {
                        Ok(sampled) => self.accept(seq, sampled),
                        Err(error) => self.fail(seq, RequestError::Internal(error.to_string())),
                    }
                }
            }
            // Not completed: the scheduler hands the step out again to whoever is left.
            Err(error) => {
                for scheduled in &step.scheduled {
                    self.fail(scheduled.id, RequestError::Internal(error.clone()));
                }
            }
        }
        if let Some(observer) = &mut self.parts.observer {
            let (tokens, sequences) = (step.num_tokens(), step.scheduled.len());
            observer(&StepReport {
                tokens,
                sequences,
                elapsed: started.elapsed(),
                blocks_touched: self.parts.scheduler.stats().usage.touched_blocks,
                costs: self.parts.model.costs(),
            });
        }
    }

    /// Runs a step, and draws a token for every sequence that samples and for those that begin at
    /// the same row.
    fn run_model(&mut self, step: &SchedulerOutput) -> Result<Vec<Outcome>, String> {
        let Engine {
            parts,
            sampler,
            completions,
            ..
        } = self;
        let (model, scheduler) = (&mut parts.model, &parts.scheduler);
        let mut sampling = step.scheduled.iter().filter(|s| s.samples);
        let mut outcomes = Vec::with_capacity(step.scheduled.len());
        model.run(step, &mut |row| {
            let Some(scheduled) = sampling.next() else {
                return;
            };
            for id in std::iter::once(scheduled.id).chain(scheduled.forks.iter().copied()) {
                let (Some(sequence), Some(completion)) =
                    (scheduler.sequence(id), completions.get(&id))
                else {
                    continue;
                };
                let context = SequenceContext {
                    prompt: sequence.prompt_token_ids(),
                    output: sequence.output_token_ids(),
                    ..completion.sampling_context()
                };
                outcomes.push((id, sampler.sample(row, completion.params(), &context)));
            }
        })?;
        Ok(outcomes)
    }

    /// Gives a sampled token to its sequence.
    fn accept(&mut self, seq: SeqId, sampled: Sampled) {
        let Some(completion) = self.completions.get_mut(&seq) else {
            return;
        };
        self.generation_tokens += 1;
        let token = sampled.token;
        let accepted = completion.accept(sampled);
        let (request, index) = (completion.request(), completion.index());
        self.tell(request, index, Event::Delta(accepted.delta));
        if let Some(position) = accepted.thinking_from {
            self.parts.scheduler.set_thinking_from(seq, position);
        }
        if let Some(finished) = self.parts.scheduler.update(seq, token, accepted.finish) {
            self.finish(&finished);
        }
    }

    /// Forgets a sequence that is over.
    fn finish(&mut self, finished: &Finished) {
        let Some(mut completion) = self.completions.remove(&finished.id) else {
            return;
        };
        let (request, index) = (completion.request(), completion.index());
        let aborted = finished.reason == FinishReason::Abort;
        if let Some(delta) = completion.flush().filter(|_| !aborted) {
            self.tell(request, index, Event::Delta(delta));
        }
        self.tell(
            request,
            index,
            Event::Finished(completion.finished(finished)),
        );
        if let Some(running) = self.requests.get_mut(&request) {
            running.sequences.retain(|&s| s != finished.id);
        }
    }

    /// Ends a whole request because of an error.
    fn fail(&mut self, seq: SeqId, error: RequestError) {
        let Some(completion) = self.completions.get(&seq) else {
            return;
        };
        let (request, index) = (completion.request(), completion.index());
        self.tell(request, index, Event::Failed(error));
        let Some(running) = self.requests.get_mut(&request) else {
            return;
        };
        for seq in std::mem::take(&mut running.sequences) {
            self.parts.scheduler.abort(seq);
            self.completions.remove(&seq);
        }
    }

    fn tell(&mut self, request: RequestId, index: usize, event: Event) {
        self.outbox.push((request, Update { index, event }));
    }

    /// Publishes the books, then tells the news: whoever hears of an end finds its blocks free.
    fn settle(&mut self) {
        self.publish();
        let mut deaf = Vec::new();
        for (id, update) in std::mem::take(&mut self.outbox) {
            if let Some(running) = self.requests.get_mut(&id)
                && !(running.sink)(update)
            {
                deaf.push(id);
            }
        }
        for id in deaf {
            self.abort(id);
        }
        self.requests
            .retain(|_, running| !running.sequences.is_empty());
    }

    fn publish(&self) {
        let stats = self.parts.scheduler.stats();
        self.end.publish(EngineStats {
            num_requests_running: stats.num_running,
            num_requests_waiting: stats.num_waiting,
            blocks_in_use: stats.usage.protected_blocks,
            blocks_evictable: stats.usage.evictable_blocks,
            blocks_total: stats.usage.total_blocks,
            blocks_touched: stats.usage.touched_blocks,
            tokens_in_use: stats.usage.tokens_in_use,
            prefix_cache_queries: stats.counters.prefix_queries,
            prefix_cache_hits: stats.counters.prefix_hits,
            num_preemptions: stats.num_preemptions,
            prompt_tokens: self.prompt_tokens,
            generation_tokens: self.generation_tokens,
        });
    }

    /// Ends everything that is left, and refuses what is still in the channel.
    fn stop(mut self) {
        let left: Vec<RequestId> = self.requests.keys().copied().collect();
        for id in left {
            self.abort(id);
        }
        self.settle();
        while let Ok(command) = self.end.commands.try_recv() {
            if let Command::Submit(_, _, mut sink) = command {
                sink(Update {
                    index: 0,
                    event: Event::Failed(RequestError::ShuttingDown),
                });
            }
        }
    }
}

impl<B: Backend> StepModel for ModelRunner<B> {
    fn run(&mut self, step: &SchedulerOutput, sink: &mut dyn FnMut(&[f32])) -> Result<(), String> {
        let each = &mut |rows: LogitRows<'_>| rows.iter().for_each(|(_, row)| sink(row));
        self.execute(&Batch::from_schedule(step), each)
            .map_err(|e| e.to_string())
    }

    fn costs(&self) -> Option<StepCosts> {
        ModelRunner::costs(self)
    }
}

//! One run of the task, watched: memory while loading, then every step of the engine.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Result, bail};
use scrimp_cpu::CpuBackend;
use scrimp_cpu::bandwidth::read_bandwidth;
use scrimp_engine::{Event, Part, StepReport, Usage};
use scrimp_memory::{Category, LedgerSnapshot, MemoryLedger, MemoryPlan};

use super::task::{Answer, Task};
use crate::launch::{self, Launched, Marks, Settings, Watch};
use crate::machine::{self, Resident};
use crate::opened::Opened;
use crate::terminal;

/// Most records that are kept: neighbours are put together beyond.
const MAX_RECORDS: usize = 2048;
/// What keeping them takes, which a plan has to know.
pub const BYTES: usize = MAX_RECORDS * size_of::<Record>();

/// One step, or several consecutive ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    /// Steps in it.
    pub steps: usize,
    /// Tokens computed.
    pub tokens: usize,
    /// Sequences of the largest one.
    pub sequences: usize,
    /// Seconds from the start of loading to the end of it.
    pub at: f64,
    /// Seconds that it took.
    pub seconds: f64,
    /// Of those, by part in the order of [`Part::ALL`].
    pub parts: [f64; Part::ALL.len()],
    /// Bytes of weights read.
    pub weight_bytes: usize,
    /// Bytes of cache read.
    pub kv_bytes: usize,
    /// Bytes by category in the order of [`Category::ALL`]; of the cache those that were written.
    pub ledger: [usize; Category::ALL.len()],
    /// Bytes resident at the end of it.
    pub rss: usize,
}

impl Record {
    /// Whether every sequence got one token: no prompt was computed.
    pub fn is_decode(&self) -> bool {
        self.tokens <= self.sequences * self.steps
    }

    fn absorb(&mut self, next: &Record) {
        self.steps += next.steps;
        self.tokens += next.tokens;
        self.sequences = self.sequences.max(next.sequences);
        self.at = next.at;
        self.seconds += next.seconds;
        for (part, more) in self.parts.iter_mut().zip(next.parts) {
            *part += more;
        }
        self.weight_bytes += next.weight_bytes;
        self.kv_bytes += next.kv_bytes;
        self.ledger = next.ledger;
        self.rss = self.rss.max(next.rss);
    }
}

/// Steps in order, never more than there is room for.
struct Timeline {
    records: Vec<Record>,
    /// Steps that one record covers.
    stride: usize,
    /// Steps in the last record.
    filled: usize,
}

impl Timeline {
    fn new() -> Timeline {
        Timeline {
            records: Vec::with_capacity(MAX_RECORDS),
            stride: 1,
            filled: 0,
        }
    }

    fn push(&mut self, record: Record) {
        let together = |last: &Record| last.is_decode() == record.is_decode();
        if let Some(last) = self.records.last_mut()
            && self.filled < self.stride
            && together(last)
        {
            last.absorb(&record);
            self.filled += 1;
            return;
        }
        if self.records.len() == MAX_RECORDS {
            self.halve();
        }
        self.records.push(record);
        self.filled = 1;
    }

    /// Puts neighbours of one kind together.
    fn halve(&mut self) {
        let mut kept: usize = 0;
        let mut pair_is_open = false;
        for i in 1..self.records.len() {
            let record = self.records[i];
            if !pair_is_open && self.records[kept].is_decode() == record.is_decode() {
                self.records[kept].absorb(&record);
                pair_is_open = true;
            } else {
                kept += 1;
                self.records[kept] = record;
                pair_is_open = false;
            }
        }
        self.records.truncate(kept + 1);
        self.stride *= 2;
    }
}

/// Memory at one moment of loading.
#[derive(Clone, Copy, Debug)]
pub struct LoadSample {
    /// Seconds from the start of loading.
    pub at: f64,
    /// Bytes by category.
    pub ledger: [usize; Category::ALL.len()],
    /// Bytes resident.
    pub resident: Resident,
}

/// Everything that was seen.
pub struct Measured {
    /// What had been planned.
    pub plan: MemoryPlan,
    /// Device, instruction set and threads, for people.
    pub device: String,
    /// Bytes a second that this machine's threads read.
    pub bandwidth: f64,
    /// Memory while loading.
    pub loading: Vec<LoadSample>,
    /// Seconds of loading.
    pub load_seconds: f64,
    /// Memory before, between and after.
    pub marks: Marks,
    /// The steps.
    pub steps: Vec<Record>,
    /// Blocks of cache that were ever used.
    pub blocks_touched: usize,
    /// Memory when all was answered.
    pub end: Resident,
    /// Heap then.
    pub heap: usize,
    /// Most that was resident.
    pub peak_rss: usize,
    /// What came back.
    pub answers: Vec<Answer>,
    /// What all of them took.
    pub usage: Usage,
}

/// Bytes by category, of the cache those in blocks that were ever used.
fn by_category(snapshot: &LedgerSnapshot, kv: usize) -> [usize; Category::ALL.len()] {
    Category::ALL.map(|category| match category {
        Category::KvCache => kv,
        other => snapshot.category(other).used,
    })
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the task once, recorded.
pub fn measure(opened: &Opened, settings: &Settings, task: &Task) -> Result<Measured> {
    let mut backend = CpuBackend::new(settings.cpu)?;
    let bandwidth = read_bandwidth(&mut backend)?;
    drop(backend);
    machine::reset_peak_rss();
    let timeline = Arc::new(Mutex::new(Timeline::new()));
    // Known once the plan is, which is before the first step.
    let block_bytes = Arc::new(Mutex::new((0, None::<MemoryLedger>)));
    let started = Instant::now();
    let observer = {
        let (timeline, shared) = (Arc::clone(&timeline), Arc::clone(&block_bytes));
        let mut statm = machine::ResidentNow::open();
        Box::new(move |step: &StepReport| {
            let shared = lock(&shared);
            let (block_bytes, ledger) = &*shared;
            let costs = step.costs.unwrap_or_default();
            let mut parts = costs.time.map(|t| t.as_secs_f64());
            // Scheduling, text and bookkeeping lie outside of the decoder.
            let outside = step.elapsed.as_secs_f64() - parts.iter().sum::<f64>();
            parts[Part::Other as usize] += outside.max(0.0);
            let kv = step.blocks_touched * block_bytes; // as written, whatever the pages
            let snapshot = ledger.as_ref().map(MemoryLedger::snapshot);
            lock(&timeline).push(Record {
                steps: 1,
                tokens: step.tokens,
                sequences: step.sequences,
                at: started.elapsed().as_secs_f64(),
                seconds: step.elapsed.as_secs_f64(),
                parts,
                weight_bytes: costs.weight_bytes,
                kv_bytes: costs.kv_bytes,
                ledger: snapshot.map_or_else(Default::default, |s| by_category(&s, kv)),
                rss: statm.read().unwrap_or(0),
            });
        })
    };
    let mut loading = Vec::new();
    let mut on_load = |ledger: &MemoryLedger| {
        loading.push(LoadSample {
            at: started.elapsed().as_secs_f64(),
            ledger: by_category(&ledger.snapshot(), 0),
            resident: Resident::read().unwrap_or_default(),
        });
    };
    let watch = Watch {
        observer: Some(observer),
        record: true,
        loading: Some(&mut on_load),
    };
    let launched = launch::launch_watched(opened, settings, task.concurrency(), watch)?;
    let plan = launched.handle.info().plan.clone();
    *lock(&block_bytes) = (plan.kv_block_bytes, Some(launched.ledger.clone()));
    let (answers, usage) = answer(&launched, task)?;
    let (end, heap) = (Resident::read().unwrap_or_default(), machine::heap());
    let measured = Measured {
        plan,
        device: launched.handle.info().device.clone(),
        bandwidth,
        loading,
        load_seconds: launched.load_time.as_secs_f64(),
        marks: launched.marks,
        steps: std::mem::take(&mut lock(&timeline).records),
        blocks_touched: launched.handle.stats().blocks_touched,
        end,
        heap,
        peak_rss: machine::peak_rss().unwrap_or(0),
        answers,
        usage,
    };
    launched.stop()?;
    Ok(measured)
}

/// Puts every request at once, and waits for all of them.
fn answer(launched: &Launched, task: &Task) -> Result<(Vec<Answer>, Usage)> {
    let (sender, news) = channel();
    for (i, request) in task.requests.iter().enumerate() {
        let sender = sender.clone();
        let sink = Box::new(move |update: scrimp_engine::Update| sender.send((i, update)).is_ok());
        launched.handle.submit(request.clone(), sink)?;
    }
    drop(sender);
    let expected: usize = task
        .requests
        .iter()
        .map(|request| request.max_tokens.unwrap_or(0))
        .sum();
    let bar = terminal::count_progress("tokens", expected as u64);
    let mut answers = vec![Answer::default(); task.concurrency()];
    let mut total = Usage::default();
    let mut finished = 0;
    for (i, update) in news {
        let answer = &mut answers[i];
        match update.event {
            Event::Delta(delta) => {
                bar.inc(delta.tokens.len() as u64);
                answer.reasoning.push_str(&delta.reasoning);
                answer.text.push_str(&delta.answer);
            }
            Event::Finished(end) => {
                finished += 1;
                answer.finish_reason = end.reason.name();
                answer.tokens = end.usage.completion_tokens;
                total.prompt_tokens += end.usage.prompt_tokens;
                total.completion_tokens += end.usage.completion_tokens;
                total.reasoning_tokens += end.usage.reasoning_tokens;
                total.cached_tokens += end.usage.cached_tokens;
            }
            Event::Failed(error) => return Err(error.into()),
        }
    }
    bar.finish_and_clear();
    if finished < answers.len() {
        bail!("the engine stopped before all was answered");
    }
    Ok((answers, total))
}

/// Seconds, tokens and bytes of all steps of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Steps.
    pub steps: usize,
    /// Tokens computed.
    pub tokens: usize,
    /// Seconds.
    pub seconds: f64,
    /// By part.
    pub parts: [f64; Part::ALL.len()],
    /// Bytes of weights read.
    pub weight_bytes: usize,
    /// Bytes of cache read.
    pub kv_bytes: usize,
}

impl Totals {
    /// Tokens a second.
    pub fn rate(&self) -> f64 {
        match self.seconds > 0.0 {
            true => self.tokens as f64 / self.seconds,
            false => 0.0,
        }
    }

    /// Bytes a second.
    pub fn bytes_per_s(&self) -> f64 {
        match self.seconds > 0.0 {
            true => (self.weight_bytes + self.kv_bytes) as f64 / self.seconds,
            false => 0.0,
        }
    }

    /// Share of the time in `part`.
    pub fn share(&self, part: Part) -> f64 {
        match self.seconds > 0.0 {
            true => self.parts[part as usize] / self.seconds,
            false => 0.0,
        }
    }
}

impl Measured {
    fn totals(&self, wanted: impl Fn(&Record) -> bool) -> Totals {
        let mut totals = Totals::default();
        for record in self.steps.iter().filter(|record| wanted(record)) {
            totals.steps += record.steps;
            totals.tokens += record.tokens;
            totals.seconds += record.seconds;
            totals.weight_bytes += record.weight_bytes;
            totals.kv_bytes += record.kv_bytes;
            for (sum, part) in totals.parts.iter_mut().zip(record.parts) {
                *sum += part;
            }
        }
        totals
    }

    /// Steps that computed a token for each sequence.
    pub fn decode(&self) -> Totals {
        self.totals(Record::is_decode)
    }

    /// Steps with prompts in them.
    pub fn prefill(&self) -> Totals {
        self.totals(|record| !record.is_decode())
    }

    /// What was planned for the blocks that were used.
    pub fn planned_peak(&self) -> usize {
        self.plan.peak_bytes_with(self.blocks_touched)
    }

    /// Bytes by category: what the plan said of these blocks, and what private memory grew by.
    ///
    /// Weights, scratch and cache are told apart by when they came: memory is read between them.
    /// The rest of the peak is the process itself.
    pub fn by_category(&self) -> [(Category, usize, usize); Category::ALL.len()] {
        let Marks {
            before,
            loaded,
            ready,
            ..
        } = self.marks;
        let grown = |from: usize, to: usize| to.saturating_sub(from);
        let weights = grown(before.anonymous, loaded.anonymous);
        let activations = grown(loaded.anonymous, ready.anonymous);
        let heap = grown(self.marks.heap, self.heap);
        let kv = grown(ready.anonymous + heap, self.end.anonymous);
        let staged = self.loading.iter().map(|sample| sample.resident.files);
        let staging = staged.max().unwrap_or(0);
        let other = self.peak_rss.saturating_sub(weights + activations + kv);
        let plan = &self.plan;
        Category::ALL.map(|category| match category {
            Category::Weights => (category, plan.weights_bytes(), weights),
            Category::KvCache => {
                let planned = plan.kv_resident_bytes(self.blocks_touched);
                (category, planned, kv)
            }
            Category::Activations => (category, plan.activations_bytes, activations),
            Category::Staging => (category, plan.staging_bytes, grown(before.files, staging)),
            Category::Other => (category, plan.other_bytes, other),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(i: usize) -> Record {
        Record {
            steps: 1,
            tokens: 1,
            sequences: 1,
            seconds: 1.0,
            at: i as f64,
            weight_bytes: 10,
            rss: i,
            ..Record::default()
        }
    }

    #[test]
    fn a_timeline_keeps_sums_in_bounded_room() {
        let mut timeline = Timeline::new();
        let prompt = Record {
            tokens: 30,
            ..decode(0)
        };
        timeline.push(prompt);
        let steps = 5 * MAX_RECORDS + 7;
        for i in 1..=steps {
            timeline.push(decode(i));
        }
        let records = &timeline.records;
        assert!(records.len() <= MAX_RECORDS && records.len() > MAX_RECORDS / 4);
        assert!(!records[0].is_decode() && records[1..].iter().all(Record::is_decode));
        assert_eq!(records[0].steps, 1, "prompts stay apart");
        let sum = |f: fn(&Record) -> usize| records.iter().map(f).sum::<usize>();
        assert_eq!(sum(|r| r.steps), steps + 1);
        assert_eq!(sum(|r| r.tokens), steps + 30);
        assert_eq!(sum(|r| r.weight_bytes), 10 * (steps + 1));
        assert!(records.windows(2).all(|w| w[0].at < w[1].at));
        assert_eq!(records.last().unwrap().rss, steps);
    }
}

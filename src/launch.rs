//! From an opened model to a running engine: budget, plan, load, start.
//!
//! `run`, `serve` and `bench` all come through here, so they plan the same way and say the same.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use scrimp_backend::Backend;
use scrimp_cpu::{CpuBackend, CpuLevel, CpuOptions, Precision};
use scrimp_engine::decoder::{StepLimits, activation_bytes};
use scrimp_engine::runner::{ModelRunner, RunnerConfig};
use scrimp_engine::weights::{Component, Inventory, LoadProgress};
use scrimp_engine::{EngineHandle, EngineInfo, EngineParts, StepObserver};
use scrimp_memory::{BlockPool, Category, MemoryLedger, MemoryPlan, PlanInput, Reservation};
use scrimp_model::KvLayout;
use scrimp_scheduler::{EstimatorConfig, Scheduler, SchedulerConfig};
use scrimp_tensor::DType;

use crate::args::{CacheArgs, CpuLevelArg, KvDtypeArg, MlaPrefillArg, ModelArgs, PrecisionArg};
use crate::machine::{self, MemoryLimits, Resident};
use crate::opened::Opened;
use crate::terminal;

/// Blocks of a pool that nothing else limits.
const DEFAULT_MAX_BLOCKS: usize = 10_240;

/// Room kept free for what cannot be foretold: the allocator's slack, requests in hand, pages of
/// weight files that the system maps beside those asked for.
const RESERVE: usize = 8 << 20;

/// Pages of the program, and of its heap and stacks, that running a model touches and opening it
/// does not. Measured over models, types and thread counts at 0.4 (`bench`) to 1.4 MiB (`run`).
const FIRST_STEPS: usize = 1 << 20;

/// Bytes of sampling per token of the vocabulary: a copy of its logit, and a candidate.
const SAMPLER_BYTES_PER_TOKEN: usize = 12;

/// Rows of a step from which expanding a context's latents can pay.
const PLAIN_FROM: usize = 128;

/// What a model is started with.
#[derive(Clone)]
pub struct Settings {
    /// Most memory, where the person set one.
    pub memory: Option<usize>,
    /// Device options.
    pub cpu: CpuOptions,
    /// Longest sequence, where the person set one.
    pub max_model_len: Option<usize>,
    /// No sequence will be longer than this, so no more cache is needed.
    pub needed_len: Option<usize>,
    /// No step will compute more tokens than this, so no more scratch is needed.
    pub needed_rows: Option<usize>,
    /// What runs beside the engine from now on: a server's threads, sockets and tables.
    pub service_bytes: usize,
    /// Heap that requests take before the engine has them: bodies, prompts on their way to tokens.
    /// It is kept free, not planned as used.
    pub request_bytes: usize,
    /// Cache and batch.
    pub cache: CacheArgs,
}

impl Settings {
    /// The command line's settings.
    pub fn new(model: &ModelArgs, cache: &CacheArgs) -> Settings {
        let level = model.cpu_level.map(|level| match level {
            CpuLevelArg::Portable => CpuLevel::Portable,
            CpuLevelArg::Avx2 => CpuLevel::Avx2,
            CpuLevelArg::Avx512 => CpuLevel::Avx512,
            CpuLevelArg::Neon => CpuLevel::Neon,
        });
        let precision = match model.precision {
            PrecisionArg::Exact => Precision::Exact,
            PrecisionArg::Fast => Precision::Fast,
        };
        let threads = Some(model.threads.map_or_else(machine::cores, usize::from));
        Settings {
            memory: model.memory,
            cpu: CpuOptions {
                threads,
                level,
                precision,
                expand_latents_from: match model.mla_prefill {
                    MlaPrefillArg::Absorbed => None,
                    MlaPrefillArg::Plain => Some(PLAIN_FROM),
                },
            },
            max_model_len: model.max_model_len,
            needed_len: None,
            needed_rows: None,
            service_bytes: 0,
            request_bytes: 0,
            cache: cache.clone(),
        }
    }

    /// The type of the KV cache.
    pub fn kv_dtype(&self) -> DType {
        match (self.cache.kv_cache_dtype, self.cpu.precision) {
            (KvDtypeArg::F32, _) | (KvDtypeArg::Auto, Precision::Exact) => DType::F32,
            (KvDtypeArg::F16, _) | (KvDtypeArg::Auto, Precision::Fast) => DType::F16,
            (KvDtypeArg::Bf16, _) => DType::BF16,
        }
    }
}

/// Memory between the stages of loading: what each of them took is what lies between two.
#[derive(Clone, Copy, Debug, Default)]
pub struct Marks {
    /// Before the first weight.
    pub before: Resident,
    /// After the last one.
    pub loaded: Resident,
    /// With scratch and an untouched cache.
    pub ready: Resident,
    /// Bytes of heap then.
    pub heap: usize,
}

/// A loaded model, ready to run steps.
pub struct Loaded {
    /// Runs steps.
    pub runner: ModelRunner<CpuBackend>,
    /// What went where.
    pub plan: MemoryPlan,
    /// Holds everybody to the budget.
    pub ledger: MemoryLedger,
    /// Sequences of one step.
    pub max_num_seqs: usize,
    /// Tokens of one step.
    pub max_num_batched_tokens: usize,
    /// How long loading took.
    pub load_time: Duration,
    /// Memory before, between and after.
    pub marks: Marks,
    /// Keeps the process's own bytes out of everybody's reach.
    pub process: Reservation,
}

/// What the process takes besides weights, cache and scratch.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    /// The most that it has taken so far.
    pub opening_bytes: usize,
    /// What it has now, the tokenizer read and the threads started, and what its first steps add.
    pub other_bytes: usize,
}

impl Process {
    /// Measures this one, about to load `opened`.
    fn measure(opened: &Opened, settings: &Settings) -> Process {
        let now = Resident::read().map_or(0, |resident| resident.total());
        let sampler = opened
            .config
            .vocab_size
            .saturating_mul(SAMPLER_BYTES_PER_TOKEN);
        let more = [FIRST_STEPS, sampler, settings.service_bytes];
        Process {
            opening_bytes: machine::peak_rss().unwrap_or(0),
            other_bytes: more.into_iter().fold(now, usize::saturating_add),
        }
    }
}

/// A plan, and the limits of steps that go with it.
pub struct Planned {
    /// What goes where.
    pub plan: MemoryPlan,
    /// The largest step.
    pub limits: StepLimits,
}

/// Plans to run `opened` with `settings` on `backend`.
pub fn plan(
    opened: &Opened,
    settings: &Settings,
    backend: &CpuBackend,
    process: Process,
) -> Result<Planned> {
    let Some(budget) = MemoryLimits::read().budget(settings.memory) else {
        bail!("this system does not say how much memory is available: set --memory");
    };
    let inventory = inventory(opened)?;
    let cache = &settings.cache;
    let max_rows = settings
        .needed_rows
        .unwrap_or(usize::MAX)
        .clamp(1, cache.max_num_batched_tokens as usize);
    let max_num_seqs = (cache.max_num_seqs as usize).min(max_rows);
    let kv = KvLayout::of(
        &opened.config,
        settings.kv_dtype(),
        cache.block_size as usize,
    );
    let longest = longest(opened, settings);
    let limits = StepLimits {
        max_rows,
        max_logit_rows: max_num_seqs,
        max_context: longest,
    };
    let (staging_bytes, loading_bytes) = match opened.checkpoint.is_in_memory() {
        // Its stored form is part of the program and stays: nothing comes and goes.
        true => (0, 0),
        false => (inventory.staging_bytes(), inventory.loading_bytes(backend)),
    };
    let component = |(component, bytes): (Component, usize)| (component.name().to_owned(), bytes);
    let max_kv = DEFAULT_MAX_BLOCKS.saturating_mul(kv.bytes_per_block());
    let plan = MemoryPlan::new(&PlanInput {
        budget_bytes: budget,
        weights: inventory
            .weight_plan(backend)
            .into_iter()
            .map(component)
            .collect(),
        activations_bytes: activation_bytes(backend, &opened.config, &limits),
        bytes_per_seq: 0,
        staging_bytes,
        loading_bytes,
        opening_bytes: process.opening_bytes,
        other_bytes: process.other_bytes,
        reserve_bytes: RESERVE.saturating_add(settings.request_bytes),
        kv_block_bytes: backend.kv_cache_bytes(&kv, 1),
        kv_page_bytes: machine::huge_page().unwrap_or(1),
        kv,
        max_model_len: longest,
        shrink_to_fit: settings.max_model_len.is_none(),
        max_num_seqs,
        max_blocks_per_seq: cache.max_blocks_per_seq,
        num_blocks: cache.num_blocks,
        kv_cache_bytes: cache.kv_cache_memory_bytes,
        max_kv_cache_bytes: Some(max_kv.min(PlanInput::DEFAULT_MAX_KV_CACHE_BYTES)),
    })
    .with_context(|| format!("{} cannot be served in this memory", opened.name))?;
    let limits = StepLimits {
        max_context: plan.max_model_len,
        ..limits
    };
    Ok(Planned { plan, limits })
}

fn inventory(opened: &Opened) -> Result<Inventory> {
    Inventory::new(&opened.config, &opened.checkpoint)
        .with_context(|| format!("{} does not fit its configuration", opened.name))
}

/// The longest sequence that is asked for.
fn longest(opened: &Opened, settings: &Settings) -> usize {
    let cache = &settings.cache;
    let longest = settings.max_model_len.unwrap_or_else(|| {
        let table = cache
            .max_blocks_per_seq
            .saturating_mul(cache.block_size as usize);
        opened.config.max_position_embeddings.min(table)
    });
    settings
        .needed_len
        .map_or(longest, |needed| needed.max(1).min(longest))
}

/// Told of the ledger after every weight.
pub type LoadObserver<'a> = &'a mut dyn FnMut(&MemoryLedger);

/// Plans, then loads what was planned.
pub fn load(opened: &Opened, settings: &Settings) -> Result<Loaded> {
    load_watched(opened, settings, None)
}

fn load_watched(
    opened: &Opened,
    settings: &Settings,
    mut observer: Option<LoadObserver<'_>>,
) -> Result<Loaded> {
    let started = Instant::now();
    let trained = opened.config.max_position_embeddings;
    if let Some(longest) = settings.max_model_len.filter(|&len| len > trained) {
        terminal::note(&format!(
            "warning: {} was made for {trained} tokens; --max-model-len {longest} goes beyond",
            opened.name
        ));
    }
    let backend = CpuBackend::new(settings.cpu)?;
    let process = Process::measure(opened, settings);
    let Planned { plan, limits } = plan(opened, settings, &backend, process)?;
    let ledger = MemoryLedger::new(plan.budget_bytes);
    let process = ledger.reserve(Category::Other, plan.other_bytes, "the process itself")?;
    let bar = terminal::byte_progress("loading", opened.checkpoint.weight_bytes());
    let mut marks = Marks {
        before: Resident::read().unwrap_or_default(),
        ..Marks::default()
    };
    let config = RunnerConfig {
        limits,
        kv: plan.kv,
        num_blocks: plan.num_blocks,
    };
    let progress = &mut |progress: LoadProgress<'_>| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
        if let Some(observer) = &mut observer {
            observer(&ledger);
        }
        if progress.done == progress.total {
            marks.loaded = Resident::read().unwrap_or_default();
        }
    };
    let runner = ModelRunner::load(
        &opened.config,
        &opened.checkpoint,
        backend,
        config,
        &ledger,
        progress,
    )
    .with_context(|| format!("loading {}", opened.name))?;
    bar.finish_and_clear();
    marks.ready = Resident::read().unwrap_or_default();
    marks.heap = machine::heap();
    Ok(Loaded {
        runner,
        max_num_seqs: plan.max_num_seqs,
        plan,
        ledger,
        max_num_batched_tokens: limits.max_rows,
        load_time: started.elapsed(),
        marks,
        process,
    })
}

/// A running engine.
pub struct Launched {
    /// Takes requests.
    pub handle: EngineHandle,
    /// Ends after a shutdown.
    pub thread: JoinHandle<()>,
    /// Holds everybody to the budget.
    pub ledger: MemoryLedger,
    /// How long loading took.
    pub load_time: Duration,
    /// Memory before, between and after loading.
    pub marks: Marks,
    _process: Reservation,
}

impl Launched {
    /// The most that was planned for the blocks of cache that were ever in use.
    pub fn planned_peak_bytes(&self) -> usize {
        let touched = self.handle.stats().blocks_touched;
        self.handle.info().plan.peak_bytes_with(touched)
    }

    /// Stops the engine and waits until it has.
    pub fn stop(self) -> Result<()> {
        self.handle.shutdown(false);
        match self.thread.join() {
            Ok(()) => Ok(()),
            Err(_) => bail!("the engine broke off: this is a bug in scrimp, please report it"),
        }
    }
}

/// Who looks on, and at what.
#[derive(Default)]
pub struct Watch<'a> {
    /// Told of every step.
    pub observer: Option<StepObserver>,
    /// Whether steps say where their time went.
    pub record: bool,
    /// Told of loading.
    pub loading: Option<LoadObserver<'a>>,
}

/// Plans, loads and starts.
pub fn launch(
    opened: &Opened,
    settings: &Settings,
    max_queue: usize,
    observer: Option<StepObserver>,
) -> Result<Launched> {
    let watch = Watch {
        observer,
        ..Watch::default()
    };
    launch_watched(opened, settings, max_queue, watch)
}

/// Plans, loads and starts, watched.
pub fn launch_watched(
    opened: &Opened,
    settings: &Settings,
    max_queue: usize,
    watch: Watch<'_>,
) -> Result<Launched> {
    let mut loaded = load_watched(opened, settings, watch.loading)?;
    if watch.record {
        loaded.runner.record();
    }
    let Loaded {
        runner,
        plan,
        ledger,
        load_time,
        marks,
        process,
        ..
    } = loaded;
    tracing::info!("loaded in {:.2} s", load_time.as_secs_f64());
    let pool = BlockPool::new(plan.pool_config(settings.cache.enable_prefix_caching))?;
    let config = SchedulerConfig {
        max_num_batched_tokens: loaded.max_num_batched_tokens,
        max_num_seqs: loaded.max_num_seqs,
        max_model_len: plan.max_model_len,
        estimator: EstimatorConfig {
            cold_start_tokens: settings.cache.expected_output_tokens,
            ..EstimatorConfig::default()
        },
    };
    let info = EngineInfo {
        config: opened.config.clone(),
        max_model_len: plan.max_model_len,
        plan,
        device: runner.description(),
    };
    let (handle, thread) = scrimp_engine::start(EngineParts {
        model: Box::new(runner),
        scheduler: Scheduler::new(config, pool)?,
        tokenizer: opened.text.tokenizer.clone(),
        reasoning_format: opened.text.reasoning.clone(),
        info,
        max_queue,
        observer: watch.observer,
    })?;
    Ok(Launched {
        handle,
        thread,
        ledger,
        load_time,
        marks,
        _process: process,
    })
}

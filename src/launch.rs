//! From an opened model to a running engine: budget, plan, load, start.
//!
//! `run`, `serve` and `bench` all come through here, so they plan the same way and say the same.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use scrimp_cpu::{CpuBackend, CpuLevel, CpuOptions, Precision};
use scrimp_engine::decoder::{StepLimits, activation_bytes};
use scrimp_engine::runner::{ModelRunner, RunnerConfig};
use scrimp_engine::weights::{Component, Inventory, LoadProgress};
use scrimp_engine::{EngineHandle, EngineInfo, EngineParts, StepObserver};
use scrimp_memory::{BlockPool, MemoryLedger, MemoryPlan, PlanInput};
use scrimp_model::KvLayout;
use scrimp_scheduler::{EstimatorConfig, Scheduler, SchedulerConfig};
use scrimp_tensor::DType;

use crate::args::{CacheArgs, CpuLevelArg, KvDtypeArg, MlaPrefillArg, ModelArgs, PrecisionArg};
use crate::machine::{self, MemoryLimits};
use crate::opened::Opened;
use crate::terminal;

/// Blocks of a pool that nothing else limits.
const DEFAULT_MAX_BLOCKS: usize = 10_240;

/// Heap that no category names: request queues, sampler state, allocator slack.
const ALLOWANCE: usize = 16 << 20;

/// Rows of a step from which expanding a context's latents can pay.
const PLAIN_FROM: usize = 128;

/// What a model is started with.
pub struct Settings {
    /// Most memory, where the person set one.
    pub memory: Option<usize>,
    /// Device options.
    pub cpu: CpuOptions,
    /// Longest sequence, where the person set one.
    pub max_model_len: Option<usize>,
    /// No sequence will be longer than this, so no more cache is needed.
    pub needed_len: Option<usize>,
    /// Heap that requests take before the engine has them: bodies, prompts on their way to tokens.
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
            request_bytes: 0,
            cache: cache.clone(),
        }
    }

    fn kv_dtype(&self) -> DType {
        match (self.cache.kv_cache_dtype, self.cpu.precision) {
            (KvDtypeArg::F32, _) | (KvDtypeArg::Auto, Precision::Exact) => DType::F32,
            (KvDtypeArg::F16, _) | (KvDtypeArg::Auto, Precision::Fast) => DType::F16,
            (KvDtypeArg::Bf16, _) => DType::BF16,
        }
    }
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
}

/// Plans, then loads what was planned.
pub fn load(opened: &Opened, settings: &Settings) -> Result<Loaded> {
    let started = Instant::now();
    let backend = CpuBackend::new(settings.cpu)?;
    let budget = MemoryLimits::read().budget(settings.memory);
    let Some(budget) = budget else {
        bail!("this system does not say how much memory is available: set --memory");
    };
    let inventory = Inventory::new(&opened.config, &opened.checkpoint)
        .with_context(|| format!("{} does not fit its configuration", opened.name))?;
    let cache = &settings.cache;
    let max_num_batched_tokens = cache.max_num_batched_tokens as usize;
    let max_num_seqs = (cache.max_num_seqs as usize).min(max_num_batched_tokens);
    let kv = KvLayout::of(
        &opened.config,
        settings.kv_dtype(),
        cache.block_size as usize,
    );
    let longest = settings.max_model_len.unwrap_or_else(|| {
        let table = cache.max_blocks_per_seq.saturating_mul(kv.block_size);
        opened.config.max_position_embeddings.min(table)
    });
    if longest > opened.config.max_position_embeddings {
        terminal::note(&format!(
            "warning: {} was made for {} tokens; --max-model-len {longest} goes beyond",
            opened.name, opened.config.max_position_embeddings
        ));
    }
    let longest = settings
        .needed_len
        .map_or(longest, |needed| needed.max(1).min(longest));
    let limits = StepLimits {
        max_rows: max_num_batched_tokens,
        max_logit_rows: max_num_seqs,
        max_context: longest,
    };
    let component = |(component, bytes): (Component, usize)| (component.name().to_owned(), bytes);
    let max_kv = DEFAULT_MAX_BLOCKS.saturating_mul(kv.bytes_per_block());
    let plan = MemoryPlan::new(&PlanInput {
        budget_bytes: budget,
        weights: inventory
            .weight_plan(&backend)
            .into_iter()
            .map(component)
            .collect(),
        activations_bytes: activation_bytes(&backend, &opened.config, &limits),
        bytes_per_seq: 0,
        staging_bytes: inventory.largest_stored_bytes(),
        other_bytes: machine::current_rss()
            .unwrap_or(0)
            .saturating_add(ALLOWANCE)
            .saturating_add(settings.request_bytes),
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
    let ledger = MemoryLedger::new(plan.budget_bytes);
    let bar = terminal::byte_progress("loading", inventory.stored_bytes() as u64);
    let config = RunnerConfig {
        limits: StepLimits {
            max_context: plan.max_model_len,
            ..limits
        },
        kv,
        num_blocks: plan.num_blocks,
    };
    let progress = &mut |progress: LoadProgress<'_>| {
        bar.set_position(progress.done as u64);
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
    let load_time = started.elapsed();
    Ok(Loaded {
        runner,
        plan,
        ledger,
        max_num_seqs,
        max_num_batched_tokens,
        load_time,
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
}

impl Launched {
    /// Stops the engine and waits until it has.
    pub fn stop(self) -> Result<()> {
        self.handle.shutdown(false);
        match self.thread.join() {
            Ok(()) => Ok(()),
            Err(_) => bail!("the engine broke off: this is a bug in scrimp, please report it"),
        }
    }
}

/// Plans, loads and starts.
pub fn launch(
    opened: &Opened,
    settings: &Settings,
    max_queue: usize,
    observer: Option<StepObserver>,
) -> Result<Launched> {
    let loaded = load(opened, settings)?;
    let Loaded {
        runner,
        plan,
        ledger,
        ..
    } = loaded;
    tracing::info!("loaded in {:.2} s", loaded.load_time.as_secs_f64());
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
        observer,
    })?;
    Ok(Launched {
        handle,
        thread,
        ledger,
    })
}

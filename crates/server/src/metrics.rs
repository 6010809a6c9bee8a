//! Counters for Prometheus, under the names that vLLM's users know, with the prefix `scrimp:`.
//!
//! What the engine counts itself is copied from its [`EngineStats`] when somebody asks; what
//! happens to a request is observed on the engine's thread, as its news pass by, so that a slow
//! reader does not lengthen the latencies. Nothing here changes an answer.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use scrimp_engine::{EngineInfo, EngineStats, Event, FinishReason, StepObserver, Update, Usage};

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type FloatGauge = Gauge<f64, AtomicU64>;
type Labels = Vec<(String, String)>;

/// All metrics of a server. Cheap to clone: clones count into the same numbers.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    gauges: EngineGauges,
    requests: RequestHistograms,
    finished: Family<Labels, Counter>,
    iteration_tokens: Histogram,
    cache_config: Family<Labels, Gauge>,
}

/// Copies of the engine's own numbers.
struct EngineGauges {
    running: Gauge,
    waiting: Gauge,
    cache_usage: FloatGauge,
    blocks_in_use: Gauge,
    blocks_evictable: Gauge,
    prefix_queries: Counter,
    prefix_hits: Counter,
    preemptions: Counter,
    prompt_tokens: Counter,
    generation_tokens: Counter,
}

/// How long requests took and how large they were.
#[derive(Clone)]
struct RequestHistograms {
    first_token: Histogram,
    inter_token: Histogram,
    whole: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
}

/// Seconds, from a short step to a long chain of thought on a slow machine.
const SECONDS: [f64; 18] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
    900.0, 3600.0,
];

/// Powers of two and a half or so, up to the longest sequence (65,536 tokens by default).
const TOKENS: [f64; 17] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0,
    20_000.0, 50_000.0, 100_000.0, 200_000.0,
];

/// Registers metrics under the prefix that all of them have.
struct Registrar(Registry);

impl Registrar {
    fn add<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0
            .register(format!("scrimp:{name}"), help, metric.clone());
        metric
    }

    fn seconds(&mut self, name: &str, help: &str) -> Histogram {
        self.add(name, help, Histogram::new(SECONDS))
    }

    fn tokens(&mut self, name: &str, help: &str) -> Histogram {
        self.add(name, help, Histogram::new(TOKENS))
    }
}

impl Metrics {
    /// Metrics that all carry the label `model_name`.
    pub fn new(model_name: &str) -> Self {
        let label = ("model_name".into(), model_name.to_owned().into());
        let mut r = Registrar(Registry::with_labels([label].into_iter()));
        // Counters get their suffix `_total` when they are written.
        let gauges = EngineGauges {
            running: r.add(
                "num_requests_running",
                "Completions being computed",
                Gauge::default(),
            ),
            waiting: r.add(
                "num_requests_waiting",
                "Completions that wait",
                Gauge::default(),
            ),
            cache_usage: r.add(
                "kv_cache_usage_perc",
                "Share of the KV cache that sequences hold, in tokens; 1 is all of it",
                FloatGauge::default(),
            ),
            blocks_in_use: r.add(
                "kv_cache_blocks_in_use",
                "Blocks held by sequences",
                Gauge::default(),
            ),
            blocks_evictable: r.add(
                "kv_cache_blocks_evictable",
                "Blocks that only hold reusable prefixes",
                Gauge::default(),
            ),
            prefix_queries: r.add(
                "prefix_cache_queries",
                "Prompt tokens looked up in the prefix cache",
                Counter::default(),
            ),
            prefix_hits: r.add(
                "prefix_cache_hits",
                "Prompt tokens found in the prefix cache",
                Counter::default(),
            ),
            preemptions: r.add(
                "num_preemptions",
                "Times a sequence's blocks were taken away",
                Counter::default(),
            ),
            prompt_tokens: r.add(
                "prompt_tokens",
                "Prompt tokens taken in",
                Counter::default(),
            ),
            generation_tokens: r.add("generation_tokens", "Tokens generated", Counter::default()),
        };
        let requests = RequestHistograms {
            first_token: r.seconds("time_to_first_token_seconds", "From arrival to first token"),
            inter_token: r.seconds("inter_token_latency_seconds", "Between two tokens"),
            whole: r.seconds(
                "e2e_request_latency_seconds",
                "From arrival to the last token",
            ),
            queue: r.seconds("request_queue_time_seconds", "Waiting for the first step"),
            prefill: r.seconds(
                "request_prefill_time_seconds",
                "From first step to first token",
            ),
            decode: r.seconds("request_decode_time_seconds", "From first token to last"),
            prompt_tokens: r.tokens("request_prompt_tokens", "Prompt tokens of a request"),
            generation_tokens: r.tokens("request_generation_tokens", "Tokens of a completion"),
        };
        let finished = r.add(
            "request_success",
            "Completions ended, by reason",
            Family::<Labels, Counter>::default(),
        );
        // The name of this histogram in vLLM; it counts tokens, and is no counter.
        let iteration_tokens = r.tokens("iteration_tokens_total", "Tokens computed in one step");
        let cache_config = r.add(
            "cache_config_info",
            "How the KV cache was planned; always 1",
            Family::<Labels, Gauge>::default(),
        );
        let registry = r.0;
        let inner = Inner {
            registry,
            gauges,
            requests,
            finished,
            iteration_tokens,
            cache_config,
        };
        for reason in ["stop", "length", "abort", "error"] {
            inner.finished_by(reason, 0);
        }
        Metrics {
            inner: Arc::new(inner),
        }
    }

    /// To be given to the engine, which calls it after every step.
    pub fn step_observer(&self) -> StepObserver {
        let inner = Arc::clone(&self.inner);
        Box::new(move |step| inner.iteration_tokens.observe(step.tokens as f64))
    }

    /// Shows the plan that the engine runs on, once.
    pub(crate) fn describe(&self, info: &EngineInfo) {
        let plan = &info.plan;
        let labels = [
            ("block_size", plan.kv.block_size.to_string()),
            ("num_gpu_blocks", plan.num_blocks.to_string()),
            ("cache_dtype", format!("{:?}", plan.kv.dtype).to_lowercase()),
            ("kv_cache_memory_bytes", plan.kv_cache_bytes().to_string()),
            ("bytes_per_token", plan.kv.bytes_per_token().to_string()),
            ("max_model_len", info.max_model_len.to_string()),
            ("max_num_seqs", plan.max_num_seqs.to_string()),
        ];
        let labels = labels
            .map(|(name, value)| (name.to_owned(), value))
            .to_vec();
        self.inner.cache_config.get_or_create(&labels).set(1);
    }

    /// Everything, in OpenMetrics' text format.
    pub(crate) fn render(
        &self,
        stats: &EngineStats,
        block_size: usize,
    ) -> Result<String, fmt::Error> {
        self.inner.gauges.copy(stats, block_size);
        let mut text = String::new();
        encode(&mut text, &self.inner.registry)?;
        Ok(text)
    }

    /// Watches one request of `completions` completions from now on.
    pub(crate) fn watch(&self, completions: usize) -> RequestWatch {
        RequestWatch {
            inner: Arc::clone(&self.inner),
            arrived: Instant::now(),
            latest: vec![None; completions],
            open: completions,
            failed: false,
        }
    }
}

impl Inner {
    fn finished_by(&self, reason: &str, count: u64) {
        let labels = vec![("finished_reason".to_owned(), reason.to_owned())];
        self.finished.get_or_create(&labels).inc_by(count);
    }
}

impl EngineGauges {
    fn copy(&self, stats: &EngineStats, block_size: usize) {
        let gauge = |gauge: &Gauge, value: usize| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        gauge(&self.running, stats.num_requests_running);
        gauge(&self.waiting, stats.num_requests_waiting);
        gauge(&self.blocks_in_use, stats.blocks_in_use);
        gauge(&self.blocks_evictable, stats.blocks_evictable);
        self.cache_usage.set(stats.kv_cache_usage(block_size));
        for (counter, value) in [
            (&self.prefix_queries, stats.prefix_cache_queries),
            (&self.prefix_hits, stats.prefix_cache_hits),
            (&self.preemptions, stats.num_preemptions),
            (&self.prompt_tokens, stats.prompt_tokens),
            (&self.generation_tokens, stats.generation_tokens),
        ] {
            // The engine's counters only grow; two askers at once may arrive in either order.
            counter.inner().fetch_max(value, Ordering::Relaxed);
        }
    }
}

/// Observes the news of one request. Dropped before its end, it counts what is left as aborted.
pub(crate) struct RequestWatch {
    inner: Arc<Inner>,
    arrived: Instant,
    /// When each completion's latest token came.
    latest: Vec<Option<Instant>>,
    open: usize,
    failed: bool,
}

impl RequestWatch {
    /// Looks at one piece of news as it passes.
    pub(crate) fn see(&mut self, update: &Update) {
        match &update.event {
            Event::Delta(delta) if !delta.tokens.is_empty() => {
                self.tokens(update.index, delta.tokens.len());
            }
            Event::Delta(_) => {}
            Event::Finished(finished) => self.finish(finished.reason, &finished.usage),
            Event::Failed(_) => self.failed = true,
        }
    }

    fn tokens(&mut self, index: usize, count: usize) {
        let now = Instant::now();
        let Some(latest) = self.latest.get_mut(index) else {
            return;
        };
        let requests = &self.inner.requests;
        match latest.replace(now) {
            None => requests
                .first_token
                .observe((now - self.arrived).as_secs_f64()),
            Some(before) => {
                let each = (now - before).as_secs_f64() / count as f64;
                (0..count).for_each(|_| requests.inter_token.observe(each));
            }
        }
    }

    fn finish(&mut self, reason: FinishReason, usage: &Usage) {
        let requests = &self.inner.requests;
        requests.whole.observe(self.arrived.elapsed().as_secs_f64());
        requests.queue.observe(usage.queue_time.as_secs_f64());
        requests.prefill.observe(usage.prefill_time.as_secs_f64());
        requests.decode.observe(usage.decode_time.as_secs_f64());
        requests.prompt_tokens.observe(usage.prompt_tokens as f64);
        requests
            .generation_tokens
            .observe(usage.completion_tokens as f64);
        self.inner.finished_by(reason.name(), 1);
        tracing::info!(
            reason = reason.name(),
            prompt_tokens = usage.prompt_tokens,
            cached_tokens = usage.cached_tokens,
            completion_tokens = usage.completion_tokens,
            reasoning_tokens = usage.reasoning_tokens,
            preemptions = usage.preemptions,
            seconds = self.arrived.elapsed().as_secs_f64(),
            "completion finished"
        );
        self.open = self.open.saturating_sub(1);
    }
}

impl Drop for RequestWatch {
    fn drop(&mut self) {
        if self.open > 0 {
            let reason = if self.failed { "error" } else { "abort" };
            self.inner.finished_by(reason, self.open as u64);
        }
    }
}

//! `scrimp bench`: how fast prompts are computed and tokens generated, and how fast they could be.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use scrimp_cpu::CpuBackend;
use scrimp_cpu::bandwidth::read_matrices;
use scrimp_engine::batch::{Batch, Logits, SequenceStep};
use scrimp_engine::runner::ModelRunner;
use scrimp_memory::bytes::HumanBytes;
use scrimp_memory::{MemoryPlan, Reservation};
use scrimp_model::ModelConfig;
use serde_json::{Value, json};

use crate::args::{BenchArgs, CacheArgs};
use crate::launch::{Loaded, Settings, load};
use crate::machine;
use crate::opened::{self, Opened};
use crate::terminal::{self, note, table};

/// Measures and reports.
pub fn bench(args: &BenchArgs) -> Result<()> {
    ensure!(args.batch >= 1, "--batch is 0: it must be at least 1");
    let opened = opened::open(&args.model.model)?;
    let decode_len = args.context + args.output_tokens;
    let needed_len = decode_len.max(args.prompt_tokens).max(1);
    let settings = settings(args, needed_len);
    machine::reset_peak_rss();
    let loaded = load(&opened, &settings)?;
    let mut bench = Bench::new(args, &opened, loaded);
    bench.read();
    let prefill = (args.prompt_tokens > 0)
        .then(|| bench.prefill())
        .transpose()?;
    let decode = (args.output_tokens > 0)
        .then(|| bench.decode())
        .transpose()?;
    let report = Report {
        bench: &bench,
        prefill,
        decode,
    };
    terminal::print(&match args.json {
        true => format!("{}\n", report.json()),
        false => report.text(),
    })?;
    Ok(())
}

/// A cache of just the right size: what is measured is what would be planned for it.
fn settings(args: &BenchArgs, needed_len: usize) -> Settings {
    let block_size = 16;
    let per_seq = needed_len.div_ceil(block_size);
    let cache = CacheArgs {
        block_size: block_size as u32,
        max_blocks_per_seq: per_seq.max(4096),
        num_blocks: Some(per_seq.saturating_mul(args.batch)),
        kv_cache_memory_bytes: None,
        kv_cache_dtype: args.kv_cache_dtype,
        max_num_seqs: args.batch.min(4096) as u32,
        max_num_batched_tokens: args
            .max_num_batched_tokens
            .max(args.batch.min(65536) as u32),
        expected_output_tokens: 1,
        enable_prefix_caching: false,
    };
    let mut settings = Settings::new(&args.model, &cache);
    settings.max_model_len = settings.max_model_len.or(Some(needed_len));
    settings.needed_rows = Some(args.prompt_tokens.max(args.context).max(args.batch));
    settings
}

/// Times of one kind of work, best guess being the median.
struct Samples {
    tokens: usize,
    seconds: Vec<f64>,
}

impl Samples {
    fn rates(&self) -> Vec<f64> {
        self.seconds
            .iter()
            .map(|s| self.tokens as f64 / s)
            .collect()
    }

    fn median_rate(&self) -> f64 {
        median(self.rates())
    }

    fn spread(&self) -> f64 {
        let rates = self.rates();
        let (low, high) = rates
            .iter()
            .fold((f64::MAX, 0.0), |(l, h), &r| (r.min(l), r.max(h)));
        (high - low) / 2.0
    }
}

/// The middle one, or the mean of the two in the middle; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        n if n.is_multiple_of(2) => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}

struct Bench<'a> {
    args: &'a BenchArgs,
    opened: &'a Opened,
    runner: ModelRunner<CpuBackend>,
    plan: MemoryPlan,
    _process: Reservation,
    chunk: usize,
    load_time: Duration,
    /// Bytes a second that the weights were read at: before the first sample, and after each.
    readings: Vec<f64>,
}

/// How long a reading takes, one pass at least.
const READING: Duration = Duration::from_millis(100);

impl<'a> Bench<'a> {
    fn new(args: &'a BenchArgs, opened: &'a Opened, loaded: Loaded) -> Bench<'a> {
        let Loaded {
            runner,
            plan,
            max_num_batched_tokens,
            load_time,
            process,
            ..
        } = loaded;
        Bench {
            args,
            opened,
            runner,
            plan,
            _process: process,
            chunk: max_num_batched_tokens,
            load_time,
            readings: Vec::new(),
        }
    }

    /// Reads the weights, as fast as this machine can right now.
    fn read(&mut self) {
        let (backend, matrices) = self.runner.device_and_matrices();
        self.readings
            .push(read_matrices(backend, &matrices, READING));
    }

    /// The most that was planned for the blocks that are measured on.
    fn planned_peak_bytes(&self) -> usize {
        let args = self.args;
        let blocks = |tokens: usize| tokens.div_ceil(self.plan.kv.block_size);
        let decoded = match args.output_tokens {
            0 => 0,
            n => blocks(args.context + n),
        };
        // Prompts are timed in the first sequence's blocks.
        let first = decoded.max(blocks(args.prompt_tokens));
        let touched = first + decoded * (args.batch - 1);
        self.plan.peak_bytes_with(touched)
    }

    fn prefill(&mut self) -> Result<Samples> {
        let tokens = self.args.prompt_tokens;
        let seconds = self.repeat(|bench| {
            let started = Instant::now();
            bench.fill(0, tokens)?;
            Ok(started.elapsed())
        })?;
        Ok(Samples { tokens, seconds })
    }

    fn decode(&mut self) -> Result<Samples> {
        let (context, steps, batch) = (self.args.context, self.args.output_tokens, self.args.batch);
        for sequence in 0..batch {
            self.fill(sequence, context)?;
        }
        let seconds = self.repeat(|bench| {
            let started = Instant::now();
            for step in 0..steps {
                let mut flat = Batch::default();
                for sequence in 0..batch {
                    bench.push(&mut flat, sequence, context + step, 1, true);
                }
                bench.execute(&flat)?;
            }
            Ok(started.elapsed())
        })?;
        Ok(Samples {
            tokens: steps * batch,
            seconds,
        })
    }

    /// Once uncounted, then as often as asked, with a reading of the memory on either side: on a
    /// shared machine its rate changes from one second to the next.
    fn repeat(&mut self, mut once: impl FnMut(&mut Self) -> Result<Duration>) -> Result<Vec<f64>> {
        once(self)?;
        self.readings.clear();
        self.read();
        (0..self.args.repetitions)
            .map(|_| {
                let seconds = once(self)?.as_secs_f64().max(1e-9);
                self.read();
                Ok(seconds)
            })
            .collect()
    }

    /// Computes the first `tokens` tokens of a sequence, chunk by chunk.
    fn fill(&mut self, sequence: usize, tokens: usize) -> Result<()> {
        let mut start = 0;
        while start < tokens {
            let count = self.chunk.min(tokens - start);
            let mut flat = Batch::default();
            self.push(&mut flat, sequence, start, count, start + count == tokens);
            self.execute(&flat)?;
            start += count;
        }
        Ok(())
    }

    /// Adds arbitrary tokens of a sequence to a step; every sequence has its own row of blocks.
    fn push(&self, flat: &mut Batch, sequence: usize, start: usize, count: usize, last: bool) {
        let per_seq = (self.plan.num_blocks / self.args.batch) as u32;
        let first = per_seq * sequence as u32;
        let used = (start + count).div_ceil(self.plan.kv.block_size) as u32;
        let blocks: Vec<u32> = (first..first + used).collect();
        let vocab_size = self.opened.config.vocab_size;
        let token = |p: usize| ((p * 7919 + sequence * 104_729 + 13) % vocab_size) as u32;
        let token_ids: Vec<u32> = (start..start + count).map(token).collect();
        let step = SequenceStep {
            token_ids: &token_ids,
            num_computed: start,
            blocks: &blocks,
            logits: if last { Logits::Last } else { Logits::No },
        };
        flat.push(&step, self.plan.kv.block_size);
    }

    fn execute(&mut self, flat: &Batch) -> Result<()> {
        Ok(self.runner.execute(flat, &mut |_| {})?)
    }
}

/// Bytes of weights that a decode step of `batch` sequences reads: of the embedding a row each
/// (all of it where it is also the head), of the experts those that are chosen.
fn weight_bytes_per_step(plan: &MemoryPlan, config: &ModelConfig, batch: usize) -> f64 {
    let chosen = config.moe.as_ref().map_or(1.0, |moe| {
        let missed = 1.0 - moe.router.top_k as f64 / moe.num_experts as f64;
        1.0 - missed.powf(batch as f64)
    });
    let read = |(name, bytes): &(String, usize)| match name.as_str() {
        "embedding" if !config.tie_word_embeddings => 0.0,
        "routed_experts" => *bytes as f64 * chosen,
        _ => *bytes as f64,
    };
    plan.weights.iter().map(read).sum()
}

struct Report<'a> {
    bench: &'a Bench<'a>,
    prefill: Option<Samples>,
    decode: Option<Samples>,
}

impl Report<'_> {
    /// Bytes that are read for a generated token.
    fn bytes_per_token(&self) -> f64 {
        let Bench {
            args, opened, plan, ..
        } = self.bench;
        let mean_context = args.context as f64 + args.output_tokens as f64 / 2.0;
        let kv = plan.kv.bytes_per_token() as f64 * mean_context;
        weight_bytes_per_step(plan, &opened.config, args.batch) / args.batch as f64 + kv
    }

    /// What part of the memory's rate decoding reached: the median over samples, each held against
    /// the readings right before and after it.
    fn bandwidth_fraction(&self, samples: &Samples) -> f64 {
        let around = self.bench.readings.windows(2).map(|r| (r[0] + r[1]) / 2.0);
        let rates = samples.rates().into_iter().zip(around);
        median(
            rates
                .map(|(rate, limit)| rate * self.bytes_per_token() / limit)
                .collect(),
        )
    }

    /// Bytes a second that the weights were read at.
    fn bandwidth(&self) -> f64 {
        median(self.bench.readings.clone())
    }

    fn json(&self) -> Value {
        let Bench {
            args,
            opened,
            runner,
            load_time,
            ..
        } = self.bench;
        let prefill = self.prefill.as_ref().map(|samples| {
            json!({
                "tokens": samples.tokens,
                "tokens_per_s": samples.median_rate(),
                "samples": samples.rates(),
            })
        });
        let decode = self.decode.as_ref().map(|samples| {
            json!({
                "tokens": args.output_tokens,
                "context": args.context,
                "batch": args.batch,
                "tokens_per_s": samples.median_rate(),
                "gb_per_s": samples.median_rate() * self.bytes_per_token() / 1e9,
                "bandwidth_fraction": self.bandwidth_fraction(samples),
                "samples": samples.rates(),
            })
        });
        json!({
            "model": opened.name,
            "isa": runner.description(),
            "threads": args.model.threads.map_or_else(machine::cores, usize::from),
            "load_s": load_time.as_secs_f64(),
            "weights_bytes": self.bench.plan.weights_bytes(),
            "memory_bandwidth_gb_per_s": self.bandwidth() / 1e9,
            "prefill": prefill,
            "decode": decode,
            "planned_peak_bytes": self.bench.planned_peak_bytes(),
            "peak_rss_bytes": machine::peak_rss(),
        })
    }

    fn text(&self) -> String {
        let Bench {
            args,
            opened,
            runner,
            plan,
            load_time,
            ..
        } = self.bench;
        note(&runner.description());
        let weights = HumanBytes(plan.weights_bytes());
        let mut rows = vec![
            vec![opened.name.clone(), weights.to_string(), "weights".into()],
            vec![
                "load".into(),
                format!("{:.2}", load_time.as_secs_f64()),
                "s".into(),
            ],
            vec![
                "memory read".into(),
                format!("{:.1}", self.bandwidth() / 1e9),
                "GB/s".into(),
            ],
        ];
        let mut speed = |what: String, samples: &Samples| {
            let rate = format!("{:.1} ± {:.1}", samples.median_rate(), samples.spread());
            rows.push(vec![what, rate, "tokens/s".into()]);
        };
        if let Some(samples) = &self.prefill {
            speed(format!("prefill {}", samples.tokens), samples);
        }
        if let Some(samples) = &self.decode {
            let at = if args.context > 0 {
                format!(" at {}", args.context)
            } else {
                String::new()
            };
            let by = if args.batch > 1 {
                format!(" × {}", args.batch)
            } else {
                String::new()
            };
            speed(format!("decode {}{by}{at}", args.output_tokens), samples);
            let bytes = samples.median_rate() * self.bytes_per_token();
            let share = self.bandwidth_fraction(samples) * 100.0;
            rows.push(vec![
                "decode reads".into(),
                format!("{:.1}", bytes / 1e9),
                format!("GB/s, {share:.0} % of memory read right before and after"),
            ]);
        }
        let peak = machine::peak_rss().map_or("unknown".into(), |b| HumanBytes(b).to_string());
        let planned = format!(
            "peak, {} planned",
            HumanBytes(self.bench.planned_peak_bytes())
        );
        rows.push(vec!["memory".into(), peak, planned]);
        table(&rows)
    }
}

//! Changes of settings that would have helped, each planned again and ranked by what it buys.
//!
//! Bytes come from the very plan that the engine would run on. Times are the recorded ones,
//! scaled part by part: by what a probe of the changed operation says, or not at all where the
//! change does not touch them.

use anyhow::Result;
use scrimp_cpu::{CpuBackend, Precision};
use scrimp_engine::Part;
use scrimp_memory::MemoryPlan;
use scrimp_memory::bytes::HumanBytes;
use scrimp_model::KvLayout;
use scrimp_tensor::DType;

use super::probe;
use super::record::Measured;
use super::task::Task;
use crate::args::KvDtypeArg;
use crate::launch::{Process, Settings, plan};
use crate::machine;
use crate::opened::Opened;

/// What a change has to save, or gain in speed, to be worth a line.
const WORTH: f64 = 0.002;
/// Steps no smaller than this are proposed: below it a prompt's weights are read too often.
const LEAST_CHUNK: usize = 32;

/// One change, or several that go together.
pub struct Remedy {
    /// A few words.
    pub name: String,
    /// From what to what.
    pub change: String,
    /// Flags that put it into the command; they win over earlier ones.
    pub flags: Vec<String>,
    /// What it costs in quality.
    pub quality: String,
    /// What it does to speed, in words.
    pub speed: String,
    /// The plan with it.
    pub plan: MemoryPlan,
    /// Bytes that the peak loses.
    pub saves_bytes: i64,
    /// Tokens of cache that the budget holds more.
    pub gains_tokens: i64,
    /// Sequences of the task's length that it holds more.
    pub gains_sequences: i64,
    /// Most that will be resident.
    pub peak_bytes: usize,
    /// Bytes of cache that will be written.
    pub kv_bytes: usize,
    /// Tokens a second of decoding.
    pub decode_rate: f64,
    /// Seconds of computing the prompts.
    pub prefill_seconds: f64,
    /// What it is ranked by: the share of the peak saved, and of the speed gained.
    pub score: f64,
    settings: Settings,
    /// Factors of recorded time, by part.
    factors: [f64; Part::ALL.len()],
}

/// What is known beforehand, and what a change is made to.
struct Bench<'a> {
    opened: &'a Opened,
    settings: &'a Settings,
    task: &'a Task,
    measured: &'a Measured,
}

/// A change before it is judged.
struct Draft {
    name: &'static str,
    change: String,
    flags: Vec<String>,
    quality: &'static str,
    settings: Settings,
    factors: [f64; Part::ALL.len()],
}

const SAME: [f64; Part::ALL.len()] = [1.0; Part::ALL.len()];
const NO_COST: &str = "none: the same operations on the same values";

/// Every change that is worth something, the best first; all that cost nothing come as one, too.
pub fn rank(
    opened: &Opened,
    settings: &Settings,
    task: &Task,
    measured: &Measured,
) -> Result<Vec<Remedy>> {
    let bench = Bench {
        opened,
        settings,
        task,
        measured,
    };
    let good = |draft: Draft| -> Result<Option<Remedy>> {
        let remedy = bench.judge(draft)?;
        Ok((remedy.score >= WORTH).then_some(remedy))
    };
    let mut kept = Vec::new();
    let single = bench
        .right_sized()
        .into_iter()
        .chain(bench.kv_dtypes())
        .chain(bench.precision())
        .chain(bench.threads());
    for draft in single {
        kept.extend(good(draft)?);
    }
    for draft in bench.together(&kept) {
        kept.extend(good(draft)?);
    }
    kept.extend(good(bench.smaller_chunk())?.filter(|r| r.saves_bytes > 0));
    kept.sort_by(|a, b| b.score.total_cmp(&a.score));
    kept.dedup_by(|a, b| a.flags == b.flags);
    Ok(kept)
}

impl Bench<'_> {
    fn draft(&self, name: &'static str, change: String, flag: &str, value: &str) -> Draft {
        Draft {
            name,
            change,
            flags: vec![flag.into(), value.into()],
            quality: NO_COST,
            settings: self.settings.clone(),
            factors: SAME,
        }
    }

    /// Settings cut to what the task needs.
    fn right_sized(&self) -> Vec<Draft> {
        let mut drafts = Vec::new();
        let plan = &self.measured.plan;
        let concurrency = self.task.concurrency();
        let rows = self
            .task
            .longest_prompt()
            .max(concurrency)
            .next_multiple_of(16);
        let chunk = self.settings.cache.max_num_batched_tokens as usize;
        if rows < chunk {
            let change = format!("steps of {chunk} tokens → {rows}, the longest prompt");
            let flag = "--max-num-batched-tokens";
            let mut draft = self.draft("smaller steps", change, flag, &rows.to_string());
            draft.settings.cache.max_num_batched_tokens = rows as u32;
            drafts.push(draft);
        }
        if concurrency < plan.max_num_seqs {
            let change = format!("{} sequences at once → {concurrency}", plan.max_num_seqs);
            let value = concurrency.to_string();
            let mut draft = self.draft("fewer sequences", change, "--max-num-seqs", &value);
            draft.settings.cache.max_num_seqs = concurrency as u32;
            drafts.push(draft);
        }
        let longest = self
            .task
            .longest_sequence()
            .next_multiple_of(plan.kv.block_size);
        if longest < plan.max_model_len {
            let change = format!("{} tokens of context → {longest}", plan.max_model_len);
            let value = longest.to_string();
            let mut draft = self.draft("shorter context", change, "--max-model-len", &value);
            draft.settings.max_model_len = Some(longest);
            drafts.push(draft);
        }
        drafts
    }

    /// Prompts cut into pieces: less scratch, and weights that are read once a piece.
    fn smaller_chunk(&self) -> Draft {
        let prompt = self.task.longest_prompt();
        let rows = (prompt / 4).next_multiple_of(16).max(LEAST_CHUNK);
        let chunk = self.settings.cache.max_num_batched_tokens as usize;
        let rows = rows.min(chunk);
        let change = format!("steps of {chunk} tokens → {rows}: a prompt takes several");
        let flag = "--max-num-batched-tokens";
        let mut draft = self.draft("prompts in pieces", change, flag, &rows.to_string());
        draft.settings.cache.max_num_batched_tokens = rows as u32;
        draft
    }

    fn kv_dtypes(&self) -> Vec<Draft> {
        let now = self.settings.kv_dtype();
        let smaller = [
            (
                KvDtypeArg::F16,
                DType::F16,
                "f16",
                "keys and values keep 11 of 24 significant bits",
            ),
            (
                KvDtypeArg::Bf16,
                DType::BF16,
                "bf16",
                "keys and values keep 8 of 24 significant bits",
            ),
        ];
        let candidates = smaller
            .into_iter()
            .filter(|(_, dtype, ..)| dtype.block_bytes() < now.block_bytes());
        candidates
            .map(|(argument, dtype, value, quality)| {
                let change = format!("KV cache in {now} → {dtype}");
                let flag = "--kv-cache-dtype";
                let mut draft = self.draft("smaller KV values", change, flag, value);
                draft.quality = quality;
                draft.settings.cache.kv_cache_dtype = argument;
                draft.factors = self.factors(&draft.settings);
                draft
            })
            .collect()
    }

    fn precision(&self) -> Vec<Draft> {
        if self.settings.cpu.precision == Precision::Fast {
            return Vec::new();
        }
        let change = "float activations → 8 bits where weights are quantized".to_owned();
        let mut draft = self.draft("fast precision", change, "--precision", "fast");
        draft.quality = "activations are rounded to 8 bits; KV cache in F16 unless set";
        draft.settings.cpu.precision = Precision::Fast;
        draft.factors = self.factors(&draft.settings);
        vec![draft]
    }

    fn threads(&self) -> Vec<Draft> {
        let (now, cores) = (self.settings.cpu.threads.unwrap_or(1), machine::cores());
        if now >= cores {
            return Vec::new();
        }
        let change = format!("{now} threads → {cores}, one a core");
        let mut draft = self.draft("more threads", change, "--threads", &cores.to_string());
        draft.settings.cpu.threads = Some(cores);
        draft.factors = self.factors(&draft.settings);
        vec![draft]
    }

    /// How much longer each part takes with other settings, by trying. What cannot be tried is
    /// taken to stay as it is.
    fn factors(&self, changed: &Settings) -> [f64; Part::ALL.len()] {
        let mut factors = SAME;
        let attention = |settings: &Settings| {
            let config = &self.opened.config;
            let kv = KvLayout::of(
                config,
                settings.kv_dtype(),
                self.measured.plan.kv.block_size,
            );
            // A decode step's mean context: tokens of cache read, over sequences.
            let decode = self.measured.decode();
            let bytes_per_token = self.measured.plan.kv_block_bytes / kv.block_size;
            let read = decode.kv_bytes / bytes_per_token.max(1);
            let context = read / decode.tokens.max(1);
            probe::attention_seconds(settings.cpu, config, &kv, context)
        };
        if let (Ok(now), Ok(then)) = (attention(self.settings), attention(changed)) {
            factors[Part::Attention as usize] = then / now;
        }
        if changed.cpu != self.settings.cpu {
            let linear =
                |settings: &Settings| probe::linear_seconds(settings.cpu, &self.opened.checkpoint);
            if let (Ok(now), Ok(then)) = (linear(self.settings), linear(changed)) {
                factors[Part::Linear as usize] = then / now;
                factors[Part::Experts as usize] = then / now;
            }
        }
        factors
    }

    /// All that cost nothing, as one change; and that with the best of the others.
    fn together(&self, kept: &[Remedy]) -> Vec<Draft> {
        let free: Vec<&Remedy> = kept.iter().filter(|r| r.quality == NO_COST).collect();
        let costly = kept.iter().filter(|r| r.quality != NO_COST);
        let best = costly.max_by(|a, b| a.score.total_cmp(&b.score));
        let mut drafts = Vec::new();
        if free.len() > 1 {
            drafts.push(self.merged("right-sized", &free, NO_COST));
        }
        if let Some(best) = best
            && !free.is_empty()
        {
            let all = [&free[..], &[best][..]].concat();
            let quality = "that of the change it contains";
            drafts.push(self.merged("all together", &all, quality));
        }
        drafts
    }

    fn merged(&self, name: &'static str, parts: &[&Remedy], quality: &'static str) -> Draft {
        let mut settings = self.settings.clone();
        let mut factors = SAME;
        for part in parts {
            take_changes(&mut settings, self.settings, &part.settings);
            for (factor, more) in factors.iter_mut().zip(part.factors) {
                *factor *= more;
            }
        }
        let changes: Vec<&str> = parts.iter().map(|r| r.change.as_str()).collect();
        Draft {
            name,
            change: changes.join("; "),
            flags: parts.iter().flat_map(|r| r.flags.clone()).collect(),
            quality,
            settings,
            factors,
        }
    }

    /// Plans with the change, and says what it comes to.
    fn judge(&self, draft: Draft) -> Result<Remedy> {
        let before = &self.measured.plan;
        let backend = CpuBackend::new(draft.settings.cpu)?;
        let process = Process {
            opening_bytes: before.opening_bytes,
            other_bytes: before.other_bytes,
        };
        let after = plan(self.opened, &draft.settings, &backend, process)?.plan;
        let blocks = self.measured.blocks_touched;
        let planned = |plan: &MemoryPlan| plan.peak_bytes_with(blocks) as i64;
        let saves_bytes = planned(before) - planned(&after);
        let peak_bytes = (self.measured.peak_rss as i64 - saves_bytes).max(0) as usize;
        let gains_tokens = room(&after) - room(before);
        let decode = self.measured.decode();
        let seconds = scaled(&decode.parts, decode.seconds, &draft.factors);
        let decode_rate = match seconds > 0.0 {
            true => decode.tokens as f64 / seconds,
            false => 0.0,
        };
        let prefill_seconds = self.prefill_seconds(&draft);
        let saved = saves_bytes as f64 / self.measured.peak_rss.max(1) as f64;
        let now = decode.seconds + self.measured.prefill().seconds;
        let faster = (now / (seconds + prefill_seconds).max(1e-12) - 1.0).clamp(-1.0, 10.0);
        Ok(Remedy {
            name: draft.name.into(),
            change: draft.change,
            flags: draft.flags,
            quality: draft.quality.into(),
            speed: speed(decode.rate(), decode_rate),
            saves_bytes,
            gains_tokens,
            gains_sequences: gains_tokens / self.task.longest_sequence().max(1) as i64,
            peak_bytes,
            kv_bytes: after.kv_resident_bytes(blocks),
            decode_rate,
            prefill_seconds,
            // Noise is no gain.
            score: saved + if faster.abs() < 0.02 { 0.0 } else { faster },
            plan: after,
            settings: draft.settings,
            factors: draft.factors,
        })
    }

    /// Prompts take as long as they did, and read the weights once more for each further piece.
    fn prefill_seconds(&self, draft: &Draft) -> f64 {
        let prefill = self.measured.prefill();
        let scaled = scaled(&prefill.parts, prefill.seconds, &draft.factors);
        let decode = self.measured.decode();
        if decode.steps == 0 {
            return scaled;
        }
        let pieces = |settings: &Settings| {
            let chunk = settings.cache.max_num_batched_tokens as usize;
            self.measured.usage.prompt_tokens.div_ceil(chunk.max(1))
        };
        let more = pieces(&draft.settings).saturating_sub(pieces(self.settings));
        let read = decode.parts[Part::Linear as usize] + decode.parts[Part::Experts as usize];
        scaled + more as f64 * read / decode.steps as f64
    }
}

/// Copies what a part changed of the common settings.
fn take_changes(into: &mut Settings, common: &Settings, part: &Settings) {
    if part.cpu != common.cpu {
        into.cpu = part.cpu;
    }
    if part.max_model_len != common.max_model_len {
        into.max_model_len = part.max_model_len;
    }
    let (cache, was, now) = (&mut into.cache, &common.cache, &part.cache);
    if now.max_num_batched_tokens != was.max_num_batched_tokens {
        cache.max_num_batched_tokens = now.max_num_batched_tokens;
    }
    if now.max_num_seqs != was.max_num_seqs {
        cache.max_num_seqs = now.max_num_seqs;
    }
    if now.kv_cache_dtype != was.kv_cache_dtype {
        cache.kv_cache_dtype = now.kv_cache_dtype;
    }
}

/// Tokens of cache that the budget holds beside the rest.
fn room(plan: &MemoryPlan) -> i64 {
    let left = plan
        .budget_bytes
        .saturating_sub(plan.peak_bytes_with(0) + plan.reserve_bytes);
    (left / plan.kv_block_bytes.max(1) * plan.kv.block_size) as i64
}

/// Recorded time, part by part; what no part has stays as it is.
fn scaled(parts: &[f64; Part::ALL.len()], seconds: f64, factors: &[f64; Part::ALL.len()]) -> f64 {
    let known: f64 = parts.iter().sum();
    let scaled: f64 = parts.iter().zip(factors).map(|(t, f)| t * f).sum();
    scaled + (seconds - known).max(0.0)
}

fn speed(before: f64, after: f64) -> String {
    match after / before.max(1e-12) - 1.0 {
        change if change.abs() < 0.02 => "the same".into(),
        change => format!("decoding {:+.0} %: {after:.1} tokens/s", change * 100.0),
    }
}

impl Remedy {
    /// What it saves or gains, in a few words.
    pub fn gain(&self) -> String {
        match self.saves_bytes {
            bytes if bytes >= 0 => format!("−{}", HumanBytes(bytes as usize)),
            bytes => format!("+{}", HumanBytes(bytes.unsigned_abs() as usize)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_scales_by_part_and_the_rest_stays() {
        let parts = [4.0, 2.0, 0.0, 1.0, 1.0];
        assert_eq!(scaled(&parts, 10.0, &SAME), 10.0);
        assert_eq!(scaled(&parts, 10.0, &[0.5, 1.0, 1.0, 1.0, 1.0]), 8.0);
    }

    #[test]
    fn noise_is_not_called_a_change() {
        assert_eq!(speed(100.0, 101.0), "the same");
        assert_eq!(speed(100.0, 150.0), "decoding +50 %: 150.0 tokens/s");
    }
}

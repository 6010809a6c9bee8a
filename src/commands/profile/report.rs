//! Everything a profile says, and its JSON.

use scrimp_engine::Part;
use scrimp_memory::Category;
use serde_json::{Map, Value, json};

use super::apply::{Applied, Figures};
use super::record::{Measured, Record};
use super::remedy::Remedy;
use super::task::Task;
use super::verdict::Verdict;
use crate::launch::Settings;
use crate::opened::Opened;

/// What all forms of the report are made from.
pub struct Report<'a> {
    /// The model.
    pub opened: &'a Opened,
    /// What it ran with.
    pub settings: &'a Settings,
    /// What it was asked.
    pub task: &'a Task,
    /// What was seen.
    pub measured: &'a Measured,
    /// What binds.
    pub verdict: &'a Verdict,
    /// What would help.
    pub remedies: &'a [Remedy],
    /// What did.
    pub applied: Option<Applied>,
}

/// Less than this is lost between the allocator's pages.
const NEGLIGIBLE: usize = 1 << 20;

/// `(planned − measured) / measured`; none where neither is more than a trifle.
pub fn error(planned: usize, measured: usize) -> Option<f64> {
    let counts = planned.max(measured) >= NEGLIGIBLE && measured > 0;
    counts.then(|| (planned as f64 - measured as f64) / measured as f64)
}

impl Report<'_> {
    /// The whole of it.
    pub fn json(&self) -> Value {
        let mut report = json!({
            "request": self.request(),
            "timeline": self.timeline(),
            "loading": self.loading(),
            "peak": self.peak(),
            "planned": self.planned(),
            "errors": self.errors(),
            "speed": self.speed(),
            "bottleneck": {
                "capacity": self.verdict.capacity,
                "bandwidth": self.verdict.bandwidth,
                "bandwidth_fraction": self.verdict.bandwidth_fraction,
                "explanation": self.verdict.explanation,
            },
            "remedies": self.remedies.iter().map(remedy).collect::<Vec<_>>(),
        });
        if let Some(applied) = &self.applied {
            report["applied"] = self.applied_json(applied);
        }
        report
    }

    fn request(&self) -> Value {
        let Measured {
            answers,
            usage,
            device,
            ..
        } = self.measured;
        let problem = self.task.problems.first();
        let answers: Vec<Value> = answers
            .iter()
            .map(|answer| {
                json!({
                    "reasoning": answer.reasoning,
                    "answer": answer.text,
                    "finish_reason": answer.finish_reason,
                    "completion_tokens": answer.tokens,
                })
            })
            .collect();
        json!({
            "model": self.opened.name,
            "isa": device,
            "threads": self.settings.cpu.threads,
            "kv_cache_dtype": self.measured.plan.kv.dtype.name(),
            "prompt": self.task.prompt,
            "family": problem.map(|p| p.family.name()),
            "steps": problem.map(|p| p.steps),
            "concurrency": self.task.concurrency(),
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
            "correct": self.task.right(&self.measured.answers),
            "answers": answers,
        })
    }

    fn timeline(&self) -> Vec<Value> {
        let mut step = 0;
        let mut entry = |record: &Record| {
            let first = step;
            step += record.steps;
            json!({
                "step": first,
                "steps": record.steps,
                "tokens": record.tokens,
                "sequences": record.sequences,
                "at_s": record.at,
                "ledger": ledger(&record.ledger),
                "rss_bytes": record.rss,
                "seconds": record.seconds,
                "seconds_by_part": parts(&record.parts),
                "bytes_read": {"weights": record.weight_bytes, "kv": record.kv_bytes},
            })
        };
        self.measured.steps.iter().map(&mut entry).collect()
    }

    fn loading(&self) -> Vec<Value> {
        let samples = self.measured.loading.iter();
        let entry = samples.map(|sample| {
            json!({
                "at_s": sample.at,
                "ledger": ledger(&sample.ledger),
                "rss_bytes": sample.resident.total(),
            })
        });
        entry.collect()
    }

    fn peak(&self) -> Value {
        let mut peak = Map::new();
        peak.insert("rss_bytes".into(), self.measured.peak_rss.into());
        for (category, _, measured) in self.measured.by_category() {
            peak.insert(format!("{}_bytes", category.name()), measured.into());
        }
        peak.insert("heap_bytes".into(), self.measured.heap.into());
        Value::Object(peak)
    }

    fn planned(&self) -> Value {
        let plan = &self.measured.plan;
        let mut planned = Map::new();
        planned.insert("peak_bytes".into(), self.measured.planned_peak().into());
        for (category, bytes, _) in self.measured.by_category() {
            planned.insert(format!("{}_bytes", category.name()), bytes.into());
        }
        let phases = plan
            .phases(self.measured.blocks_touched)
            .map(|phase| json!({"phase": phase.phase.name(), "bytes": phase.total()}));
        planned.insert("phases".into(), phases.to_vec().into());
        planned.insert("budget_bytes".into(), plan.budget_bytes.into());
        planned.insert("reserve_bytes".into(), plan.reserve_bytes.into());
        planned.insert("kv_pool_bytes".into(), plan.kv_cache_bytes().into());
        planned.insert("full_cache_peak_bytes".into(), plan.peak_bytes().into());
        Value::Object(planned)
    }

    fn errors(&self) -> Value {
        let mut errors = Map::new();
        let peak = error(self.measured.planned_peak(), self.measured.peak_rss);
        errors.insert("peak".into(), peak.into());
        for (category, planned, measured) in self.measured.by_category() {
            errors.insert(category.name().into(), error(planned, measured).into());
        }
        Value::Object(errors)
    }

    fn speed(&self) -> Value {
        let (decode, prefill) = (self.measured.decode(), self.measured.prefill());
        json!({
            "load_s": self.measured.load_seconds,
            "prefill_s": prefill.seconds,
            "prefill_tokens_per_s": prefill.rate(),
            "decode_s": decode.seconds,
            "decode_tokens_per_s": decode.rate(),
            "decode_gb_per_s": decode.bytes_per_s() / 1e9,
            "memory_bandwidth_gb_per_s": self.measured.bandwidth / 1e9,
            "decode_seconds_by_part": parts(&decode.parts),
            "prefill_seconds_by_part": parts(&prefill.parts),
        })
    }

    fn applied_json(&self, applied: &Applied) -> Value {
        let mut before = figures(&applied.before);
        let mut after = figures(&applied.after);
        if let Some((then, now)) = applied.right {
            before["correct"] = then.into();
            after["correct"] = now.into();
        }
        after["same_text"] = applied.same_text.into();
        let chosen = &self.remedies[applied.number - 1];
        json!({
            "remedy": remedy(chosen),
            "before": before,
            "predicted": figures(&applied.predicted),
            "after": after,
        })
    }
}

fn figures(figures: &Figures) -> Value {
    json!({
        "peak_rss_bytes": figures.peak_rss_bytes,
        "kv_cache_bytes": figures.kv_cache_bytes,
        "activations_bytes": figures.activations_bytes,
        "decode_tokens_per_s": figures.decode_tokens_per_s,
        "prefill_s": figures.prefill_s,
    })
}

fn remedy(remedy: &Remedy) -> Value {
    json!({
        "name": remedy.name,
        "change": remedy.change,
        "saves_bytes": remedy.saves_bytes,
        "gains_tokens": remedy.gains_tokens,
        "gains_sequences": remedy.gains_sequences,
        "quality": remedy.quality,
        "speed": remedy.speed,
        "flags": remedy.flags,
        "predicted": {
            "peak_rss_bytes": remedy.peak_bytes,
            "kv_cache_bytes": remedy.kv_bytes,
            "decode_tokens_per_s": remedy.decode_rate,
            "prefill_s": remedy.prefill_seconds,
        },
    })
}

fn ledger(bytes: &[usize; Category::ALL.len()]) -> Value {
    let pairs = Category::ALL.iter().zip(bytes);
    Value::Object(pairs.map(|(c, &b)| (c.name().into(), b.into())).collect())
}

fn parts(seconds: &[f64; Part::ALL.len()]) -> Value {
    let pairs = Part::ALL.iter().zip(seconds);
    Value::Object(pairs.map(|(p, &s)| (p.name().into(), s.into())).collect())
}

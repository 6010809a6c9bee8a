//! The plan on one screen: at most 100 columns and some 45 lines.

use super::format::{bar, bytes, cut, gain, grouped, short, wrapped};
use super::{Report, component_name};
use crate::remedy::{Change, Remedy, split_name};
use crate::verdict::DecodeStep;
use crate::{LiveTokens, RankPlan, WeightScheme};

const WIDTH: usize = 98;
const BAR: usize = 30;
/// Remedies that are shown; the rest is in the JSON.
const REMEDIES: usize = 6;
/// Rows of the placement that are shown.
const PLACED: usize = 6;

impl Report<'_> {
    /// One screen.
    pub fn text(&self) -> String {
        let mut out = self.headline();
        if let Some(rank) = self.tightest() {
            out += &self.memory(rank);
        }
        out += &self.layers();
        let word = if self.plan.verdict.fits {
            "FITS"
        } else {
            "DOES NOT FIT"
        };
        out += &format!("\nVerdict: {word}\n");
        out += &wrapped(&self.plan.verdict.explanation, WIDTH, "  ");
        out += &self.rates();
        out += &self.remedies();
        out
    }

    fn headline(&self) -> String {
        let deployment = &self.plan.setup.deployment;
        let workload = &self.plan.setup.workload;
        let split = match deployment.parallel.devices() {
            0 | 1 => String::new(),
            _ => format!(", {}", split_name(&deployment.parallel)),
        };
        let active = self.shape.active_params();
        let total = self.shape.total_params();
        let active = if active < total {
            format!(", {} active", short(active as f64))
        } else {
            String::new()
        };
        let weights = match &deployment.weights {
            WeightScheme::Released => String::new(),
            other => format!(", weights {}", other.label()),
        };
        let head = format!(
            "{} on {}, {}{split}: {} parameters{active}{weights}",
            self.model,
            self.machine(),
            deployment.engine.name(),
            short(total as f64)
        );
        let mut out = wrapped(&head, WIDTH, "");
        let LiveTokens {
            mean,
            p95,
            needed,
            guide,
            worst,
            ..
        } = workload.live_tokens();
        let known = match workload.output {
            Some(_) => format!(
                "mean {}, p95 {}, worst {}",
                short(mean),
                short(p95),
                short(worst)
            ),
            None => "worst case".to_owned(),
        };
        let holds = format!(
            "{} sequences of ≤ {} tokens hold {} KV tokens ({known}; max_tokens × 1.5: {})",
            workload.concurrency,
            grouped(workload.context),
            short(needed),
            short(guide)
        );
        out += &wrapped(&holds, WIDTH, "");
        out
    }

    fn memory(&self, rank: &RankPlan) -> String {
        let which = match self.plan.setup.deployment.parallel.devices() {
            0 | 1 => rank.device.name.clone(),
            n if self.plan.prediction.ranks.len() > 1 => {
                format!("the tightest of {n} × {}", rank.device.name)
            }
            n => format!("each of {n} × {}", rank.device.name),
        };
        let mut out = format!(
            "\nMemory of {which}: {} of {} may be used\n",
            bytes(rank.budget_bytes as f64),
            bytes(rank.device.total_bytes as f64)
        );
        let whole = rank.budget_bytes.max(1) as f64;
        let mut line = |name: &str, size: u64, more: &str| {
            let share = size as f64 / whole;
            let bar = bar(share, BAR);
            let size = bytes(size as f64);
            let text = format!(
                "  {name:<17} {bar} {size:>9} {:>4.0} %  {more}",
                share * 100.0
            );
            out += text.trim_end();
            out.push('\n');
        };
        for used in Self::uses(rank) {
            if used.bytes == 0 {
                continue;
            }
            line(used.name, used.bytes, "");
            if used.name == "weights" {
                for (component, size) in largest(rank) {
                    line(&format!("  {}", component_name(component)), size, "");
                }
            }
        }
        let prediction = &self.plan.prediction;
        line(
            "KV cache",
            rank.kv_pool_bytes,
            &format!(
                "{} blocks of {}",
                grouped(rank.kv_blocks),
                prediction.block_size
            ),
        );
        let capacity = &self.plan.verdict.capacity;
        let missing = match capacity.short_bytes {
            0 => "to spare".to_owned(),
            short => format!("{} short", bytes(short as f64)),
        };
        line("KV cache needed", capacity.kv_needed_bytes, &missing);
        if rank.offloaded_bytes > 0 {
            line(
                "in host memory",
                rank.offloaded_bytes,
                "of this device's weights",
            );
        }
        out += &format!(
            "  {} KV tokens on all, {} × {} tokens at once; longest sequence {}\n",
            grouped(prediction.kv_tokens),
            trimmed(prediction.max_concurrency),
            grouped(prediction.max_model_len),
            grouped(capacity.max_context)
        );
        let reason = format!(
            "{} B a token ({})",
            grouped(self.kv_bytes_per_token()),
            self.kv_reason()
        );
        out + &wrapped(&reason, WIDTH, "  ")
    }

    fn layers(&self) -> String {
        let mut out = "\nPlacement           layers         wish                device      host\n"
            .to_owned();
        let rows = &self.placement.rows;
        for row in rows.iter().take(PLACED) {
            let layers = match row.layers {
                Some((first, last)) if first == last => format!("{first}"),
                Some((first, last)) => format!("{first}–{last}"),
                None => "–".to_owned(),
            };
            let size = |b: u64| match b {
                0 => "–".to_owned(),
                b => bytes(b as f64),
            };
            out += &format!(
                "  {:<17} {layers:<13}  {:<16} {:>9} {:>9}\n",
                row.class.name(),
                row.wish.name(),
                size(row.device_bytes),
                size(row.host_bytes)
            );
        }
        if rows.len() > PLACED {
            out += &format!("  … {} more rows in --json\n", rows.len() - PLACED);
        }
        if self.placement.missing_bytes > 0 {
            out += &format!(
                "  {} of always_device have no room\n",
                bytes(self.placement.missing_bytes as f64)
            );
        }
        out
    }

    fn rates(&self) -> String {
        let bandwidth = &self.plan.verdict.bandwidth;
        let mut out = format!(
            "\nDecode at most      {:>14} {:>14} {:>14} {:>12} {:>10}\n",
            "weights read", "KV read", "links (est.)", "step", "tokens/s"
        );
        let steps: &[&DecodeStep] = if bandwidth.loaded.batch > 1.0 {
            &[&bandwidth.single, &bandwidth.loaded]
        } else {
            &[&bandwidth.single]
        };
        for step in steps {
            out += &format!(
                "  batch {:<11} {:>14} {:>14} {:>14} {:>12} {:>10}\n",
                step.batch,
                bytes(step.weight_bytes + step.host_bytes),
                bytes(step.kv_bytes),
                milliseconds(step.link_seconds),
                milliseconds(step.seconds),
                rate(step.tokens_per_s)
            );
        }
        let compute = match bandwidth.compute_bound_batch {
            Some(batch) => format!("compute-bound from batch {}", grouped(batch)),
            None => "never compute-bound at this context".to_owned(),
        };
        let prefill = match bandwidth.prefill_tokens_per_s {
            r if r > 0.0 => format!("prefill at most {} tokens/s; ", short(r)),
            _ => String::new(),
        };
        out += &format!("  {prefill}decode {compute}\n");
        out
    }

    fn remedies(&self) -> String {
        let advice = self.advice;
        let mut out = String::new();
        if !advice.remedies.is_empty() {
            out += &format!(
                "\nRemedies (✓ meets the workload)       {:>9} {:>9} {:>6} {:>7}  quality\n",
                "saves", "tokens", "seqs", "decode"
            );
        }
        for (at, remedy) in advice.remedies.iter().take(REMEDIES).enumerate() {
            out += &remedy_row(&(at + 1).to_string(), remedy);
        }
        if advice.remedies.len() > REMEDIES {
            out += &format!("  … {} more in --json\n", advice.remedies.len() - REMEDIES);
        }
        if let Some(first) = advice.remedies.first() {
            out += &wrapped(&format!("1: {}", first.flags.join(" ")), WIDTH, "  ");
        }
        if let Some(best) = &advice.combination {
            let single = best.changes.len() == 1;
            let what = if single { "Best" } else { "Best combination" };
            out += &format!("{what} that meets the workload: {}\n", best.name);
            if !(single
                && advice
                    .remedies
                    .first()
                    .is_some_and(|r| r.flags == best.flags))
            {
                out += &wrapped(&best.flags.join(" "), WIDTH, "  ");
            }
        }
        if !advice.hardware.is_empty() {
            let names = advice.hardware.iter().map(|r| {
                let split = split_name(&r.setup.deployment.parallel);
                format!("{} ({split})", r.name)
            });
            let names: Vec<String> = names.collect();
            out += &wrapped(
                &format!("Machines that meet it: {}", names.join("; ")),
                WIDTH,
                "",
            );
        } else if !self.plan.verdict.fits && advice.combination.is_none() {
            out += "Nothing in the catalogue meets it: ask for less context or fewer sequences\n";
        }
        out
    }
}

fn remedy_row(number: &str, remedy: &Remedy) -> String {
    let mark = if remedy.settles { "✓" } else { " " };
    format!(
        "{number:>2} {mark} {:<32} {:>9} {:>9} {:>6} {:>6.2}×  {}\n",
        cut(&remedy.name, 32),
        gain(remedy.saves_bytes as f64, bytes),
        gain(remedy.gains_tokens as f64, short),
        gain(remedy.gains_sequences as f64, short),
        remedy.decode_speedup,
        quality(remedy)
    )
}

/// What it costs, in a word or two.
fn quality(remedy: &Remedy) -> String {
    let cuts = |c: &Change| matches!(c, Change::Context(_));
    match remedy.quality_retained {
        _ if remedy.changes.iter().any(cuts) => "long chains are cut".to_owned(),
        Some(1.0) => "same values".to_owned(),
        Some(retained) => format!("{:.1} % of R1's scores", retained * 100.0),
        None => "not measured".to_owned(),
    }
}

/// The three largest components of a rank.
fn largest(rank: &RankPlan) -> Vec<(crate::Component, u64)> {
    let mut parts: Vec<_> = rank
        .weights
        .iter()
        .copied()
        .filter(|(_, b)| *b > 0)
        .collect();
    parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    parts.truncate(3);
    parts
}

fn milliseconds(seconds: f64) -> String {
    match seconds * 1e3 {
        ms if ms >= 99.95 => format!("{ms:.0} ms"),
        ms if ms >= 9.995 => format!("{ms:.1} ms"),
        ms => format!("{ms:.2} ms"),
    }
}

fn rate(per_s: f64) -> String {
    match per_s {
        r if r >= 99.95 => format!("{r:.0}"),
        r => format!("{r:.1}"),
    }
}

fn trimmed(count: f64) -> String {
    match count {
        c if c >= 100.0 => format!("{c:.0}"),
        c => format!("{c:.2}"),
    }
}

//! A remedy put to the test: this program once more, with the remedy's flags.

use std::env;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use scrimp_memory::Category;
use serde_json::Value;

use super::remedy::Remedy;
use super::report::Report;

/// The figures that are compared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Most bytes resident.
    pub peak_rss_bytes: usize,
    /// Bytes of cache that were written.
    pub kv_cache_bytes: usize,
    /// Bytes of scratch.
    pub activations_bytes: usize,
    /// Tokens a second of decoding.
    pub decode_tokens_per_s: f64,
    /// Seconds of computing prompts.
    pub prefill_s: f64,
}

/// Before, foretold and after.
pub struct Applied {
    /// Its place in the list, from 1.
    pub number: usize,
    /// Without the remedy.
    pub before: Figures,
    /// What was foretold.
    pub predicted: Figures,
    /// With it.
    pub after: Figures,
    /// Problems answered right, before and after, where that is known.
    pub right: Option<(usize, usize)>,
    /// Problems.
    pub problems: usize,
    /// Whether every answer is the same text, chain of thought included.
    pub same_text: bool,
}

/// Runs remedy `number` of the report, from 1; 0 is the best one.
pub fn apply(number: usize, report: &Report<'_>) -> Result<Applied> {
    let remedies = report.remedies;
    ensure!(
        !remedies.is_empty(),
        "there is no remedy to apply: nothing that can be changed here would save or gain anything"
    );
    ensure!(
        number <= remedies.len(),
        "--apply {number}: there are {} remedies",
        remedies.len()
    );
    let number = number.max(1);
    let remedy = &remedies[number - 1];
    crate::terminal::note(&format!("applying {}: {}", remedy.name, remedy.change));
    let json = rerun(remedy)?;
    let text = |request: &Value| (request["reasoning"].clone(), request["answer"].clone());
    let answers = json["request"]["answers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let same_text = answers.len() == report.measured.answers.len()
        && answers
            .iter()
            .zip(&report.measured.answers)
            .all(|(then, now)| {
                text(then) == (now.reasoning.clone().into(), now.text.clone().into())
            });
    let right = report.task.right(&report.measured.answers);
    let then = json["request"]["correct"].as_u64().map(|n| n as usize);
    Ok(Applied {
        number,
        before: before(report),
        predicted: predicted(remedy),
        after: figures(&json)?,
        right: right.zip(then),
        problems: report.task.problems.len(),
        same_text,
    })
}

/// This very command, the remedy's flags appended: later ones win.
fn rerun(remedy: &Remedy) -> Result<Value> {
    let program = env::current_exe().context("finding this program")?;
    let output = Command::new(program)
        .args(env::args_os().skip(1))
        .args(&remedy.flags)
        .args(["--json", "--measure-only"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("starting this program again")?;
    if !output.status.success() {
        bail!("the run with the remedy failed: {}", output.status);
    }
    serde_json::from_slice(&output.stdout).context("reading the second run's report")
}

fn measured_bytes(report: &Report<'_>, wanted: Category) -> usize {
    let all = report.measured.by_category();
    let found = all.into_iter().find(|(category, ..)| *category == wanted);
    found.map_or(0, |(_, _, measured)| measured)
}

fn before(report: &Report<'_>) -> Figures {
    Figures {
        peak_rss_bytes: report.measured.peak_rss,
        kv_cache_bytes: measured_bytes(report, Category::KvCache),
        activations_bytes: measured_bytes(report, Category::Activations),
        decode_tokens_per_s: report.measured.decode().rate(),
        prefill_s: report.measured.prefill().seconds,
    }
}

fn predicted(remedy: &Remedy) -> Figures {
    Figures {
        peak_rss_bytes: remedy.peak_bytes,
        kv_cache_bytes: remedy.kv_bytes,
        activations_bytes: remedy.plan.activations_bytes,
        decode_tokens_per_s: remedy.decode_rate,
        prefill_s: remedy.prefill_seconds,
    }
}

fn figures(json: &Value) -> Result<Figures> {
    let bytes = |name: &str| -> Result<usize> {
        let found = json["peak"][name].as_u64();
        let found = found.with_context(|| format!("the second run's report has no peak.{name}"))?;
        Ok(found as usize)
    };
    let rate = |name: &str| json["speed"][name].as_f64().unwrap_or(0.0);
    Ok(Figures {
        peak_rss_bytes: bytes("rss_bytes")?,
        kv_cache_bytes: bytes("kv_cache_bytes")?,
        activations_bytes: bytes("activations_bytes")?,
        decode_tokens_per_s: rate("decode_tokens_per_s"),
        prefill_s: rate("prefill_s"),
    })
}

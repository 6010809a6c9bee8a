//! What a start-up log of vLLM, SGLang or llama.cpp says about memory: `scrimp plan --check-log`.
//!
//! [`explain`] finds the lines, in the wordings of several releases, and says of each figure what
//! it is. [`LogReport::against`] plans the same run for a given model and puts both side by side.

mod lines;
mod settings;

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::check::{self, Quantity};
use crate::{EngineKind, Error, ModelShape};
use lines::{LINES, Line};

/// Longest log that is read, in bytes.
const MAX_LOG: usize = 256 << 20;
/// Longest line that is looked at, in bytes.
const MAX_LINE: usize = 1 << 16;
const GIB: f64 = (1u64 << 30) as f64;

/// A figure of the log.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogEntry {
    /// Line number, from 1.
    pub line: usize,
    /// Name, as in `plan --check`: `weights_gib`, `kv_tokens`.
    pub name: String,
    /// Value, in the unit that the name ends with.
    pub value: f64,
    /// The same in GiB, where it is a size.
    pub gib: Option<f64>,
    /// Which device, buffer or rank, where the line says.
    pub on: Option<String>,
    /// What it is.
    pub meaning: &'static str,
}

/// A log, read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogReport {
    /// `vllm`, `sglang` or `llama.cpp`.
    pub engine: String,
    /// Its version, where the log says.
    pub version: Option<String>,
    /// The model's name or path, where the log says.
    pub model: Option<String>,
    /// Settings that the log says, by their names in `plan --check`.
    pub settings: BTreeMap<String, serde_json::Value>,
    /// Every figure found, in the log's order; of ranks that print the same, the first.
    pub entries: Vec<LogEntry>,
    /// What adds up to what, in words with numbers.
    pub explanation: Vec<String>,
}

/// Reads a log.
///
/// # Errors
/// It is longer than 256 MiB, or no line of an engine that is known is in it.
pub fn explain(text: &str) -> Result<LogReport, Error> {
    let wrong = |what: String| Error::Setting {
        setting: "--check-log",
        what,
    };
    if text.len() > MAX_LOG {
        return Err(wrong(format!(
            "it has {} bytes, and at most {MAX_LOG} are read",
            text.len()
        )));
    }
    let mut found: Vec<(EngineKind, LogEntry)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = clean(line);
        for pattern in LINES {
            read(pattern, index + 1, &line, &mut found);
        }
    }
    let Some(engine) = most_frequent(&found) else {
        return Err(wrong(
            "no line about memory was recognised: vLLM prints \"Model loading took\", SGLang \
             \"Load weight end\", llama.cpp \"model buffer size\" (give it -lv 4 or -v)"
                .to_owned(),
        ));
    };
    let mut entries: Vec<LogEntry> = Vec::new();
    for (kind, entry) in found {
        // Ranks print the same line each; llama.cpp's buffers are each their own.
        let same = |e: &LogEntry| e.name == entry.name && e.on == entry.on;
        if kind == engine && !entries.iter().any(same) {
            entries.push(entry);
        }
    }
    let mut report = LogReport {
        engine: lines::engine_name(engine).to_owned(),
        version: None,
        model: None,
        settings: BTreeMap::new(),
        entries,
        explanation: Vec::new(),
    };
    settings::read(text, engine, &mut report);
    report.explanation = sums(engine, &report);
    Ok(report)
}

/// A line without colours, cut to a sensible length.
fn clean(line: &str) -> String {
    let mut out = String::with_capacity(line.len().min(MAX_LINE));
    let mut escaped = false;
    for c in line.chars() {
        match (escaped, c) {
            (false, '\u{1b}') => escaped = true,
            (true, c) if c.is_ascii_alphabetic() => escaped = false,
            (true, _) => {}
            (false, c) => out.push(c),
        }
        if out.len() >= MAX_LINE {
            break;
        }
    }
    out
}

/// Figures of one line under one pattern.
fn read(pattern: &Line, number: usize, line: &str, found: &mut Vec<(EngineKind, LogEntry)>) {
    if !line.contains(pattern.contains) {
        return;
    }
    let Some(captures) = pattern.regex().and_then(|regex| regex.captures(line)) else {
        return;
    };
    let on = captures.name("on").map(|m| m.as_str().to_owned());
    for (group, name, meaning) in pattern.figures {
        let Some(text) = captures.name(group) else {
            continue;
        };
        let Ok(value) = text.as_str().replace(',', "").parse::<f64>() else {
            continue;
        };
        let gib = match name.rsplit('_').next() {
            Some("gib" | "gb") => Some(value),
            Some("mib") => Some(value / 1024.0),
            Some("bytes") => Some(value / GIB),
            _ => None,
        };
        let entry = LogEntry {
            line: number,
            name: (*name).to_owned(),
            value,
            gib,
            on: on.clone(),
            meaning,
        };
        found.push((pattern.engine, entry));
    }
}

fn most_frequent(found: &[(EngineKind, LogEntry)]) -> Option<EngineKind> {
    let count = |kind| found.iter().filter(|(k, _)| *k == kind).count();
    [EngineKind::Vllm, EngineKind::Sglang, EngineKind::LlamaCpp]
        .into_iter()
        .map(|kind| (count(kind), kind))
        .filter(|(n, _)| *n > 0)
        .max_by_key(|(n, _)| *n)
        .map(|(_, kind)| kind)
}

impl LogReport {
    /// The first figure of this name.
    pub fn figure(&self, name: &str) -> Option<f64> {
        self.entries
            .iter()
            .find(|e| e.name == name)
            .map(|e| e.value)
    }

    /// Sum of the figures of this name over buffers and devices.
    pub fn total(&self, name: &str) -> Option<f64> {
        let mut values = self
            .entries
            .iter()
            .filter(|e| e.name == name)
            .map(|e| e.value);
        let first = values.next()?;
        Some(first + values.sum::<f64>())
    }

    /// Plans the run that the log describes, for this model, and pairs what is predicted with what
    /// is in the log. `extra` settings (as in `plan --check`, such as `gpu` or `tp`) count before
    /// those that the log gives.
    ///
    /// # Errors
    /// The log (with `extra`) does not say on what the engine ran, or the plan has an error.
    pub fn against(
        &self,
        shape: &ModelShape,
        extra: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Vec<Quantity>, Error> {
        let mut setting: serde_json::Map<String, serde_json::Value> = self
            .settings
            .iter()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        setting.extend(extra.iter().map(|(k, v)| (k.clone(), v.clone())));
        let mut recorded = serde_json::Map::new();
        for entry in &self.entries {
            let value = self.total(&entry.name).unwrap_or(entry.value);
            recorded.insert(entry.name.clone(), value.into());
        }
        check::compare_startup(shape, &setting, &recorded)
    }
}

/// What adds up to what.
fn sums(engine: EngineKind, report: &LogReport) -> Vec<String> {
    match engine {
        EngineKind::Vllm => vllm_sums(report),
        EngineKind::Sglang => sglang_sums(report),
        _ => llama_sums(report),
    }
}

fn vllm_sums(report: &LogReport) -> Vec<String> {
    let mut lines = Vec::new();
    let figure = |name: &str| report.figure(name);
    let budget = figure("budget_gib").or_else(|| {
        let total = report.settings.get("total_gpu_gib")?.as_f64()?;
        Some(total * report.settings.get("gpu_memory_utilization")?.as_f64()?)
    });
    let weights = figure("weights_gib");
    let kv = figure("kv_gib");
    if let (Some(budget), Some(weights), Some(kv)) = (budget, weights, kv) {
        let rest = budget - weights - kv;
        lines.push(format!(
            "budget {budget:.2} GiB = weights {weights:.2} + KV cache {kv:.2} + {rest:.2} for the \
             profiled forward pass, libraries and communicators"
        ));
        if let (Some(peak), Some(other)) = (figure("activation_peak_gib"), figure("non_torch_gib"))
        {
            lines.push(format!(
                "of those {rest:.2} GiB, {peak:.2} are the forward pass and sampler, {other:.2} \
                 what torch does not count; {:.2} are left over",
                rest - peak - other
            ));
        }
    }
    if let (Some(kv), Some(tokens)) = (kv, figure("kv_tokens").filter(|t| *t > 0.0)) {
        lines.push(format!(
            "{tokens:.0} tokens in {kv:.2} GiB are {:.0} bytes a token on a rank",
            kv * GIB / tokens
        ));
    }
    if let Some(graphs) = figure("cuda_graph_gib") {
        lines.push(format!(
            "captured graphs took {graphs:.2} GiB; before 0.21 they come on top of the budget"
        ));
    }
    lines
}

fn sglang_sums(report: &LogReport) -> Vec<String> {
    let mut lines = Vec::new();
    let figure = |name: &str| report.figure(name);
    if let (Some(before), Some(after)) = (
        figure("avail_before_load_gb"),
        figure("avail_after_load_gb"),
    ) {
        lines.push(format!(
            "loading took {:.2} GiB of the {before:.2} that were free, in segments of 2 MiB",
            before - after
        ));
        let fraction = report
            .settings
            .get("mem_fraction_static")
            .and_then(|v| v.as_f64());
        if let Some(fraction) = fraction {
            lines.push(format!(
                "of the {after:.2} GiB left, {:.2} are kept for forward passes and graphs (1 - \
                 {fraction} of {before:.2}), so {:.2} go to the KV cache",
                before * (1.0 - fraction),
                after - before * (1.0 - fraction)
            ));
        }
    }
    let pool = match (figure("k_gb"), figure("v_gb")) {
        (Some(k), Some(v)) => Some(k + v),
        _ => figure("kv_gb"),
    };
    if let (Some(pool), Some(tokens)) = (pool, figure("kv_tokens").filter(|t| *t > 0.0)) {
        lines.push(format!(
            "{tokens:.0} tokens in {pool:.2} GiB are {:.0} bytes a token on a rank",
            pool * GIB / tokens
        ));
    }
    if let (Some(loaded), Some(pool), Some(after)) = (
        figure("avail_after_load_gb"),
        pool,
        figure("avail_after_pool_gb"),
    ) {
        lines.push(format!(
            "{:.2} GiB more than the KV cache went with it: the table of requests' tokens",
            loaded - pool - after
        ));
    }
    lines
}

fn llama_sums(report: &LogReport) -> Vec<String> {
    let names = [
        ("model_buffer_mib", "weights"),
        ("kv_buffer_mib", "KV cache"),
        ("recurrent_state_mib", "recurrent states"),
        ("compute_buffer_mib", "compute buffers"),
        ("output_buffer_mib", "logits of sampled tokens"),
    ];
    let mut devices: Vec<&str> = report
        .entries
        .iter()
        .filter_map(|e| e.on.as_deref())
        .collect();
    devices.sort_unstable();
    devices.dedup();
    let mut lines = Vec::new();
    for device in devices {
        let parts: Vec<(f64, &str)> = names
            .iter()
            .filter_map(|(name, what)| {
                let own = report
                    .entries
                    .iter()
                    .filter(|e| e.name == *name && e.on.as_deref() == Some(device));
                let sum: f64 = own.map(|e| e.value).sum();
                (sum > 0.0).then_some((sum, *what))
            })
            .collect();
        if parts.is_empty() {
            continue;
        }
        let sum: f64 = parts.iter().map(|p| p.0).sum();
        let list: Vec<String> = parts
            .iter()
            .map(|(v, what)| format!("{what} {v:.2}"))
            .collect();
        lines.push(format!("{device}: {sum:.2} MiB = {}", list.join(" + ")));
    }
    lines
}

impl fmt::Display for LogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = self
            .on
            .as_deref()
            .map(|on| format!(" on {on}"))
            .unwrap_or_default();
        write!(
            f,
            "line {}: {} = {}{on}: {}",
            self.line, self.name, self.value, self.meaning
        )
    }
}

#[cfg(test)]
mod tests;

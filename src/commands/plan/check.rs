//! `scrimp plan --check` and `--check-log`: predictions held against what was recorded.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use scrimp_plan::check::{self, CaseReport, CheckReport, Quantity};
use scrimp_plan::log::{self, LogReport};
use serde_json::Value;

use super::args::PlanArgs;
use super::model;
use crate::terminal;

/// Predicts every recorded case. Keys that a case's config lacks come from the model's published
/// config, as for a model that is planned by name, unless `as_given`.
pub fn cases(file: &Path, as_given: bool, json: bool) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let cases: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is no JSON", file.display()))?;
    if !cases.is_array() && !cases["cases"].is_array() {
        bail!(
            "{} has to be a list of cases, or an object with `cases`",
            file.display()
        );
    }
    let report = match as_given {
        true => check::run(&cases),
        false => check::run_completed(&cases),
    };
    if json {
        let text = serde_json::to_string_pretty(&report)?;
        return Ok(terminal::print(&format!("{text}\n"))?);
    }
    Ok(terminal::print(&table(&report))?)
}

fn table(report: &CheckReport) -> String {
    let cells = |cells: [&str; 5]| cells.map(str::to_owned).to_vec();
    let mut rows = vec![cells([
        "case",
        "quantity",
        "predicted",
        "recorded",
        "error",
    ])];
    for case in &report.cases {
        rows.extend(of_case(case));
    }
    let mut text = terminal::table(&rows);
    let mut rows = vec![cells([
        "summary",
        "engine",
        "cases",
        "median error",
        "max error",
    ])];
    for line in &report.summary {
        rows.push(vec![
            line.quantity.clone(),
            line.engine.clone(),
            line.cases.to_string(),
            percent(line.median_error),
            percent(line.max_error),
        ]);
    }
    text.push('\n');
    text + &terminal::table(&rows)
}

fn of_case(case: &CaseReport) -> Vec<Vec<String>> {
    if let Some(why) = &case.skipped {
        let mut row = vec![case.id.clone(), format!("skipped: {why}")];
        row.resize(5, String::new());
        return vec![row];
    }
    let quantities = case.quantities.iter().enumerate();
    quantities
        .map(|(at, quantity)| {
            vec![
                if at == 0 {
                    case.id.clone()
                } else {
                    String::new()
                },
                quantity.name.clone(),
                figure(quantity.predicted),
                figure(quantity.recorded),
                percent(quantity.relative_error),
            ]
        })
        .collect()
}

fn percent(error: f64) -> String {
    format!("{:.2} %", error * 100.0)
}

fn figure(value: f64) -> String {
    if value.fract().abs() < 1e-9 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

/// Explains a log, and holds it against the plan of the model, where one is named.
pub fn explain_log(file: &Path, args: &PlanArgs) -> Result<()> {
    let text = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let report = log::explain(&String::from_utf8_lossy(&text))
        .with_context(|| format!("explaining {}", file.display()))?;
    let quantities = match &args.model {
        Some(model) => against(&report, model, args)?,
        None => Vec::new(),
    };
    if args.json {
        let json = serde_json::json!({"log": report, "quantities": quantities});
        return Ok(terminal::print(&format!("{json:#}\n"))?);
    }
    Ok(terminal::print(&log_text(&report, &quantities))?)
}

/// The log's figures as the plan predicts them; the command line says what the log does not.
fn against(report: &LogReport, model: &str, args: &PlanArgs) -> Result<Vec<Quantity>> {
    let mut extra = serde_json::Map::new();
    if args.machine.device != "auto" {
        let (device, _) = scrimp_plan::Device::parse(&args.machine.device)?;
        extra.insert("gpu".to_owned(), device.name.into());
    }
    let ranks = [
        ("tp", args.engine.tp),
        ("pp", args.engine.pp),
        ("dp", args.engine.dp),
    ];
    for (name, ranks) in ranks {
        if let Some(ranks) = ranks {
            extra.insert(name.to_owned(), ranks.into());
        }
    }
    if let Some(context) = args.workload.context {
        extra.insert("max_model_len".to_owned(), context.into());
    }
    let shape = model::find(model)?.shape;
    Ok(report.against(&shape, &extra)?)
}

fn log_text(report: &LogReport, quantities: &[Quantity]) -> String {
    let mut text = report.engine.clone();
    if let Some(version) = &report.version {
        text += &format!(" {version}");
    }
    if let Some(model) = &report.model {
        text += &format!(", {model}");
    }
    text.push('\n');
    let mut rows = vec![
        ["figure", "value", "GiB", "line", "meaning"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for entry in &report.entries {
        let name = match &entry.on {
            Some(on) => format!("{} ({on})", entry.name),
            None => entry.name.clone(),
        };
        rows.push(vec![
            name,
            figure(entry.value),
            entry
                .gib
                .map_or_else(String::new, |gib| format!("{gib:.2}")),
            entry.line.to_string(),
            entry.meaning.to_owned(),
        ]);
    }
    text += &left_last(&rows);
    for line in &report.explanation {
        text += line;
        text.push('\n');
    }
    if !quantities.is_empty() {
        let head = ["quantity", "predicted", "in the log", "error"].map(str::to_owned);
        let mut rows = vec![head.to_vec()];
        rows.extend(quantities.iter().map(|q| {
            vec![
                q.name.clone(),
                figure(q.predicted),
                figure(q.recorded),
                percent(q.relative_error),
            ]
        }));
        text.push('\n');
        text += &terminal::table(&rows);
    }
    text
}

/// A table whose last column is text, flush left.
fn left_last(rows: &[Vec<String>]) -> String {
    let numbers: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row[..row.len() - 1].to_vec())
        .collect();
    let lines = terminal::table(&numbers);
    let width = lines
        .lines()
        .map(|line| line.chars().count())
        .max()
        .unwrap_or(0);
    let ends = rows.iter().filter_map(|row| row.last());
    let lines = lines.lines().zip(ends);
    lines
        .map(|(line, end)| format!("{line:<width$}  {end}\n"))
        .collect()
}

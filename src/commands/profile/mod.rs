//! `scrimp profile`: a real request, what it took step by step, what binds it, and what would help.
//!
//! Every figure comes in two: what the plan said before, and what was measured. A remedy is a
//! change of settings, judged by planning again; `--apply` starts this program once more with it,
//! so that what is measured afterwards starts from as clean a process as before.

mod apply;
mod html;
mod probe;
mod record;
mod remedy;
mod report;
mod svg;
mod task;
mod terminal;
mod verdict;

use std::fs;

use anyhow::{Context, Result};

use crate::args::ProfileArgs;
use crate::launch::Settings;
use crate::opened;

/// Measures, judges and reports.
pub fn profile(args: &ProfileArgs) -> Result<()> {
    let model = args.named.as_ref().unwrap_or(&args.model.model);
    let opened = opened::open(model)?;
    let task = task::Task::new(args, &opened)?;
    let mut settings = Settings::new(&args.model, &args.cache);
    settings.service_bytes = record::BYTES;
    let measured = record::measure(&opened, &settings, &task)?;
    let verdict = verdict::Verdict::of(&opened.config, &measured);
    let remedies = remedy::rank(&opened, &settings, &task, &measured)?;
    let mut report = report::Report {
        opened: &opened,
        settings: &settings,
        task: &task,
        measured: &measured,
        verdict: &verdict,
        remedies: &remedies,
        applied: None,
    };
    if let Some(number) = args.apply.filter(|_| !args.measure_only) {
        report.applied = Some(apply::apply(number, &report)?);
    }
    if let Some(path) = args.html.as_ref().filter(|_| !args.measure_only) {
        fs::write(path, html::page(&report))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    crate::terminal::print(&match args.json {
        true => format!("{}\n", report.json()),
        false => terminal::text(&report),
    })?;
    Ok(())
}

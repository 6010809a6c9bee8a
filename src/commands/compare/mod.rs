//! `scrimp compare`: the schemes of `scrimp quantize` beside the model itself, in one table that is
//! measured.
//!
//! Nothing is quantized, evaluated or timed here. Each step is this very program started once more:
//! `quantize`, `eval --text`, `eval --task reasoning`, `bench`, all with `--json`. So the figures are
//! those that a person gets from these commands, every step has a memory budget and a ledger of its
//! own, the peak of one step holds nothing that another left behind, and a scheme that fails, or
//! that the system kills, is a row that says why.

pub mod args;
mod child;
mod html;
mod measure;
mod report;
mod setup;
mod terminal;

use std::fs;

use anyhow::{Context, Result};

use crate::opened;
use args::CompareArgs;
use setup::Setup;

/// Makes, measures and reports.
pub fn compare(args: &CompareArgs) -> Result<()> {
    let opened = opened::open(args.model_name())?;
    let setup = Setup::new(args, &opened)?;
    // What is mapped of the model would count in nobody's peak, but it is memory all the same.
    drop(opened);
    let report = measure::measure(args, &setup)?;
    if let Some(path) = &args.html {
        fs::write(path, html::page(&report))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    crate::terminal::print(&match args.json {
        true => format!("{}\n", report.json()?),
        false => terminal::text(&report),
    })?;
    Ok(())
}

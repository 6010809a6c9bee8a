//! `scrimp plan`: what a model needs on a machine, what binds it, and what to do about it.

pub mod args;
mod check;
mod model;
mod setup;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use scrimp_plan::emit::{Target, emit};
use scrimp_plan::placement::{Policy, place};
use scrimp_plan::remedy::{Evaluated, advise, evaluate};
use scrimp_plan::report::Report;
use scrimp_plan::{Component, ModelShape, WeightScheme, catalogue, devices};

use crate::terminal;
use args::{ListArg, PlanArgs};

/// Plans, or checks how well planning works.
pub fn plan(args: &PlanArgs) -> Result<()> {
    if let Some(what) = args.list {
        return list(what);
    }
    if let Some(file) = &args.check {
        return check::cases(file, args.as_given, args.json);
    }
    if let Some(file) = &args.check_log {
        return check::explain_log(file, args);
    }
    let found = model::find(args.model.as_deref().unwrap_or_default())?;
    let setup = setup::setup(args, &found.shape)?;
    let policy = Policy::parse(&args.engine.placement)?;
    let target = args.emit.as_deref().map(Target::parse).transpose()?;
    let plan = evaluate(&found.shape, &setup)?;
    warn(&found.shape, &plan);
    // A file is loaded from where it is, a catalogue's model by its published name.
    let given = args.model.as_deref().unwrap_or_default();
    let model = match Path::new(given).exists() {
        true => given,
        false => found.name.as_str(),
    };
    if let Some(target) = target
        && !args.json
        && args.html.is_none()
    {
        let text = emit(target, model, &found.shape, &plan)?;
        if !plan.verdict.fits {
            terminal::note(&format!("warning: {}", plan.verdict.explanation));
        }
        return Ok(terminal::print(&text)?);
    }
    let target = target.or_else(|| own_target(&plan));
    let advice = advise(&found.shape, &plan)?;
    let room = room_for_weights(&found.shape, &plan);
    let report = Report {
        model: &found.name,
        shape: &found.shape,
        plan: &plan,
        advice: &advice,
        placement: &place(&found.shape, &setup.deployment.weights, &policy, room),
        command: target
            .map(|target| emit(target, model, &found.shape, &plan))
            .transpose()?,
    };
    if let Some(file) = &args.html {
        fs::write(file, report.html()).with_context(|| format!("writing {}", file.display()))?;
        terminal::note(&format!("report written to {}", file.display()));
    }
    if args.json {
        terminal::print(&format!("{:#}\n", report.json()))?;
    } else {
        terminal::print(&report.text())?;
        terminal::note(&format!("shape: {}", found.source));
    }
    Ok(())
}

fn own_target(plan: &Evaluated) -> Option<Target> {
    Target::parse(plan.setup.deployment.engine.kind.name()).ok()
}

/// Bytes that all devices together have for weights: all of them, less what is left in host memory
/// or is over the budget. (A short KV cache moves no weights by itself: that is a remedy.)
fn room_for_weights(shape: &ModelShape, plan: &Evaluated) -> u64 {
    let deployment = &plan.setup.deployment;
    let bytes = shape.bytes_under(&deployment.weights);
    let groups = shape.tensors.iter().zip(bytes);
    let loaded = groups.filter(|(group, _)| group.component != Component::Mtp);
    let all: u64 = loaded.map(|(_, bytes)| bytes.total()).sum();
    let parallel = &deployment.parallel;
    let alike = u64::from(parallel.tp.max(1)) * u64::from(parallel.dp.max(1));
    let ranks = plan.prediction.ranks.iter();
    let gone: u64 = ranks.map(|r| r.offloaded_bytes + r.missing_bytes).sum();
    all.saturating_sub(gone.saturating_mul(alike))
}

/// What does not stop a plan, but should be known.
fn warn(shape: &ModelShape, plan: &Evaluated) {
    let deployment = &plan.setup.deployment;
    let context = plan.setup.workload.context;
    if shape.max_position_embeddings > 0 && context > shape.max_position_embeddings {
        terminal::note(&format!(
            "warning: {} was made for {} tokens; --context {context} goes beyond",
            shape.name, shape.max_position_embeddings
        ));
    }
    let files = shape.file_bytes(&deployment.weights);
    if let Some(disk) = deployment.disk.filter(|disk| *disk < files) {
        terminal::note(&format!(
            "warning: the weights' files take {files} bytes, --disk has {disk}"
        ));
    }
}

fn list(what: ListArg) -> Result<()> {
    let text = match what {
        ListArg::Models => catalogue::names()
            .iter()
            .map(|n| format!("{n}\n"))
            .collect(),
        ListArg::Weights => WeightScheme::names().replace(", ", "\n") + "\n",
        ListArg::Devices => {
            let row = |cells: [String; 4]| cells.to_vec();
            let mut rows = vec![row(
                ["device", "GiB", "GB/s", "BF16 TFLOP/s"].map(str::to_owned)
            )];
            rows.extend(devices::catalogue().iter().map(|d| {
                row([
                    d.name.to_owned(),
                    format!("{:.2}", d.total_gib),
                    format!("{:.0}", d.bandwidth_gb_s),
                    format!("{:.0}", d.bf16_tflops),
                ])
            }));
            terminal::table(&rows)
        }
    };
    Ok(terminal::print(&text)?)
}

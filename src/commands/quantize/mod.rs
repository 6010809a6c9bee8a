//! `scrimp quantize`: a checkpoint in fewer bits, made in bounded memory.

pub mod args;
mod files;
mod gguf;
mod layers;
pub(crate) mod source;
mod texts;

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use scrimp_cpu::{CpuBackend, CpuOptions, Precision};
use scrimp_engine::decoder::LayerStages;
use scrimp_memory::MemoryLedger;
use scrimp_memory::bytes::HumanBytes;
use scrimp_model::AttentionConfig;
use scrimp_quant::job::work_folder;
use scrimp_quant::{
    CalibrationSet, Calibrator, Format, GGUF_GROUP, Job, Progress, Recipe, Report, Scheme, Source,
};
use serde_json::{Value, json};

use crate::machine::{self, MemoryLimits};
use crate::opened::{self, Opened};
use crate::terminal;
use args::{FormatArg, QuantizeArgs, SchemeArg};
use layers::Layers;
use source::CheckpointSource;
use texts::Wanted;

/// Sets up a job, says what it will take, does it, and reports.
pub fn quantize(args: &QuantizeArgs) -> Result<()> {
    let started = Instant::now();
    let recipe = recipe(args)?;
    let opened = opened::open_source(&args.source)?;
    let source = CheckpointSource::new(&opened.checkpoint, &opened.config)
        .with_context(|| format!("{} cannot be quantized", opened.name))?;
    // What cannot be done is said before the model is asked for its own words.
    recipe.select(source.tensors())?;
    let as_gguf = recipe.format == Format::Gguf;
    let destination = gguf::Destination::new(&args.output);
    let (source, file) = match as_gguf {
        true => {
            let file = gguf::file(&opened, &source, &recipe, &destination)?;
            (source.kept_as_gguf(), Some(file))
        }
        false => (source, None),
    };
    let (config, files) = match as_gguf {
        true => (Value::Null, Vec::new()),
        false => files::of(&opened, source.float_type())?,
    };
    let folder = match as_gguf {
        true => destination.folder,
        false => args.output.clone(),
    };
    let threads = args.threads.map_or_else(machine::cores, usize::from);
    let set = calibration(args, &opened, recipe.scheme, threads)?;
    let mut layers = match set {
        Some(_) => Some(calibrator(&opened, threads)?),
        None => None,
    };
    let baseline = texts::baseline();
    let limit = MemoryLimits::read().budget(args.memory);
    let Some(limit) = limit else {
        bail!("this system does not say how much memory is available: set --memory");
    };
    let ledger = MemoryLedger::new(limit.saturating_sub(baseline));
    let scratch = match &args.scratch {
        Some(folder) => folder.clone(),
        None => work_folder(&folder, file.as_ref()),
    };
    let identity = identity(&opened);
    let calibration = set.as_ref().zip(layers.as_mut());
    let job = Job {
        source: &source,
        recipe: &recipe,
        calibration: calibration.map(|(set, layers)| (set, layers as &mut dyn Calibrator)),
        folder: &folder,
        gguf: file.as_ref(),
        scratch: &scratch,
        ledger: &ledger,
        resume: args.resume,
        identity: &identity,
        files,
        config,
        bytes_in: opened.checkpoint.weight_bytes() as usize,
        head_dim: match &opened.config.attention {
            AttentionConfig::Gqa(gqa) => Some(gqa.head_dim),
            AttentionConfig::Mla(_) => None,
        },
        threads,
    };
    let plan = job.plan()?;
    let predicted = baseline + plan.peak_bytes;
    if predicted > limit {
        bail!(too_much(
            &job,
            &plan.peak_stage,
            baseline,
            predicted,
            limit
        )?);
    }
    terminal::note(&announcement(
        &job,
        &recipe,
        set.as_ref(),
        predicted,
        limit,
    )?);
    let team = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()?;
    machine::reset_peak_rss();
    let report = watched(&team, job)?;
    let outcome = Outcome {
        seconds: started.elapsed().as_secs_f64(),
        predicted,
        peak: machine::peak_rss(),
    };
    terminal::print(&match args.json {
        true => json(&report, &outcome)?,
        false => text(&report, &outcome),
    })?;
    Ok(())
}

/// What is missing, and what would do with less.
fn too_much(
    job: &Job<'_>,
    stage: &str,
    baseline: usize,
    predicted: usize,
    limit: usize,
) -> Result<String> {
    let mut said = format!(
        "this takes {} of memory at its peak ({stage}), of which {} are in use already, and {} may \
         be used. It fits from --memory {}MiB on",
        HumanBytes(predicted),
        HumanBytes(baseline),
        HumanBytes(limit),
        predicted.div_ceil(1 << 20),
    );
    if job.calibration.is_some() {
        let rounding = baseline + job.peak_of_rounding()?;
        said += &format!(
            "; sequences of fewer tokens (--seqlen) and fewer threads (-t) need less, and --scheme \
             int4-rtn without --calibration needs {}",
            HumanBytes(rounding)
        );
    } else {
        said += "; fewer threads (-t) need less";
    }
    Ok(said)
}

/// What a run took.
struct Outcome {
    seconds: f64,
    predicted: usize,
    peak: Option<usize>,
}

/// Runs the job on its threads, with a bar.
fn watched(team: &rayon::ThreadPool, job: Job<'_>) -> Result<Report> {
    let bar = terminal::weights_progress();
    let mut progress = |p: Progress| {
        bar.set_length(p.weights as u64);
        bar.set_position(p.weights_done as u64);
        let layer = (p.layers_done + 1).min(p.layers);
        bar.set_message(format!("layer {layer}/{}, error {:.3}", p.layers, p.error));
    };
    // The job is not for sending: the team computes, this thread leads.
    let done = run_on(team, job, &mut progress);
    bar.finish_and_clear();
    done
}

fn run_on(
    team: &rayon::ThreadPool,
    job: Job<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report> {
    let (ask, asked) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            let mut said = |p: Progress| {
                // Nobody to hear it means that the run is being given up.
                let _ = ask.send(p);
            };
            team.install(|| job.run(&mut said))
        });
        for p in asked {
            progress(p);
        }
        match worker.join() {
            Ok(report) => Ok(report?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn recipe(args: &QuantizeArgs) -> Result<Recipe> {
    let stored: Option<Recipe> = match &args.recipe {
        None => None,
        Some(path) => {
            let json = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            let recipe = serde_json::from_slice(&json);
            Some(recipe.with_context(|| format!("{} is no recipe", path.display()))?)
        }
    };
    let scheme = args.scheme.map(|scheme| match scheme {
        SchemeArg::Int8 => Scheme::Int8,
        SchemeArg::Int8A8 => Scheme::Int8A8,
        SchemeArg::Int4Rtn => Scheme::Int4Rtn,
        SchemeArg::Int4Gptq => Scheme::Int4Gptq,
        SchemeArg::Int4Awq => Scheme::Int4Awq,
        SchemeArg::Int4AwqGptq => Scheme::Int4AwqGptq,
    });
    // Whether somebody has asked for a group.
    let grouped = stored.as_ref().is_some_and(|r| r.group_size.is_some());
    let mut recipe = match (stored, scheme) {
        (Some(stored), None) => stored,
        (Some(stored), Some(scheme)) => Recipe { scheme, ..stored },
        (None, scheme) => Recipe::new(scheme.unwrap_or(Scheme::Int4AwqGptq)),
    };
    match args.group_size {
        Some(-1) => recipe.group_size = None,
        Some(group) => recipe.group_size = Some(group as usize),
        None => {}
    }
    recipe.asymmetric |= args.asymmetric;
    recipe.experts_only |= args.experts_only;
    recipe.ignore.extend(args.ignore.iter().cloned());
    recipe.format = match args.format {
        None => recipe.format,
        Some(FormatArg::CompressedTensors) => Format::CompressedTensors,
        Some(FormatArg::Awq) => Format::Awq,
        Some(FormatArg::Gptq) => Format::Gptq,
        Some(FormatArg::Gguf) => Format::Gguf,
    };
    if recipe.format == Format::Gguf && args.group_size.is_none() && !grouped {
        recipe.group_size = Some(GGUF_GROUP);
    }
    Ok(recipe)
}

/// Tokens, where the scheme wants them or the person gave some.
fn calibration(
    args: &QuantizeArgs,
    opened: &Opened,
    scheme: Scheme,
    threads: usize,
) -> Result<Option<CalibrationSet>> {
    let from = match (&args.calibration, scheme.needs_calibration()) {
        (Some(from), _) => from,
        (None, true) => "self",
        (None, false) => return Ok(None),
    };
    let wanted = Wanted {
        samples: args.samples as usize,
        seqlen: args.seqlen as usize,
        seed: args.seed,
    };
    texts::calibration(opened, from, &wanted, args.memory, threads).map(Some)
}

/// The engine's layers, their rows in Hugging Face's order.
fn calibrator(opened: &Opened, threads: usize) -> Result<Layers> {
    let backend = CpuBackend::new(CpuOptions {
        threads: Some(threads),
        precision: Precision::Exact,
        ..CpuOptions::default()
    })?;
    let mut config = opened.config.clone();
    if matches!(config.attention, AttentionConfig::Gqa(_)) {
        config.rope.interleaved = false;
    }
    Ok(Layers(LayerStages::new(config, backend)?))
}

/// What tells a source from another: its files' names, sizes and times.
fn identity(opened: &Opened) -> String {
    let mut seen: Vec<String> = Vec::new();
    for (path, _) in opened.checkpoint.infos() {
        let about = fs::metadata(path).map(|m| (m.len(), m.modified().ok()));
        let line = format!("{} {about:?}", path.display());
        if seen.last() != Some(&line) {
            seen.push(line);
        }
    }
    seen.join("\n")
}

fn announcement(
    job: &Job<'_>,
    recipe: &Recipe,
    set: Option<&CalibrationSet>,
    predicted: usize,
    limit: usize,
) -> Result<String> {
    let plan = job.plan()?;
    let group = match recipe.group_size {
        Some(group) => format!("groups of {group}"),
        None => "one group a row".to_owned(),
    };
    let kind = if recipe.asymmetric {
        "asymmetric"
    } else {
        "symmetric"
    };
    let tokens = match set {
        Some(set) => format!(
            "{} tokens in {} sequences",
            set.tokens(),
            set.sequences.len()
        ),
        None => "no calibration".to_owned(),
    };
    Ok(format!(
        "{} of {} matrices, {group}, {kind}, as {}; {tokens}\n\
         peak {} predicted of {} ({}); writes {}, {:.3} bits a weight; {} of activations on disk",
        recipe.scheme,
        plan.matrices,
        recipe.format,
        HumanBytes(predicted),
        HumanBytes(limit),
        plan.peak_stage,
        HumanBytes(plan.output_bytes),
        plan.bits_per_weight,
        HumanBytes(plan.scratch_bytes),
    ))
}

fn json(report: &Report, outcome: &Outcome) -> Result<String> {
    let mut value: Value = serde_json::to_value(report)?;
    value["seconds"] = json!(outcome.seconds);
    value["predicted_peak_bytes"] = json!(outcome.predicted);
    value["peak_rss_bytes"] = json!(outcome.peak);
    Ok(value.to_string() + "\n")
}

/// Tensors that fill a table's rows; more are summed up.
const LISTED: usize = 40;

fn text(report: &Report, outcome: &Outcome) -> String {
    let mut rows = vec![
        ["tensor", "scheme", "error", "tokens", ""]
            .map(String::from)
            .to_vec(),
    ];
    let quantized = || report.tensors.iter().filter(|t| t.error > 0.0);
    let mut worst: Vec<_> = report
        .tensors
        .iter()
        .filter(|t| t.error > 0.0 || t.note.is_some())
        .collect();
    worst.sort_by(|a, b| {
        (b.note.is_some(), b.error)
            .partial_cmp(&(a.note.is_some(), a.error))
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    for tensor in worst.iter().take(LISTED) {
        rows.push(vec![
            tensor.name.clone(),
            tensor.scheme.clone(),
            format!("{:.4}", tensor.error),
            tensor.tokens.to_string(),
            tensor.note.clone().unwrap_or_default(),
        ]);
    }
    let more = worst.len().saturating_sub(LISTED);
    let more = if more > 0 {
        format!("and {more} more, with less error\n")
    } else {
        String::new()
    };
    let peak = outcome.peak.map_or_else(String::new, |p| {
        format!(
            ", peak {} (predicted {})",
            HumanBytes(p),
            HumanBytes(outcome.predicted)
        )
    });
    format!(
        "{}{more}{} tensors quantized, mean error {:.4}; {} -> {}, {:.3} bits a weight; {:.1} s{peak}\n",
        terminal::table(&rows),
        quantized().count(),
        report.mean_error(),
        HumanBytes(report.bytes_in),
        HumanBytes(report.bytes_out),
        report.bits_per_weight,
        outcome.seconds,
    )
}

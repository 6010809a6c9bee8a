//! What is compared, on what: decided before anything is made.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use scrimp_eval::problems::{Family, MAX_STEPS, Problem, Split};
use scrimp_quant::{Recipe, Scheme, Source};
use scrimp_tensor::DType;
use serde_json::json;

use super::args::CompareArgs;
use crate::args::ModelArgs;
use crate::bundled;
use crate::commands::quantize::args::SchemeArg;
use crate::commands::quantize::source::CheckpointSource;
use crate::machine;
use crate::opened::Opened;

/// Group sizes that are tried, largest first.
const GROUPS: [usize; 4] = [128, 64, 32, 16];
/// Problems of each family and length whose chains are scored as a text.
const SCORED_EACH: u64 = 4;
/// Their seeds: far from those of the problems that are asked.
const SCORED_SEED: u64 = 1 << 40;

/// What was decided.
pub struct Setup {
    /// The model as it was named.
    pub source: String,
    /// Its short name.
    pub name: String,
    /// What its weights are stored in.
    pub dtype: DType,
    /// Its weights.
    pub weights: usize,
    /// Bytes they are stored in.
    pub weight_bytes: u64,
    /// Inputs that share a scale in 4 bits.
    pub group_size: Option<usize>,
    /// The text to score.
    pub text: Text,
    /// Whether problems are asked.
    pub reasoning: bool,
    /// Threads that compute.
    pub threads: usize,
}

/// What is scored.
pub enum Text {
    /// A file.
    File(PathBuf),
    /// Problems that nobody has seen, with their chains: `(lines of JSON, problems)`.
    Problems(String, usize),
}

impl Setup {
    /// Looks at the model and at what was asked for.
    pub fn new(args: &CompareArgs, opened: &Opened) -> Result<Setup> {
        let is_ponder = opened.name == bundled::NAME;
        check(args)?;
        let source = CheckpointSource::new(&opened.checkpoint, &opened.config)
            .with_context(|| format!("{} cannot be quantized", opened.name))?;
        let text = match &args.text {
            Some(path) => {
                // Said now, not after a model was made.
                fs::metadata(path).with_context(|| format!("reading {}", path.display()))?;
                Text::File(path.clone())
            }
            None if is_ponder => problems(args),
            None => bail!(
                "there is nothing to score {} on: give --text FILE (.txt, or .jsonl of documents); \
                 only Ponder brings problems of its own",
                opened.name
            ),
        };
        Ok(Setup {
            source: args.model_name().to_owned(),
            name: opened.name.clone(),
            dtype: stored_type(opened),
            weights: source.tensors().iter().map(|t| t.len()).sum(),
            weight_bytes: opened.checkpoint.weight_bytes(),
            group_size: group_size(args, &source)?,
            text,
            reasoning: is_ponder || args.task.is_some(),
            threads: args.model.threads.map_or_else(machine::cores, usize::from),
        })
    }
}

fn check(args: &CompareArgs) -> Result<()> {
    let bad = args.steps.iter().find(|s| !(1..=MAX_STEPS).contains(*s));
    if let Some(bad) = bad {
        bail!("--steps {bad}: chains have 1 to {MAX_STEPS} steps");
    }
    ensure!(
        args.max_tokens >= 2,
        "--max-tokens {}: at least 2 are needed to score a text",
        args.max_tokens
    );
    let twice = args
        .schemes
        .iter()
        .enumerate()
        .find(|(i, s)| args.schemes[..*i].contains(s));
    if let Some((_, scheme)) = twice {
        bail!("--schemes has {} twice", value_name(scheme));
    }
    if let Some(folder) = &args.keep {
        ensure!(
            is_free(folder)?,
            "{} has files in it: --keep wants a new or an empty folder",
            folder.display()
        );
    }
    Ok(())
}

fn is_free(folder: &Path) -> Result<bool> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).with_context(|| format!("reading {}", folder.display())),
    }
}

/// The type that most bytes of the weights are in.
fn stored_type(opened: &Opened) -> DType {
    let mut types: Vec<(DType, usize)> = Vec::new();
    for (_, view) in opened.checkpoint.tensors() {
        match types.iter_mut().find(|(dtype, _)| *dtype == view.dtype) {
            Some((_, bytes)) => *bytes += view.bytes.len(),
            None => types.push((view.dtype, view.bytes.len())),
        }
    }
    let most = types.into_iter().max_by_key(|(_, bytes)| *bytes);
    most.map_or(DType::BF16, |(dtype, _)| dtype)
}

/// What was asked for, or the largest usual size that divides every row; none where nothing is
/// quantized to 4 bits.
fn group_size(args: &CompareArgs, source: &CheckpointSource<'_>) -> Result<Option<usize>> {
    if !args.schemes.iter().any(|s| bits(*s) == 4) {
        return Ok(None);
    }
    if let Some(group) = args.group_size {
        return Ok(Some(group as usize));
    }
    let divides = |group: usize| {
        let mut recipe = Recipe::new(Scheme::Int4Rtn);
        recipe.group_size = Some(group);
        recipe.select(source.tensors()).map(|_| group)
    };
    match GROUPS.iter().find_map(|&group| divides(group).ok()) {
        Some(group) => Ok(Some(group)),
        // The refusal says which sizes there are.
        None => Ok(Some(divides(GROUPS[0])?)),
    }
}

/// Bits of a weight's code.
pub fn bits(scheme: SchemeArg) -> u32 {
    match scheme {
        SchemeArg::Int8 | SchemeArg::Int8A8 => 8,
        _ => 4,
    }
}

/// What a scheme is called in the table.
pub fn row_name(scheme: SchemeArg) -> &'static str {
    match scheme {
        SchemeArg::Int8 => "INT8",
        SchemeArg::Int8A8 => "INT8-A8",
        SchemeArg::Int4Rtn => "INT4 (naive)",
        SchemeArg::Int4Gptq => "GPTQ-INT4",
        SchemeArg::Int4Awq => "AWQ-INT4",
        SchemeArg::Int4AwqGptq => "AWQ+GPTQ-INT4",
    }
}

/// A value as it is written on the command line.
pub fn value_name(value: &impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |v| v.get_name().to_owned())
}

/// The model's settings as flags again, for the commands that take them.
pub fn model_flags(model: &ModelArgs) -> Vec<String> {
    let mut flags = vec![
        "--precision".to_owned(),
        value_name(&model.precision),
        "--mla-prefill".to_owned(),
        value_name(&model.mla_prefill),
    ];
    let mut add = |name: &str, value: Option<String>| {
        flags.extend(value.into_iter().flat_map(|v| [name.to_owned(), v]));
    };
    add("--memory", model.memory.map(|n| n.to_string()));
    add(
        "--max-model-len",
        model.max_model_len.map(|n| n.to_string()),
    );
    add("--threads", model.threads.map(|n| n.to_string()));
    add("--cpu-level", model.cpu_level.as_ref().map(value_name));
    flags
}

/// Held-out problems, none of those that are asked, their chains and answers to be scored.
fn problems(args: &CompareArgs) -> Text {
    let mut lines = String::new();
    let mut count = 0;
    for i in 0..SCORED_EACH {
        for &steps in &args.steps {
            for family in Family::ALL {
                let seed = SCORED_SEED.wrapping_add(args.seed).wrapping_add(i);
                let problem = Problem::generate(family, steps, Split::Test, seed);
                let chain = problem.chain.join("\n");
                let response = format!("{chain}\n</think>\n\nThe answer is {}.", problem.value);
                let line = json!({"prompt": problem.prompt, "response": response});
                lines += &line.to_string();
                lines.push('\n');
                count += 1;
            }
        }
    }
    Text::Problems(lines, count)
}

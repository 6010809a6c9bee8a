//! `scrimp eval --text`: perplexity, and with `--reference` the distance to another model.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use scrimp_eval::{Divergence, Scorer, TextReport, TextTask, TokenScore};
use scrimp_memory::Category;
use serde_json::{Value, json};

use super::documents;
use crate::args::EvalArgs;
use crate::launch::{Loaded, Settings, load};
use crate::opened::{self, Opened};
use crate::terminal;

/// Tokens of a window, where the model takes as many.
const DEFAULT_WINDOW: usize = 1024;
/// Tokens computed at once: rows of logits are held for as many.
const CHUNK: u32 = 128;
/// Tokens shown before a token that diverges.
const CONTEXT: usize = 12;

/// Scores the text and reports.
pub fn eval(args: &EvalArgs, path: &Path) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let opened = opened::open(args.model_name())?;
    let lines = path.extension().is_some_and(|e| e == "jsonl");
    let task = task(args, &opened, &text, lines)?;
    let reference = match &args.reference {
        Some(name) => {
            let other = opened::open(name)?;
            check_same_tokens(&opened, &other, &text)?;
            Some(load_for(&task, args, &other)?)
        }
        None => None,
    };
    let mut model = load_for(&task, args, &opened)?;
    let rows = CHUNK as usize * model.runner.model().vocab_size * size_of::<f32>();
    let held = if reference.is_some() { rows } else { 0 };
    let _rows = model
        .ledger
        .reserve(Category::Activations, held, "the reference's logits")?;
    let mut reference = reference.map(|loaded| loaded.runner);
    let bar = terminal::count_progress("tokens", task.scored_tokens() as u64);
    let reference = reference.as_mut().map(|runner| runner as &mut dyn Scorer);
    let report = task.run(&mut model.runner, reference, &mut |done| {
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let report = report?;
    let worst: Vec<Worst> = report
        .worst(args.worst)
        .into_iter()
        .filter_map(|score| Worst::of(score, &task.tokens, &opened))
        .collect();
    terminal::print(&match args.json {
        true => json_report(&report, &worst, &opened.name, args)?,
        false => text_report(&report, &worst),
    })?;
    Ok(())
}

fn task(args: &EvalArgs, opened: &Opened, text: &str, lines: bool) -> Result<TextTask> {
    let tokenizer = &opened.text.tokenizer;
    let most = args.max_tokens.unwrap_or(usize::MAX);
    let texts = match lines {
        true => documents::read(opened, text, most)?,
        false => {
            let mut tokens = tokenizer.encode(text, false)?;
            tokens.truncate(most);
            documents::Texts {
                tokens,
                documents: Vec::new(),
            }
        }
    };
    // What the tokenizer puts around nothing is what it puts before everything.
    let mut prefix = tokenizer.encode("", true)?;
    if prefix.len() != 1 || lines {
        // Documents have theirs already.
        prefix.clear();
    }
    let longest = opened.config.max_position_embeddings;
    let longest = args.model.max_model_len.map_or(longest, |n| n.min(longest));
    let window = args.window.unwrap_or(match lines {
        false => DEFAULT_WINDOW.min(longest),
        true => texts.longest().clamp(2, longest),
    });
    ensure!(
        window <= longest,
        "--window {window} is more than the {longest} tokens that {} takes",
        opened.name
    );
    let width = window.saturating_sub(prefix.len());
    Ok(TextTask {
        tokens: texts.tokens,
        documents: texts.documents,
        prefix,
        window,
        stride: args.stride.unwrap_or((width / 2).max(1)),
    })
}

/// Divergence is over one sequence of tokens: both tokenizers have to make the same.
fn check_same_tokens(model: &Opened, reference: &Opened, text: &str) -> Result<()> {
    let ours = model.text.tokenizer.encode(text, false)?;
    let theirs = reference.text.tokenizer.encode(text, false)?;
    let differ = ours.iter().zip(&theirs).position(|(a, b)| a != b);
    ensure!(
        ours == theirs,
        "{} and {} cut the text into different tokens (the first difference is token {}): \
         they can be compared by perplexity only, one at a time",
        model.name,
        reference.name,
        differ.unwrap_or(ours.len().min(theirs.len()))
    );
    Ok(())
}

/// Loads a model with room for one window.
fn load_for(task: &TextTask, args: &EvalArgs, opened: &Opened) -> Result<Loaded> {
    let mut settings = Settings::new(&args.model, &args.cache);
    let cache = &mut settings.cache;
    cache.max_num_batched_tokens = CHUNK;
    cache.max_num_seqs = cache.max_num_seqs.min(CHUNK);
    cache.num_blocks = Some(task.window.div_ceil(cache.block_size as usize));
    settings.max_model_len = Some(task.window);
    load(opened, &settings)
}

/// A token where the two differ most, in words.
struct Worst {
    position: usize,
    kl: f32,
    context: String,
    token: String,
    model_top: String,
    reference_top: String,
    /// Probabilities of the token by the model and by the reference.
    probabilities: (f64, f64),
}

impl Worst {
    fn of(score: &TokenScore, tokens: &[u32], opened: &Opened) -> Option<Worst> {
        let Divergence { kl, nll, top } = score.reference?;
        let decode = |ids: &[u32]| opened.text.tokenizer.decode(ids, false);
        let before = score.position.saturating_sub(CONTEXT)..score.position;
        Some(Worst {
            position: score.position,
            kl,
            context: decode(tokens.get(before)?),
            token: decode(&[score.token]),
            model_top: decode(&[score.top]),
            reference_top: decode(&[top]),
            probabilities: (f64::from(-score.nll).exp(), f64::from(-nll).exp()),
        })
    }

    fn json(&self) -> Value {
        json!({
            "position": self.position,
            "kl": self.kl,
            "context": self.context,
            "token": self.token,
            "model_top": self.model_top,
            "reference_top": self.reference_top,
            "model_probability": self.probabilities.0,
            "reference_probability": self.probabilities.1,
        })
    }
}

fn json_report(
    report: &TextReport,
    worst: &[Worst],
    model: &str,
    args: &EvalArgs,
) -> Result<String> {
    let mut json = serde_json::to_value(report)?;
    json["model"] = model.into();
    if let Some(reference) = &args.reference {
        json["reference"] = reference.as_str().into();
        json["worst"] = worst.iter().map(Worst::json).collect();
    }
    Ok(json.to_string() + "\n")
}

fn text_report(report: &TextReport, worst: &[Worst]) -> String {
    let mut rows = vec![vec![
        "perplexity".to_owned(),
        format!("{:.4}", report.perplexity),
    ]];
    let mut row = |name: &str, value: Option<String>| {
        rows.extend(value.map(|value| vec![name.to_owned(), value]));
    };
    let nats = |kl: Option<f64>| kl.map(|kl| format!("{kl:.3e}"));
    let reference = report.reference_perplexity;
    row("of the reference", reference.map(|p| format!("{p:.4}")));
    row("KL divergence, mean", nats(report.kl_mean));
    row("  median", nats(report.kl_median));
    row("  99th percentile", nats(report.kl_p99));
    row("  largest", nats(report.kl_max));
    let share = |s: f64| format!("{:.2} %", s * 100.0);
    row("same likeliest token", report.top1_agreement.map(share));
    let how = format!(
        "{} tokens in windows of {} every {}, {:.1} s; divergences in nats a token\n",
        report.tokens, report.window, report.stride, report.seconds
    );
    let table = terminal::table(&rows);
    match worst.is_empty() {
        true => format!("{table}\n{how}"),
        false => format!("{table}\n{how}\n{}", worst_table(worst)),
    }
}

fn worst_table(worst: &[Worst]) -> String {
    let heading = [
        "KL",
        "token",
        "is",
        "p model",
        "p reference",
        "model says",
        "reference says",
        "after",
    ];
    let mut rows = vec![heading.map(String::from).to_vec()];
    rows.extend(worst.iter().map(|w| {
        vec![
            format!("{:.3}", w.kl),
            w.position.to_string(),
            format!("{:?}", w.token),
            format!("{:.4}", w.probabilities.0),
            format!("{:.4}", w.probabilities.1),
            format!("{:?}", w.model_top),
            format!("{:?}", w.reference_top),
            format!("{:?}", w.context),
        ]
    }));
    terminal::table(&rows)
}

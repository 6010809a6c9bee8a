//! `scrimp eval --task reasoning`: accuracy by family and by chain length.

use std::fs;

use anyhow::{Context, Result, ensure};
use scrimp_engine::GenerateRequest;
use scrimp_eval::problems::{Family, MAX_STEPS};
use scrimp_eval::{Answered, Examiner, ReasoningTask, Report, accuracy_svg};
use serde_json::json;

use crate::args::EvalArgs;
use crate::launch::{Settings, launch};
use crate::opened::{self, Opened};
use crate::{prompting, terminal};

/// Runs the task and reports.
pub fn eval(args: &EvalArgs) -> Result<()> {
    let task = task(args)?;
    let opened = opened::open(args.model_name())?;
    let settings = Settings::new(&args.model, &args.cache);
    let launched = launch(&opened, &settings, usize::MAX, None)?;
    let total = (task.families.len() * task.problems) as u64;
    let bar = terminal::count_progress("problems", total);
    let mut answers = String::new();
    let report = task.run(&launched.handle, &Greedy(&opened), &mut |answered| {
        bar.inc(1);
        if args.answers.is_some() {
            answers.push_str(&line(answered));
        }
    });
    bar.finish_and_clear();
    let report = report?;
    if let Some(path) = &args.answers {
        fs::write(path, answers).with_context(|| format!("writing {}", path.display()))?;
    }
    let label = args.label.clone().unwrap_or_else(|| opened.name.clone());
    if let Some(path) = &args.svg {
        let mut reports = vec![(label, report.clone())];
        for other in &args.compare {
            reports.push(read_report(other)?);
        }
        fs::write(path, accuracy_svg(&reports))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    terminal::print(&match args.json {
        true => serde_json::to_string(&report)? + "\n",
        false => text(&report),
    })?;
    launched.stop()
}

/// A problem and its answer as a line of JSON.
fn line(answered: &Answered<'_>) -> String {
    let problem = answered.problem;
    let line = json!({
        "family": problem.family.name(),
        "steps": problem.steps,
        "prompt": problem.prompt,
        "value": problem.value,
        "reasoning": answered.reasoning,
        "answer": answered.answer,
        "correct": answered.outcome.correct,
        "first_wrong_step": answered.outcome.first_wrong_step,
    });
    line.to_string() + "\n"
}

fn task(args: &EvalArgs) -> Result<ReasoningTask> {
    let mut task = ReasoningTask {
        seed: args.seed,
        ..ReasoningTask::default()
    };
    if let Some(problems) = args.problems {
        ensure!(problems > 0, "--problems is 0: it must be at least 1");
        task.problems = problems;
    }
    if !args.steps.is_empty() {
        let bad = args.steps.iter().find(|s| !(1..=MAX_STEPS).contains(*s));
        ensure!(
            bad.is_none(),
            "--steps has a chain outside 1 to {MAX_STEPS}"
        );
        task.steps.clone_from(&args.steps);
    }
    if !args.family.is_empty() {
        let families = args.family.iter().map(|name| name.parse::<Family>());
        task.families = families
            .collect::<Result<_, _>>()
            .map_err(anyhow::Error::msg)?;
    }
    Ok(task)
}

/// An earlier `--json` report, named after its file.
fn read_report(path: &std::path::Path) -> Result<(String, Report)> {
    let json = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let report = serde_json::from_slice(&json).with_context(|| {
        format!(
            "{} is no report of eval --task reasoning --json",
            path.display()
        )
    })?;
    let name = path
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned());
    Ok((name.unwrap_or_default(), report))
}

/// Asks through the chat template, and takes the likeliest tokens.
struct Greedy<'a>(&'a Opened);

impl Examiner for Greedy<'_> {
    fn ask(&self, question: &str) -> Result<GenerateRequest, String> {
        let messages = [prompting::message("user", question)];
        let mut request = prompting::chat(self.0, &messages, &serde_json::Map::new())
            .map_err(|e| format!("{e:#}"))?;
        request.sampling.temperature = 0.0;
        Ok(request)
    }

    fn count(&self, text: &str) -> Result<usize, String> {
        let tokens = self.0.text.tokenizer.encode(text, false);
        tokens.map(|t| t.len()).map_err(|e| e.to_string())
    }
}

fn text(report: &Report) -> String {
    let heading = [
        "family",
        "steps",
        "problems",
        "correct",
        "inflation",
        "first wrong step",
    ];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for family in &report.families {
        for length in &family.by_length {
            let wrong = length
                .first_wrong_step
                .map_or("-".into(), |s| format!("{s:.1}"));
            rows.push(vec![
                family.family.to_string(),
                length.steps.to_string(),
                length.problems.to_string(),
                format!("{:.1} %", length.accuracy * 100.0),
                format!("{:.2}", length.inflation),
                wrong,
            ]);
        }
        let accuracy = format!("{:.1} %", family.accuracy * 100.0);
        let problems: usize = family.by_length.iter().map(|l| l.problems).sum();
        rows.push(vec![
            format!("{} all", family.family),
            String::new(),
            problems.to_string(),
            accuracy,
        ]);
    }
    let (accuracy, problems) = (report.accuracy * 100.0, report.problems);
    let seconds = report.seconds;
    let table = terminal::table(&rows);
    format!("{table}\n{accuracy:.1} % of {problems} problems in {seconds:.1} s\n")
}

//! Row by row: made, scored, asked, timed.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::args::CompareArgs;
use super::child::{Runner, Workplace};
use super::report::{Made, Report, Row, Scored};
use super::setup::{self, Setup, Text, bits, row_name, value_name};
use crate::commands::quantize::args::SchemeArg;

/// The default text of Ponder, in the folder where things are made.
const PROBLEMS_FILE: &str = "problems.jsonl";

/// Makes and measures every row, the model itself first.
pub fn measure<'a>(args: &'a CompareArgs, setup: &'a Setup) -> Result<Report<'a>> {
    let at = workplace(args)?;
    let text = match &setup.text {
        Text::File(path) => path.clone(),
        Text::Problems(lines, _) => {
            let path = at.path().join(PROBLEMS_FILE);
            fs::write(&path, lines).with_context(|| format!("writing {}", path.display()))?;
            path
        }
    };
    let measured = 2 + usize::from(setup.reasoning);
    let steps = measured + args.schemes.len() * (measured + 1);
    let mut bench = Bench {
        runner: Runner::new(steps)?,
        args,
        setup,
        at: &at,
        text,
    };
    let mut rows = vec![bench.reference()?];
    for &scheme in &args.schemes {
        rows.push(bench.row(scheme));
    }
    drop(bench);
    Ok(Report { args, setup, rows })
}

fn workplace(args: &CompareArgs) -> Result<Workplace> {
    match &args.keep {
        Some(folder) => {
            fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
            Ok(Workplace::Kept(folder.clone()))
        }
        None => {
            let folder = tempfile::Builder::new().prefix("scrimp-compare-").tempdir();
            Ok(Workplace::Scratch(folder.context(
                "making a folder for what is made; --keep names another",
            )?))
        }
    }
}

struct Bench<'a> {
    runner: Runner,
    args: &'a CompareArgs,
    setup: &'a Setup,
    at: &'a Workplace,
    text: PathBuf,
}

impl Bench<'_> {
    /// The model itself. Without it there is nothing to compare with.
    fn reference(&mut self) -> Result<Row> {
        let mut row = Row::new(self.setup.dtype.to_string(), None);
        row.bytes_on_disk = Some(self.setup.weight_bytes);
        let bits = self.setup.weight_bytes as f64 * 8.0 / self.setup.weights.max(1) as f64;
        (row.bits_per_weight, row.bits_overall) = (Some(bits), Some(bits));
        let source = self.setup.source.clone();
        self.measured(&mut row, &source)
            .with_context(|| format!("measuring {} itself", self.setup.name))?;
        Ok(row)
    }

    /// A scheme's row, with the reason where it broke off.
    fn row(&mut self, scheme: SchemeArg) -> Row {
        let mut row = Row::new(row_name(scheme).to_owned(), Some(value_name(&scheme)));
        if let Err(error) = self.made_and_measured(&mut row, scheme) {
            row.failed = Some(crate::terminal::causes(&error));
        }
        row
    }

    fn made_and_measured(&mut self, row: &mut Row, scheme: SchemeArg) -> Result<()> {
        let folder = self.at.path().join(value_name(&scheme));
        let folder_name = utf8(&folder)?;
        let what = format!("{}: make", row.name);
        let made = self
            .runner
            .run(&what, &self.quantize(scheme, &folder_name), self.at);
        let made = made.context("quantize")?;
        let json = &made.json;
        let bytes = json["bytes_out"].as_u64().unwrap_or(0);
        row.bytes_on_disk = Some(bytes);
        row.bits_per_weight = Some(number(json, "bits_per_weight")?);
        row.bits_overall = Some(bytes as f64 * 8.0 / self.setup.weights.max(1) as f64);
        row.group_size = match bits(scheme) {
            4 => self.setup.group_size,
            _ => None,
        };
        row.made = Some(Made {
            seconds: number(json, "seconds")?,
            // What it saw of itself in its last stage, or what was seen of it in all of them.
            peak_bytes: made
                .peak
                .max(json["peak_rss_bytes"].as_u64().map(|b| b as usize)),
        });
        self.measured(row, &folder_name)?;
        if let Workplace::Scratch(_) = self.at {
            // Room for the next one; what cannot be removed now goes with the whole.
            let _ = fs::remove_dir_all(&folder);
        }
        Ok(())
    }

    fn measured(&mut self, row: &mut Row, model: &str) -> Result<()> {
        let is_reference = row.scheme.is_none();
        let mut eval = vec!["eval".to_owned(), model.to_owned()];
        eval.extend(setup::model_flags(&self.args.model));
        let mut text = eval.clone();
        text.extend(["--text".into(), utf8(&self.text)?]);
        text.extend(["--max-tokens".into(), self.args.max_tokens.to_string()]);
        if !is_reference {
            text.extend(["--reference".into(), self.setup.source.clone()]);
        }
        let what = format!("{}: text", row.name);
        let scored = self
            .runner
            .run(&what, &text, self.at)
            .context("eval --text")?;
        row.scored = Some(Scored::read(&scored.json)?);
        if self.setup.reasoning {
            eval.extend(self.problems());
            let what = format!("{}: reasoning", row.name);
            let asked = self.runner.run(&what, &eval, self.at);
            let asked = asked.context("eval --task reasoning")?;
            let report = serde_json::from_value(asked.json);
            row.reasoning = Some(report.context("reading the report of eval --task reasoning")?);
        }
        let what = format!("{}: speed", row.name);
        let timed = self.runner.run(&what, &self.bench(model), self.at);
        let timed = timed.context("bench")?.json;
        row.bytes_resident = timed["weights_bytes"].as_u64();
        row.tokens_per_s = Some(number(&timed["decode"], "tokens_per_s")?);
        Ok(())
    }

    fn quantize(&self, scheme: SchemeArg, folder: &str) -> Vec<String> {
        let (args, setup) = (self.args, self.setup);
        let mut flags: Vec<String> = ["quantize", &setup.source, "-o", folder, "--scheme"]
            .map(String::from)
            .to_vec();
        flags.push(value_name(&scheme));
        let mut add = |name: &str, value: String| flags.extend([name.to_owned(), value]);
        add("--seed", args.seed.to_string());
        add("--threads", setup.threads.to_string());
        if !matches!(
            scheme,
            SchemeArg::Int8 | SchemeArg::Int8A8 | SchemeArg::Int4Rtn
        ) {
            add("--calibration", args.calibration.clone());
            add("--samples", args.samples.to_string());
            add("--seqlen", args.seqlen.to_string());
        }
        if let Some(memory) = args.model.memory {
            add("--memory", memory.to_string());
        }
        if bits(scheme) == 4 {
            add(
                "--group-size",
                setup.group_size.map_or_else(String::new, |g| g.to_string()),
            );
            if args.asymmetric {
                flags.push("--asymmetric".into());
            }
        }
        flags
    }

    fn problems(&self) -> Vec<String> {
        let steps: Vec<String> = self.args.steps.iter().map(usize::to_string).collect();
        let each_family = self.args.problems as usize * steps.len();
        let flags = [
            ("--task", "reasoning".to_owned()),
            ("--steps", steps.join(",")),
            ("--problems", each_family.to_string()),
            ("--seed", self.args.seed.to_string()),
        ];
        let flags = flags.into_iter();
        flags.flat_map(|(n, v)| [n.to_owned(), v]).collect()
    }

    fn bench(&self, model: &str) -> Vec<String> {
        let mut flags = ["bench", "--model", model, "-p", "0", "-n"]
            .map(String::from)
            .to_vec();
        flags.push(self.args.output_tokens.to_string());
        flags.extend(setup::model_flags(&self.args.model));
        flags
    }
}

fn utf8(path: &std::path::Path) -> Result<String> {
    match path.to_str() {
        Some(path) => Ok(path.to_owned()),
        None => bail!("{} is not UTF-8", path.display()),
    }
}

/// A number that a step must have printed.
pub fn number(json: &Value, name: &str) -> Result<f64> {
    let found = json[name].as_f64();
    found.with_context(|| format!("a step printed no {name}"))
}

//! What was found: rows, and what they were measured on.

use anyhow::Result;
use scrimp_eval::Report as Reasoning;
use scrimp_eval::problems::Family;
use serde_json::{Value, json};

use super::args::CompareArgs;
use super::measure::number;
use super::setup::{Setup, Text};

/// All of it.
pub struct Report<'a> {
    /// What was asked for.
    pub args: &'a CompareArgs,
    /// What was decided.
    pub setup: &'a Setup,
    /// The model itself, then the schemes in the order they were asked for.
    pub rows: Vec<Row>,
}

/// One model; what is missing was not measured, or not reached.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// In the table.
    pub name: String,
    /// On the command line; none for the model itself.
    pub scheme: Option<String>,
    /// Inputs that share a scale; none: all of a row.
    pub group_size: Option<usize>,
    /// Bits of a quantized weight, with its share of scales and zero points.
    pub bits_per_weight: Option<f64>,
    /// Bits of all that is stored, over all weights: those that stay in floats too.
    pub bits_overall: Option<f64>,
    /// Bytes of its weights as stored.
    pub bytes_on_disk: Option<u64>,
    /// Bytes of its weights as loaded.
    pub bytes_resident: Option<u64>,
    /// What it took to make.
    pub made: Option<Made>,
    /// What it makes of the text.
    pub scored: Option<Scored>,
    /// What it can solve.
    pub reasoning: Option<Reasoning>,
    /// Tokens a second of decoding one sequence.
    pub tokens_per_s: Option<f64>,
    /// Why it broke off.
    pub failed: Option<String>,
}

/// What making took.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    /// From start to end of `scrimp quantize`, calibration included.
    pub seconds: f64,
    /// Most bytes resident.
    pub peak_bytes: Option<usize>,
}

/// A scored text. Divergences are from the reference, in nats a token.
#[derive(Clone, Debug)]
pub struct Scored {
    /// Tokens scored.
    pub tokens: u64,
    /// Tokens of a window, and from one to the next.
    pub window: (u64, u64),
    /// `exp` of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Mean divergence.
    pub kl_mean: Option<f64>,
    /// Half the tokens diverge less.
    pub kl_median: Option<f64>,
    /// 99 of 100 diverge less.
    pub kl_p99: Option<f64>,
    /// Share of tokens where both find the same one likeliest.
    pub top1_agreement: Option<f64>,
}

impl Scored {
    /// From what `eval --text --json` prints.
    pub fn read(json: &Value) -> Result<Scored> {
        let optional = |name: &str| json[name].as_f64();
        let count = |name: &str| json[name].as_u64().unwrap_or(0);
        Ok(Scored {
            tokens: count("tokens"),
            window: (count("window"), count("stride")),
            perplexity: number(json, "perplexity")?,
            kl_mean: optional("kl_mean"),
            kl_median: optional("kl_median"),
            kl_p99: optional("kl_p99"),
            top1_agreement: optional("top1_agreement"),
        })
    }
}

impl Row {
    /// With nothing measured yet.
    pub fn new(name: String, scheme: Option<String>) -> Row {
        Row {
            name,
            scheme,
            ..Row::default()
        }
    }

    fn json(&self, quality: Option<f64>) -> Result<Value> {
        let scored = self.scored.as_ref();
        let by_length: Option<Vec<Value>> = self.reasoning.as_ref().map(|r| {
            let lengths = r.by_length().into_iter();
            let line = |l: scrimp_eval::LengthReport| {
                json!({
                    "steps": l.steps,
                    "problems": l.problems,
                    "accuracy": l.accuracy,
                    "inflation": l.inflation,
                })
            };
            lengths.map(line).collect()
        });
        Ok(json!({
            "name": self.name,
            "scheme": self.scheme,
            "group_size": self.group_size,
            "bits_per_weight": self.bits_per_weight,
            "bits_per_weight_overall": self.bits_overall,
            "bytes_on_disk": self.bytes_on_disk,
            "bytes_resident": self.bytes_resident,
            "perplexity": scored.map(|s| s.perplexity),
            "kl_mean": scored.and_then(|s| s.kl_mean),
            "kl_median": scored.and_then(|s| s.kl_median),
            "kl_p99": scored.and_then(|s| s.kl_p99),
            "top1_agreement": scored.and_then(|s| s.top1_agreement),
            "accuracy": self.reasoning.as_ref().map(|r| r.accuracy),
            "accuracy_of_reference": quality,
            "accuracy_by_length": by_length,
            "token_inflation": self.reasoning.as_ref().map(Reasoning::inflation),
            "reasoning": self.reasoning.as_ref().map(serde_json::to_value).transpose()?,
            "decode_tokens_per_s": self.tokens_per_s,
            "seconds_to_make": self.made.map(|m| m.seconds),
            "peak_bytes_to_make": self.made.and_then(|m| m.peak_bytes),
            "failed": self.failed,
        }))
    }
}

impl Report<'_> {
    /// A row's accuracy over that of the model itself: what the guide calls quality.
    pub fn quality(&self, row: &Row) -> Option<f64> {
        let of = |row: &Row| row.reasoning.as_ref().map(|r| r.accuracy);
        let reference = of(self.rows.first()?).filter(|a| *a > 0.0)?;
        Some(of(row)? / reference)
    }

    /// Problems that each row was asked.
    pub fn problems(&self) -> usize {
        self.args.problems as usize * self.args.steps.len() * Family::ALL.len()
    }

    /// How far the first row's share of right answers may be from what more problems would show.
    fn two_standard_errors(&self) -> f64 {
        let reference = self.rows.first().and_then(|row| row.reasoning.as_ref());
        let share = reference.map_or(0.5, |r| r.accuracy);
        2.0 * (share * (1.0 - share) / self.problems().max(1) as f64).sqrt()
    }

    /// What 4 bits are, in words; empty where nothing was made in 4 bits.
    pub fn grid(&self) -> String {
        let kind = match self.args.asymmetric {
            true => "asymmetric",
            false => "symmetric",
        };
        let group = self.setup.group_size;
        group.map_or_else(String::new, |g| format!("groups of {g}, {kind}"))
    }

    /// What GPTQ and AWQ saw, in words.
    pub fn calibration(&self) -> String {
        let args = self.args;
        let of = match args.calibration.as_str() {
            "self" => "its own words",
            file => file,
        };
        let (samples, seqlen) = (args.samples, args.seqlen);
        format!("{of}, at most {samples} sequences of {seqlen} tokens")
    }

    /// What was scored, in words.
    pub fn text(&self) -> String {
        let what = match &self.setup.text {
            Text::File(path) => path.display().to_string(),
            Text::Problems(_, count) => {
                format!("chains and answers of up to {count} held-out problems")
            }
        };
        let alone = match &self.setup.text {
            Text::File(path) => path.extension().is_some_and(|e| e == "jsonl"),
            Text::Problems(..) => true,
        };
        let Some(scored) = self.rows.iter().find_map(|row| row.scored.as_ref()) else {
            return what;
        };
        let (tokens, (window, stride)) = (scored.tokens, scored.window);
        match alone {
            true => format!("{tokens} tokens of {what}, each in a context of its own"),
            false => format!("{tokens} tokens of {what}, windows of {window} every {stride}"),
        }
    }

    /// What was asked, in words; none where nothing was.
    pub fn asked(&self) -> Option<String> {
        if !self.setup.reasoning {
            return None;
        }
        let families: Vec<&str> = Family::ALL.iter().map(|f| f.name()).collect();
        let steps: Vec<String> = self.args.steps.iter().map(usize::to_string).collect();
        Some(format!(
            "{} held-out problems, {} each of {} at {} steps; two standard errors are {:.1} %",
            self.problems(),
            self.args.problems,
            families.join(", "),
            steps.join(", "),
            self.two_standard_errors() * 100.0
        ))
    }

    /// For scripts.
    pub fn json(&self) -> Result<String> {
        let (args, setup) = (self.args, self.setup);
        let scored = self.rows.iter().find_map(|row| row.scored.as_ref());
        let rows = self.rows.iter().map(|row| row.json(self.quality(row)));
        let rows: Vec<Value> = rows.collect::<Result<_>>()?;
        let reasoning = setup.reasoning.then(|| {
            json!({
                "problems": self.problems(),
                "problems_per_family_and_length": args.problems,
                "steps": args.steps,
                "seed": args.seed,
            })
        });
        let value = json!({
            "model": setup.name,
            "reference": self.rows.first().map(|row| &row.name),
            "weights": setup.weights,
            "group_size": setup.group_size,
            "asymmetric": args.asymmetric,
            "calibration": {
                "from": args.calibration,
                "samples": args.samples,
                "seqlen": args.seqlen,
                "seed": args.seed,
            },
            "text": {
                "what": self.text(),
                "tokens": scored.map(|s| s.tokens),
                "window": scored.map(|s| s.window.0),
                "stride": scored.map(|s| s.window.1),
            },
            "reasoning": reasoning,
            "threads": setup.threads,
            "rows": rows,
        });
        Ok(value.to_string())
    }
}

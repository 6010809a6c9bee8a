//! `scrimp compare` as a person writes it.

use std::path::PathBuf;

use clap::Args;

use crate::args::{ModelArgs, TaskArg};
use crate::commands::quantize::args::SchemeArg;

/// `scrimp compare`.
#[derive(Args, Debug)]
#[command(after_help = "\
Every scheme is made by scrimp quantize, loaded as any checkpoint is, and measured by scrimp eval and
scrimp bench; each of these is a process of its own, so that its peak memory is its own. A scheme that
cannot be made or run is a row that says why.

Ponder, the default, is measured on its own held-out problems: what it makes of their chains token by
token, and how many it solves at each length. Any other model needs --text, and solves problems with
--task reasoning.

Examples:
  scrimp compare
  scrimp compare --problems 60 --steps 8,16,32,48,64 --html compare.html
  scrimp compare m-bf16.gguf --text prose.txt --calibration other-prose.txt
  scrimp compare ./model --text prose.txt --schemes int4-rtn,int4-awq --asymmetric --keep ./made
  scrimp compare --json | jq '.rows[] | {name, bits_per_weight, kl_mean}'")]
pub struct CompareArgs {
    /// The model to make and compare, as for --model: in BF16, or whatever is the reference.
    #[arg(value_name = "MODEL")]
    pub name: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    /// Schemes to compare with the model itself, as in scrimp quantize.
    #[arg(
        long,
        value_name = "SCHEME",
        value_delimiter = ',',
        default_value = "int8,int4-rtn,int4-gptq,int4-awq,int4-awq-gptq"
    )]
    pub schemes: Vec<SchemeArg>,
    /// Inputs that share a scale in 4 bits [default: 128, or the largest of 64, 32 and 16 that
    /// divides every row].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub group_size: Option<u32>,
    /// Give every group of 4 bits a zero point of its own.
    #[arg(long)]
    pub asymmetric: bool,
    /// What to calibrate on, as in scrimp quantize: a .txt, a .jsonl, or self.
    #[arg(long, value_name = "FILE|self", default_value = "self")]
    pub calibration: String,
    /// Sequences to calibrate on.
    #[arg(long, value_name = "N", default_value_t = 128,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub samples: u32,
    /// Tokens of a sequence, at most.
    #[arg(long, value_name = "TOKENS", default_value_t = 512,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub seqlen: u32,
    /// Another seed calibrates on other sequences and asks other problems.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Text to score: perplexity and divergence [default, for Ponder: held-out problems].
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Score no more than this many tokens of the text.
    #[arg(long, value_name = "TOKENS", default_value_t = 16384)]
    pub max_tokens: usize,
    /// What else to measure [default, for Ponder: reasoning].
    #[arg(long, value_name = "TASK")]
    pub task: Option<TaskArg>,
    /// Lengths of chains.
    #[arg(
        long,
        value_name = "STEPS",
        value_delimiter = ',',
        default_value = "16,32,48,64"
    )]
    pub steps: Vec<usize>,
    /// Problems of each family at each length.
    #[arg(long, value_name = "N", default_value_t = 12,
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub problems: u32,
    /// Tokens to decode and time.
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub output_tokens: u32,
    /// Keep what is made in this folder, which must be new or empty.
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Write a page with the picture to this file.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    pub json: bool,
}

impl CompareArgs {
    /// The model, by its place or by `--model`.
    pub fn model_name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.model.model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn parse(args: &[&str]) -> Result<Box<CompareArgs>, clap::Error> {
        let args = ["scrimp", "compare"].iter().chain(args);
        match Cli::try_parse_from(args)?.command {
            Command::Compare(args) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_arguments_it_is_the_guides_table_of_ponder() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.schemes.len(), 5);
        assert_eq!(args.schemes[0], SchemeArg::Int8);
        assert_eq!(args.steps, [16, 32, 48, 64]);
        assert_eq!((args.calibration.as_str(), args.group_size), ("self", None));
    }

    #[test]
    fn lists_are_cut_at_commas_and_nonsense_is_refused() {
        let args = parse(&["m", "--schemes", "int8,int4-awq", "--steps", "4,8"]).unwrap();
        assert_eq!(args.model_name(), "m");
        assert_eq!(args.schemes, [SchemeArg::Int8, SchemeArg::Int4Awq]);
        assert_eq!(args.steps, [4, 8]);
        for bad in [
            &["--schemes", "int3"][..],
            &["--problems", "0"],
            &["--group-size", "0"],
            &["--samples", "0"],
            &["a", "b"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}

//! `scrimp quantize` as a person writes it.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use scrimp_memory::bytes::parse_bytes;

/// `scrimp quantize`.
#[derive(Args, Debug)]
#[command(after_help = "\
Schemes: int8 and int4-rtn round to nearest; int4-gptq carries errors on; int4-awq scales channels;
int4-awq-gptq does both; int8-a8 is for activations in 8 bits. Those with gptq or awq are made from
calibration tokens: a text, conversations, or what the model itself says when asked (self).

A layer is resident at a time. The most memory it will take is printed before it begins, and held
to; a run that was stopped goes on with --resume and gives the same bytes.

Examples:
  scrimp quantize ./model -o ./model-int4 --scheme int4-gptq --calibration text.txt
  scrimp quantize ./model -o model-Q4_0.gguf --scheme int4-awq-gptq --format gguf
  scrimp quantize m.gguf -o m-awq --scheme int4-awq --group-size 64 --asymmetric --format awq
  scrimp quantize org/name -o r1-int4 --scheme int4-gptq --experts-only --memory 64GiB --resume
  scrimp quantize ./model -o ./model-int8 --scheme int8 --json | jq .bits_per_weight")]
pub struct QuantizeArgs {
    /// The model to read: a folder, a .safetensors or .gguf file, a hub id, or ponder.
    #[arg(value_name = "SRC")]
    pub source: String,
    /// Folder to write; with --format gguf, the file where the name ends in .gguf.
    #[arg(short, long, value_name = "DST")]
    pub output: PathBuf,
    /// How weights become codes [default: int4-awq-gptq].
    #[arg(long, value_name = "SCHEME")]
    pub scheme: Option<SchemeArg>,
    /// Inputs that share a scale; -1: all of a row [default: 128 for 4 bits,
    /// -1 for 8; 32 for gguf, which has no other].
    #[arg(long, value_name = "N", allow_negative_numbers = true,
        value_parser = clap::value_parser!(i64).range(-1..=1_048_576))]
    pub group_size: Option<i64>,
    /// Give every group a zero point of its own.
    #[arg(long)]
    pub asymmetric: bool,
    /// How codes are laid out [default: compressed-tensors].
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<FormatArg>,
    /// Text (.txt), or a conversation or text a line (.jsonl), or self [default: self, where the
    /// scheme needs one].
    #[arg(long, value_name = "FILE|self")]
    pub calibration: Option<String>,
    /// Sequences to calibrate on.
    #[arg(long, value_name = "N", default_value_t = 128,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub samples: u32,
    /// Tokens of a sequence, at most.
    #[arg(long, value_name = "TOKENS", default_value_t = 512,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub seqlen: u32,
    /// Which sequences are taken of a longer text.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Quantize routed experts alone.
    #[arg(long)]
    pub experts_only: bool,
    /// Keep modules whose name this matches; may be given again.
    #[arg(long, value_name = "REGEX")]
    pub ignore: Vec<String>,
    /// Read the recipe from a JSON file: scheme, group_size, asymmetric, format, ignore,
    /// experts_only. What is given beside it goes before it.
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// Most memory to use, such as 8GiB.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub memory: Option<usize>,
    /// Folder for activations meanwhile [default: in DST].
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// Go on with an unfinished run of the same settings.
    #[arg(long)]
    pub resume: bool,
    /// Threads to compute with [default: one a core].
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Schemes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SchemeArg {
    /// 8 bits, rounded to nearest.
    #[value(name = "int8")]
    Int8,
    /// 8 bits, for activations in 8 bits.
    #[value(name = "int8-a8")]
    Int8A8,
    /// 4 bits, rounded to nearest.
    #[value(name = "int4-rtn")]
    Int4Rtn,
    /// 4 bits, errors carried on.
    #[value(name = "int4-gptq")]
    Int4Gptq,
    /// 4 bits, channels scaled.
    #[value(name = "int4-awq")]
    Int4Awq,
    /// Both.
    #[value(name = "int4-awq-gptq")]
    Int4AwqGptq,
}

/// Formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// compressed-tensors, pack-quantized or int-quantized.
    CompressedTensors,
    /// AutoAWQ's.
    Awq,
    /// GPTQ's, version 1.
    Gptq,
    /// One GGUF file: Q4_0, with --asymmetric Q4_1, for int8 Q8_0.
    Gguf,
}

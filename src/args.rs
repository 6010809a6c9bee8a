//! The command line as a person writes it. Nothing here acts; commands turn it into settings.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use scrimp_memory::bytes::parse_bytes;

use crate::commands::compare::args::CompareArgs;
use crate::commands::plan::args::PlanArgs;

/// Serve reasoning models in the memory you have.
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  scrimp run \"Start with 17. a) add 25 b) multiply by 3. What is the result modulo 100?\"
  scrimp run --model SmolLM2.gguf \"Why is the sky blue?\"
  scrimp run --model ./model-folder --chat --memory 4GiB
  scrimp serve --model org/name --memory 8GiB --port 8000
  scrimp bench --model SmolLM2.gguf -p 512 -n 128
  scrimp plan deepseek-ai/DeepSeek-R1 --device H200:8 --context 65536 --concurrency 32
  scrimp profile --steps 48 --html report.html
  scrimp compare --html compare.html"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Say more on stderr: -v for what is going on, -vv for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Write progress as lines for a program that draws it: what compare starts.
    #[arg(long, global = true, hide = true)]
    pub progress_lines: bool,
}

/// What scrimp can be told to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer a prompt, or hold a conversation, and say what it took.
    Run(RunArgs),
    /// Serve an OpenAI-compatible API.
    Serve(ServeArgs),
    /// Measure prefill and decode speed against this machine's memory bandwidth.
    Bench(BenchArgs),
    /// Measure what a model can do: reasoning by length of the chain.
    Eval(EvalArgs),
    /// Say before loading what a model needs on a machine, what binds it, and what to do about it.
    Plan(Box<PlanArgs>),
    /// Run a real request, and say what bound it and what would help.
    Profile(Box<ProfileArgs>),
    /// Write a model in fewer bits: rounding, GPTQ, AWQ, in bounded memory.
    Quantize(crate::commands::quantize::args::QuantizeArgs),
    /// Make a model in every scheme, and measure what each costs and loses.
    Compare(Box<CompareArgs>),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Which model, and what it may use.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// A GGUF or safetensors file, a model folder (plain, FP8, compressed-tensors, AWQ or GPTQ), or a
    /// model on a hub: org/name, org/name@revision, org/name:file.gguf; or ponder, the small
    /// reasoning model that is built in.
    #[arg(
        short,
        long,
        value_name = "PATH|ID",
        env = "SCRIMP_MODEL",
        default_value = "ponder"
    )]
    pub model: String,
    /// Most memory to use, such as 4GiB: weights, KV cache, activations, everything. The budget
    /// is this, the control group's limit or the available memory, whichever is least.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub memory: Option<usize>,
    /// Longest sequence, prompt and output [default: the model's, or what fits].
    #[arg(long, visible_alias = "context-length", value_name = "TOKENS")]
    pub max_model_len: Option<usize>,
    /// Threads to compute with [default: one a core].
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Instruction set to use [default: the best this CPU has].
    #[arg(long, value_name = "LEVEL", env = "SCRIMP_CPU_LEVEL")]
    pub cpu_level: Option<CpuLevelArg>,
    /// Fast computes quantized weights on 8-bit activations; exact keeps activations in float.
    #[arg(long, value_name = "MODE", default_value = "fast")]
    pub precision: PrecisionArg,
    /// How latent attention (DeepSeek's) computes prompts. Plain is faster on long ones, but a
    /// token's bits then depend on how its prompt was cut and on what ran beside it.
    #[arg(long, value_name = "FORM", default_value = "absorbed")]
    pub mla_prefill: MlaPrefillArg,
}

/// How the KV cache and the batch are sized.
#[derive(Args, Clone, Debug)]
pub struct CacheArgs {
    /// Tokens in a block of the KV cache.
    #[arg(long, value_name = "TOKENS", default_value_t = 16,
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub block_size: u32,
    /// Most blocks of one sequence.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub max_blocks_per_seq: usize,
    /// Blocks in the pool [default: what the budget gives, 10240 at most].
    #[arg(long, visible_alias = "num-gpu-blocks-override", value_name = "N")]
    pub num_blocks: Option<usize>,
    /// Most bytes for the KV cache, such as 2GiB.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub kv_cache_memory_bytes: Option<usize>,
    /// Type of the KV cache.
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    pub kv_cache_dtype: KvDtypeArg,
    /// Most sequences computed together.
    #[arg(long, value_name = "N", default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub max_num_seqs: u32,
    /// Most tokens computed in one step; longer prompts are cut into chunks.
    #[arg(long, visible_alias = "chunked-prefill-size", value_name = "TOKENS",
        default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub max_num_batched_tokens: u32,
    /// Tokens of output to keep room for before traffic has shown how long answers are (1.5 times
    /// as many for requests that think). Less admits more at once, and preempts more.
    #[arg(long, value_name = "TOKENS", default_value_t = 1024)]
    pub expected_output_tokens: usize,
    /// Whether prompts reuse the cached blocks of earlier ones.
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1,
        default_missing_value = "true", action = clap::ArgAction::Set)]
    pub enable_prefix_caching: bool,
}

/// How tokens are chosen; unset values come from the model's generation_config.json.
#[derive(Args, Clone, Debug)]
pub struct SamplingArgs {
    /// 0 is greedy.
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Keep the K best tokens.
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,
    /// Keep the best tokens up to this probability.
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Drop tokens below this share of the best one's probability.
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Above 1, tokens already seen become less likely.
    #[arg(long, value_name = "X")]
    pub repetition_penalty: Option<f32>,
    /// The same seed gives the same text.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Most tokens to generate, thinking included.
    #[arg(short = 'n', long, value_name = "TOKENS")]
    pub max_tokens: Option<usize>,
    /// Most tokens of thinking; the chain is then closed and answered.
    #[arg(long, visible_alias = "reasoning-budget", value_name = "TOKENS")]
    pub thinking_token_budget: Option<usize>,
    /// Text that ends the answer; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

/// `scrimp run`.
#[derive(Args, Debug)]
#[command(after_help = "\
The prompt is the argument, or standard input when there is none. Thinking is shown dimmed, the
answer plain; a bill of what it took follows on stderr. In --chat, /help lists what can be said.

Examples:
  scrimp run --model m.gguf \"Why is the sky blue?\"
  scrimp run --model m.gguf --temperature 0 --json \"2+2?\" | jq .answer
  cat report.txt | scrimp run --model m.gguf --system \"Summarise what you are given.\"
  scrimp run --model m.gguf --chat --thinking-token-budget 500")]
pub struct RunArgs {
    /// What to ask.
    pub prompt: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    /// Hold a conversation.
    #[arg(long, conflicts_with = "json")]
    pub chat: bool,
    /// Instructions that come before the conversation.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Continue the prompt as it is, without the model's chat template.
    #[arg(long, conflicts_with_all = ["chat", "system"])]
    pub raw: bool,
    /// Ask a hybrid model to think, or not to.
    #[arg(long, value_name = "BOOL")]
    pub enable_thinking: Option<bool>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub cache: CacheArgs,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// `scrimp serve`.
#[derive(Args, Debug)]
#[command(after_help = "\
Endpoints: /v1/chat/completions, /v1/completions, /v1/models, /tokenize, /detokenize, /health,
/metrics, /openapi.json. SIGTERM finishes what runs and takes nothing new.

Examples:
  scrimp serve --model m.gguf
  scrimp serve --model ./folder --memory 8GiB --max-model-len 32768 --api-key secret
  curl localhost:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}'")]
pub struct ServeArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub cache: CacheArgs,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: std::net::IpAddr,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Key that clients must send [env: SCRIMP_API_KEY].
    #[arg(long, value_name = "KEY", env = "SCRIMP_API_KEY", hide_env = true)]
    pub api_key: Option<String>,
    /// Names that clients may ask for [default: the model as given].
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub served_model_name: Vec<String>,
    /// Most requests that may wait; further ones get status 429.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_queue: usize,
    /// Most bytes of a request's body; never more than the context can use.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "16MiB")]
    pub max_body_bytes: usize,
    /// Seconds after which a request is ended.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub request_timeout: u64,
    /// Seconds that running requests get to finish after SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub shutdown_grace: u64,
}

/// `scrimp bench`.
#[derive(Args, Debug)]
#[command(after_help = "\
Prefill computes a prompt at once; decode generates token by token. Decode cannot be faster than
memory bandwidth allows: bytes of weights and KV cache read per token are counted, and the rate is
held against the bandwidth measured just before.

Examples:
  scrimp bench --model m.gguf
  scrimp bench --model m.gguf -p 512 -n 128 --threads 2 --json
  scrimp bench --model m.gguf -p 0 -n 64 --context 6000
  scrimp bench --model m.gguf -p 0 -n 64 --batch 8")]
pub struct BenchArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    /// Tokens of prompt to time; 0 leaves prefill out.
    #[arg(short = 'p', long, value_name = "TOKENS", default_value_t = 512)]
    pub prompt_tokens: usize,
    /// Tokens to decode and time; 0 leaves decode out.
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 128)]
    pub output_tokens: usize,
    /// Tokens in the context before decode is timed.
    #[arg(short = 'd', long, value_name = "TOKENS", default_value_t = 0)]
    pub context: usize,
    /// Sequences decoded together.
    #[arg(short = 'b', long, value_name = "N", default_value_t = 1)]
    pub batch: usize,
    /// Times each is measured, after one that is not counted.
    #[arg(short = 'r', long, value_name = "N", default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repetitions: u32,
    /// Type of the KV cache.
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    pub kv_cache_dtype: KvDtypeArg,
    /// Most tokens computed in one step.
    #[arg(long, value_name = "TOKENS", default_value_t = 512,
        value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub max_num_batched_tokens: u32,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// `scrimp eval`.
#[derive(Args, Debug)]
#[command(after_help = "\
Reasoning: problems are generated and their answers computed; chains have 1 to 64 steps. The table
shows, for each family and length, the share answered right, tokens thought over those of the
shortest right chain, and where chains first went wrong.

Text: perplexity over windows that overlap, every token scored once; against a reference also the
Kullback-Leibler divergence of the two models' distributions, token by token, how often both find
the same token likeliest, and where they differ most.

Examples:
  scrimp eval
  scrimp eval m.gguf --text prose.txt
  scrimp eval m-q4.gguf --reference m-bf16.gguf --text prose.txt
  scrimp eval --task reasoning --problems 100 --steps 16,48 --json > bf16.json
  scrimp eval --task reasoning --model ./ponder-int4 --svg accuracy.svg --compare bf16.json")]
pub struct EvalArgs {
    /// The model, as for --model.
    #[arg(value_name = "MODEL")]
    pub name: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    /// Score this text, instead of a task; of a .jsonl, each line's {"text"} or {"prompt",
    /// "response"} in a context of its own, the response alone.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["problems", "steps", "family", "svg"])]
    pub text: Option<PathBuf>,
    /// Model to hold the text's scores against, as for --model.
    #[arg(long, value_name = "PATH|ID", requires = "text")]
    pub reference: Option<String>,
    /// Tokens of a window of text [default: 1024, or what the model takes].
    #[arg(long, value_name = "TOKENS", requires = "text")]
    pub window: Option<usize>,
    /// Tokens from the beginning of a window to the next [default: half a window].
    #[arg(long, value_name = "TOKENS", requires = "text")]
    pub stride: Option<usize>,
    /// Score no more than this many tokens of the text.
    #[arg(long, value_name = "TOKENS", requires = "text")]
    pub max_tokens: Option<usize>,
    /// Tokens to list where the two models differ most.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub worst: usize,
    /// What to measure.
    #[arg(long, value_name = "TASK", default_value = "reasoning")]
    pub task: TaskArg,
    /// Problems of each family [default: 504].
    #[arg(long, value_name = "N")]
    pub problems: Option<usize>,
    /// Lengths of chains [default: 1,2,4,8,16,32,48,64].
    #[arg(long, value_name = "STEPS", value_delimiter = ',')]
    pub steps: Vec<usize>,
    /// Families of problems [default: all].
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub family: Vec<String>,
    /// Another seed gives other problems.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Write every problem with what the model thought and answered into this file, as JSON lines.
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    pub answers: Option<PathBuf>,
    /// Draw accuracy against chain length into this file.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Earlier --json reports to draw beside this one.
    #[arg(long, value_name = "FILE", requires = "svg")]
    pub compare: Vec<PathBuf>,
    /// This model's name in the picture [default: the model's].
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub cache: CacheArgs,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

impl EvalArgs {
    /// The model, by its place or by `--model`.
    pub fn model_name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.model.model)
    }
}

/// `scrimp profile`.
#[derive(Args, Debug)]
#[command(
    args_override_self = true,
    after_help = "\
Without --prompt a reasoning problem with a known answer is put to the model; what comes back is
held against it. Every figure is shown as it was planned and as it was measured. Remedies are
settings of this engine, planned anew; --apply starts the program once more with one of them.

Examples:
  scrimp profile --steps 64 --html ponder.html
  scrimp profile --steps 48 --concurrency 4 --apply
  scrimp profile --model m.gguf --prompt \"Why is the sky blue?\" -n 200 --kv-cache-dtype f32
  scrimp profile ./folder --steps 8 --apply 2 --json"
)]
pub struct ProfileArgs {
    /// The model, as --model takes it.
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub named: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    /// Ask this instead of a problem.
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Length of the problem's chain, 1 to 64.
    #[arg(long, value_name = "STEPS", default_value_t = 32)]
    pub steps: usize,
    /// Kind of problem: arithmetic, columns, boxes or variables.
    #[arg(long, value_name = "NAME", default_value = "arithmetic")]
    pub family: String,
    /// Another seed gives another problem.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Requests that run at once; problems of as many seeds.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub concurrency: usize,
    /// Most tokens to generate [default: 256, or twice a problem's shortest chain].
    #[arg(short = 'n', long, value_name = "TOKENS")]
    pub max_tokens: Option<usize>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub cache: CacheArgs,
    /// Try remedy N of the list, or the best one, and show before, predicted and after.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "0")]
    pub apply: Option<usize>,
    /// Write a page with pictures to this file.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
    /// Only run and report: what --apply starts.
    #[arg(long, hide = true)]
    pub measure_only: bool,
}

/// What `eval` measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TaskArg {
    /// Accuracy by family and by chain length.
    Reasoning,
}

/// Instruction sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CpuLevelArg {
    /// No SIMD intrinsics: runs anywhere.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 with what it has of VNNI and BF16.
    Avx512,
    /// Arm's 128-bit SIMD.
    Neon,
}

/// How latent attention computes prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MlaPrefillArg {
    /// Queries carried into the latents' space, everywhere alike.
    Absorbed,
    /// Keys and values expanded from the latents, for long chunks of a lone sequence.
    Plain,
}

/// How exactly to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// Float activations.
    Exact,
    /// Activations in 8 bits where the weights are quantized.
    Fast,
}

/// Types of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvDtypeArg {
    /// F16 with fast precision, F32 with exact.
    Auto,
    /// 4 bytes a value.
    F32,
    /// 2 bytes a value.
    F16,
    /// 2 bytes a value, with the range of F32.
    Bf16,
}

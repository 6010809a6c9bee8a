//! `scrimp run`: a prompt answered, or a conversation held, and what it took.

use std::io::{BufRead, IsTerminal, Read, Write, stdin, stdout};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use scrimp_engine::{EngineHandle, Event, FinishReason, Finished, GenerateRequest};
use scrimp_memory::Category;
use scrimp_memory::bytes::HumanBytes;
use serde_json::{Map, Value, json};

use crate::args::{RunArgs, SamplingArgs};
use crate::interrupt::{self, Interrupt};
use crate::launch::{Launched, Settings, launch};
use crate::opened::Opened;
use crate::prompting::{self, message};
use crate::terminal::{self, AnswerPrinter, rate};
use crate::{machine, opened};

/// Most bytes of a prompt on standard input, as many as the server takes in one request: an
/// endless one must not fill the memory.
const MAX_PROMPT_BYTES: usize = 16 << 20;

/// Answers the prompt, or talks until the person leaves.
pub fn run(args: &RunArgs) -> Result<()> {
    let opened = opened::open(&args.model.model)?;
    if args.chat {
        return chat(args, &opened);
    }
    let prompt = match &args.prompt {
        Some(prompt) => prompt.clone(),
        None => read_prompt()?,
    };
    let request = match args.raw {
        true => apply(
            &args.sampling,
            prompting::continuation(&opened, &prompt)?,
            &opened,
        )?,
        false => chat_request(args, &opened, &first_turn(args, &prompt))?,
    };
    let mut settings = Settings::new(&args.model, &args.cache);
    settings.cache.max_num_seqs = 1;
    settings.needed_len = request
        .max_tokens
        .map(|n| n.saturating_add(request.prompt.len()));
    settings.needed_rows = Some(request.prompt.len());
    let launched = launch(&opened, &settings, 1, None)?;
    let mut printer = (!args.json).then(AnswerPrinter::new);
    let interrupt = Interrupt::watch()?;
    let answered = generate(&launched.handle, request, &mut printer, &interrupt)?;
    if args.json {
        let bill = Bill::new(&answered, &opened, &launched).json();
        writeln!(stdout(), "{bill}")?;
    } else {
        terminal::note(&Bill::new(&answered, &opened, &launched).to_string());
    }
    launched.stop()?;
    match answered.finished.reason {
        FinishReason::Abort => interrupt::exit(),
        _ => Ok(()),
    }
}

fn read_prompt() -> Result<String> {
    if stdin().is_terminal() {
        bail!("there is no prompt: give one as an argument or on standard input, or use --chat");
    }
    let mut prompt = String::new();
    let read = stdin()
        .take(MAX_PROMPT_BYTES as u64 + 1)
        .read_to_string(&mut prompt)
        .context("reading the prompt from standard input")?;
    if read > MAX_PROMPT_BYTES {
        bail!(
            "standard input has more than {}: no model reads that much at once",
            HumanBytes(MAX_PROMPT_BYTES)
        );
    }
    Ok(prompt)
}

fn first_turn(args: &RunArgs, prompt: &str) -> Vec<Value> {
    let system = args.system.iter().map(|text| message("system", text));
    system.chain([message("user", prompt)]).collect()
}

fn chat_request(args: &RunArgs, opened: &Opened, messages: &[Value]) -> Result<GenerateRequest> {
    let mut kwargs = Map::new();
    if let Some(think) = args.enable_thinking {
        // Models differ in the name; both are known to users of other engines.
        kwargs.insert("enable_thinking".into(), think.into());
        kwargs.insert("thinking".into(), think.into());
    }
    apply(
        &args.sampling,
        prompting::chat(opened, messages, &kwargs)?,
        opened,
    )
}

/// The person's settings over the model's own.
fn apply(
    args: &SamplingArgs,
    mut request: GenerateRequest,
    opened: &Opened,
) -> Result<GenerateRequest> {
    let sampling = &mut request.sampling;
    sampling.temperature = args.temperature.unwrap_or(sampling.temperature);
    sampling.top_k = args.top_k.or(sampling.top_k);
    sampling.top_p = args.top_p.unwrap_or(sampling.top_p);
    sampling.min_p = args.min_p.unwrap_or(sampling.min_p);
    let penalty = args.repetition_penalty;
    sampling.repetition_penalty = penalty.unwrap_or(sampling.repetition_penalty);
    sampling.seed = args.seed.unwrap_or_else(random_seed);
    request.max_tokens = args.max_tokens;
    request.stop.clone_from(&args.stop);
    request.thinking_token_budget = args.thinking_token_budget;
    // The length is the engine's to check: only it knows how much fits.
    request.validate(opened.config.vocab_size, usize::MAX)?;
    Ok(request)
}

/// Different from run to run; nothing secret depends on it.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// A finished answer.
struct Answered {
    reasoning: String,
    answer: String,
    finished: Finished,
    total: Duration,
}

fn generate(
    handle: &EngineHandle,
    request: GenerateRequest,
    printer: &mut Option<AnswerPrinter>,
    interrupt: &Interrupt,
) -> Result<Answered> {
    let (sender, updates) = channel();
    let started = Instant::now();
    let id = handle.submit(request, Box::new(move |update| sender.send(update).is_ok()))?;
    let engine = handle.clone();
    let _until_answered = interrupt.aborts(move || engine.abort(id));
    let (mut reasoning, mut answer) = (String::new(), String::new());
    for update in updates {
        match update.event {
            Event::Delta(delta) => {
                if let Some(printer) = printer {
                    printer.reasoning(&delta.reasoning)?;
                    printer.answer(&delta.answer)?;
                }
                reasoning.push_str(&delta.reasoning);
                answer.push_str(&delta.answer);
            }
            Event::Finished(finished) => {
                if let Some(printer) = printer {
                    printer.finish()?;
                }
                return Ok(Answered {
                    reasoning,
                    answer,
                    finished,
                    total: started.elapsed(),
                });
            }
            Event::Failed(error) => return Err(error.into()),
        }
    }
    bail!("the engine stopped before the answer was complete")
}

/// What an answer took.
struct Bill<'a> {
    answered: &'a Answered,
    model: &'a str,
    launched: &'a Launched,
}

impl<'a> Bill<'a> {
    fn new(answered: &'a Answered, opened: &'a Opened, launched: &'a Launched) -> Bill<'a> {
        Bill {
            answered,
            model: &opened.name,
            launched,
        }
    }

    /// Prompt tokens computed a second, and generated tokens a second after the first.
    fn rates(&self) -> (f64, f64) {
        let usage = &self.answered.finished.usage;
        let computed = usage.prompt_tokens - usage.cached_tokens;
        let decoded = usage.completion_tokens.saturating_sub(1);
        (
            rate(computed, usage.prefill_time),
            rate(decoded, usage.decode_time),
        )
    }

    fn bytes(&self, category: Category) -> usize {
        self.launched.ledger.snapshot().category(category).peak
    }

    fn json(&self) -> Value {
        let Answered {
            reasoning,
            answer,
            finished,
            ..
        } = self.answered;
        let usage = &finished.usage;
        let (prefill, decode) = self.rates();
        let plan = &self.launched.handle.info().plan;
        json!({
            "model": self.model,
            "isa": self.launched.handle.info().device,
            "reasoning": reasoning,
            "answer": answer,
            "finish_reason": finished.reason.name(),
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "reasoning_tokens": usage.reasoning_tokens,
                "cached_tokens": usage.cached_tokens,
            },
            "timing": {
                "ttft_s": (usage.queue_time + usage.prefill_time).as_secs_f64(),
                "prefill_tokens_per_s": prefill,
                "decode_tokens_per_s": decode,
                "total_s": self.answered.total.as_secs_f64(),
            },
            "memory": {
                "budget_bytes": plan.budget_bytes,
                "weights_bytes": self.bytes(Category::Weights),
                "kv_cache_bytes": self.bytes(Category::KvCache),
                "kv_cache_used_bytes": usage.kv_cache_bytes,
                "activations_bytes": self.bytes(Category::Activations),
                "staging_bytes": self.bytes(Category::Staging),
                "other_bytes": plan.other_bytes,
                "reserve_bytes": plan.reserve_bytes,
                "heap_bytes": machine::heap(),
                "planned_peak_bytes": self.launched.planned_peak_bytes(),
                "planned_full_cache_bytes": plan.peak_bytes(),
                "peak_rss_bytes": machine::peak_rss(),
            },
        })
    }
}

impl std::fmt::Display for Bill<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let usage = &self.answered.finished.usage;
        let (prefill, decode) = self.rates();
        let row = |cells: [String; 3]| cells.to_vec();
        let bytes = |category| HumanBytes(self.bytes(category)).to_string();
        let cached = match usage.cached_tokens {
            0 => String::new(),
            n => format!("{n} cached"),
        };
        let thought = match usage.reasoning_tokens {
            0 => String::new(),
            n => format!("{n} thinking"),
        };
        let used = format!("{} used", HumanBytes(usage.kv_cache_bytes));
        let peak = machine::peak_rss().map_or("unknown".into(), |b| HumanBytes(b).to_string());
        let planned = format!("{} planned", HumanBytes(self.launched.planned_peak_bytes()));
        let rows = [
            row([
                "prompt".into(),
                format!("{} tokens", usage.prompt_tokens),
                cached,
            ]),
            row(["".into(), format!("{prefill:.1} tokens/s"), String::new()]),
            row([
                "output".into(),
                format!("{} tokens", usage.completion_tokens),
                thought,
            ]),
            row(["".into(), format!("{decode:.1} tokens/s"), String::new()]),
            row(["weights".into(), bytes(Category::Weights), String::new()]),
            row(["KV cache".into(), bytes(Category::KvCache), used]),
            row([
                "activations".into(),
                bytes(Category::Activations),
                String::new(),
            ]),
            row(["peak memory".into(), peak, planned]),
            row([
                "ended by".into(),
                self.answered.finished.reason.name().into(),
                String::new(),
            ]),
        ];
        write!(f, "\n{}", terminal::table(&rows))
    }
}

const CHAT_HELP: &str = "\
/help    this text
/new     forget the conversation
/bill    what the last answer took
/exit    leave (so does Ctrl-D)
Ctrl-C   end an answer, or leave where there is none";

/// Talks until the person leaves.
fn chat(args: &RunArgs, opened: &Opened) -> Result<()> {
    let mut settings = Settings::new(&args.model, &args.cache);
    settings.cache.max_num_seqs = 1;
    let launched = launch(opened, &settings, 1, None)?;
    let system: Vec<Value> = args
        .system
        .iter()
        .map(|text| message("system", text))
        .collect();
    let mut messages = system.clone();
    let mut last: Option<Answered> = None;
    let mut printer = Some(AnswerPrinter::new());
    let interrupt = Interrupt::watch()?;
    terminal::note(&format!("{}; /help lists what can be said", opened.name));
    while let Some(line) = read_line()? {
        match line.trim() {
            "" => {}
            "/exit" | "/quit" => break,
            "/help" => terminal::note(CHAT_HELP),
            "/new" => messages.clone_from(&system),
            "/bill" => terminal::note(&match &last {
                Some(answered) => Bill::new(answered, opened, &launched).to_string(),
                None => "nothing was answered yet".into(),
            }),
            command if command.starts_with('/') => {
                terminal::note(&format!(
                    "{command} is unknown; /help lists what can be said"
                ));
            }
            text => {
                messages.push(message("user", text));
                let request = chat_request(args, opened, &messages)?;
                match generate(&launched.handle, request, &mut printer, &interrupt) {
                    Ok(answered) => {
                        messages.push(message("assistant", &answered.answer));
                        last = Some(answered);
                    }
                    // Such as a conversation that no longer fits: the next turn may.
                    Err(error) => {
                        messages.pop();
                        terminal::note(&format!("error: {}", terminal::causes(&error)));
                    }
                }
            }
        }
    }
    launched.stop()
}

/// A line from the person, prompted for when there is one; `None` at the end.
fn read_line() -> Result<Option<String>> {
    if stdin().is_terminal() {
        write!(stdout(), "> ")?;
        stdout().flush()?;
    }
    let mut line = String::new();
    let read = stdin()
        .lock()
        .read_line(&mut line)
        .context("reading standard input")?;
    Ok((read > 0).then_some(line))
}

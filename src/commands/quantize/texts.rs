//! Calibration tokens: from a text, from conversations, or from what the model itself says.

use std::fs;
use std::path::Path;
use std::sync::mpsc::channel;

use anyhow::{Context, Result, bail, ensure};
use scrimp_cpu::{CpuOptions, Precision};
use scrimp_engine::{Event, GenerateRequest};
use scrimp_eval::problems::{Family, Problem, Split};
use scrimp_quant::CalibrationSet;
use scrimp_text::TemplateInput;
use serde_json::{Map, Value};

use crate::args::{CacheArgs, KvDtypeArg};
use crate::launch::{Settings, launch};
use crate::machine;
use crate::opened::Opened;
use crate::{prompting, terminal};

/// How much is wanted.
pub struct Wanted {
    /// Sequences.
    pub samples: usize,
    /// Tokens of each, at most.
    pub seqlen: usize,
    /// Which are taken of more.
    pub seed: u64,
}

/// Sequences shorter than this teach more about beginnings than about texts.
const LEAST_TOKENS: usize = 16;

/// Questions that a model is asked, beside problems, when it calibrates itself.
const QUESTIONS: [&str; 24] = [
    "Explain how a bill becomes a law.",
    "Why is the sky blue, and why are sunsets red?",
    "Write a short story about a lighthouse keeper who finds a letter.",
    "What should I consider before adopting a dog?",
    "Write a Python function that merges two sorted lists, and explain it.",
    "Summarise the causes of the First World War.",
    "Give me a recipe for a vegetable soup, step by step.",
    "What is the difference between a virus and a bacterium?",
    "Describe the water cycle to a ten-year-old.",
    "Write a polite e-mail asking for a deadline to be moved.",
    "How does a refrigerator work?",
    "List three arguments for and three against remote work.",
    "Explain recursion with an example in C.",
    "What happened during the French Revolution?",
    "Write a poem about autumn in a city.",
    "How do vaccines train the immune system?",
    "Translate into French: the train leaves at seven, and we must not be late.",
    "A shirt costs 20 after a discount of 20 percent. What did it cost before? Think step by step.",
    "What are the main features of SQL joins?",
    "Plan a three-day trip to Rome for a family.",
    "Explain supply and demand with an example.",
    "Why do leaves change colour?",
    "Write a dialogue between a detective and a witness.",
    "How can I learn to play the guitar by myself?",
];

/// Reads `from`, or asks the model.
pub fn calibration(
    opened: &Opened,
    from: &str,
    wanted: &Wanted,
    memory: Option<usize>,
    threads: usize,
) -> Result<CalibrationSet> {
    let set = match Path::new(from).extension().and_then(|e| e.to_str()) {
        _ if from == "self" => own_words(opened, wanted, memory, threads)?,
        Some("jsonl") => lines(opened, from, wanted)?,
        _ => text(opened, from, wanted)?,
    };
    ensure!(
        set.tokens() > 0,
        "{from} has no text of at least {LEAST_TOKENS} tokens to calibrate on"
    );
    let vocab = opened.config.vocab_size;
    let unknown = set
        .sequences
        .iter()
        .flatten()
        .find(|t| **t as usize >= vocab);
    if let Some(token) = unknown {
        bail!(
            "the tokenizer gives token {token}, but the model has {vocab}: they do not belong together"
        );
    }
    Ok(set)
}

/// A text cut into pieces, evenly taken from where a seed says.
fn text(opened: &Opened, from: &str, wanted: &Wanted) -> Result<CalibrationSet> {
    let text = fs::read_to_string(from).with_context(|| format!("reading {from}"))?;
    let tokenizer = &opened.text.tokenizer;
    let prefix = tokenizer.encode("", true)?;
    let body = wanted.seqlen.saturating_sub(prefix.len()).max(1);
    // No more is read than is used, several times over: tokenizing takes time.
    let tokens = tokenizer.encode(cut(&text, body * wanted.samples * 24), false)?;
    let pieces: Vec<&[u32]> = tokens
        .chunks(body)
        .filter(|p| p.len() >= LEAST_TOKENS.min(body))
        .collect();
    let picked = pick(pieces.len(), wanted);
    let sequences = picked
        .map(|i| [prefix.as_slice(), pieces[i]].concat())
        .collect();
    Ok(CalibrationSet { sequences })
}

/// The front of a text, at a character's end.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// `samples` of `count`, evenly spread, shifted by the seed.
fn pick(count: usize, wanted: &Wanted) -> impl Iterator<Item = usize> + use<> {
    let taken = wanted.samples.min(count);
    let shift = if count > 0 {
        wanted.seed as usize % count
    } else {
        0
    };
    (0..taken).map(move |i| (i * count / taken + shift) % count)
}

/// One document a line: `{"messages": […]}` through the chat template, `{"text": …}` as it is, or
/// `{"prompt": …, "response": …}` as a conversation.
fn lines(opened: &Opened, from: &str, wanted: &Wanted) -> Result<CalibrationSet> {
    let text = fs::read_to_string(from).with_context(|| format!("reading {from}"))?;
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let mut sequences = Vec::new();
    for i in pick(lines.len(), wanted) {
        let place = || format!("line {} of the documents of {from}", i + 1);
        let json: Value = serde_json::from_str(lines[i]).with_context(place)?;
        let mut tokens = document(opened, &json).with_context(place)?;
        tokens.truncate(wanted.seqlen);
        if tokens.len() >= LEAST_TOKENS.min(wanted.seqlen) {
            sequences.push(tokens);
        }
    }
    Ok(CalibrationSet { sequences })
}

fn document(opened: &Opened, json: &Value) -> Result<Vec<u32>> {
    let tokenizer = &opened.text.tokenizer;
    if let Some(text) = json["text"].as_str() {
        return Ok(tokenizer.encode(text, true)?);
    }
    let messages = match (json["messages"].as_array(), json["prompt"].as_str()) {
        (Some(messages), _) => messages.clone(),
        (None, Some(prompt)) => {
            let answer = json["response"].as_str().or(json["completion"].as_str());
            vec![
                prompting::message("user", prompt),
                prompting::message("assistant", answer.unwrap_or_default()),
            ]
        }
        _ => bail!("there is no \"text\", no \"messages\" and no \"prompt\" in it"),
    };
    let Some(template) = &opened.text.template else {
        let contents = messages.iter().filter_map(|m| m["content"].as_str());
        return Ok(tokenizer.encode(&contents.collect::<Vec<_>>().join("\n\n"), true)?);
    };
    let text = template.render(&TemplateInput {
        messages: &messages,
        tools: None,
        add_generation_prompt: false,
        kwargs: Some(&Map::new()),
        now: 0,
    })?;
    Ok(tokenizer.encode(&text, false)?)
}

/// The model's own answers, sampled: prompt and chain together.
fn own_words(
    opened: &Opened,
    wanted: &Wanted,
    memory: Option<usize>,
    threads: usize,
) -> Result<CalibrationSet> {
    let settings = Settings {
        memory,
        cpu: CpuOptions {
            threads: Some(threads),
            precision: Precision::Fast,
            ..CpuOptions::default()
        },
        max_model_len: None,
        needed_len: Some(wanted.seqlen + 256),
        needed_rows: None,
        service_bytes: 0,
        request_bytes: 0,
        cache: cache(),
    };
    let launched = launch(opened, &settings, usize::MAX, None)
        .context("calibrating on the model's own words runs it, which this memory does not hold: give a text with --calibration")?;
    let (sender, news) = channel();
    let mut sequences: Vec<Vec<u32>> = Vec::new();
    for i in 0..wanted.samples {
        let request = request(opened, i, wanted)?;
        sequences.push(request.prompt.clone());
        let sender = sender.clone();
        let sink =
            Box::new(move |update: scrimp_engine::Update| sender.send((i, update.event)).is_ok());
        launched.handle.submit(request, sink)?;
    }
    drop(sender);
    let bar = terminal::count_progress("answers", wanted.samples as u64);
    while let Ok((i, event)) = news.recv() {
        match event {
            Event::Delta(delta) => sequences[i].extend(delta.tokens.iter().map(|t| t.id)),
            Event::Finished(_) => bar.inc(1),
            Event::Failed(error) => return Err(error.into()),
        }
    }
    bar.finish_and_clear();
    launched.stop()?;
    for sequence in &mut sequences {
        sequence.truncate(wanted.seqlen);
    }
    sequences.retain(|s| s.len() >= LEAST_TOKENS.min(wanted.seqlen));
    Ok(CalibrationSet { sequences })
}

/// Every other request is a problem to reason about.
fn request(opened: &Opened, i: usize, wanted: &Wanted) -> Result<GenerateRequest> {
    const STEPS: [usize; 6] = [2, 4, 8, 16, 24, 32];
    let question = if i.is_multiple_of(2) || opened.name == crate::bundled::NAME {
        let family = Family::ALL[i / 2 % Family::ALL.len()];
        let steps = STEPS[i / 8 % STEPS.len()];
        let seed = wanted.seed.wrapping_mul(1_000_003).wrapping_add(i as u64);
        Problem::generate(family, steps, Split::Train, seed).prompt
    } else {
        QUESTIONS[i / 2 % QUESTIONS.len()].to_owned()
    };
    let mut request = match &opened.text.template {
        Some(_) => prompting::chat(
            opened,
            &[prompting::message("user", &question)],
            &Map::new(),
        )?,
        None => prompting::continuation(opened, &question)?,
    };
    request.max_tokens = Some(wanted.seqlen.saturating_sub(request.prompt.len()).max(1));
    request.sampling.seed = wanted.seed.wrapping_add(i as u64);
    Ok(request)
}

fn cache() -> CacheArgs {
    CacheArgs {
        block_size: 16,
        max_blocks_per_seq: 4096,
        num_blocks: None,
        kv_cache_memory_bytes: None,
        kv_cache_dtype: KvDtypeArg::Auto,
        max_num_seqs: 16,
        max_num_batched_tokens: 512,
        expected_output_tokens: 256,
        enable_prefix_caching: true,
    }
}

/// What the process holds already.
pub fn baseline() -> usize {
    machine::Resident::read().map_or(0, |resident| resident.total())
}

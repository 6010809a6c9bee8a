//! What is asked of the model: a prompt of the person's, or problems with known answers.

use anyhow::{Result, bail, ensure};
use scrimp_engine::GenerateRequest;
use scrimp_eval::Outcome;
use scrimp_eval::problems::{Family, MAX_STEPS, Problem, Split};
use serde_json::Map;

use crate::args::ProfileArgs;
use crate::opened::Opened;
use crate::prompting;

/// Tokens generated for a prompt whose answer's length nobody knows.
const DEFAULT_TOKENS: usize = 256;

/// The requests of one profile, all alike.
pub struct Task {
    /// What is put to the model, one after another or at once.
    pub requests: Vec<GenerateRequest>,
    /// The problems that they are, where the answers are known.
    pub problems: Vec<Problem>,
    /// The first one's text.
    pub prompt: String,
}

impl Task {
    /// What the arguments ask for.
    pub fn new(args: &ProfileArgs, opened: &Opened) -> Result<Task> {
        ensure!(
            args.concurrency >= 1,
            "--concurrency is 0: it must be at least 1"
        );
        let mut task = match &args.prompt {
            Some(prompt) => Task {
                requests: vec![request(opened, prompt)?; args.concurrency],
                problems: Vec::new(),
                prompt: prompt.clone(),
            },
            None => Task::problems(args, opened)?,
        };
        for request in &mut task.requests {
            request.sampling.temperature = 0.0;
            if let Some(tokens) = args.max_tokens {
                request.max_tokens = Some(tokens);
            }
            request.validate(opened.config.vocab_size, usize::MAX)?;
        }
        Ok(task)
    }

    fn problems(args: &ProfileArgs, opened: &Opened) -> Result<Task> {
        ensure!(
            (1..=MAX_STEPS).contains(&args.steps),
            "--steps is {}: chains have 1 to {MAX_STEPS} steps",
            args.steps
        );
        let family: Family = args.family.parse().map_err(anyhow::Error::msg)?;
        let seeds = (0..args.concurrency as u64).map(|i| args.seed.wrapping_add(i));
        let problems: Vec<Problem> = seeds
            .map(|seed| Problem::generate(family, args.steps, Split::Test, seed))
            .collect();
        let ask = |problem: &Problem| {
            let mut request = request(opened, &problem.prompt)?;
            let chain = problem.chain.join("\n");
            let shortest = opened.text.tokenizer.encode(&chain, false)?.len();
            request.max_tokens = Some(2 * shortest + 64);
            Ok(request)
        };
        Ok(Task {
            requests: problems.iter().map(ask).collect::<Result<_>>()?,
            prompt: problems[0].prompt.clone(),
            problems,
        })
    }

    /// Requests that run at once.
    pub fn concurrency(&self) -> usize {
        self.requests.len()
    }

    /// Tokens of the longest prompt.
    pub fn longest_prompt(&self) -> usize {
        let prompts = self.requests.iter().map(|request| request.prompt.len());
        prompts.max().unwrap_or(0)
    }

    /// Tokens that no sequence exceeds.
    pub fn longest_sequence(&self) -> usize {
        let tokens = self.requests.iter().map(|request| {
            let output = request.max_tokens.unwrap_or(DEFAULT_TOKENS);
            request.prompt.len() + output
        });
        tokens.max().unwrap_or(1)
    }

    /// How many of the answers are right; `None` where nobody knows.
    pub fn right(&self, answers: &[Answer]) -> Option<usize> {
        if self.problems.is_empty() {
            return None;
        }
        let pairs = self.problems.iter().zip(answers);
        let right = |(problem, answer): &(&Problem, &Answer)| {
            Outcome::of(problem, &answer.reasoning, &answer.text, 1.0).correct
        };
        Some(pairs.filter(right).count())
    }
}

/// What came back for one request.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The chain of thought.
    pub reasoning: String,
    /// The answer.
    pub text: String,
    /// Why it ended.
    pub finish_reason: &'static str,
    /// Tokens generated.
    pub tokens: usize,
}

fn request(opened: &Opened, prompt: &str) -> Result<GenerateRequest> {
    let mut request = match &opened.text.template {
        Some(_) => prompting::chat(opened, &[prompting::message("user", prompt)], &Map::new())?,
        None => prompting::continuation(opened, prompt)?,
    };
    if request.prompt.is_empty() {
        bail!("the prompt has no tokens: nothing can be measured on it");
    }
    request.max_tokens = Some(DEFAULT_TOKENS);
    Ok(request)
}

//! The reasoning task: problems put to a running engine, many at once, and scored.

use std::sync::mpsc::channel;
use std::time::Instant;

use scrimp_engine::{EngineHandle, Event, GenerateRequest, RequestError};

use crate::problems::{Family, Problem, Split};
use crate::score::{Outcome, Report};

/// Which problems to put.
#[derive(Clone, Debug, PartialEq)]
pub struct ReasoningTask {
    /// Kinds of problems.
    pub families: Vec<Family>,
    /// Lengths of chains; each family's problems are spread evenly over them.
    pub steps: Vec<usize>,
    /// Problems of each family.
    pub problems: usize,
    /// Which part of the problems.
    pub split: Split,
    /// The first problem's number; another seed gives other problems.
    pub seed: u64,
}

impl Default for ReasoningTask {
    fn default() -> ReasoningTask {
        ReasoningTask {
            families: Family::ALL.to_vec(),
            steps: vec![1, 2, 4, 8, 16, 32, 48, 64],
            problems: 504,
            split: Split::Test,
            seed: 0,
        }
    }
}

/// Puts text to a model: how a problem becomes a request, and how tokens are counted.
pub trait Examiner {
    /// The request that asks `question`, sampling and all but its `max_tokens`.
    ///
    /// # Errors
    /// When the model's template or tokenizer refuses it; the message is for people.
    fn ask(&self, question: &str) -> Result<GenerateRequest, String>;

    /// Tokens of a text.
    ///
    /// # Errors
    /// When the tokenizer refuses it; the message is for people.
    fn count(&self, text: &str) -> Result<usize, String>;
}

/// A problem with what the model made of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered<'a> {
    /// What was asked.
    pub problem: &'a Problem,
    /// What the model thought.
    pub reasoning: &'a str,
    /// What it answered.
    pub answer: &'a str,
    /// How it went.
    pub outcome: &'a Outcome,
}

/// Why the task could not be done.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A problem that cannot be put to this model.
    #[error("putting a problem to the model: {0}")]
    Ask(String),
    /// The engine refused or broke.
    #[error("a problem of {steps} steps: {source}")]
    Engine {
        /// Steps of the problem's chain.
        steps: usize,
        /// What happened.
        source: RequestError,
    },
    /// The engine ended before its answers.
    #[error("the engine stopped before all problems were answered")]
    Stopped,
}

impl ReasoningTask {
    /// The problems, longest chains first, so that the batch stays full to the end.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for &family in &self.families {
            for i in 0..self.problems {
                let steps = self.steps[i % self.steps.len()];
                let seed = self.seed.wrapping_add((i / self.steps.len()) as u64);
                problems.push(Problem::generate(family, steps, self.split, seed));
            }
        }
        problems.sort_by_key(|p| std::cmp::Reverse(p.steps));
        problems
    }

    /// Puts every problem and scores the answers; `told` hears each, in the order they end.
    ///
    /// # Errors
    /// When a problem cannot be put, or the engine refuses one or stops.
    pub fn run(
        &self,
        engine: &EngineHandle,
        examiner: &dyn Examiner,
        told: &mut dyn FnMut(&Answered<'_>),
    ) -> Result<Report, TaskError> {
        let started = Instant::now();
        let problems = self.problems();
        let mut answers: Vec<Answer> = Vec::with_capacity(problems.len());
        let (sender, news) = channel();
        for (i, problem) in problems.iter().enumerate() {
            let shortest = examiner
                .count(&problem.chain.join("\n"))
                .map_err(TaskError::Ask)?;
            let mut request = examiner.ask(&problem.prompt).map_err(TaskError::Ask)?;
            request.n = 1;
            request.max_tokens = Some(allowed_tokens(shortest));
            let sender = sender.clone();
            let sink = Box::new(move |update: scrimp_engine::Update| {
                sender.send((i, update.event)).is_ok()
            });
            let submitted = engine.submit(request, sink);
            submitted.map_err(|source| TaskError::Engine {
                steps: problem.steps,
                source,
            })?;
            answers.push(Answer {
                shortest,
                ..Answer::default()
            });
        }
        drop(sender);
        let mut outcomes = Vec::with_capacity(problems.len());
        for (i, event) in news {
            let (problem, answer) = (&problems[i], &mut answers[i]);
            match event {
                Event::Delta(delta) => {
                    answer.reasoning.push_str(&delta.reasoning);
                    answer.answer.push_str(&delta.answer);
                }
                Event::Finished(finished) => {
                    let outcome = answer.score(problem, finished.usage.reasoning_tokens);
                    told(&Answered {
                        problem,
                        reasoning: &answer.reasoning,
                        answer: &answer.answer,
                        outcome: &outcome,
                    });
                    outcomes.push(outcome);
                }
                Event::Failed(source) => {
                    return Err(TaskError::Engine {
                        steps: problem.steps,
                        source,
                    });
                }
            }
        }
        if outcomes.len() < problems.len() {
            return Err(TaskError::Stopped);
        }
        Ok(Report::of(&outcomes, started.elapsed().as_secs_f64()))
    }
}

/// A chain may take twice the shortest one's tokens, and an answer a sentence.
fn allowed_tokens(shortest: usize) -> usize {
    2 * shortest + 64
}

#[derive(Default)]
struct Answer {
    reasoning: String,
    answer: String,
    shortest: usize,
}

impl Answer {
    fn score(&self, problem: &Problem, reasoning_tokens: usize) -> Outcome {
        let inflation = reasoning_tokens as f64 / self.shortest.max(1) as f64;
        Outcome::of(problem, &self.reasoning, &self.answer, inflation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_spread_over_lengths_and_the_longest_come_first() {
        let task = ReasoningTask {
            problems: 10,
            steps: vec![1, 5, 9],
            ..Default::default()
        };
        let problems = task.problems();
        assert_eq!(problems.len(), 40);
        assert!(problems.windows(2).all(|w| w[0].steps >= w[1].steps));
        assert_eq!(problems.iter().filter(|p| p.steps == 1).count(), 16);
        let mut prompts: Vec<&str> = problems.iter().map(|p| p.prompt.as_str()).collect();
        prompts.sort_unstable();
        prompts.dedup();
        assert!(prompts.len() >= 38, "hardly any two are the same");
    }
}

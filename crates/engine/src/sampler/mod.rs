//! From a row of logits to a token: a function of the row, the request and its own history.
//!
//! Nothing here knows of a batch. The random number of token `i` comes from the request's seed
//! and `i` alone ([`rng`]), ties go to the lower id, and sums run in a fixed order, so the same
//! row gives the same token wherever and whenever it is computed.
//!
//! Steps, in vLLM's order: eligibility, bias, penalties, temperature, min-p, top-k, top-p, draw.

mod logprobs;
pub mod rng;
mod select;

use crate::params::SamplingParams;
use crate::request::TokenLogprobs;
use select::Candidate;

/// What a sequence adds to its parameters.
#[derive(Clone, Copy, Debug, Default)]
pub struct SequenceContext<'a> {
    /// Tokens of the prompt.
    pub prompt: &'a [u32],
    /// Tokens generated so far.
    pub output: &'a [u32],
    /// Tokens that end a generation; not eligible before `min_tokens` are there.
    pub ending: &'a [u32],
    /// Never eligible.
    pub banned: &'a [u32],
    /// Where given, no other token is eligible.
    pub allowed: Option<&'a [u32]>,
    /// Seed of the sequence's random numbers ([`rng::choice_seed`] of the request's).
    pub seed: u64,
}

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// Log-probabilities of the model's own distribution, where asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// Why no token could be drawn.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// The model computed something that is no number.
    #[error("the model's logit of token {token} is {value}: its weights or its cache are damaged")]
    NotFinite {
        /// The first such token.
        token: usize,
        /// Its logit.
        value: f32,
    },
    /// Every token was excluded.
    #[error("no token is eligible: all of the {vocab_size} are banned or not allowed")]
    NothingEligible {
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A token id beyond the row.
    #[error("token {token} is outside a row of {vocab_size} logits")]
    UnknownToken {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
}

/// Draws tokens, reusing its working memory from call to call; it keeps nothing else.
#[derive(Debug, Default)]
pub struct Sampler {
    /// The row being worked on, `[vocab_size]`.
    logits: Vec<f32>,
    /// Times a token is in the output, `[vocab_size]`; all zero between calls.
    counts: Vec<u32>,
    /// Tokens still eligible.
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// Draws the next token from a row of raw logits, `[vocab_size]`.
    ///
    /// # Errors
    /// When a logit is not finite, a token id is outside the row, or nothing is eligible.
    pub fn sample(
        &mut self,
        row: &[f32],
        params: &SamplingParams,
        context: &SequenceContext<'_>,
    ) -> Result<Sampled, SampleError> {
        if let Some(token) = select::first_not_finite(row) {
            let value = row[token];
            return Err(SampleError::NotFinite { token, value });
        }
        let token = if params.is_greedy() && is_plain(params, context) {
            select::argmax(row)
        } else {
            self.logits.clear();
            self.logits.extend_from_slice(row);
            self.restrict(params, context)?;
            self.penalise(params, context)?;
            if params.is_greedy() {
                select::argmax(&self.logits).filter(|&t| self.logits[t as usize].is_finite())
            } else {
                let u = rng::uniform(context.seed, context.output.len() as u64);
                select::draw(&self.logits, params, u, &mut self.candidates)
            }
        };
        let token = token.ok_or(SampleError::NothingEligible {
            vocab_size: row.len(),
        })?;
        let logprobs = params
            .logprobs
            .map(|count| logprobs::of(row, token, count as usize, &mut self.candidates));
        Ok(Sampled { token, logprobs })
    }

    /// Bans what is not eligible (logit −∞), then adds the biases.
    fn restrict(
        &mut self,
        params: &SamplingParams,
        context: &SequenceContext<'_>,
    ) -> Result<(), SampleError> {
        let row = &mut self.logits;
        if let Some(allowed) = context.allowed {
            let mut only = vec![f32::NEG_INFINITY; row.len()];
            for &token in allowed {
                let i = index(token, row.len())?;
                only[i] = row[i];
            }
            *row = only;
        }
        let early = context.output.len() < params.min_tokens as usize;
        let ending = if early { context.ending } else { &[] };
        for &token in context.banned.iter().chain(ending) {
            let i = index(token, row.len())?;
            row[i] = f32::NEG_INFINITY;
        }
        for (&token, &bias) in &params.logit_bias {
            let i = index(token, row.len())?;
            row[i] += bias;
        }
        Ok(())
    }

    /// Repetition over prompt and output, presence and frequency over the output.
    fn penalise(
        &mut self,
        params: &SamplingParams,
        context: &SequenceContext<'_>,
    ) -> Result<(), SampleError> {
        if !has_penalties(params) {
            return Ok(());
        }
        let size = self.logits.len();
        let (prompt, output) = (context.prompt, context.output);
        for &token in prompt.iter().chain(output) {
            index(token, size)?;
        }
        // A prompt token counts as seen without counting as generated: the top bit marks it.
        const SEEN: u32 = 1 << 31;
        self.counts.resize(size, 0);
        for &token in prompt {
            self.counts[token as usize] |= SEEN;
        }
        for &token in output {
            self.counts[token as usize] += 1;
        }
        for &token in prompt.iter().chain(output) {
            let count = std::mem::take(&mut self.counts[token as usize]);
            if count == 0 {
                continue; // done at an earlier occurrence
            }
            let logit = &mut self.logits[token as usize];
            *logit = if *logit > 0.0 {
                *logit / params.repetition_penalty
            } else {
                *logit * params.repetition_penalty
            };
            let generated = count & !SEEN;
            if generated > 0 {
                *logit -= params.presence_penalty + params.frequency_penalty * generated as f32;
            }
        }
        Ok(())
    }
}

fn index(token: u32, vocab_size: usize) -> Result<usize, SampleError> {
    let i = token as usize;
    (i < vocab_size)
        .then_some(i)
        .ok_or(SampleError::UnknownToken { token, vocab_size })
}

fn has_penalties(params: &SamplingParams) -> bool {
    params.repetition_penalty != 1.0
        || params.presence_penalty != 0.0
        || params.frequency_penalty != 0.0
}

/// Whether the logits are used as they are.
fn is_plain(params: &SamplingParams, context: &SequenceContext<'_>) -> bool {
    !has_penalties(params)
        && params.logit_bias.is_empty()
        && context.allowed.is_none()
        && context.banned.is_empty()
        && context.output.len() >= params.min_tokens as usize
}

#[cfg(test)]
mod tests;

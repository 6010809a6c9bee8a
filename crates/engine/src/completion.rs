//! One completion's way from tokens to text: what is thinking, what is answer, where it stops.

use std::sync::Arc;
use std::time::{Duration, Instant};

use scrimp_model::ModelConfig;
use scrimp_scheduler as scheduler;
use scrimp_scheduler::FinishReason;
use scrimp_text::{
    Delta as Piece, IncrementalDetokenizer, ReasoningFormat, ReasoningParser, StopMatcher,
    Tokenizer,
};

use crate::handle::RequestId;
use crate::params::SamplingParams;
use crate::request::{Delta, Finished, GenerateRequest, Reasoning, TokenInfo, Usage};
use crate::sampler::{Sampled, SequenceContext, rng};

/// What all completions of an engine share.
pub(crate) struct CompletionContext {
    tokenizer: Tokenizer,
    format: Option<ReasoningFormat>,
    /// Tokens that end a text: the config's and the tokenizer's.
    eos: Vec<u32>,
}

impl CompletionContext {
    pub fn new(
        tokenizer: Tokenizer,
        format: Option<ReasoningFormat>,
        config: &ModelConfig,
    ) -> CompletionContext {
        let known = |id: &u32| (*id as usize) < config.vocab_size;
        let mut eos: Vec<u32> = config
            .eos_token_ids
            .iter()
            .chain(tokenizer.eos())
            .copied()
            .filter(known)
            .collect();
        eos.sort_unstable();
        eos.dedup();
        CompletionContext {
            tokenizer,
            format,
            eos,
        }
    }
}

/// A completion that is not over.
pub(crate) struct Completion {
    request_id: RequestId,
    index: usize,
    request: Arc<GenerateRequest>,
    seed: u64,
    /// Tokens that end this completion.
    ending: Vec<u32>,
    detokenizer: IncrementalDetokenizer,
    parser: ReasoningParser,
    stop: StopMatcher,
    /// The tokens that close the chain; empty when there is no budget to keep.
    closing: Vec<u32>,
    /// How many of them have been forced, once the budget is spent.
    forced: Option<usize>,
    thinks_from: Option<usize>,
    num_tokens: usize,
    times: Times,
}

/// When a completion passed its stations.
struct Times {
    arrived: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

/// What a token led to.
pub(crate) struct Accepted {
    /// News for the client.
    pub delta: Delta,
    /// Whether the completion ends with it.
    pub finish: Option<FinishReason>,
    /// Set when the chain of thought has just begun: its first token's index in the sequence.
    pub thinking_from: Option<usize>,
}

impl Completion {
    pub fn new(
        context: &CompletionContext,
        request: &Arc<GenerateRequest>,
        request_id: RequestId,
        index: usize,
    ) -> Completion {
        let format = context
            .format
            .clone()
            .filter(|_| request.reasoning != Reasoning::Off);
        let tags = format
            .as_ref()
            .map(ReasoningFormat::ids)
            .unwrap_or_default();
        let budget = request.thinking_token_budget.and(format.as_ref());
        let closing = budget.map(|f| f.end_ids.clone()).unwrap_or_default();
        let eos: &[u32] = if request.ignore_eos {
            &[]
        } else {
            &context.eos
        };
        let mut completion = Completion {
            request_id,
            index,
            seed: rng::choice_seed(request.sampling.seed, index as u32),
            ending: [eos, &request.stop_token_ids].concat(),
            detokenizer: IncrementalDetokenizer::after_prompt(
                &context.tokenizer,
                request.skip_special_tokens,
            )
            .showing(&tags),
            parser: ReasoningParser::new(format, request.reasoning == Reasoning::Thinking),
            stop: StopMatcher::new(&request.stop),
            closing,
            forced: None,
            thinks_from: None,
            num_tokens: 0,
            times: Times {
                arrived: Instant::now(),
                started: None,
                first_token: None,
                last_token: None,
            },
            request: Arc::clone(request),
        };
        completion.keep_budget(completion.parser.is_thinking());
        completion
    }

    pub fn request(&self) -> RequestId {
        self.request_id
    }

    pub fn index(&self) -> usize {
        self.index
    }

    pub fn params(&self) -> &SamplingParams {
        &self.request.sampling
    }

    /// Notes a step that the completion takes part in; returns when it took part first.
    pub fn started(&mut self, now: Instant) -> Instant {
        *self.times.started.get_or_insert(now)
    }

    /// What the sampler has to know, without the tokens so far. A chain whose budget is spent
    /// leaves it no choice but the tokens that close it.
    pub fn sampling_context(&self) -> SequenceContext<'_> {
        let next = self.forced.and_then(|n| self.closing.get(n..n + 1));
        SequenceContext {
            ending: &self.ending,
            allowed: next,
            seed: self.seed,
            ..SequenceContext::default()
        }
    }

    /// Takes the next token.
    pub fn accept(&mut self, sampled: Sampled) -> Accepted {
        let now = Instant::now();
        self.times.first_token.get_or_insert(now);
        self.times.last_token = Some(now);
        self.num_tokens += 1;
        let was_thinking = self.parser.is_thinking();
        let mut delta = Delta::default();
        let mut finish = None;
        if self.ending.contains(&sampled.token) {
            finish = Some(FinishReason::Stop);
        } else {
            let text = self.detokenizer.push(sampled.token);
            let pieces = self.parser.push(text);
            if self.route(pieces, &mut delta) {
                finish = Some(FinishReason::Stop);
            }
        }
        let is_thinking = self.parser.is_thinking();
        delta.tokens.push(TokenInfo {
            id: sampled.token,
            reasoning: was_thinking || is_thinking,
            logprobs: sampled.logprobs,
        });
        self.keep_budget(is_thinking);
        Accepted {
            delta,
            finish,
            thinking_from: self.note_thinking(was_thinking || is_thinking),
        }
    }

    /// Begins, continues or ends forcing the chain closed.
    fn keep_budget(&mut self, is_thinking: bool) {
        let spent = self
            .request
            .thinking_token_budget
            .is_some_and(|budget| self.parser.reasoning_tokens() >= budget);
        self.forced = match self.forced {
            _ if !is_thinking || !spent || self.closing.is_empty() => None,
            Some(n) if n + 1 < self.closing.len() => Some(n + 1),
            _ => Some(0),
        };
    }

    /// The index of the chain's first token, the first time that it is known.
    fn note_thinking(&mut self, thinking: bool) -> Option<usize> {
        if !thinking || self.thinks_from.is_some() {
            return None;
        }
        self.thinks_from = Some(self.request.prompt.len() + self.num_tokens - 1);
        self.thinks_from
    }

    /// Adds pieces of text to the news; true when a stop text ends the completion. Stop texts are
    /// looked for in the answer alone: a chain of thought may well contain them.
    fn route(&mut self, pieces: Vec<Piece>, delta: &mut Delta) -> bool {
        for piece in pieces {
            match piece {
                Piece::Reasoning(text) => delta.reasoning.push_str(&text),
                Piece::Answer(text) => {
                    let stopped = self.stop.push(&text);
                    delta.answer.push_str(&stopped.text);
                    if stopped.stop.is_some() {
                        return true;
                    }
                }
            }
        }
        false
    }

    /// Text that was held back and now never will be completed otherwise.
    pub fn flush(&mut self) -> Option<Delta> {
        let mut delta = Delta::default();
        let text = self.detokenizer.finish();
        let pieces = self.parser.finish(&text);
        if !self.route(pieces, &mut delta) {
            delta.answer.push_str(&self.stop.finish());
        }
        (delta != Delta::default()).then_some(delta)
    }

    /// How it ended and what it took.
    pub fn finished(&self, finished: &scheduler::Finished) -> Finished {
        let stats = &finished.stats;
        let times = &self.times;
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from),
            _ => Duration::ZERO,
        };
        Finished {
            reason: finished.reason,
            usage: Usage {
                prompt_tokens: stats.prompt_tokens,
                completion_tokens: stats.output_tokens,
                reasoning_tokens: self.parser.reasoning_tokens(),
                cached_tokens: stats.cached_tokens,
                kv_cache_bytes: stats.peak_kv_bytes,
                preemptions: stats.preemptions,
                queue_time: between(Some(times.arrived), times.started.or(Some(Instant::now()))),
                prefill_time: between(times.started, times.first_token),
                decode_time: between(times.first_token, times.last_token),
            },
        }
    }
}

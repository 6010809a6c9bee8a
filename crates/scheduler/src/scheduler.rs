//! Which sequences take part in which step: the queues, and a sequence's way through them.

use std::collections::{BTreeMap, BTreeSet};

use scrimp_memory::{BlockPool, BlockTable, CopyBlock, PoolCounters, PoolUsage, TokenId};

use crate::sequence::QueueKey;
use crate::{
    AddError, ConfigError, EstimatorConfig, FinishReason, Finished, LengthEstimator, NewSequence,
    SeqId, Sequence, SequenceStatus,
};

/// Limits of a scheduler.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// Tokens of one step, prefill and decode together; at least `max_num_seqs`.
    pub max_num_batched_tokens: usize,
    /// Sequences that run at once.
    pub max_num_seqs: usize,
    /// Longest sequence, prompt and output, in tokens.
    pub max_model_len: usize,
    /// How output lengths are estimated.
    pub estimator: EstimatorConfig,
}

/// Decides what each step computes, and keeps the KV cache's blocks with whom they belong.
///
/// One step is `schedule`, the model, `complete`, then `update` for every sampled token. All of
/// it is deterministic: the same calls give the same steps.
///
/// Running sequences come first, by priority and then by arrival, and each only catches up with
/// its own tokens; prefill and decode are one thing. What is left of the token budget goes to
/// waiting ones. When a running sequence cannot get a block, the last in line gives up all of its
/// own and waits at the front of the queue to be computed anew: its full blocks stay cached, so
/// little is computed twice unless others took them.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: SchedulerConfig,
    pub(crate) pool: BlockPool,
    pub(crate) estimator: LengthEstimator,
    pub(crate) seqs: BTreeMap<SeqId, Sequence>,
    pub(crate) running: BTreeSet<QueueKey>,
    /// Waiting and preempted sequences that can be admitted.
    pub(crate) waiting: BTreeSet<QueueKey>,
    /// Parts of the step that was handed out and is not complete.
    pub(crate) in_flight: Vec<InFlight>,
    /// Copies of that step: they are handed out again if it does not complete.
    pub(crate) copies: Vec<CopyBlock>,
    pub(crate) num_preemptions: u64,
    next_id: u64,
}

/// A sequence's part of a step that is being computed.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) id: SeqId,
    pub(crate) num_tokens: usize,
    pub(crate) forks: Vec<SeqId>,
}

/// State of a scheduler at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SchedulerStats {
    /// Sequences that take part in steps.
    pub num_running: usize,
    /// Sequences that do not yet, or not at the moment.
    pub num_waiting: usize,
    /// Times a sequence had to give its blocks up, so far.
    pub num_preemptions: u64,
    /// What the blocks are used for.
    pub usage: PoolUsage,
    /// What the pool has done so far.
    pub counters: PoolCounters,
}

impl Scheduler {
    /// A scheduler without sequences, over all blocks of `pool`.
    ///
    /// # Errors
    /// When the limits do not go together.
    pub fn new(config: SchedulerConfig, pool: BlockPool) -> Result<Scheduler, ConfigError> {
        for (name, value) in [
            ("max-num-batched-tokens", config.max_num_batched_tokens),
            ("max-num-seqs", config.max_num_seqs),
            ("max-model-len", config.max_model_len),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero { name });
            }
        }
        if config.max_num_batched_tokens < config.max_num_seqs {
            return Err(ConfigError::BudgetBelowSeqs {
                max_num_batched_tokens: config.max_num_batched_tokens,
                max_num_seqs: config.max_num_seqs,
            });
        }
        if pool.blocks_for(config.max_model_len) > pool.config().max_blocks_per_seq {
            return Err(ConfigError::ContextTooLong {
                max_model_len: config.max_model_len,
                max_blocks_per_seq: pool.config().max_blocks_per_seq,
                block_size: pool.config().block_size,
            });
        }
        Ok(Scheduler {
            config,
            pool,
            estimator: LengthEstimator::new(config.estimator),
            seqs: BTreeMap::new(),
            running: BTreeSet::new(),
            waiting: BTreeSet::new(),
            in_flight: Vec::new(),
            copies: Vec::new(),
            num_preemptions: 0,
            next_id: 0,
        })
    }

    /// Takes a request; returns its `n` sequences. The first computes the prompt, the others
    /// share its blocks once that is done.
    ///
    /// # Errors
    /// When it could never run: with the numbers that say why.
    pub fn add(&mut self, request: NewSequence) -> Result<Vec<SeqId>, AddError> {
        self.check(&request)?;
        let first = SeqId(self.next_id);
        let ids: Vec<SeqId> = (0..request.n as u64).map(|i| SeqId(first.0 + i)).collect();
        self.next_id += request.n as u64;
        for &id in &ids {
            let status = match id == first {
                true => SequenceStatus::Waiting,
                false => SequenceStatus::WaitingOnParent(first),
            };
            self.seqs.insert(id, self.sequence_of(id, status, &request));
        }
        if let Some(parent) = self.seqs.get_mut(&first) {
            parent.children = ids[1..].to_vec();
            self.waiting.insert(parent.key());
        }
        Ok(ids)
    }

    fn check(&self, request: &NewSequence) -> Result<(), AddError> {
        let prompt_tokens = request.prompt_token_ids.len();
        let (needed, pool) = (self.pool.blocks_for(prompt_tokens), self.pool.config());
        if prompt_tokens == 0 {
            return Err(AddError::EmptyPrompt);
        }
        if request.max_tokens == 0 {
            return Err(AddError::NoTokens);
        }
        if request.n == 0 || request.n > self.config.max_num_seqs {
            return Err(AddError::BadCount {
                n: request.n,
                max_num_seqs: self.config.max_num_seqs,
            });
        }
        if prompt_tokens >= self.config.max_model_len {
            return Err(AddError::PromptTooLong {
                prompt_tokens,
                max_model_len: self.config.max_model_len,
            });
        }
        if needed > pool.num_blocks {
            return Err(AddError::PoolTooSmall {
                prompt_tokens,
                blocks_needed: needed,
                num_blocks: pool.num_blocks,
                block_size: pool.block_size,
            });
        }
        Ok(())
    }

    fn sequence_of(&self, id: SeqId, status: SequenceStatus, request: &NewSequence) -> Sequence {
        let num_prompt_tokens = request.prompt_token_ids.len();
        let max_len = num_prompt_tokens.saturating_add(request.max_tokens);
        Sequence {
            id,
            priority: request.priority,
            status,
            token_ids: request.prompt_token_ids.clone(),
            num_prompt_tokens,
            num_computed_tokens: 0,
            block_table: BlockTable::new(&request.extra_keys),
            max_len: max_len.min(self.config.max_model_len),
            thinking: request.thinking,
            thinking_from: None,
            children: Vec::new(),
            admitted: false,
            cached_tokens: 0,
            preemptions: 0,
            peak_blocks: 0,
        }
    }

    /// Says that the model has run the step handed out last: its tokens are computed, and blocks
    /// that became full can be hit from now on.
    ///
    /// A step that failed is not to be completed; the next `schedule` hands out its tokens and
    /// its copies again.
    pub fn complete(&mut self) {
        self.copies.clear();
        for part in std::mem::take(&mut self.in_flight) {
            // It may have been aborted meanwhile; its forks then wait by themselves.
            let Some(seq) = self.seqs.get_mut(&part.id) else {
                continue;
            };
            seq.num_computed_tokens += part.num_tokens;
            let computed = seq.num_computed_tokens;
            self.pool
                .commit(&mut seq.block_table, &seq.token_ids, computed);
            self.start_forks(part.id, part.forks);
        }
    }

    /// Lets `forks` run on the blocks of `parent`, whose prompt is computed; children for whom
    /// there is no room wait like any sequence, and find the prompt in the cache.
    fn start_forks(&mut self, parent: SeqId, forks: Vec<SeqId>) {
        for id in forks {
            let Some(mut child) = self.seqs.remove(&id) else {
                continue;
            };
            if let Some(parent) = self.seqs.get_mut(&parent) {
                child.block_table = self.pool.fork(&parent.block_table);
                child.num_computed_tokens = parent.num_computed_tokens;
                child.cached_tokens = parent.num_computed_tokens;
                child.peak_blocks = child.block_table.len();
                child.admitted = true;
                child.status = SequenceStatus::Running;
                parent.children.retain(|&c| c != id);
                self.running.insert(child.key());
            }
            self.seqs.insert(id, child);
        }
        let done = |seq: &&mut Sequence| seq.num_computed_tokens >= seq.num_prompt_tokens;
        if let Some(parent) = self.seqs.get_mut(&parent).filter(done) {
            let left = std::mem::take(&mut parent.children);
            self.release_children(left);
        }
    }

    /// Lets children wait by themselves.
    fn release_children(&mut self, children: Vec<SeqId>) {
        for id in children {
            if let Some(child) = self.seqs.get_mut(&id) {
                child.status = SequenceStatus::Waiting;
                self.waiting.insert(child.key());
            }
        }
    }

    /// Appends a sampled token to a sequence of the step just completed; `finish` says that it
    /// ends with this token (an end token, a stop string). Returns what the sequence cost when it
    /// is over, for that reason or because it reached its length.
    ///
    /// Sequences that were aborted meanwhile, or that await no token, are left alone.
    pub fn update(
        &mut self,
        id: SeqId,
        token: TokenId,
        finish: Option<FinishReason>,
    ) -> Option<Finished> {
        let seq = self.seqs.get_mut(&id)?;
        if seq.status != SequenceStatus::Running || seq.num_remaining() > 0 {
            return None;
        }
        seq.token_ids.push(token);
        let full = (seq.num_tokens() >= seq.max_len).then_some(FinishReason::Length);
        self.finish(id, finish.or(full)?)
    }

    /// Says at which of its tokens a sequence's thinking begins; once it has ended, blocks from
    /// there on are the first cached ones to be taken for something else.
    pub fn set_thinking_from(&mut self, id: SeqId, token_index: usize) {
        if let Some(seq) = self.seqs.get_mut(&id) {
            seq.thinking_from = Some(token_index);
        }
    }

    /// Ends a sequence in whatever state it is; its blocks are free when this returns. `None`
    /// when there is no such sequence (any more).
    pub fn abort(&mut self, id: SeqId) -> Option<Finished> {
        self.finish(id, FinishReason::Abort)
    }

    /// Removes a sequence and frees what it holds.
    pub(crate) fn finish(&mut self, id: SeqId, reason: FinishReason) -> Option<Finished> {
        let mut seq = self.seqs.remove(&id)?;
        self.running.remove(&seq.key());
        self.waiting.remove(&seq.key());
        if let SequenceStatus::WaitingOnParent(parent) = seq.status
            && let Some(parent) = self.seqs.get_mut(&parent)
        {
            parent.children.retain(|&c| c != id);
        }
        let stats = seq.stats(self.pool.config().bytes_per_block);
        if let Some(from) = seq.thinking_from {
            self.pool.mark_thinking(&seq.block_table, from);
        }
        self.pool.free(&mut seq.block_table);
        self.release_children(std::mem::take(&mut seq.children));
        if reason != FinishReason::Abort {
            self.estimator.record(seq.thinking, stats.output_tokens);
        }
        Some(Finished { id, reason, stats })
    }

    /// A sequence that has not ended.
    pub fn sequence(&self, id: SeqId) -> Option<&Sequence> {
        self.seqs.get(&id)
    }

    /// All sequences that have not ended, in order of arrival.
    pub fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.seqs.values()
    }

    /// Whether any sequence has not ended.
    pub fn has_unfinished(&self) -> bool {
        !self.seqs.is_empty()
    }

    /// The limits.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// The blocks.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Forgets every cached block that no sequence holds.
    pub fn clear_prefix_cache(&mut self) {
        self.pool.clear_cache();
    }

    /// Queues, usage and counters now.
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            num_running: self.running.len(),
            num_waiting: self.seqs.len() - self.running.len(),
            num_preemptions: self.num_preemptions,
            usage: self.pool.usage(),
            counters: self.pool.counters(),
        }
    }
}

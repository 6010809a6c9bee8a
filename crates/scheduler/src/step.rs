//! Making up one step: running sequences, then waiting ones, under one token budget.
//!
//! ```text
//! for each running sequence, by priority and arrival:
//!     take min(tokens not yet computed, budget − 1 token for each running one behind it)
//!     get blocks for them; while there are none:
//!         preempt the last in line (itself: done; alone: it ends, the pool is too small for more)
//! unless something was preempted, for each waiting sequence, by priority and arrival:
//!     stop if it, at its expected length, does not fit beside the expected growth of the others
//!     (nothing runs: it fits)
//!     take its cached prefix, and tokens as above
//! ```
//!
//! Why nothing waits for ever: the first in line is never preempted by others and gets a token in
//! every step, so it ends; waiting ones are let in strictly in order, and the first of them at the
//! latest when nothing runs.

use scrimp_memory::BlockError;

use crate::scheduler::InFlight;
use crate::{
    FinishReason, ScheduledSeq, Scheduler, SchedulerOutput, SeqId, Sequence, SequenceStatus,
};

/// A step in the making.
struct Step {
    output: SchedulerOutput,
    /// Tokens left of the step's budget.
    budget: usize,
}

impl Scheduler {
    /// The next step. Empty when there is nothing to compute: no sequences, or all of them await
    /// a token.
    pub fn schedule(&mut self) -> SchedulerOutput {
        self.in_flight.clear();
        let mut step = Step {
            budget: self.config.max_num_batched_tokens,
            output: SchedulerOutput {
                block_size: self.pool.config().block_size,
                ..SchedulerOutput::default()
            },
        };
        self.schedule_running(&mut step);
        if step.output.preempted.is_empty() {
            self.schedule_waiting(&mut step);
        }
        self.plan_forks(&mut step);
        self.in_flight = step.output.scheduled.iter().map(InFlight::from).collect();
        step.output.copies = self.copies.clone();
        step.output
    }

    fn schedule_running(&mut self, step: &mut Step) {
        let in_line: Vec<_> = self.running.iter().copied().collect();
        for key in in_line {
            let Some(seq) = self
                .seqs
                .get(&key.1)
                .filter(|_| self.running.contains(&key))
            else {
                continue;
            };
            let behind = self.running.range(key..).count() - 1;
            let chunk = seq.num_remaining().min(step.budget.saturating_sub(behind));
            if chunk > 0 && self.get_blocks(key.1, chunk, step) {
                self.schedule_chunk(key.1, chunk, step);
            }
        }
    }

    /// Gets running sequence `id` the blocks for its next `chunk` tokens, from those behind it if
    /// need be. False when it does not run any more.
    fn get_blocks(&mut self, id: SeqId, chunk: usize, step: &mut Step) -> bool {
        loop {
            let Some(seq) = self.seqs.get_mut(&id) else {
                return false;
            };
            let start = seq.num_computed_tokens;
            match self
                .pool
                .allocate(&mut seq.block_table, start, start + chunk)
            {
                Ok(copies) => {
                    seq.peak_blocks = seq.peak_blocks.max(seq.block_table.len());
                    self.copies.extend(copies);
                    return true;
                }
                Err(BlockError::OutOfBlocks { .. }) if self.running.len() > 1 => {
                    let Some(&(_, victim)) = self.running.last() else {
                        return false;
                    };
                    self.preempt(victim, step);
                    if victim == id {
                        return false;
                    }
                }
                Err(_) => {
                    step.output
                        .finished
                        .extend(self.finish(id, FinishReason::Length));
                    return false;
                }
            }
        }
    }

    /// Takes all blocks from running sequence `id`, which keeps its tokens and waits.
    fn preempt(&mut self, id: SeqId, step: &mut Step) {
        let Some(seq) = self.seqs.get_mut(&id) else {
            return;
        };
        self.pool.free(&mut seq.block_table);
        seq.num_computed_tokens = 0;
        seq.preemptions += 1;
        seq.status = SequenceStatus::Preempted;
        let key = seq.key();
        self.running.remove(&key);
        self.waiting.insert(key);
        self.num_preemptions += 1;
        step.output.preempted.push(id);
    }

    fn schedule_waiting(&mut self, step: &mut Step) {
        while let Some(&(_, id)) = self.waiting.first() {
            if self.running.len() >= self.config.max_num_seqs || step.budget == 0 {
                return;
            }
            let Some(seq) = self.seqs.get(&id) else {
                return;
            };
            if self.pool.blocks_for(seq.num_tokens()) > self.pool.config().num_blocks {
                step.output
                    .finished
                    .extend(self.finish(id, FinishReason::Length));
                continue;
            }
            if !self.running.is_empty() && !self.fits_beside_running(seq) {
                return;
            }
            if !self.admit(id, step) {
                return;
            }
        }
    }

    /// Whether `seq` fits at its expected length while all that run grow to theirs.
    fn fits_beside_running(&self, seq: &Sequence) -> bool {
        let hit = self
            .pool
            .lookup(&seq.token_ids, seq.block_table.extra_keys());
        let shared = self.pool.blocks_for(hit.num_tokens) - hit.num_evictable;
        let promised: usize = self
            .running
            .iter()
            .filter_map(|(_, id)| self.seqs.get(id))
            .map(|seq| self.expected_growth(seq))
            .sum();
        self.expected_growth(seq).saturating_sub(shared) + promised <= self.pool.num_available()
    }

    /// Blocks that `seq`, and the children that wait for its prompt, are expected to take yet.
    fn expected_growth(&self, seq: &Sequence) -> usize {
        let prompt = seq.num_prompt_tokens;
        let so_far = seq.num_tokens() - prompt;
        let output = self
            .estimator
            .expected(seq.thinking, so_far, seq.max_len - prompt);
        let blocks = self.pool.blocks_for(prompt + output);
        let full_prompt_blocks = prompt / self.pool.config().block_size;
        let child = blocks - full_prompt_blocks;
        blocks.saturating_sub(seq.block_table.len()) + seq.children.len() * child
    }

    /// Lets waiting sequence `id` run: takes its cached prefix and its first tokens. False when
    /// not even the blocks for those can be had.
    fn admit(&mut self, id: SeqId, step: &mut Step) -> bool {
        let Some(seq) = self.seqs.get_mut(&id) else {
            return false;
        };
        let cached = self
            .pool
            .attach_prefix(&mut seq.block_table, &seq.token_ids);
        let chunk = (seq.num_tokens() - cached).min(step.budget);
        if self
            .pool
            .allocate(&mut seq.block_table, cached, cached + chunk)
            .is_err()
        {
            self.pool.free(&mut seq.block_table);
            return false;
        }
        seq.num_computed_tokens = cached;
        seq.peak_blocks = seq.peak_blocks.max(seq.block_table.len());
        if !seq.admitted {
            seq.admitted = true;
            seq.cached_tokens = cached;
            self.pool.record_prefix_query(seq.num_tokens(), cached);
        }
        seq.status = SequenceStatus::Running;
        let key = seq.key();
        self.waiting.remove(&key);
        self.running.insert(key);
        self.schedule_chunk(id, chunk, step);
        true
    }

    /// Puts the next `chunk` tokens of `id`, whose blocks are there, into the step.
    fn schedule_chunk(&mut self, id: SeqId, chunk: usize, step: &mut Step) {
        let Some(seq) = self.seqs.get(&id) else {
            return;
        };
        let start = seq.num_computed_tokens;
        let end = start + chunk;
        let out = &mut step.output;
        let (first_token, first_block) = (out.input_ids.len(), out.block_tables.len());
        out.input_ids.extend_from_slice(&seq.token_ids[start..end]);
        let blocks = &seq.block_table.blocks()[..self.pool.blocks_for(end)];
        out.block_tables.extend_from_slice(blocks);
        out.scheduled.push(ScheduledSeq {
            id,
            start,
            num_tokens: chunk,
            samples: end == seq.num_tokens(),
            forks: Vec::new(),
            tokens: first_token..out.input_ids.len(),
            blocks: first_block..out.block_tables.len(),
        });
        step.budget -= chunk;
    }

    /// Names, for each prompt that this step finishes, the children that begin with it: as many
    /// as may run. The others wait by themselves from then on.
    fn plan_forks(&self, step: &mut Step) {
        let mut room = self.config.max_num_seqs.saturating_sub(self.running.len());
        for part in step.output.scheduled.iter_mut().filter(|part| part.samples) {
            let Some(seq) = self.seqs.get(&part.id) else {
                continue;
            };
            part.forks = seq.children.iter().copied().take(room).collect();
            room -= part.forks.len();
        }
    }
}

impl From<&ScheduledSeq> for InFlight {
    fn from(part: &ScheduledSeq) -> InFlight {
        InFlight {
            id: part.id,
            num_tokens: part.num_tokens,
            forks: part.forks.clone(),
        }
    }
}

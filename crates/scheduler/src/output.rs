//! What one step is to compute: enough to build a flat batch from, with no other source.

use std::ops::Range;

use scrimp_memory::{BlockId, CopyBlock, TokenId};

use crate::{Finished, SeqId};

/// One step of the model.
///
/// Tokens of all sequences stand one after the other, in the order of `scheduled`. To run it: do
/// `copies` in order; run the model over `input_ids`, writing keys and values to
/// [`SchedulerOutput::slot_mapping`] and reading them through the block tables; sample a token for
/// each scheduled sequence with `samples`, and for each of its `forks`; call
/// [`crate::Scheduler::complete`], then [`crate::Scheduler::update`] once per sampled token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchedulerOutput {
    /// The sequences that take part.
    pub scheduled: Vec<ScheduledSeq>,
    /// Token ids of all of them, flat: `[num_tokens]`.
    pub input_ids: Vec<TokenId>,
    /// Blocks of all of them, flat; each is as long as its context needs.
    pub block_tables: Vec<BlockId>,
    /// Blocks to copy, one after the other, before anything is written.
    pub copies: Vec<CopyBlock>,
    /// Sequences that gave up their blocks; they come back by themselves.
    pub preempted: Vec<SeqId>,
    /// Sequences that ended for want of room, with [`crate::FinishReason::Length`].
    pub finished: Vec<Finished>,
    /// Tokens per block.
    pub block_size: usize,
}

/// One sequence's part of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledSeq {
    /// Which.
    pub id: SeqId,
    /// Position of its first token in this step: tokens before it are already in its blocks.
    pub start: usize,
    /// Tokens in this step.
    pub num_tokens: usize,
    /// Whether the logits of the last token are wanted: its tokens are all computed then.
    pub samples: bool,
    /// Sequences that begin here: each samples its first token from the same logits.
    pub forks: Vec<SeqId>,
    /// Its part of [`SchedulerOutput::input_ids`].
    pub tokens: Range<usize>,
    /// Its part of [`SchedulerOutput::block_tables`].
    pub blocks: Range<usize>,
}

impl ScheduledSeq {
    /// Tokens in its blocks after this step.
    pub fn context_len(&self) -> usize {
        self.start + self.num_tokens
    }
}

impl SchedulerOutput {
    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.scheduled.is_empty()
    }

    /// Tokens in the step.
    pub fn num_tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Token ids of one sequence's part.
    pub fn token_ids(&self, seq: &ScheduledSeq) -> &[TokenId] {
        &self.input_ids[seq.tokens.clone()]
    }

    /// Blocks of one sequence.
    pub fn block_table(&self, seq: &ScheduledSeq) -> &[BlockId] {
        &self.block_tables[seq.blocks.clone()]
    }

    /// Position in its sequence of every token: `[num_tokens]`.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.scheduled.iter().flat_map(|s| s.start..s.context_len())
    }

    /// Slot of every token, `block id × block size + offset`: `[num_tokens]`.
    pub fn slot_mapping(&self) -> impl Iterator<Item = usize> + '_ {
        let size = self.block_size;
        self.scheduled.iter().flat_map(move |s| {
            let table = self.block_table(s);
            (s.start..s.context_len()).map(move |p| table[p / size] as usize * size + p % size)
        })
    }

    /// Where each sequence's tokens begin, and the end: `[num_seqs + 1]`.
    pub fn cu_seqlens_q(&self) -> impl Iterator<Item = usize> + '_ {
        let ends = self.scheduled.iter().map(|s| s.tokens.end);
        std::iter::once(0).chain(ends)
    }

    /// Tokens in each sequence's blocks after the step: `[num_seqs]`.
    pub fn context_lens(&self) -> impl Iterator<Item = usize> + '_ {
        self.scheduled.iter().map(ScheduledSeq::context_len)
    }
}

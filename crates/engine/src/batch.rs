//! One step's rows, flat: what the decoder is told to compute, and nothing about whose it is.

use scrimp_backend::AttentionBatch;
use scrimp_scheduler::SchedulerOutput;

/// Rows of all sequences of a step, one after another.
///
/// Ids and lengths are u32: a sequence has fewer than 2³² tokens, a pool fewer than 2³² slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token of each row.
    pub input_ids: Vec<u32>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
    /// Where each row's key and value go: `block · block_size + offset`.
    pub slot_mapping: Vec<u32>,
    /// `num_seqs + 1` row offsets: sequence `s` owns rows `cu_seqlens_q[s] .. cu_seqlens_q[s+1]`.
    pub cu_seqlens_q: Vec<u32>,
    /// Tokens of each sequence in the cache, this step's included.
    pub context_lens: Vec<u32>,
    /// Block ids of all sequences, one after another.
    pub block_tables: Vec<u32>,
    /// `num_seqs + 1` offsets into `block_tables`.
    pub table_starts: Vec<u32>,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
    /// Blocks `(source, destination)` to copy, in order, before anything is computed.
    pub copies: Vec<(u32, u32)>,
}

/// A batch that cannot be run as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// More of something than the step's memory was planned for.
    #[error("a step of {found} {what} is larger than the {limit} that was planned for")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A token the model does not have.
    #[error("token {token} is not in the vocabulary of {vocab_size} tokens")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// Parts that contradict each other.
    #[error("the step is inconsistent: {0}")]
    Inconsistent(&'static str),
}

/// A sequence's part of a batch that is put together by hand.
#[derive(Clone, Copy, Debug)]
pub struct SequenceStep<'a> {
    /// Its new tokens.
    pub token_ids: &'a [u32],
    /// Tokens that are in the cache already.
    pub num_computed: usize,
    /// Its blocks.
    pub blocks: &'a [u32],
    /// Which of its new tokens' logits are wanted.
    pub logits: Logits,
}

/// Rows of a sequence whose logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// None: the prompt goes on.
    No,
    /// The last: a token is sampled.
    Last,
    /// All: the text is being measured.
    All,
}

impl Batch {
    /// The rows that the scheduler chose.
    pub fn from_schedule(output: &SchedulerOutput) -> Batch {
        let mut batch = Batch::default();
        for seq in &output.scheduled {
            let step = SequenceStep {
                token_ids: output.token_ids(seq),
                num_computed: seq.start,
                blocks: output.block_table(seq),
                logits: if seq.samples {
                    Logits::Last
                } else {
                    Logits::No
                },
            };
            batch.push(&step, output.block_size);
        }
        let copies = output.copies.iter();
        batch.copies = copies.map(|copy| (copy.src, copy.dst)).collect();
        batch
    }

    /// Adds a sequence's rows.
    pub fn push(&mut self, step: &SequenceStep<'_>, block_size: usize) {
        if self.cu_seqlens_q.is_empty() {
            self.cu_seqlens_q.push(0);
            self.table_starts.push(0);
        }
        let first_row = self.input_ids.len();
        for (i, &token) in step.token_ids.iter().enumerate() {
            let position = step.num_computed + i;
            let block = step.blocks[position / block_size] as usize;
            self.input_ids.push(token);
            self.positions.push(position as u32);
            let slot = block * block_size + position % block_size;
            self.slot_mapping.push(slot as u32);
        }
        let end = self.input_ids.len();
        let context_len = step.num_computed + step.token_ids.len();
        self.cu_seqlens_q.push(end as u32);
        self.context_lens.push(context_len as u32);
        let blocks = &step.blocks[..context_len.div_ceil(block_size)];
        self.block_tables.extend_from_slice(blocks);
        self.table_starts.push(self.block_tables.len() as u32);
        let wanted = match step.logits {
            Logits::No => end..end,
            Logits::Last => end.max(first_row + 1) - 1..end,
            Logits::All => first_row..end,
        };
        self.logit_rows.extend(wanted.map(|row| row as u32));
    }

    /// Rows in the step.
    pub fn num_rows(&self) -> usize {
        self.input_ids.len()
    }

    /// The part that attention works on.
    pub fn attention(&self) -> AttentionBatch<'_> {
        AttentionBatch {
            cu_seqlens_q: &self.cu_seqlens_q,
            context_lens: &self.context_lens,
            block_tables: &self.block_tables,
            table_starts: &self.table_starts,
        }
    }

    /// Checks that the parts agree, and that every slot and block is one of `num_slots` and their
    /// blocks, so that no kernel reads or writes outside of its buffers.
    ///
    /// # Errors
    /// [`BatchError::Inconsistent`], with what is wrong.
    pub fn check(&self, block_size: usize, num_blocks: usize) -> Result<(), BatchError> {
        let rows = self.num_rows();
        let seqs = self.context_lens.len();
        let wrong = |what| Err(BatchError::Inconsistent(what));
        let ascending = |offsets: &[u32], end: usize| {
            offsets.len() == seqs + 1
                && offsets.is_sorted()
                && offsets.first() == Some(&0)
                && offsets.last() == Some(&(end as u32))
        };
        if self.positions.len() != rows || self.slot_mapping.len() != rows {
            return wrong("rows, positions and slots differ in number");
        }
        if seqs == 0 && rows == 0 {
            return self.check_blocks(block_size, num_blocks);
        }
        if !ascending(&self.cu_seqlens_q, rows) {
            return wrong("rows are not divided among the sequences");
        }
        if !ascending(&self.table_starts, self.block_tables.len()) {
            return wrong("blocks are not divided among the sequences");
        }
        for s in 0..seqs {
            let rows = (self.cu_seqlens_q[s + 1] - self.cu_seqlens_q[s]) as usize;
            let blocks = (self.table_starts[s + 1] - self.table_starts[s]) as usize;
            let context = self.context_lens[s] as usize;
            if rows == 0 || rows > context || blocks * block_size < context {
                return wrong("a sequence has more rows than context, or more context than blocks");
            }
        }
        if self.logit_rows.iter().any(|&r| r as usize >= rows) {
            return wrong("logits are wanted of a row that is not there");
        }
        self.check_blocks(block_size, num_blocks)
    }

    fn check_blocks(&self, block_size: usize, num_blocks: usize) -> Result<(), BatchError> {
        let wrong = |what| Err(BatchError::Inconsistent(what));
        if self.block_tables.iter().any(|&b| b as usize >= num_blocks) {
            return wrong("a block is outside of the cache");
        }
        let num_slots = num_blocks * block_size;
        if self.slot_mapping.iter().any(|&s| s as usize >= num_slots) {
            return wrong("a slot is outside of the cache");
        }
        let copied = self.copies.iter().flat_map(|c| [c.0, c.1]);
        if copied.into_iter().any(|b| b as usize >= num_blocks) {
            return wrong("a copied block is outside of the cache");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use scrimp_memory::CopyBlock;
    use scrimp_scheduler::{ScheduledSeq, SeqId};

    use super::*;

    const BLOCK: usize = 4;

    /// A schedule of sequences of (computed, new) tokens, whose blocks are numbered downwards.
    fn schedule(lengths: &[(usize, usize, bool)]) -> SchedulerOutput {
        let mut output = SchedulerOutput {
            block_size: BLOCK,
            copies: vec![CopyBlock { src: 3, dst: 1 }],
            ..SchedulerOutput::default()
        };
        let mut next_block = 99;
        for (i, &(start, num_tokens, samples)) in lengths.iter().enumerate() {
            let (token, block) = (output.input_ids.len(), output.block_tables.len());
            output
                .input_ids
                .extend((0..num_tokens).map(|t| (i * 100 + start + t) as u32));
            for _ in 0..(start + num_tokens).div_ceil(BLOCK) {
                output.block_tables.push(next_block);
                next_block -= 1;
            }
            output.scheduled.push(ScheduledSeq {
                id: SeqId(i as u64),
                start,
                num_tokens,
                samples,
                forks: vec![],
                tokens: token..token + num_tokens,
                blocks: block..output.block_tables.len(),
            });
        }
        output
    }

    #[test]
    fn a_schedule_becomes_rows() {
        let batch = Batch::from_schedule(&schedule(&[(5, 1, true), (0, 6, false), (3, 2, true)]));
        assert_eq!(batch.input_ids, [5, 100, 101, 102, 103, 104, 105, 203, 204]);
        assert_eq!(batch.positions, [5, 0, 1, 2, 3, 4, 5, 3, 4]);
        // Blocks 99 98 | 97 96 | 95 94.
        let slots = [98 * 4 + 1, 388, 389, 390, 391, 384, 385, 95 * 4 + 3, 94 * 4];
        assert_eq!(batch.slot_mapping, slots);
        assert_eq!(batch.cu_seqlens_q, [0, 1, 7, 9]);
        assert_eq!(batch.context_lens, [6, 6, 5]);
        assert_eq!(batch.block_tables, [99, 98, 97, 96, 95, 94]);
        assert_eq!(batch.table_starts, [0, 2, 4, 6]);
        assert_eq!(batch.logit_rows, [0, 8]);
        assert_eq!(batch.copies, [(3, 1)]);
        batch.check(BLOCK, 100).unwrap();
    }

    #[test]
    fn all_logits_are_all_rows() {
        let mut batch = Batch::default();
        for (logits, tokens) in [(Logits::All, 3), (Logits::No, 2), (Logits::All, 1)] {
            let step = SequenceStep {
                token_ids: &[7, 8, 9][..tokens],
                num_computed: 1,
                blocks: &[0],
                logits,
            };
            batch.push(&step, BLOCK);
        }
        assert_eq!(batch.logit_rows, [0, 1, 2, 5]);
    }

    #[test]
    fn a_batch_that_contradicts_itself_is_refused() {
        let good = Batch::from_schedule(&schedule(&[(5, 1, true), (0, 6, false)]));
        type Spoil = fn(&mut Batch);
        let spoils: [(Spoil, &str); 9] = [
            (|b| b.positions.truncate(3), "differ in number"),
            (|b| b.cu_seqlens_q[1] = 9, "rows are not divided"),
            (|b| b.cu_seqlens_q.truncate(2), "rows are not divided"),
            (|b| b.table_starts[2] = 3, "blocks are not divided"),
            (|b| b.context_lens[1] = 5, "more rows than context"),
            (|b| b.context_lens[0] = 9, "more context than blocks"),
            (|b| b.block_tables[0] = 100, "a block is outside"),
            (|b| b.slot_mapping[0] = 400, "a slot is outside"),
            (|b| b.logit_rows[0] = 7, "logits are wanted of a row"),
        ];
        for (spoil, message) in spoils {
            let mut batch = good.clone();
            spoil(&mut batch);
            let error = batch.check(BLOCK, 100).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    proptest! {
        #[test]
        fn rows_agree_with_the_schedule(
            lengths in prop::collection::vec((0usize..9, 1usize..7, any::<bool>()), 1..6)
        ) {
            let output = schedule(&lengths);
            let batch = Batch::from_schedule(&output);
            prop_assert_eq!(batch.check(BLOCK, 100), Ok(()));
            let wide = |x: &[u32]| x.iter().map(|&x| x as usize).collect::<Vec<_>>();
            prop_assert_eq!(wide(&batch.positions), output.positions().collect::<Vec<_>>());
            prop_assert_eq!(wide(&batch.slot_mapping), output.slot_mapping().collect::<Vec<_>>());
            prop_assert_eq!(wide(&batch.cu_seqlens_q), output.cu_seqlens_q().collect::<Vec<_>>());
            prop_assert_eq!(wide(&batch.context_lens), output.context_lens().collect::<Vec<_>>());
            for (s, &(computed, new, _)) in lengths.iter().enumerate() {
                let part = batch.attention().sequence(s);
                prop_assert_eq!(part.first_position, computed);
                prop_assert_eq!(part.num_rows, new);
            }
        }
    }
}

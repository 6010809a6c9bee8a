//! The flat batch that attention works on.

/// Which rows of a step belong to which sequence, and where each sequence's cache lies.
///
/// Rows of a sequence are its newest tokens: row `i` of `n` sits at position
/// `context_len - n + i`, and sees the positions up to its own.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBatch<'a> {
    /// `num_seqs + 1` row offsets: sequence `s` owns rows `cu_seqlens_q[s] .. cu_seqlens_q[s+1]`.
    pub cu_seqlens_q: &'a [u32],
    /// Tokens of each sequence in the cache, this step's included.
    pub context_lens: &'a [u32],
    /// Block ids of all sequences, one after another.
    pub block_tables: &'a [u32],
    /// `num_seqs + 1` offsets into `block_tables`.
    pub table_starts: &'a [u32],
}

/// One sequence's part of an [`AttentionBatch`].
#[derive(Clone, Copy, Debug)]
pub struct SequenceRows<'a> {
    /// First row.
    pub row_start: usize,
    /// Number of rows.
    pub num_rows: usize,
    /// Position of the first row.
    pub first_position: usize,
    /// The sequence's blocks, in order.
    pub blocks: &'a [u32],
}

impl<'a> AttentionBatch<'a> {
    /// Sequences in the batch.
    pub fn num_seqs(&self) -> usize {
        self.context_lens.len()
    }

    /// Rows in the batch.
    pub fn num_rows(&self) -> usize {
        self.cu_seqlens_q.last().map_or(0, |&n| n as usize)
    }

    /// The part of sequence `s`.
    pub fn sequence(&self, s: usize) -> SequenceRows<'a> {
        let row_start = self.cu_seqlens_q[s] as usize;
        let num_rows = self.cu_seqlens_q[s + 1] as usize - row_start;
        let (from, to) = (
            self.table_starts[s] as usize,
            self.table_starts[s + 1] as usize,
        );
        SequenceRows {
            row_start,
            num_rows,
            first_position: self.context_lens[s] as usize - num_rows,
            blocks: &self.block_tables[from..to],
        }
    }
}

//! A sequence: its tokens, how many of them are computed, and where their keys and values are.

use std::fmt;

use scrimp_memory::{BlockTable, TokenId};

/// Names a sequence. Later ones have larger numbers: the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u64);

impl fmt::Display for SeqId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seq-{}", self.0)
    }
}

/// A request for `n` continuations of one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSequence {
    /// The prompt; at least one token.
    pub prompt_token_ids: Vec<TokenId>,
    /// Most tokens to generate, thinking included; at least 1.
    pub max_tokens: usize,
    /// Lower goes first; 0 is usual.
    pub priority: i32,
    /// Whether the model is expected to think before it answers: lengths are learnt apart.
    pub thinking: bool,
    /// Keys without which cached blocks are not shared, such as the bytes of a `cache_salt`.
    pub extra_keys: Vec<u8>,
    /// Continuations; at least 1.
    pub n: usize,
}

impl NewSequence {
    /// One plain continuation of at most `max_tokens` tokens.
    pub fn new(prompt_token_ids: Vec<TokenId>, max_tokens: usize) -> NewSequence {
        NewSequence {
            prompt_token_ids,
            max_tokens,
            priority: 0,
            thinking: false,
            extra_keys: Vec::new(),
            n: 1,
        }
    }
}

/// Where a sequence stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceStatus {
    /// Waiting to be admitted; holds no blocks.
    Waiting,
    /// Waiting until this sequence's prompt, which is its own too, is computed; holds no blocks.
    WaitingOnParent(SeqId),
    /// Takes part in steps; holds blocks.
    Running,
    /// Was running and had to give its blocks up; waits to be computed anew, tokens kept.
    Preempted,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FinishReason {
    /// An end token, or a stop string or token.
    Stop,
    /// `max_tokens`, the longest context, or a KV cache that it filled by itself.
    Length,
    /// The caller gave up on it.
    Abort,
}

impl FinishReason {
    /// The label of the metric `request_success_total`.
    pub const fn name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Abort => "abort",
        }
    }
}

/// What a sequence has cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SequenceStats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub output_tokens: usize,
    /// Prompt tokens that were not computed, since the cache, or the sequence it was forked from,
    /// had them.
    pub cached_tokens: usize,
    /// Times it had to give its blocks up.
    pub preemptions: usize,
    /// Most blocks held at one time, shared ones included.
    pub peak_blocks: usize,
    /// Their bytes.
    pub peak_kv_bytes: usize,
}

/// A sequence that has ended; its blocks are already given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Which.
    pub id: SeqId,
    /// Why.
    pub reason: FinishReason,
    /// At what cost.
    pub stats: SequenceStats,
}

/// One continuation of a prompt, from arrival to end.
#[derive(Debug)]
pub struct Sequence {
    pub(crate) id: SeqId,
    pub(crate) priority: i32,
    pub(crate) status: SequenceStatus,
    /// Prompt and output.
    pub(crate) token_ids: Vec<TokenId>,
    pub(crate) num_prompt_tokens: usize,
    pub(crate) num_computed_tokens: usize,
    pub(crate) block_table: BlockTable,
    /// Most tokens in all: the least of prompt + `max_tokens` and the longest context.
    pub(crate) max_len: usize,
    pub(crate) thinking: bool,
    pub(crate) thinking_from: Option<usize>,
    /// Sequences that wait for this one's prompt.
    pub(crate) children: Vec<SeqId>,
    /// Whether it was admitted before, so that its prefix lookup is not counted twice.
    pub(crate) admitted: bool,
    pub(crate) cached_tokens: usize,
    pub(crate) preemptions: usize,
    pub(crate) peak_blocks: usize,
}

impl Sequence {
    /// Its name.
    pub fn id(&self) -> SeqId {
        self.id
    }

    /// Where it stands.
    pub fn status(&self) -> SequenceStatus {
        self.status
    }

    /// Prompt and output so far.
    pub fn token_ids(&self) -> &[TokenId] {
        &self.token_ids
    }

    /// The prompt.
    pub fn prompt_token_ids(&self) -> &[TokenId] {
        &self.token_ids[..self.num_prompt_tokens]
    }

    /// The output so far.
    pub fn output_token_ids(&self) -> &[TokenId] {
        &self.token_ids[self.num_prompt_tokens..]
    }

    /// Tokens in all.
    pub fn num_tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Tokens whose keys and values are in its blocks. One less than all of them while it
    /// decodes: the last one is yet to be read.
    pub fn num_computed_tokens(&self) -> usize {
        self.num_computed_tokens
    }

    /// Tokens yet to be computed before the next one can be sampled; 0 while one is awaited.
    pub fn num_remaining(&self) -> usize {
        self.num_tokens() - self.num_computed_tokens
    }

    /// Most tokens it can have in all.
    pub fn max_len(&self) -> usize {
        self.max_len
    }

    /// Its blocks.
    pub fn block_table(&self) -> &BlockTable {
        &self.block_table
    }

    /// Lower goes first.
    pub fn priority(&self) -> i32 {
        self.priority
    }

    /// Its place in line: by priority, then by arrival.
    pub(crate) fn key(&self) -> QueueKey {
        (self.priority, self.id)
    }

    /// What it has cost so far, with blocks of `bytes_per_block` bytes.
    pub(crate) fn stats(&self, bytes_per_block: usize) -> SequenceStats {
        SequenceStats {
            prompt_tokens: self.num_prompt_tokens,
            output_tokens: self.num_tokens() - self.num_prompt_tokens,
            cached_tokens: self.cached_tokens,
            preemptions: self.preemptions,
            peak_blocks: self.peak_blocks,
            peak_kv_bytes: self.peak_blocks * bytes_per_block,
        }
    }
}

/// Place in line: lower priority number first, then earlier arrival.
pub(crate) type QueueKey = (i32, SeqId);

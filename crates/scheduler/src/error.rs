//! Why a scheduler cannot be made, or a request cannot be taken.

use thiserror::Error;

/// Settings that do not go together.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// A setting that must be at least 1.
    #[error("{name} is 0: it must be at least 1")]
    Zero {
        /// The setting.
        name: &'static str,
    },
    /// Every running sequence must get a token in every step.
    #[error(
        "max-num-batched-tokens is {max_num_batched_tokens} and max-num-seqs {max_num_seqs}: every running sequence takes a token per step, so raise the first or lower the second"
    )]
    BudgetBelowSeqs {
        /// Tokens per step.
        max_num_batched_tokens: usize,
        /// Sequences that run at once.
        max_num_seqs: usize,
    },
    /// A sequence of the longest length has more blocks than one may have.
    #[error("max-model-len is {max_model_len}, and a sequence may hold {max_blocks_per_seq} blocks of {block_size} tokens: set max-model-len to at most {}", max_blocks_per_seq.saturating_mul(*block_size))]
    ContextTooLong {
        /// Longest sequence, tokens.
        max_model_len: usize,
        /// Blocks a sequence may hold.
        max_blocks_per_seq: usize,
        /// Tokens per block.
        block_size: usize,
    },
}

/// Why a request is refused at once.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddError {
    /// No prompt.
    #[error("the prompt is empty: it must have at least one token")]
    EmptyPrompt,
    /// Nothing to generate.
    #[error("max_tokens is 0: it must be at least 1")]
    NoTokens,
    /// No continuation, or more than run at once.
    #[error("n is {n}: it must be between 1 and {max_num_seqs}, the sequences that run at once")]
    BadCount {
        /// Continuations asked for.
        n: usize,
        /// Sequences that run at once.
        max_num_seqs: usize,
    },
    /// The longest context has no room for the prompt and one token.
    #[error("the prompt has {prompt_tokens} tokens, and the longest context is {max_model_len}: shorten it to at most {} tokens", max_model_len.saturating_sub(1))]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Longest sequence, tokens.
        max_model_len: usize,
    },
    /// The KV cache has no room for the prompt, even when nothing else runs.
    #[error("the prompt has {prompt_tokens} tokens, which need {blocks_needed} KV cache blocks, and there are {num_blocks} ({} tokens): shorten it, or give the server more memory", num_blocks * block_size)]
    PoolTooSmall {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Blocks it needs.
        blocks_needed: usize,
        /// Blocks in the pool.
        num_blocks: usize,
        /// Tokens per block.
        block_size: usize,
    },
}

//! Why there is no plan, and what would make one.

use std::fmt;

use scrimp_tensor::DType;
use thiserror::Error;

use super::{Fixed, PlanInput, lay_out};
use crate::bytes::HumanBytes;

/// Stored types of the KV cache that a remedy may propose.
const KV_DTYPES: [DType; 2] = [DType::BF16, DType::F16];

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum PlanError {
    /// A setting that must be at least 1.
    #[error("{name} is 0: it must be at least 1")]
    Zero {
        /// The setting.
        name: &'static str,
    },
    /// A sequence of the longest length has more blocks than one may have.
    #[error(
        "max-model-len {max_model_len} needs {} blocks of {block_size} tokens, and max-blocks-per-seq is {max_blocks_per_seq}: \
         set max-model-len to at most {}, or max-blocks-per-seq to at least {}",
        max_model_len.div_ceil(*block_size),
        max_blocks_per_seq.saturating_mul(*block_size),
        max_model_len.div_ceil(*block_size)
    )]
    ContextTooLong {
        /// Longest sequence, tokens.
        max_model_len: usize,
        /// Tokens per block.
        block_size: usize,
        /// Blocks a sequence may have.
        max_blocks_per_seq: usize,
    },
    /// A KV cache, sized by the user, that does not hold one sequence of the longest length.
    #[error(
        "the KV cache asked for holds {kv_tokens} tokens, and max-model-len is {max_model_len}: \
         give it at least {blocks_needed} blocks ({}), or set max-model-len to at most {kv_tokens}",
        HumanBytes(*bytes_needed)
    )]
    KvCacheTooSmall {
        /// Tokens that it holds.
        kv_tokens: usize,
        /// Longest sequence, tokens.
        max_model_len: usize,
        /// Blocks of one such sequence.
        blocks_needed: usize,
        /// Their bytes.
        bytes_needed: usize,
    },
    /// Sizes that do not fit in an address.
    #[error("the sizes asked for add up to more memory than a machine can address")]
    TooLarge,
    /// The budget is too small.
    #[error("{0}")]
    DoesNotFit(Box<DoesNotFit>),
}

/// What was asked for, what there is, and what would fit.
#[derive(Clone, Debug, PartialEq)]
pub struct DoesNotFit {
    /// What the process may use.
    pub budget_bytes: usize,
    /// Weights of all components.
    pub weights_bytes: usize,
    /// Scratch, the process itself, and what is kept in reserve.
    pub scratch_bytes: usize,
    /// What opening and loading take before there is a cache, reserve included.
    pub before_bytes: usize,
    /// KV cache asked for: the user's, or one sequence of `max_model_len` tokens.
    pub kv_cache_bytes: usize,
    /// Longest sequence asked for, tokens.
    pub max_model_len: usize,
    /// Tokens that the KV cache would have held in what is left.
    pub kv_tokens_left: usize,
    /// Changes, each of which makes it fit by itself. Never empty.
    pub remedies: Vec<Remedy>,
}

/// A change that makes a plan fit.
#[derive(Clone, Debug, PartialEq)]
pub enum Remedy {
    /// Serve shorter sequences: this is the longest that fits.
    ShorterContext {
        /// Tokens.
        max_model_len: usize,
    },
    /// Make the KV cache smaller: these are the most blocks that fit.
    FewerBlocks {
        /// Blocks.
        num_blocks: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// Store keys and values in a smaller type.
    KvDtype {
        /// The type.
        dtype: DType,
    },
    /// Run fewer sequences at once: these are the most that fit.
    FewerSequences {
        /// Sequences.
        max_num_seqs: usize,
    },
    /// Give the process more memory: this is the least that fits.
    MoreMemory {
        /// Bytes.
        budget_bytes: usize,
    },
}

/// The error for `input`, whose settings are sound.
pub(super) fn does_not_fit(input: &PlanInput, fixed: &Fixed) -> PlanError {
    let kv = input.kv;
    let one_seq = input.max_model_len.div_ceil(kv.block_size);
    let left = input.budget_bytes.saturating_sub(fixed.total);
    let asked = input.num_blocks.or(input
        .kv_cache_bytes
        .map(|bytes| bytes / input.kv_block_bytes));
    let blocks = asked.unwrap_or(if input.shrink_to_fit { 1 } else { one_seq });
    let kv_cache_bytes = blocks.saturating_mul(input.kv_block_bytes);
    PlanError::DoesNotFit(Box::new(DoesNotFit {
        budget_bytes: input.budget_bytes,
        weights_bytes: fixed.weights,
        scratch_bytes: fixed.total - fixed.weights,
        before_bytes: fixed.before,
        kv_cache_bytes,
        max_model_len: input.max_model_len,
        kv_tokens_left: (left / input.kv_block_bytes).saturating_mul(kv.block_size),
        remedies: remedies(input, fixed, blocks, one_seq),
    }))
}

/// Changes that make the plan fit, each by itself, the least drastic first: candidates as large
/// as they can be, kept when planning with them succeeds.
fn remedies(input: &PlanInput, fixed: &Fixed, blocks: usize, one_seq: usize) -> Vec<Remedy> {
    let left = input.budget_bytes.saturating_sub(fixed.total);
    let room = left / input.kv_block_bytes;
    let needed = blocks.saturating_mul(input.kv_block_bytes);
    let shorter = match input.pool_is_set() {
        true => None,
        false => Some(Remedy::ShorterContext {
            max_model_len: room.min(one_seq).saturating_mul(input.kv.block_size),
        }),
    };
    let fewer = input.pool_is_set().then(|| Remedy::FewerBlocks {
        num_blocks: room,
        bytes: room * input.kv_block_bytes,
    });
    let mut candidates: Vec<Remedy> = fewer.into_iter().chain(shorter).collect();
    candidates.extend(KV_DTYPES.map(|dtype| Remedy::KvDtype { dtype }));
    candidates.extend(fewer_sequences(input, fixed, needed));
    candidates.push(Remedy::MoreMemory {
        budget_bytes: fixed.needed(needed),
    });
    candidates.retain(|remedy| remedy.helps(input));
    let is_dtype = |remedy: &Remedy| matches!(remedy, Remedy::KvDtype { .. });
    let first = candidates.iter().position(is_dtype);
    let mut index = 0;
    candidates.retain(|remedy| {
        index += 1;
        !is_dtype(remedy) || Some(index - 1) == first
    });
    candidates
}

/// The most sequences that fit beside `kv_bytes` of KV cache.
fn fewer_sequences(input: &PlanInput, fixed: &Fixed, kv_bytes: usize) -> Option<Remedy> {
    let others = fixed.total - input.max_num_seqs * input.bytes_per_seq;
    let left = input
        .budget_bytes
        .checked_sub(others)?
        .checked_sub(kv_bytes)?;
    let max_num_seqs = left.checked_div(input.bytes_per_seq)?;
    (1..input.max_num_seqs)
        .contains(&max_num_seqs)
        .then_some(Remedy::FewerSequences { max_num_seqs })
}

impl Remedy {
    /// Whether there is a plan once the remedy is taken.
    fn helps(&self, input: &PlanInput) -> bool {
        let changed = self.apply(input);
        Fixed::of(&changed).is_ok_and(|fixed| matches!(lay_out(&changed, &fixed), Ok(Some(_))))
    }

    /// What to plan for once the remedy is taken.
    pub fn apply(&self, input: &PlanInput) -> PlanInput {
        let mut changed = input.clone();
        match *self {
            Remedy::ShorterContext { max_model_len } => changed.max_model_len = max_model_len,
            Remedy::FewerBlocks { num_blocks, .. } => changed.num_blocks = Some(num_blocks),
            Remedy::KvDtype { dtype } => {
                let values = changed.kv_block_bytes / changed.kv.dtype.block_bytes().max(1);
                changed.kv_block_bytes = values * dtype.block_bytes();
                changed.kv.dtype = dtype;
            }
            Remedy::FewerSequences { max_num_seqs } => changed.max_num_seqs = max_num_seqs,
            Remedy::MoreMemory { budget_bytes } => changed.budget_bytes = budget_bytes,
        }
        changed
    }
}

impl fmt::Display for DoesNotFit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needed = [self.weights_bytes, self.scratch_bytes, self.kv_cache_bytes]
            .into_iter()
            .fold(0, usize::saturating_add);
        if self.before_bytes > needed {
            write!(
                f,
                "the model cannot be loaded: {} is needed before the first token, weights of {} \
                 and what is being read on its way there included, and the budget is {}. \
                 What would fit:",
                HumanBytes(self.before_bytes),
                HumanBytes(self.weights_bytes),
                HumanBytes(self.budget_bytes),
            )?;
        } else {
            write!(
                f,
                "a context of {} tokens does not fit: {} is needed (weights {}, scratch {}, KV cache {}), \
                 the budget is {}, which leaves KV cache for {} tokens. What would fit:",
                self.max_model_len,
                HumanBytes(needed),
                HumanBytes(self.weights_bytes),
                HumanBytes(self.scratch_bytes),
                HumanBytes(self.kv_cache_bytes),
                HumanBytes(self.budget_bytes),
                self.kv_tokens_left,
            )?;
        }
        for (index, remedy) in self.remedies.iter().enumerate() {
            write!(f, "{} {remedy}", if index == 0 { "" } else { ", or" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remedy::ShorterContext { max_model_len } => {
                write!(f, "--max-model-len {max_model_len}")
            }
            Remedy::FewerBlocks { num_blocks, bytes } => {
                write!(
                    f,
                    "--num-blocks {num_blocks} (KV cache of {})",
                    HumanBytes(*bytes)
                )
            }
            Remedy::KvDtype { dtype } => {
                write!(f, "--kv-cache-dtype {}", dtype.name().to_lowercase())
            }
            Remedy::FewerSequences { max_num_seqs } => write!(f, "--max-num-seqs {max_num_seqs}"),
            Remedy::MoreMemory { budget_bytes } => {
                // Rounded up to a whole MiB, so that typing it in is enough.
                write!(f, "--memory {}MiB", budget_bytes.div_ceil(1 << 20))
            }
        }
    }
}

//! What goes where, worked out before anything is loaded.
//!
//! The engine reserves from the very value that is printed: there is no second formula. Nothing
//! here asks the machine anything; the budget and the sizes come in as values.
//!
//! What a process needs changes with time, so a plan is a row of [`phases`](MemoryPlan::phases),
//! and its peak is the largest of them, not their sum: the buffers of loading are gone when the
//! cache fills.

mod error;
mod phase;
mod report;

use scrimp_model::KvLayout;

pub use error::{DoesNotFit, PlanError, Remedy};
pub use phase::{Phase, PhaseBytes};

use crate::BlockPoolConfig;

/// Largest number of blocks that ids can name.
const MAX_BLOCKS: usize = u32::MAX as usize - 1;

/// A cache of fewer large pages than this has none.
const LARGE_CACHE_PAGES: usize = 32;

/// Everything a plan is made from. All sizes in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanInput {
    /// The one budget: what the process may use.
    pub budget_bytes: usize,
    /// Weights by component, such as `("embedding", 56_623_104)`, in the order to print them.
    pub weights: Vec<(String, usize)>,
    /// Scratch of the largest forward pass, without what `bytes_per_seq` covers.
    pub activations_bytes: usize,
    /// What each sequence that may run at once adds to the activations (its row of logits, its
    /// sampler's state).
    pub bytes_per_seq: usize,
    /// Most bytes that loading holds besides resident weights: the stored form of a tensor.
    pub staging_bytes: usize,
    /// Most bytes of weights and staging that are held at one time while loading; no less than
    /// all weights.
    pub loading_bytes: usize,
    /// Most that the process has held already, before the first weight: parsing a tokenizer.
    pub opening_bytes: usize,
    /// The rest: the program's own pages, heap and stacks; tokenizer, tables.
    pub other_bytes: usize,
    /// Room to keep free for what cannot be foretold: bodies of requests, the allocator's slack.
    /// The budget has to hold it, the planned peak leaves it out.
    pub reserve_bytes: usize,
    /// What a token leaves in the KV cache, and the block size.
    pub kv: KvLayout,
    /// Bytes of a block as the device stores it, padding included.
    pub kv_block_bytes: usize,
    /// Bytes of the pages in which a large cache comes into memory as it is written; 1 where that
    /// is as good as byte by byte.
    pub kv_page_bytes: usize,
    /// Longest sequence to serve, in tokens: prompt and output.
    pub max_model_len: usize,
    /// Whether a shorter `max_model_len` will do when the budget does not hold this one: true
    /// when it is the model's own limit, false when the user asked for it.
    pub shrink_to_fit: bool,
    /// Sequences that run at once, at most.
    pub max_num_seqs: usize,
    /// Blocks of one sequence, at most (`--max-blocks-per-seq`).
    pub max_blocks_per_seq: usize,
    /// Size of the pool in blocks, where the user sets it (`--num-blocks`).
    pub num_blocks: Option<usize>,
    /// Size of the KV cache in bytes, where the user sets it (`--kv-cache-memory-bytes`).
    pub kv_cache_bytes: Option<usize>,
    /// Most bytes a KV cache sized from the budget takes, unless one sequence needs more.
    pub max_kv_cache_bytes: Option<usize>,
}

impl PlanInput {
    /// Blocks of one sequence at most: 4096, so 65,536 tokens at 16 tokens a block.
    pub const DEFAULT_MAX_BLOCKS_PER_SEQ: usize = 4096;
    /// Most bytes of a KV cache that is sized from the budget: 40 GiB.
    pub const DEFAULT_MAX_KV_CACHE_BYTES: usize = 40 << 30;

    /// Whether the user set the size of the KV cache.
    fn pool_is_set(&self) -> bool {
        self.num_blocks.is_some() || self.kv_cache_bytes.is_some()
    }
}

/// What decided the size of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvLimit {
    /// The budget, after everything else.
    Budget,
    /// The user's number of blocks.
    NumBlocks,
    /// The user's number of bytes.
    KvCacheBytes,
    /// The cap on a cache sized from the budget.
    MaxKvCacheBytes,
    /// More could not be used: all sequences at their longest fit.
    Workload,
}

/// What goes where. All sizes in bytes; no phase takes more than the budget.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryPlan {
    /// What the process may use.
    pub budget_bytes: usize,
    /// Weights by component, in the order to print them.
    pub weights: Vec<(String, usize)>,
    /// Scratch of the largest forward pass, logits of all sequences included.
    pub activations_bytes: usize,
    /// Most bytes that loading holds besides resident weights.
    pub staging_bytes: usize,
    /// Most bytes of weights and staging that loading holds at one time.
    pub loading_bytes: usize,
    /// Most that the process held before the first weight.
    pub opening_bytes: usize,
    /// The rest: the program's own pages, heap and stacks.
    pub other_bytes: usize,
    /// Room kept free for what cannot be foretold; not part of the peak.
    pub reserve_bytes: usize,
    /// What a token leaves in the KV cache, and the block size.
    pub kv: KvLayout,
    /// Bytes of a block as the device stores it, padding included.
    pub kv_block_bytes: usize,
    /// Bytes of the pages in which a large cache comes into memory.
    pub kv_page_bytes: usize,
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// What decided that number.
    pub kv_limit: KvLimit,
    /// Longest sequence served, in tokens; at most the one asked for.
    pub max_model_len: usize,
    /// Sequences that run at once, at most.
    pub max_num_seqs: usize,
    /// Blocks of one sequence, at most.
    pub max_blocks_per_seq: usize,
}

impl MemoryPlan {
    /// Plans for `input`.
    ///
    /// # Errors
    /// [`PlanError::DoesNotFit`], with what would fit, when the budget does not hold the weights,
    /// the scratch and one sequence of `max_model_len` tokens (one block, with `shrink_to_fit`);
    /// [`PlanError::KvCacheTooSmall`] when the user's own cache does not; other variants when a setting makes no sense.
    pub fn new(input: &PlanInput) -> Result<MemoryPlan, PlanError> {
        let fixed = Fixed::of(input)?;
        lay_out(input, &fixed)?.ok_or_else(|| error::does_not_fit(input, &fixed))
    }

    /// Weights of all components.
    pub fn weights_bytes(&self) -> usize {
        self.weights.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The KV cache.
    pub fn kv_cache_bytes(&self) -> usize {
        self.num_blocks * self.kv_block_bytes
    }

    /// Bytes of the cache that are in memory once `blocks` different blocks have been written.
    pub fn kv_resident_bytes(&self, blocks: usize) -> usize {
        let (written, all) = (blocks * self.kv_block_bytes, self.kv_cache_bytes());
        let page = self.kv_page_bytes.max(1);
        match all >= LARGE_CACHE_PAGES.saturating_mul(page) {
            true => written.next_multiple_of(page).min(all),
            false => written.min(all),
        }
    }

    /// Tokens that the KV cache holds.
    pub fn kv_tokens(&self) -> usize {
        self.num_blocks * self.kv.block_size
    }

    /// The pool of blocks that goes with the plan.
    pub fn pool_config(&self, enable_prefix_caching: bool) -> BlockPoolConfig {
        BlockPoolConfig {
            num_blocks: self.num_blocks,
            block_size: self.kv.block_size,
            max_blocks_per_seq: self.max_blocks_per_seq,
            bytes_per_block: self.kv_block_bytes,
            enable_prefix_caching,
        }
    }

    /// Most bytes that are in use at one time, once every block of the cache has been written.
    pub fn peak_bytes(&self) -> usize {
        self.peak_bytes_with(self.num_blocks)
    }

    /// Most bytes that are in use at one time when only `blocks` different blocks of the cache
    /// are ever written: pages that nobody touches are not there.
    pub fn peak_bytes_with(&self, blocks: usize) -> usize {
        let totals = self.phases(blocks).map(|phase| phase.total());
        totals.into_iter().max().unwrap_or(0)
    }

    /// What the plan leaves of the budget, the reserve apart.
    pub fn free_bytes(&self) -> usize {
        self.budget_bytes - (self.peak_bytes() + self.reserve_bytes).min(self.budget_bytes)
    }

    /// How many requests of `tokens` tokens each the KV cache holds at once, in whole blocks.
    /// Not capped by `max_num_seqs`.
    pub fn max_concurrency(&self, tokens: usize) -> f64 {
        let blocks = tokens.max(1).div_ceil(self.kv.block_size);
        self.num_blocks as f64 / blocks as f64
    }
}

/// What has to be there before the first block of KV cache.
pub(crate) struct Fixed {
    weights: usize,
    activations: usize,
    /// Everything of serving but the cache, the reserve included.
    total: usize,
    /// The least budget that the phases before serving need.
    before: usize,
}

impl Fixed {
    fn of(input: &PlanInput) -> Result<Fixed, PlanError> {
        let weights = sum(input.weights.iter().map(|(_, bytes)| *bytes))?;
        let per_seq = input.max_num_seqs.checked_mul(input.bytes_per_seq);
        let per_seq = per_seq.ok_or(PlanError::TooLarge)?;
        let activations = sum([input.activations_bytes, per_seq])?;
        let total = sum([weights, activations, input.other_bytes, input.reserve_bytes])?;
        let loading = sum([input.loading_bytes, input.other_bytes, input.reserve_bytes])?;
        Ok(Fixed {
            weights,
            activations,
            total,
            before: loading.max(input.opening_bytes),
        })
    }

    /// The least budget with `kv_bytes` of cache.
    fn needed(&self, kv_bytes: usize) -> usize {
        self.total.saturating_add(kv_bytes).max(self.before)
    }
}

/// The plan; `None` when the budget does not hold it.
fn lay_out(input: &PlanInput, fixed: &Fixed) -> Result<Option<MemoryPlan>, PlanError> {
    check_settings(input)?;
    let left = input.budget_bytes.saturating_sub(fixed.total);
    let (num_blocks, kv_limit) = size_pool(input, left)?;
    let block_size = input.kv.block_size;
    let one_seq = input.max_model_len.div_ceil(block_size);
    let max_model_len = match num_blocks < one_seq {
        true if input.shrink_to_fit => num_blocks * block_size,
        _ => input.max_model_len,
    };
    let too_short = max_model_len == 0 || max_model_len.div_ceil(block_size) > num_blocks;
    if too_short && input.pool_is_set() {
        return Err(PlanError::KvCacheTooSmall {
            kv_tokens: num_blocks * block_size,
            max_model_len: input.max_model_len,
            blocks_needed: one_seq,
            bytes_needed: one_seq.saturating_mul(input.kv_block_bytes),
        });
    }
    let pool_bytes = num_blocks.saturating_mul(input.kv_block_bytes);
    if too_short || fixed.needed(pool_bytes) > input.budget_bytes {
        return Ok(None);
    }
    Ok(Some(MemoryPlan {
        budget_bytes: input.budget_bytes,
        weights: input.weights.clone(),
        activations_bytes: fixed.activations,
        staging_bytes: input.staging_bytes,
        loading_bytes: input.loading_bytes.max(fixed.weights),
        opening_bytes: input.opening_bytes,
        other_bytes: input.other_bytes,
        reserve_bytes: input.reserve_bytes,
        kv: input.kv,
        kv_block_bytes: input.kv_block_bytes,
        kv_page_bytes: input.kv_page_bytes,
        num_blocks,
        kv_limit,
        max_model_len,
        max_num_seqs: input.max_num_seqs,
        max_blocks_per_seq: input.max_blocks_per_seq,
    }))
}

fn sum(parts: impl IntoIterator<Item = usize>) -> Result<usize, PlanError> {
    parts
        .into_iter()
        .try_fold(0usize, usize::checked_add)
        .ok_or(PlanError::TooLarge)
}

fn check_settings(input: &PlanInput) -> Result<(), PlanError> {
    for (name, value) in [
        ("max-model-len", input.max_model_len),
        ("max-num-seqs", input.max_num_seqs),
        ("max-blocks-per-seq", input.max_blocks_per_seq),
        ("block-size", input.kv.block_size),
        ("num-blocks", input.num_blocks.unwrap_or(1)),
        ("bytes of KV cache per block", input.kv_block_bytes),
    ] {
        if value == 0 {
            return Err(PlanError::Zero { name });
        }
    }
    if input.max_model_len.div_ceil(input.kv.block_size) > input.max_blocks_per_seq {
        return Err(PlanError::ContextTooLong {
            max_model_len: input.max_model_len,
            block_size: input.kv.block_size,
            max_blocks_per_seq: input.max_blocks_per_seq,
        });
    }
    Ok(())
}

/// Blocks in the pool, with `left` bytes left for it, and what decided. More than `left` holds
/// only when the user's own number says so.
fn size_pool(input: &PlanInput, left: usize) -> Result<(usize, KvLimit), PlanError> {
    let block_bytes = input.kv_block_bytes;
    if let Some(num_blocks) = input.num_blocks {
        return match num_blocks <= MAX_BLOCKS {
            true => Ok((num_blocks, KvLimit::NumBlocks)),
            false => Err(PlanError::TooLarge),
        };
    }
    if let Some(bytes) = input.kv_cache_bytes {
        return Ok(((bytes / block_bytes).min(MAX_BLOCKS), KvLimit::KvCacheBytes));
    }
    let one_seq = input.max_model_len.div_ceil(input.kv.block_size);
    let cap = input.max_kv_cache_bytes.unwrap_or(usize::MAX) / block_bytes;
    // The cap is for what nobody asked for: a context that somebody did goes first.
    let cap = cap.max(if input.shrink_to_fit { 1 } else { one_seq });
    let workload = one_seq.saturating_mul(input.max_num_seqs).min(MAX_BLOCKS);
    let limits = [
        (left / block_bytes, KvLimit::Budget),
        (cap, KvLimit::MaxKvCacheBytes),
        (workload, KvLimit::Workload),
    ];
    let smallest = limits.into_iter().min_by_key(|(blocks, _)| *blocks);
    Ok(smallest.unwrap_or((0, KvLimit::Budget)))
}

#[cfg(test)]
mod tests;

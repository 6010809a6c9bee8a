//! What the block pool reports: usage in blocks and in tokens, and counters.

/// What the blocks of a pool are used for. The three kinds add up to the total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUsage {
    /// Blocks in the pool.
    pub total_blocks: usize,
    /// Blocks that sequences hold.
    pub protected_blocks: usize,
    /// Cached blocks that nobody holds: can be hit, can be taken.
    pub evictable_blocks: usize,
    /// Of the evictable ones, thinking of finished turns.
    pub thinking_blocks: usize,
    /// Blocks with nothing in them.
    pub free_blocks: usize,
    /// Blocks that were ever handed out: the memory behind the others was never written.
    pub touched_blocks: usize,
    /// Tokens in protected blocks; a block that several sequences hold counts once.
    pub tokens_in_use: usize,
    /// Tokens per block.
    pub block_size: usize,
    /// Bytes per block over all layers.
    pub bytes_per_block: usize,
}

impl PoolUsage {
    /// Share of the blocks that sequences hold, 0 to 1: what admission goes by
    /// (`kv_cache_usage_perc`).
    pub fn by_blocks(&self) -> f64 {
        ratio(self.protected_blocks, self.total_blocks)
    }

    /// Share of the slots that hold a token somebody needs, 0 to 1. Lower than
    /// [`PoolUsage::by_blocks`] by what partly filled blocks waste.
    pub fn by_tokens(&self) -> f64 {
        ratio(self.tokens_in_use, self.total_blocks * self.block_size)
    }

    /// Bytes of blocks that sequences hold.
    pub fn protected_bytes(&self) -> usize {
        self.protected_blocks * self.bytes_per_block
    }

    /// Bytes of cached blocks that nobody holds.
    pub fn evictable_bytes(&self) -> usize {
        self.evictable_blocks * self.bytes_per_block
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    match whole {
        0 => 0.0,
        whole => part as f64 / whole as f64,
    }
}

/// What a pool has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounters {
    /// Tokens that were looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Of those, tokens that were found.
    pub prefix_hits: u64,
    /// Cached blocks that were taken for something else.
    pub evictions: u64,
    /// Of those, thinking of finished turns.
    pub thinking_evictions: u64,
    /// Blocks copied because they were about to be written while shared.
    pub copies: u64,
    /// Blocks given back because the cache already had the same tokens.
    pub duplicates: u64,
}

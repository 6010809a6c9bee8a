//! The physical blocks of the KV cache: who holds them, which are free, which may be hit again.
//!
//! The pool hands out block *ids*; the memory behind them is the engine's. Every block is either
//! *protected* (held by at least one table), *evictable* (held by none, but cached: it can be hit
//! again or taken), or *free* (held by none and worth nothing). All of the pool is usable: no
//! block is set aside for padding.
//!
//! Blocks are taken in this order: free ones, the one freed last first, so that fewer pages of
//! memory are touched; cached thinking of finished turns, which a chat template strips from the
//! next prompt and nobody will ask for again; then other cached blocks, least recently used first.

use crate::free_queue::{FreeQueue, KvCacheBlock};
use crate::prefix_cache::{Inserted, PrefixCache};
use crate::{
    BlockError, BlockHash, BlockId, BlockPoolConfig, BlockTable, CopyBlock, PoolCounters,
    PoolUsage, PrefixHit, TokenId,
};

/// The blocks, their free lists and the prefix cache over them.
#[derive(Debug)]
pub struct BlockPool {
    pub(crate) config: BlockPoolConfig,
    pub(crate) blocks: Vec<KvCacheBlock>,
    pub(crate) prefix_cache: PrefixCache,
    /// Free blocks that are not cached.
    pub(crate) uncached: FreeQueue,
    /// Free blocks with cached thinking of finished turns.
    pub(crate) thinking: FreeQueue,
    /// Other free cached blocks.
    pub(crate) cached: FreeQueue,
    /// Sum of `num_tokens` over protected blocks.
    pub(crate) tokens_in_use: usize,
    /// Blocks that were ever handed out.
    pub(crate) touched: usize,
    pub(crate) counters: PoolCounters,
}

impl BlockPool {
    /// A pool of which every block is free.
    ///
    /// # Errors
    /// When there would be no block, or more than ids can name.
    pub fn new(config: BlockPoolConfig) -> Result<BlockPool, BlockError> {
        let ids = u32::try_from(config.num_blocks).unwrap_or(u32::MAX);
        if ids == 0 || ids == u32::MAX || config.block_size == 0 {
            return Err(BlockError::BadPool {
                num_blocks: config.num_blocks,
                block_size: config.block_size,
            });
        }
        let mut blocks: Vec<KvCacheBlock> = (0..ids).map(KvCacheBlock::new).collect();
        let mut uncached = FreeQueue::new();
        for id in 0..ids {
            uncached.push_back(&mut blocks, id);
        }
        Ok(BlockPool {
            config,
            blocks,
            prefix_cache: PrefixCache::default(),
            uncached,
            thinking: FreeQueue::new(),
            cached: FreeQueue::new(),
            tokens_in_use: 0,
            touched: 0,
            counters: PoolCounters::default(),
        })
    }

    /// Shape of the pool.
    pub fn config(&self) -> &BlockPoolConfig {
        &self.config
    }

    /// The state of block `id`.
    pub fn block(&self, id: BlockId) -> Option<&KvCacheBlock> {
        self.blocks.get(id as usize)
    }

    /// Blocks that hold `num_tokens` tokens.
    pub fn blocks_for(&self, num_tokens: usize) -> usize {
        num_tokens.div_ceil(self.config.block_size)
    }

    /// Blocks that can be had now: free and evictable ones.
    pub fn num_available(&self) -> usize {
        self.uncached.len() + self.thinking.len() + self.cached.len()
    }

    /// Blocks that [`BlockPool::allocate`] would take.
    pub fn blocks_needed(&self, table: &BlockTable, first: usize, num_tokens: usize) -> usize {
        let new = self.blocks_for(num_tokens).saturating_sub(table.len());
        let copied = self.written(table, first, num_tokens);
        new + copied
            .filter(|&index| !self.is_writable(table.blocks[index]))
            .count()
    }

    /// Makes `table` able to take writes of tokens `first..num_tokens`: appends blocks until it
    /// holds `num_tokens` tokens, and replaces blocks in that range that others share. All or
    /// nothing.
    ///
    /// Returns the copies to make, in order, before anything is written.
    ///
    /// # Errors
    /// [`BlockError::TableFull`] or [`BlockError::OutOfBlocks`]; nothing has changed then.
    pub fn allocate(
        &mut self,
        table: &mut BlockTable,
        first: usize,
        num_tokens: usize,
    ) -> Result<Vec<CopyBlock>, BlockError> {
        let total = self.blocks_for(num_tokens);
        if total > self.config.max_blocks_per_seq {
            return Err(BlockError::TableFull {
                num_tokens,
                needed: total,
                max_blocks_per_seq: self.config.max_blocks_per_seq,
            });
        }
        self.require(self.blocks_needed(table, first, num_tokens))?;
        let mut copies = Vec::new();
        for index in self.written(table, first, num_tokens) {
            copies.extend(self.ensure_writable(table, index)?);
        }
        while table.len() < total {
            let id = self.take()?;
            table.blocks.push(id);
        }
        Ok(copies)
    }

    /// Makes block `index` of `table` safe to write: where others hold it, or the prefix cache
    /// would find it, a fresh block takes its place and the returned copy is to be made.
    ///
    /// # Errors
    /// When the table has no such block, or no block can be had; nothing has changed then.
    pub fn ensure_writable(
        &mut self,
        table: &mut BlockTable,
        index: usize,
    ) -> Result<Option<CopyBlock>, BlockError> {
        let src = *table.blocks.get(index).ok_or(BlockError::NoSuchBlock {
            index,
            len: table.len(),
        })?;
        if self.is_writable(src) {
            return Ok(None);
        }
        let dst = self.take()?;
        self.set_tokens(dst, self.blocks[src as usize].num_tokens);
        table.blocks[index] = dst;
        self.uncache_from(table, index);
        self.release(src);
        self.counters.copies += 1;
        Ok(Some(CopyBlock { src, dst }))
    }

    /// A second table over the same tokens and blocks, the last, partial block included. Whoever
    /// writes to a shared block first gets a copy of it.
    pub fn fork(&mut self, table: &BlockTable) -> BlockTable {
        for &id in &table.blocks {
            self.acquire(id);
        }
        BlockTable {
            blocks: table.blocks.clone(),
            num_tokens: table.num_tokens,
            num_cached: table.num_cached,
            tip: table.tip,
            chain_ended: table.chain_ended,
            extra_keys: table.extra_keys.clone(),
        }
    }

    /// Empties `table`. Its cached blocks become evictable, last one first, so that a prefix
    /// outlives what follows it; the others become free.
    pub fn free(&mut self, table: &mut BlockTable) {
        while let Some(id) = table.blocks.pop() {
            self.release(id);
        }
        let extra_keys = std::mem::take(&mut table.extra_keys);
        *table = BlockTable {
            extra_keys,
            ..BlockTable::default()
        };
    }

    /// Marks the blocks of a turn that is about to end, from the one with token `from` on, as
    /// thinking: once nobody holds them they are the first cached blocks to be taken.
    ///
    /// Not only the chain of thought but all that follows it is marked: the next turn's prompt
    /// leaves the chain out, so no prefix of it will ever reach the blocks behind. A block that
    /// is hit all the same loses the mark.
    pub fn mark_thinking(&mut self, table: &BlockTable, from: usize) {
        let start = (from / self.config.block_size).min(table.len());
        for &id in &table.blocks[start..] {
            self.blocks[id as usize].thinking = true;
        }
    }

    /// Tokens of the longest cached prefix of `token_ids`, and how many of its blocks are
    /// evictable now (so that taking them uses up available blocks).
    ///
    /// At least the last token is left to be computed, since its logits are wanted.
    pub fn lookup(&self, token_ids: &[TokenId], extra_keys: &[u8]) -> PrefixHit {
        let found = self.find(token_ids, extra_keys);
        let free = |id: BlockId| self.blocks[id as usize].ref_cnt == 0;
        PrefixHit {
            num_tokens: found.len() * self.config.block_size,
            num_evictable: found.iter().filter(|(_, id)| free(*id)).count(),
        }
    }

    /// Fills `table`, which must be empty, with the blocks of the longest cached prefix of
    /// `token_ids`; returns the number of its tokens.
    pub fn attach_prefix(&mut self, table: &mut BlockTable, token_ids: &[TokenId]) -> usize {
        if !table.is_empty() {
            return 0;
        }
        let found = self.find(token_ids, &table.extra_keys);
        for &(hash, id) in &found {
            self.acquire(id);
            table.blocks.push(id);
            table.tip = Some(hash);
        }
        table.num_cached = found.len();
        table.num_tokens = found.len() * self.config.block_size;
        table.num_tokens
    }

    /// Notes that the keys and values of the first `num_computed` of `token_ids` are now in
    /// `table`'s blocks, and caches the blocks that became full.
    ///
    /// Where the cache already has a block with the same tokens after the same prefix, the table
    /// takes that one and gives its own back: a token's keys and values depend on nothing else,
    /// so both hold the same bytes.
    pub fn commit(&mut self, table: &mut BlockTable, token_ids: &[TokenId], num_computed: usize) {
        let size = self.config.block_size;
        let num_computed = num_computed.min(token_ids.len()).min(table.len() * size);
        for index in table.num_tokens / size..num_computed.div_ceil(size) {
            let filled = (num_computed - index * size).min(size);
            self.set_tokens(table.blocks[index], filled as u32);
        }
        table.num_tokens = table.num_tokens.max(num_computed);
        if !self.config.enable_prefix_caching {
            return;
        }
        while !table.chain_ended && (table.num_cached + 1) * size <= num_computed {
            let start = table.num_cached * size;
            self.cache_next(table, &token_ids[start..start + size]);
        }
    }

    /// Adds a request's prefix lookup to the counters, in tokens.
    pub fn record_prefix_query(&mut self, queried: usize, hit: usize) {
        self.counters.prefix_queries += queried as u64;
        self.counters.prefix_hits += hit as u64;
    }

    /// What the blocks are used for now.
    pub fn usage(&self) -> PoolUsage {
        let evictable = self.thinking.len() + self.cached.len();
        PoolUsage {
            total_blocks: self.blocks.len(),
            protected_blocks: self.blocks.len() - self.num_available(),
            evictable_blocks: evictable,
            thinking_blocks: self.thinking.len(),
            free_blocks: self.uncached.len(),
            touched_blocks: self.touched,
            tokens_in_use: self.tokens_in_use,
            block_size: self.config.block_size,
            bytes_per_block: self.config.bytes_per_block,
        }
    }

    /// What has happened so far.
    pub fn counters(&self) -> PoolCounters {
        self.counters
    }

    /// Forgets every cached block that nobody holds.
    pub fn clear_cache(&mut self) {
        while let Some(id) = self.thinking.head().or(self.cached.head()) {
            self.unlink(id);
            self.forget(id);
            self.uncached.push_front(&mut self.blocks, id);
        }
    }
}

impl BlockPool {
    fn find(&self, token_ids: &[TokenId], extra_keys: &[u8]) -> Vec<(BlockHash, BlockId)> {
        let size = self.config.block_size;
        let max_blocks = token_ids.len().saturating_sub(1) / size;
        self.prefix_cache
            .lookup(token_ids, extra_keys, size, max_blocks)
    }

    /// Indices of existing blocks of `table` that a write of tokens `first..end` touches.
    fn written(&self, table: &BlockTable, first: usize, end: usize) -> std::ops::Range<usize> {
        let start = first / self.config.block_size;
        start..self.blocks_for(end).min(table.len()).max(start)
    }

    fn is_writable(&self, id: BlockId) -> bool {
        let block = &self.blocks[id as usize];
        block.ref_cnt == 1 && block.block_hash.is_none()
    }

    fn require(&self, needed: usize) -> Result<(), BlockError> {
        match needed <= self.num_available() {
            true => Ok(()),
            false => Err(BlockError::OutOfBlocks {
                needed,
                available: self.num_available(),
                total: self.blocks.len(),
            }),
        }
    }

    /// Caches the first block of `table` that is not, which holds `token_ids`.
    fn cache_next(&mut self, table: &mut BlockTable, token_ids: &[TokenId]) {
        let own = table.blocks[table.num_cached];
        let outcome = self
            .prefix_cache
            .insert(table.tip, &table.extra_keys, token_ids, own);
        let hash = match outcome {
            Inserted::Collision => {
                table.chain_ended = true;
                return;
            }
            Inserted::Fresh(hash) => {
                self.blocks[own as usize].block_hash = Some(hash);
                hash
            }
            Inserted::Duplicate(hash, held) => {
                if held != own {
                    self.acquire(held);
                    table.blocks[table.num_cached] = held;
                    self.release(own);
                    self.counters.duplicates += 1;
                }
                hash
            }
        };
        table.tip = Some(hash);
        table.num_cached += 1;
    }

    /// After block `index` of `table` was replaced by a private copy: blocks from there on are
    /// no longer those the cache finds.
    fn uncache_from(&self, table: &mut BlockTable, index: usize) {
        while table.num_cached > index {
            table.tip = table.tip.and_then(|tip| self.prefix_cache.parent(tip));
            table.num_cached -= 1;
            table.chain_ended = true;
        }
    }
}

//! How a block changes hands: taken, shared, given back, forgotten.
//!
//! These are the only functions that touch reference counts and free lists.

use crate::free_queue::KvCacheBlock;
use crate::{BlockError, BlockId, BlockPool};

/// Which list a block without holders is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Free {
    Uncached,
    Thinking,
    Cached,
}

impl Free {
    pub(crate) fn of(block: &KvCacheBlock) -> Free {
        match (block.block_hash, block.thinking) {
            (None, _) => Free::Uncached,
            (Some(_), true) => Free::Thinking,
            (Some(_), false) => Free::Cached,
        }
    }
}

impl BlockPool {
    /// Takes the next block to be taken, for one holder, and forgets what it held.
    pub(crate) fn take(&mut self) -> Result<BlockId, BlockError> {
        let order = [&self.uncached, &self.thinking, &self.cached];
        let head = order.iter().find_map(|queue| queue.head());
        let id = head.ok_or(BlockError::OutOfBlocks {
            needed: 1,
            available: 0,
            total: self.blocks.len(),
        })?;
        self.unlink(id);
        self.forget(id);
        let block = &mut self.blocks[id as usize];
        block.ref_cnt = 1;
        self.touched += usize::from(!block.touched);
        block.touched = true;
        Ok(id)
    }

    /// Takes a block without holders out of its list.
    pub(crate) fn unlink(&mut self, id: BlockId) {
        let queue = match Free::of(&self.blocks[id as usize]) {
            Free::Uncached => &mut self.uncached,
            Free::Thinking => &mut self.thinking,
            Free::Cached => &mut self.cached,
        };
        queue.remove(&mut self.blocks, id);
    }

    /// Empties a block that is in no list and held by nobody.
    pub(crate) fn forget(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        if let Some(hash) = block.block_hash.take() {
            self.prefix_cache.evict(hash);
            self.counters.evictions += 1;
            self.counters.thinking_evictions += u64::from(block.thinking);
        }
        block.num_tokens = 0;
        block.thinking = false;
    }

    /// Adds a holder to a block that has some, or is cached.
    pub(crate) fn acquire(&mut self, id: BlockId) {
        if self.blocks[id as usize].ref_cnt == 0 {
            self.unlink(id);
            self.tokens_in_use += self.blocks[id as usize].num_tokens as usize;
        }
        let block = &mut self.blocks[id as usize];
        block.ref_cnt += 1;
        block.thinking = false;
    }

    /// Takes a holder from a block.
    pub(crate) fn release(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        block.ref_cnt -= 1;
        if block.ref_cnt > 0 {
            return;
        }
        self.tokens_in_use -= block.num_tokens as usize;
        match Free::of(block) {
            Free::Uncached => {
                block.num_tokens = 0;
                block.thinking = false;
                self.uncached.push_front(&mut self.blocks, id);
            }
            Free::Thinking => self.thinking.push_back(&mut self.blocks, id),
            Free::Cached => self.cached.push_back(&mut self.blocks, id),
        }
    }

    /// Sets the number of computed tokens of a block that somebody holds.
    pub(crate) fn set_tokens(&mut self, id: BlockId, num_tokens: u32) {
        let block = &mut self.blocks[id as usize];
        self.tokens_in_use += num_tokens as usize;
        self.tokens_in_use -= block.num_tokens as usize;
        block.num_tokens = num_tokens;
    }
}

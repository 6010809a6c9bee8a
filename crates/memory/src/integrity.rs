//! Every promise of the block pool, checked.

use std::collections::HashMap;

use thiserror::Error;

use crate::free_queue::KvCacheBlock;
use crate::ownership::Free;
use crate::{BlockId, BlockPool, BlockTable};

/// A promise of the pool that does not hold: a defect of scrimp, never of its input.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the KV cache's books are wrong, please report this: {0}")]
pub struct Corrupt(pub String);

/// Fails with a message when the condition does not hold.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(Corrupt(format!($($message)+)));
        }
    };
}

impl BlockPool {
    /// Checks the pool against `tables`, which must be all tables with blocks of it.
    ///
    /// - A block's reference count is the number of its holders.
    /// - A block without holders is in exactly one free list, the one its state calls for.
    /// - The cache finds exactly the blocks that carry a hash; those are full.
    /// - Token counts add up, and no table is longer than allowed.
    /// - A table's cached blocks are the ones the cache finds for its chain.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn check_integrity<'a>(
        &self,
        tables: impl IntoIterator<Item = &'a BlockTable>,
    ) -> Result<(), Corrupt> {
        let mut holders: HashMap<BlockId, u32> = HashMap::new();
        for table in tables {
            self.check_table(table)?;
            for &id in &table.blocks {
                *holders.entry(id).or_default() += 1;
            }
        }
        for block in &self.blocks {
            let held = holders.get(&block.block_id).copied().unwrap_or(0);
            ensure!(
                block.ref_cnt == held,
                "block {} counts {} holders and has {held}",
                block.block_id,
                block.ref_cnt
            );
            self.check_block(block)?;
        }
        self.check_queues()?;
        self.check_cache()?;
        let in_use = self.blocks.iter().filter(|b| b.ref_cnt > 0);
        let tokens: usize = in_use.map(|b| b.num_tokens as usize).sum();
        ensure!(
            tokens == self.tokens_in_use,
            "{} tokens are counted in use, the blocks hold {tokens}",
            self.tokens_in_use
        );
        Ok(())
    }

    fn check_block(&self, block: &KvCacheBlock) -> Result<(), Corrupt> {
        let (id, tokens) = (block.block_id, block.num_tokens as usize);
        if block.block_hash.is_some() {
            ensure!(
                tokens == self.config.block_size,
                "block {id} is cached with {tokens} tokens"
            );
        } else if block.ref_cnt == 0 {
            ensure!(tokens == 0, "block {id} is free and holds {tokens} tokens");
            ensure!(!block.thinking, "block {id} is free and marked as thinking");
        }
        ensure!(
            tokens <= self.config.block_size,
            "block {id} holds {tokens} tokens"
        );
        Ok(())
    }

    fn check_queues(&self) -> Result<(), Corrupt> {
        let mut seen = vec![false; self.blocks.len()];
        for (queue, kind) in [
            (&self.uncached, Free::Uncached),
            (&self.thinking, Free::Thinking),
            (&self.cached, Free::Cached),
        ] {
            let mut len = 0;
            for id in queue.iter(&self.blocks) {
                let block = &self.blocks[id as usize];
                ensure!(block.ref_cnt == 0, "block {id} is held and in a free list");
                ensure!(
                    Free::of(block) == kind,
                    "block {id} is in the list {kind:?}, not {:?}",
                    Free::of(block)
                );
                ensure!(!seen[id as usize], "block {id} is in free lists twice");
                seen[id as usize] = true;
                len += 1;
            }
            ensure!(
                len == queue.len(),
                "the list {kind:?} counts {} blocks and has {len}",
                queue.len()
            );
        }
        for block in &self.blocks {
            ensure!(
                (block.ref_cnt == 0) == seen[block.block_id as usize],
                "block {} has {} holders and is {} a free list",
                block.block_id,
                block.ref_cnt,
                if seen[block.block_id as usize] {
                    "in"
                } else {
                    "not in"
                }
            );
        }
        Ok(())
    }

    fn check_cache(&self) -> Result<(), Corrupt> {
        self.prefix_cache.check().map_err(Corrupt)?;
        let mut hashed = 0;
        for block in &self.blocks {
            let Some(hash) = block.block_hash else {
                continue;
            };
            hashed += 1;
            ensure!(
                self.prefix_cache.block(hash) == Some(block.block_id),
                "block {} carries {hash:?}, under which the cache finds {:?}",
                block.block_id,
                self.prefix_cache.block(hash)
            );
        }
        let found = self.prefix_cache.num_blocks();
        ensure!(
            hashed == found,
            "{hashed} blocks carry a hash, the cache finds {found}"
        );
        Ok(())
    }

    fn check_table(&self, table: &BlockTable) -> Result<(), Corrupt> {
        let size = self.config.block_size;
        ensure!(
            table.len() <= self.config.max_blocks_per_seq,
            "a table holds {} blocks",
            table.len()
        );
        ensure!(
            table.num_tokens <= table.len() * size,
            "a table of {} blocks holds {} tokens",
            table.len(),
            table.num_tokens
        );
        ensure!(
            table.num_cached * size <= table.num_tokens,
            "{} blocks are cached of a table of {} tokens",
            table.num_cached,
            table.num_tokens
        );
        for (index, &id) in table.blocks.iter().enumerate() {
            let expected = table.num_tokens.saturating_sub(index * size).min(size);
            let tokens = self.blocks[id as usize].num_tokens as usize;
            ensure!(
                tokens == expected,
                "block {id}, at {index} of a table, holds {tokens} tokens, not {expected}"
            );
        }
        let mut hash = table.tip;
        for index in (0..table.num_cached).rev() {
            let found = hash.and_then(|hash| self.prefix_cache.block(hash));
            ensure!(
                found == Some(table.blocks[index]),
                "the cache finds {found:?} for block {} at {index} of a table",
                table.blocks[index]
            );
            hash = hash.and_then(|hash| self.prefix_cache.parent(hash));
        }
        ensure!(
            hash.is_none(),
            "a table's chain is longer than its cached blocks"
        );
        Ok(())
    }
}

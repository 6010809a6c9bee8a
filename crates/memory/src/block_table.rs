//! A sequence's blocks, in the order of its tokens.

use std::sync::Arc;

use crate::{BlockHash, BlockId};

/// The blocks that hold one sequence: token `i` is in slot `i % block_size` of block
/// `blocks()[i / block_size]`.
///
/// A table is filled and emptied by the [`crate::BlockPool`] it belongs to. It must be given back
/// with [`crate::BlockPool::free`]: dropping it leaks its blocks, since a table cannot reach the
/// pool.
#[derive(Debug, Default)]
pub struct BlockTable {
    pub(crate) blocks: Vec<BlockId>,
    /// Tokens whose keys and values are in the blocks.
    pub(crate) num_tokens: usize,
    /// Leading blocks that the prefix cache finds.
    pub(crate) num_cached: usize,
    /// Hash of the last of those.
    pub(crate) tip: Option<BlockHash>,
    /// Set when a block could not be cached; none after it can be either.
    pub(crate) chain_ended: bool,
    pub(crate) extra_keys: Arc<[u8]>,
}

impl BlockTable {
    /// A table without blocks. Its sequence shares cached blocks with those of equal
    /// `extra_keys` alone: the bytes of a `cache_salt`, or nothing.
    pub fn new(extra_keys: &[u8]) -> BlockTable {
        BlockTable {
            extra_keys: extra_keys.into(),
            ..BlockTable::default()
        }
    }

    /// Ids of the blocks, in token order.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Tokens whose keys and values are in the blocks.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether it holds no block.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Keys that keep it apart from other users' blocks.
    pub fn extra_keys(&self) -> &[u8] {
        &self.extra_keys
    }
}

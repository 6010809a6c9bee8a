//! What callers of the block pool give and get.

use thiserror::Error;

/// Index of a block in the pool.
pub type BlockId = u32;

/// A token's index in the vocabulary.
pub type TokenId = u32;

/// Shape of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockPoolConfig {
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// Tokens per block.
    pub block_size: usize,
    /// Blocks a sequence may hold at most.
    pub max_blocks_per_seq: usize,
    /// Bytes of a block over all layers; used in reports only.
    pub bytes_per_block: usize,
    /// Whether full blocks are found again by their content.
    pub enable_prefix_caching: bool,
}

/// Why blocks could not be had.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BlockError {
    /// A pool without blocks, or with more than ids can name.
    #[error(
        "a pool of {num_blocks} blocks of {block_size} tokens cannot be made: both must be at least 1, and blocks below 2^32 - 1"
    )]
    BadPool {
        /// Blocks asked for.
        num_blocks: usize,
        /// Tokens per block asked for.
        block_size: usize,
    },
    /// Fewer blocks are free or evictable than needed; nothing was taken.
    #[error(
        "{needed} more KV cache blocks are needed, {available} of {total} are free or evictable"
    )]
    OutOfBlocks {
        /// Blocks needed.
        needed: usize,
        /// Blocks free or evictable.
        available: usize,
        /// Blocks in the pool.
        total: usize,
    },
    /// A sequence past its limit; nothing was taken.
    #[error(
        "{num_tokens} tokens need {needed} blocks, and a sequence may hold {max_blocks_per_seq}: raise --max-blocks-per-seq or shorten the request"
    )]
    TableFull {
        /// Tokens to hold.
        num_tokens: usize,
        /// Blocks they need.
        needed: usize,
        /// Blocks a sequence may hold.
        max_blocks_per_seq: usize,
    },
    /// A write into a block that the table does not have.
    #[error("block {index} of a table of {len} blocks does not exist")]
    NoSuchBlock {
        /// Index asked for.
        index: usize,
        /// Blocks in the table.
        len: usize,
    },
}

/// "Copy all layers' keys and values of block `src` to block `dst`."
///
/// Copies of a step are done in the order in which they were handed out, all of them before the
/// step writes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyBlock {
    /// Block to read.
    pub src: BlockId,
    /// Block to write.
    pub dst: BlockId,
}

/// A cached prefix, as found by [`crate::BlockPool::lookup`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixHit {
    /// Tokens of it; a multiple of the block size.
    pub num_tokens: usize,
    /// Blocks of it that nobody holds.
    pub num_evictable: usize,
}

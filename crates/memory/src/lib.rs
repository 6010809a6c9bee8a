//! Who may use which bytes: the ledger, the plan, and the blocks of the KV cache.
//!
//! Pure bookkeeping. No IO, no threads, no clock, no randomness: sizes come in as values, what
//! comes out is ids and numbers, and the memory itself is allocated elsewhere. So the same code
//! runs in the engine, in property tests and in simulations.
//!
//! - [`MemoryPlan`] says, before anything is loaded, what goes where, or why it does not fit.
//! - [`MemoryLedger`] holds the engine to the one budget while it runs.
//! - [`BlockPool`] hands out the blocks of the KV cache, shares them between sequences with equal
//!   prefixes, and decides what is evicted.

mod block_pool;
mod block_table;
mod block_types;
pub mod bytes;
mod free_queue;
mod integrity;
mod ledger;
mod ownership;
mod plan;
mod pool_stats;
#[cfg(test)]
mod pool_tests;
mod prefix_cache;

pub use block_pool::BlockPool;
pub use block_table::BlockTable;
pub use block_types::{BlockError, BlockId, BlockPoolConfig, CopyBlock, PrefixHit, TokenId};
pub use free_queue::KvCacheBlock;
pub use integrity::Corrupt;
pub use ledger::{
    Category, Holder, LedgerSnapshot, MemoryLedger, NotHeld, OverBudget, Reservation, Usage,
};
pub use plan::{DoesNotFit, KvLimit, MemoryPlan, Phase, PhaseBytes, PlanError, PlanInput, Remedy};
pub use pool_stats::{PoolCounters, PoolUsage};
pub use prefix_cache::BlockHash;

//! The plan as the lines printed at start-up.

use std::fmt;

use super::{KvLimit, MemoryPlan, Phase};
use crate::Category;
use crate::bytes::HumanBytes;

impl fmt::Display for KvLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KvLimit::Budget => "all that the budget leaves",
            KvLimit::NumBlocks => "as set by --num-blocks",
            KvLimit::KvCacheBytes => "as set by --kv-cache-memory-bytes",
            KvLimit::MaxKvCacheBytes => "the cap on an unset cache",
            KvLimit::Workload => "all that max-num-seqs × max-model-len can use",
        })
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Memory plan for a budget of {}",
            HumanBytes(self.budget_bytes)
        )?;
        let mut row = |name: &str, bytes: usize, note: &str| {
            let line = format!("  {name:<22}{:>12}  {note}", HumanBytes(bytes));
            writeln!(f, "{}", line.trim_end())
        };
        row(Category::Weights.name(), self.weights_bytes(), "")?;
        for (component, bytes) in &self.weights {
            row(&format!("  {component}"), *bytes, "")?;
        }
        let blocks = format!(
            "{} blocks of {} tokens, {} a token in {}; {}",
            self.num_blocks,
            self.kv.block_size,
            HumanBytes(self.kv_block_bytes / self.kv.block_size),
            self.kv.dtype,
            self.kv_limit
        );
        row(Category::KvCache.name(), self.kv_cache_bytes(), &blocks)?;
        row(Category::Activations.name(), self.activations_bytes, "")?;
        let staging = "while loading, before there is a cache";
        row(Category::Staging.name(), self.staging_bytes, staging)?;
        row(
            Category::Other.name(),
            self.other_bytes,
            "program, heap, stacks",
        )?;
        let largest = self
            .phases(self.num_blocks)
            .into_iter()
            .max_by_key(|phase| phase.total());
        let when = match largest.map(|phase| phase.phase) {
            None | Some(Phase::Serving) => "with a full cache".to_owned(),
            Some(phase) => format!("while {}", phase.name()),
        };
        row("planned peak", self.peak_bytes(), &when)?;
        row(
            "reserve",
            self.reserve_bytes,
            "kept free for what cannot be foretold",
        )?;
        row("free", self.free_bytes(), "")?;
        writeln!(f, "KV cache size: {} tokens", self.kv_tokens())?;
        write!(
            f,
            "Maximum concurrency for {} tokens per request: {:.2}x",
            self.max_model_len,
            self.max_concurrency(self.max_model_len)
        )
    }
}

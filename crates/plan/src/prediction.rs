//! What a deployment comes to on each rank.

use crate::{Component, Device};

/// Memory of one rank. All sizes in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct RankPlan {
    /// What it runs on.
    pub device: Device,
    /// Tensor-parallel rank and pipeline stage.
    pub rank: (u32, u32),
    /// What the engine's rule lets it use.
    pub budget_bytes: u64,
    /// Weights, by component; quantization scales are with their tensors.
    pub weights: Vec<(Component, u64)>,
    /// Weights that this rank leaves in host memory; not in `weights`.
    pub offloaded_bytes: u64,
    /// Context, communicators and libraries.
    pub overhead_bytes: u64,
    /// Largest forward pass.
    pub activation_peak_bytes: u64,
    /// Captured graphs.
    pub cuda_graph_bytes: u64,
    /// KV pool, recurrent states included; 0 when nothing is left.
    pub kv_pool_bytes: u64,
    /// Blocks in the pool.
    pub kv_blocks: u64,
    /// Tokens it holds, as the engine prints them: hybrids of windows and states hold more.
    pub kv_tokens: u64,
    /// Bytes that the pool takes a token (asymptotically, for hybrids).
    pub kv_bytes_per_token: f64,
    /// Bytes below which the weights alone were over the budget: how much is missing.
    pub missing_bytes: u64,
}

impl RankPlan {
    /// Weights of all components.
    pub fn weights_bytes(&self) -> u64 {
        self.weights.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// What a deployment comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Every distinct rank (one for each pipeline stage, when ranks of a stage are alike).
    pub ranks: Vec<RankPlan>,
    /// KV tokens over the whole deployment, in sequences of the longest length: the smallest
    /// rank's, times replicas and `dcp`.
    pub kv_tokens: u64,
    /// Tokens a block.
    pub block_size: u64,
    /// Longest sequence that is served.
    pub max_model_len: u64,
    /// Sequences at once, by setting.
    pub max_num_seqs: u64,
    /// Requests of `max_model_len` tokens that the pool holds at once.
    pub max_concurrency: f64,
    /// What was assumed, in words, with sources.
    pub notes: Vec<String>,
}

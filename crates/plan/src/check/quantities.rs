//! A prediction under the names that logs and cases use.

use std::collections::BTreeMap;

use super::setting::Read;
use crate::engines::SGLANG_LIBRARY_BYTES;
use crate::{Deployment, LayerCache, ModelShape, Prediction, RankPlan};

/// Figures by name, in the unit the name ends with; or why one cannot be said.
pub(super) type Predicted = BTreeMap<String, Result<f64, String>>;

const GIB: f64 = (1u64 << 30) as f64;
const MIB: f64 = (1u64 << 20) as f64;

/// Collects figures.
#[derive(Default)]
pub(super) struct Figures(pub(super) Predicted);

impl Figures {
    pub(super) fn put(&mut self, name: &str, value: f64) {
        self.0.insert(name.to_owned(), Ok(value));
    }

    pub(super) fn unknown(&mut self, name: &str, why: &str) {
        self.0.insert(name.to_owned(), Err(why.to_owned()));
    }

    /// A size under the names of its units.
    fn size(&mut self, name: &str, bytes: u64) {
        self.put(&format!("{name}_gib"), bytes as f64 / GIB);
        self.put(&format!("{name}_gb"), bytes as f64 / GIB);
        self.put(&format!("{name}_mib"), bytes as f64 / MIB);
        self.put(&format!("{name}_bytes"), bytes as f64);
    }
}

/// A start-up of vLLM (and of engines that print the same).
pub(super) fn vllm(deployment: &Deployment, plan: &Prediction, read: &Read) -> Predicted {
    let mut figures = Figures::default();
    let Some(rank) = plan.ranks.first() else {
        return figures.0;
    };
    let replicas = u64::from(deployment.parallel.dp.max(1));
    let weights = rank.weights_bytes();
    figures.size("budget", rank.budget_bytes);
    figures.size("weights", weights);
    figures.size("activation_peak", rank.activation_peak_bytes);
    figures.size("peak_torch", weights + rank.activation_peak_bytes);
    figures.size("non_torch", rank.overhead_bytes);
    figures.size("weights_and_non_torch", weights + rank.overhead_bytes);
    figures.size(
        "non_kv",
        weights + rank.activation_peak_bytes + rank.overhead_bytes,
    );
    for name in [
        "cuda_graph",
        "cuda_graph_actual",
        "cuda_graph_estimated",
        "cuda_graph_pool",
    ] {
        figures.size(name, rank.cuda_graph_bytes);
    }
    figures.size("kv", rank.kv_pool_bytes);
    figures.size("available_kv", rank.kv_pool_bytes);
    figures.size("estimated_kv", rank.kv_pool_bytes);
    let blocks = plan.ranks.iter().map(|r| r.kv_blocks).min().unwrap_or(0);
    figures.put("gpu_blocks", blocks as f64);
    let tokens = plan.ranks.iter().map(|r| r.kv_tokens).min().unwrap_or(0);
    figures.put("kv_tokens", tokens as f64);
    if read.has_length {
        figures.put("max_concurrency", plan.max_concurrency / replicas as f64);
    } else {
        figures.unknown(
            "max_concurrency",
            "neither setting nor config gives a length",
        );
    }
    figures.unknown(
        "process_at_failure_gib",
        "it is what a run used that then failed",
    );
    figures.0
}

/// A start-up of SGLang; its `GB` are GiB.
pub(super) fn sglang(shape: &ModelShape, deployment: &Deployment, plan: &Prediction) -> Predicted {
    let mut figures = Figures::default();
    let Some(rank) = plan.ranks.first() else {
        return figures.0;
    };
    let replicas = u64::from(deployment.parallel.dp.max(1));
    let free = deployment
        .free_at_start
        .unwrap_or(deployment.device.free_bytes);
    let weights = rank.weights_bytes() + SGLANG_LIBRARY_BYTES;
    let after_load = free.saturating_sub(weights);
    let after_pool = after_load.saturating_sub(rank.kv_pool_bytes);
    figures.size("weights", weights);
    figures.size("avail_after_load", after_load);
    figures.size("kv", rank.kv_pool_bytes);
    figures.put("kv_tokens", (plan.kv_tokens / replicas) as f64);
    figures.put("max_total_num_tokens", (plan.kv_tokens / replicas) as f64);
    keys_and_values(shape, rank, &mut figures);
    let requests = "the table of requests is sized by the context length, which neither setting \
                    nor config gives";
    if shape.max_position_embeddings == 0 && deployment.max_model_len.is_none() {
        figures.unknown("avail_after_pool_gb", requests);
        figures.unknown("avail_final_gb", requests);
    } else {
        let table = 2048 * 4 * plan.max_model_len;
        let left = after_pool.saturating_sub(table);
        figures.size("avail_after_pool", left);
        figures.size("avail_final", left.saturating_sub(rank.cuda_graph_bytes));
    }
    figures.size("cuda_graph", rank.cuda_graph_bytes);
    figures.unknown("init_dist_gb", "it is gone before loading begins");
    figures.0
}

/// Keys and values apart, where they are apart.
fn keys_and_values(shape: &ModelShape, rank: &RankPlan, figures: &mut Figures) {
    let (mut keys, mut values) = (0u64, 0u64);
    for cache in &shape.caches {
        match *cache {
            LayerCache::Full { key, value, .. } | LayerCache::Sliding { key, value, .. } => {
                keys += u64::from(key);
                values += u64::from(value);
            }
            _ => {}
        }
    }
    if keys + values > 0 {
        let share = keys as f64 / (keys + values) as f64;
        let pool = rank.kv_pool_bytes as f64 / GIB;
        figures.put("k_gb", pool * share);
        figures.put("v_gb", pool * (1.0 - share));
    }
}

/// What TensorRT-LLM's capacity tests record.
pub(super) fn trtllm(deployment: &Deployment, plan: &Prediction) -> Predicted {
    let mut figures = Figures::default();
    let Some(rank) = plan.ranks.first() else {
        return figures.0;
    };
    let tokens = plan.kv_tokens / u64::from(deployment.parallel.dp.max(1));
    figures.put("kv_tokens", tokens as f64);
    figures.put(
        "max_concurrent_sequences",
        (tokens / plan.max_model_len.max(1)) as f64,
    );
    figures.size("weights", rank.weights_bytes());
    figures.size("kv", rank.kv_pool_bytes);
    figures.0
}

/// A start-up of llama.cpp, summed over devices.
pub(super) fn llama_cpp(plan: &Prediction) -> Predicted {
    let mut figures = Figures::default();
    let sum = |bytes: &dyn Fn(&RankPlan) -> u64| plan.ranks.iter().map(bytes).sum::<u64>();
    figures.size("weights", sum(&|r| r.weights_bytes()));
    figures.size("model_buffer", sum(&|r| r.weights_bytes()));
    figures.size("kv", sum(&|r| r.kv_pool_bytes));
    figures.size("kv_buffer", sum(&|r| r.kv_pool_bytes));
    figures.size("compute_buffer", sum(&|r| r.activation_peak_bytes));
    figures.put("kv_tokens", plan.kv_tokens as f64);
    figures.0
}

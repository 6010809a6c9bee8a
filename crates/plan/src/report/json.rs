//! The plan as one JSON object; its fields keep their names.

use serde_json::{Value, json};

use super::{Report, component_name};
use crate::RankPlan;

impl Report<'_> {
    /// One object. Bytes are integers, times seconds, rates per second, shares fractions.
    pub fn json(&self) -> Value {
        let plan = self.plan;
        let deployment = &plan.setup.deployment;
        let parallel = &deployment.parallel;
        let components: Vec<Value> = self
            .components()
            .into_iter()
            .map(|(component, parameters, bytes)| {
                json!({
                    "name": component_name(component),
                    "parameters": parameters,
                    "bytes": bytes,
                })
            })
            .collect();
        json!({
            "model": self.model,
            "parameters": self.shape.total_params(),
            "active_parameters": self.shape.active_params(),
            "tensor_bytes": self.shape.tensor_bytes(),
            "kv_bytes_per_token": self.kv_bytes_per_token(),
            "kv_bytes_per_token_reason": self.kv_reason(),
            "engine": deployment.engine.name(),
            "weights": deployment.weights.label(),
            "kv_dtype": self.kv_dtype().name(),
            "parallel": {
                "tp": parallel.tp,
                "pp": parallel.pp,
                "dp": parallel.dp,
                "dcp": parallel.dcp,
                "ep": parallel.expert,
            },
            "workload": plan.setup.workload,
            "live_tokens": plan.setup.workload.live_tokens(),
            "devices": self.devices(),
            "components": components,
            "placement": self.placement,
            "block_size": plan.prediction.block_size,
            "kv_tokens": plan.prediction.kv_tokens,
            "max_model_len": plan.prediction.max_model_len,
            "max_num_seqs": plan.prediction.max_num_seqs,
            "max_concurrency": plan.prediction.max_concurrency,
            "max_context": plan.verdict.capacity.max_context,
            "fits": plan.verdict.fits,
            "outcome": plan.outcome,
            "bottleneck": {
                "capacity": plan.verdict.capacity.binding,
                "bandwidth": plan.verdict.bandwidth.binding,
                "explanation": plan.verdict.explanation,
            },
            "capacity": plan.verdict.capacity,
            "bandwidth": plan.verdict.bandwidth,
            "remedies": self.advice.remedies,
            "best_combination": self.advice.combination,
            "hardware": self.advice.hardware,
            "command": self.command,
            "notes": plan.prediction.notes,
        })
    }

    /// Every device, stage by stage.
    fn devices(&self) -> Vec<Value> {
        let ranks = &self.plan.prediction.ranks;
        let mut devices = Vec::new();
        for rank in ranks {
            let listed = ranks.iter().filter(|r| r.rank.1 == rank.rank.1).count() as u64;
            for copy in 0..self.alike() / listed.max(1) {
                devices.push(device(rank, rank.rank.0 + copy as u32));
            }
        }
        devices
    }
}

fn device(rank: &RankPlan, index: u32) -> Value {
    let used = rank.weights_bytes()
        + rank.kv_pool_bytes
        + rank.activation_peak_bytes
        + rank.cuda_graph_bytes
        + rank.overhead_bytes;
    json!({
        "name": rank.device.name,
        "rank": index,
        "stage": rank.rank.1,
        "capacity_bytes": rank.device.total_bytes,
        "budget_bytes": rank.budget_bytes,
        "weights_bytes": rank.weights_bytes(),
        "offloaded_bytes": rank.offloaded_bytes,
        "kv_pool_bytes": rank.kv_pool_bytes,
        "kv_tokens": rank.kv_tokens,
        "kv_blocks": rank.kv_blocks,
        "kv_bytes_per_token": rank.kv_bytes_per_token,
        "activation_peak_bytes": rank.activation_peak_bytes,
        "cuda_graph_bytes": rank.cuda_graph_bytes,
        "overhead_bytes": rank.overhead_bytes,
        "free_bytes": rank.device.total_bytes.saturating_sub(used),
        "missing_bytes": rank.missing_bytes,
    })
}

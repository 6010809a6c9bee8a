//! What binds: in capacity (whose bytes do not fit) and in bandwidth (whose bytes take the time).

mod traffic;

use serde::Serialize;

pub use traffic::{
    COLLECTIVE_LATENCY, DecodeBound, DecodeStep, HOST_BANDWIDTH, NODE_BANDWIDTH, Traffic,
    UNLINKED_BANDWIDTH, active_values, value_bytes,
};

use crate::report::bytes;
use crate::{Deployment, ModelShape, Prediction, RankPlan, Workload};

/// Whose bytes decide how much a deployment can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// Weights do not fit, or leave too little.
    Weights,
    /// The KV cache of the workload.
    KvCache,
    /// Scratch of the largest forward pass, captured graphs included.
    Activations,
}

impl Binding {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Binding::Weights => "weights",
            Binding::KvCache => "KV cache",
            Binding::Activations => "activations",
        }
    }
}

/// Bytes of the tightest rank, wanted and had.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Capacity {
    /// Whose bytes decide.
    pub binding: Binding,
    /// What the engine's rule lets the rank use.
    pub budget_bytes: u64,
    /// Weights.
    pub weights_bytes: u64,
    /// KV cache that the workload needs.
    pub kv_needed_bytes: u64,
    /// KV cache that there is room for.
    pub kv_pool_bytes: u64,
    /// Largest forward pass and captured graphs.
    pub activations_bytes: u64,
    /// Context, communicators, libraries.
    pub overhead_bytes: u64,
    /// What is missing for the workload; 0 when it fits.
    pub short_bytes: u64,
    /// KV tokens that the workload needs, over the whole deployment.
    pub needed_tokens: f64,
    /// KV tokens that there is room for.
    pub kv_tokens: u64,
    /// Sequences of this workload that fit at once.
    pub sequences: f64,
    /// Longest single sequence that fits.
    pub max_context: u64,
}

/// Rates that memory, arithmetic and links allow.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bandwidth {
    /// What takes the most time of a step at the workload's concurrency.
    pub binding: DecodeBound,
    /// One sequence alone.
    pub single: DecodeStep,
    /// All sequences of the workload together.
    pub loaded: DecodeStep,
    /// Prompt tokens a second, from arithmetic alone.
    pub prefill_tokens_per_s: f64,
    /// The batch from which decoding is bound by arithmetic; `None` where reads of the KV cache
    /// always take longer.
    pub compute_bound_batch: Option<u64>,
}

/// What binds a workload on a deployment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Whether the workload is met.
    pub fits: bool,
    /// Whose bytes decide.
    pub capacity: Capacity,
    /// Whose bytes take the time.
    pub bandwidth: Bandwidth,
    /// Both in sentences, with numbers.
    pub explanation: String,
}

/// Says what binds `workload` on a predicted deployment.
pub fn judge(
    shape: &ModelShape,
    deployment: &Deployment,
    prediction: &Prediction,
    workload: &Workload,
) -> Verdict {
    let capacity = capacity(deployment, prediction, workload);
    let replica_tokens = prediction.kv_tokens / u64::from(deployment.parallel.dp.max(1));
    let fits = capacity.short_bytes == 0
        && capacity.sequences >= workload.concurrency as f64
        && prediction.max_model_len >= workload.context
        && replica_tokens >= longest_live(workload)
        && prediction.max_num_seqs >= workload.concurrency;
    let bandwidth = bandwidth(shape, deployment, prediction, workload);
    let explanation = explain(
        deployment, prediction, workload, &capacity, &bandwidth, fits,
    );
    Verdict {
        fits,
        capacity,
        bandwidth,
        explanation,
    }
}

/// A single sequence must be able to reach the context.
fn longest_live(workload: &Workload) -> u64 {
    workload.context
}

fn capacity(deployment: &Deployment, prediction: &Prediction, workload: &Workload) -> Capacity {
    let parallel = &deployment.parallel;
    let live = workload.live_tokens();
    // No less than one sequence at its longest: it cannot be divided over replicas.
    // What a token takes on a rank is already a part of it with context parallelism.
    let one = workload.context as f64;
    let tokens = (live.needed / f64::from(parallel.dp.max(1))).max(one);
    let ranks = prediction
        .ranks
        .iter()
        .map(|rank| (rank, kv_needed(rank, tokens), short(rank, tokens)));
    let tightest = ranks.max_by_key(|(rank, _, short)| {
        (
            *short,
            std::cmp::Reverse(rank.budget_bytes.saturating_sub(rank.weights_bytes())),
        )
    });
    let sequences = sequences(prediction, workload);
    let max_context = max_context(deployment, prediction);
    let Some((rank, mut kv_needed_bytes, mut short_bytes)) = tightest else {
        return Capacity {
            binding: Binding::Weights,
            budget_bytes: 0,
            weights_bytes: 0,
            kv_needed_bytes: 0,
            kv_pool_bytes: 0,
            activations_bytes: 0,
            overhead_bytes: 0,
            short_bytes: 0,
            needed_tokens: live.needed,
            kv_tokens: 0,
            sequences: 0.0,
            max_context: 0,
        };
    };
    if sequences >= workload.concurrency as f64 && rank.missing_bytes == 0 {
        short_bytes = 0; // rounding to blocks, or caches that do not grow with the length
    }
    if sequences > 0.0 && sequences < workload.concurrency.min(prediction.max_num_seqs) as f64 {
        // States of a fixed size, and pages that layers share, take more than tokens do.
        let each = rank.kv_pool_bytes as f64 / sequences;
        let all = (each * workload.concurrency as f64) as u64;
        if all > kv_needed_bytes + kv_needed_bytes / 50 {
            short_bytes += all - kv_needed_bytes.max(rank.kv_pool_bytes);
            kv_needed_bytes = all;
        }
    }
    let activations_bytes = rank.activation_peak_bytes + rank.cuda_graph_bytes;
    let weights_bytes = rank.weights_bytes();
    let binding = binding(rank, kv_needed_bytes, short_bytes);
    Capacity {
        binding,
        budget_bytes: rank.budget_bytes,
        weights_bytes,
        kv_needed_bytes,
        kv_pool_bytes: rank.kv_pool_bytes,
        activations_bytes,
        overhead_bytes: rank.overhead_bytes,
        short_bytes,
        needed_tokens: live.needed,
        kv_tokens: prediction.kv_tokens,
        sequences,
        max_context,
    }
}

/// Bytes of KV cache that a rank needs for `tokens` tokens.
fn kv_needed(rank: &RankPlan, tokens: f64) -> u64 {
    (tokens * rank.kv_bytes_per_token).ceil() as u64
}

/// Bytes that a rank lacks.
fn short(rank: &RankPlan, tokens: f64) -> u64 {
    let activations = rank.activation_peak_bytes + rank.cuda_graph_bytes;
    let fixed = rank.weights_bytes() + activations + rank.overhead_bytes;
    let over = fixed.saturating_sub(rank.budget_bytes);
    kv_needed(rank, tokens).saturating_sub(rank.kv_pool_bytes) + over.max(rank.missing_bytes)
}

/// Weights bind when they alone are over the budget, or leave room for no cache; activations when
/// without them everything would fit and they are more than what is missing; else whatever the
/// workload needs most of beside the weights that cannot be helped.
fn binding(rank: &RankPlan, kv_needed: u64, short: u64) -> Binding {
    let activations = rank.activation_peak_bytes + rank.cuda_graph_bytes;
    let weights = rank.weights_bytes();
    let room = rank.budget_bytes.saturating_sub(rank.overhead_bytes);
    if short == 0 {
        return [
            (Binding::Weights, weights),
            (Binding::KvCache, kv_needed),
            (Binding::Activations, activations),
        ]
        .into_iter()
        .max_by_key(|(_, bytes)| *bytes)
        .map_or(Binding::Weights, |(binding, _)| binding);
    }
    if weights >= room {
        return Binding::Weights;
    }
    if short <= activations && activations > kv_needed {
        return Binding::Activations;
    }
    if kv_needed <= room / 10 && weights > kv_needed {
        return Binding::Weights;
    }
    Binding::KvCache
}

/// Sequences of the workload that the pool holds at once.
pub fn sequences(prediction: &Prediction, workload: &Workload) -> f64 {
    let live = workload.live_tokens();
    let shared = if workload.concurrency > 1 {
        workload.shared_tokens()
    } else {
        0.0
    };
    let each = (live.needed - shared) / workload.concurrency.max(1) as f64;
    let room = (held_tokens(prediction) - shared).max(0.0);
    (room / each.max(1.0)).min(prediction.max_num_seqs as f64)
}

/// Tokens that the pool holds; engines that allocate contexts whole can name more than fit.
fn held_tokens(prediction: &Prediction) -> f64 {
    let named = prediction.kv_tokens as f64;
    if prediction.ranks.iter().any(|rank| rank.missing_bytes > 0) {
        named.min(prediction.max_concurrency * prediction.max_model_len as f64)
    } else {
        named
    }
}

/// The longest single sequence that is served: a sequence lives on one replica.
pub fn max_context(deployment: &Deployment, prediction: &Prediction) -> u64 {
    let replicas = u64::from(deployment.parallel.dp.max(1));
    (held_tokens(prediction) as u64 / replicas).min(prediction.max_model_len)
}

fn bandwidth(
    shape: &ModelShape,
    deployment: &Deployment,
    prediction: &Prediction,
    workload: &Workload,
) -> Bandwidth {
    let traffic = Traffic::new(shape, deployment, prediction);
    let context = workload.live_tokens().per_sequence;
    let loaded = traffic.decode(workload.concurrency as f64, context);
    let prompt = if workload.prompt_tokens > 0 {
        workload.prompt_tokens
    } else {
        workload.context
    };
    Bandwidth {
        binding: loaded.bound,
        single: traffic.decode(1.0, context),
        loaded,
        prefill_tokens_per_s: traffic.prefill_tokens_per_s(prompt as f64),
        compute_bound_batch: traffic.compute_bound_batch(context),
    }
}

fn explain(
    deployment: &Deployment,
    prediction: &Prediction,
    workload: &Workload,
    capacity: &Capacity,
    bandwidth: &Bandwidth,
    fits: bool,
) -> String {
    let size = |size: u64| bytes(size as f64);
    let each = match deployment.parallel.devices() {
        0 | 1 => "the device",
        _ => "each rank",
    };
    let heavy = capacity.weights_bytes >= capacity.budget_bytes;
    let mut text = if heavy {
        format!(
            "The weights do not fit: {} on {each}, of a budget of {}.",
            size(capacity.weights_bytes),
            size(capacity.budget_bytes)
        )
    } else if fits {
        format!(
            "There is room for {} such sequences, {} asked for: they need {} of {each}'s {} of KV \
             cache. Most of the memory goes to {}.",
            count(capacity.sequences),
            workload.concurrency,
            size(capacity.kv_needed_bytes),
            size(capacity.kv_pool_bytes),
            capacity.binding.name()
        )
    } else {
        format!(
            "{} of {} sequences fit: the KV cache needs {} on {each} and has {}, beside {} of weights \
             and {} of activations. What binds is {}.",
            count(capacity.sequences),
            workload.concurrency,
            size(capacity.kv_needed_bytes),
            size(capacity.kv_pool_bytes),
            size(capacity.weights_bytes),
            size(capacity.activations_bytes),
            capacity.binding.name()
        )
    };
    if prediction.max_model_len < workload.context {
        text += &format!(
            " Sequences end at {} tokens, {} were asked for.",
            prediction.max_model_len, workload.context
        );
    }
    if prediction.max_num_seqs < workload.concurrency {
        text += &format!(
            " The engine runs {} sequences at once, {} were asked for.",
            prediction.max_num_seqs, workload.concurrency
        );
    }
    let step = &bandwidth.loaded;
    text += &format!(
        " {} {} bound by {}: a step reads {} of weights and {} of KV cache on {each}, so at most \
         {:.0} tokens/s{}.",
        if heavy {
            "If they did, decoding"
        } else {
            "Decoding"
        },
        match workload.concurrency {
            1 => "one sequence would be".replace("would be", if heavy { "would be" } else { "is" }),
            n if heavy => format!("{n} sequences would be"),
            n => format!("{n} sequences is"),
        },
        step.bound.name(),
        bytes(step.weight_bytes + step.host_bytes),
        bytes(step.kv_bytes),
        step.tokens_per_s,
        if workload.concurrency > 1 {
            " together"
        } else {
            ""
        }
    );
    text
}

fn count(sequences: f64) -> String {
    if sequences >= 10.0 {
        format!("{:.0}", sequences.floor())
    } else {
        format!("{sequences:.1}")
    }
}

#[cfg(test)]
mod tests;

//! What bound the request: whose bytes filled the memory, and what the time went to.

use scrimp_engine::Part;
use scrimp_memory::Category;
use scrimp_memory::bytes::HumanBytes;
use scrimp_model::ModelConfig;
use scrimp_plan::verdict::{Binding, DecodeBound};

use super::record::Measured;

/// From this share of the memory's measured rate on, waiting for memory is what a step does.
const BOUND_BY_MEMORY: f64 = 0.6;

/// Nothing is read faster than memory gives but what the processor's caches keep.
const IN_CACHES: f64 = 1.1;

/// What binds.
pub struct Verdict {
    /// Whose bytes were the most.
    pub capacity: Binding,
    /// What a decode step spent its time on.
    pub bandwidth: DecodeBound,
    /// Bytes a second that decoding read, over what memory gives.
    pub bandwidth_fraction: f64,
    /// Both in sentences, with numbers.
    pub explanation: String,
}

impl Verdict {
    /// Judges what was measured.
    pub fn of(config: &ModelConfig, measured: &Measured) -> Verdict {
        let (capacity, bytes) = capacity(measured);
        let decode = measured.decode();
        let fraction = match measured.bandwidth > 0.0 {
            true => decode.bytes_per_s() / measured.bandwidth,
            false => 0.0,
        };
        let in_caches = fraction > IN_CACHES;
        let bandwidth = if fraction < BOUND_BY_MEMORY || in_caches {
            DecodeBound::Compute
        } else if decode.weight_bytes >= decode.kv_bytes {
            DecodeBound::Weights
        } else {
            DecodeBound::KvCache
        };
        let model: usize = model_bytes(measured).iter().map(|(_, bytes)| bytes).sum();
        let mut explanation = format!(
            "Of the {} that the model itself took at its peak, {} had {} ({:.0} %); the whole \
             process peaked at {}, {} of which was the program itself.",
            HumanBytes(model),
            capacity.name(),
            HumanBytes(bytes),
            percent(bytes, model),
            HumanBytes(measured.peak_rss),
            HumanBytes(measured.peak_rss.saturating_sub(model)),
        );
        if decode.steps > 0 {
            explanation += &time(config, measured, bandwidth, fraction);
        }
        Verdict {
            capacity,
            bandwidth,
            bandwidth_fraction: fraction,
            explanation,
        }
    }
}

/// Measured bytes of what a plan can change.
fn model_bytes(measured: &Measured) -> [(Binding, usize); 3] {
    let bytes = |wanted: Category| {
        let all = measured.by_category();
        let found = all.into_iter().find(|(category, ..)| *category == wanted);
        found.map_or(0, |(_, _, measured)| measured)
    };
    [
        (Binding::Weights, bytes(Category::Weights)),
        (Binding::KvCache, bytes(Category::KvCache)),
        (Binding::Activations, bytes(Category::Activations)),
    ]
}

fn capacity(measured: &Measured) -> (Binding, usize) {
    let most = model_bytes(measured)
        .into_iter()
        .max_by_key(|(_, bytes)| *bytes);
    most.unwrap_or((Binding::Weights, 0))
}

fn time(config: &ModelConfig, measured: &Measured, bound: DecodeBound, fraction: f64) -> String {
    let decode = measured.decode();
    let steps = decode.steps as f64;
    let parts = Part::ALL.map(|part| (part, decode.share(part)));
    let (part, share) = parts
        .into_iter()
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap_or((Part::Other, 0.0));
    let mut text = format!(
        " A decode step took {:.2} ms, {:.0} % of it in {}, and read {} of weights and {} of KV \
         cache: {:.1} GB/s, {:.0} % of the {:.1} GB/s that memory gives.",
        decode.seconds / steps * 1e3,
        share * 100.0,
        part.name(),
        HumanBytes((decode.weight_bytes as f64 / steps) as usize),
        HumanBytes((decode.kv_bytes as f64 / steps) as usize),
        decode.bytes_per_s() / 1e9,
        fraction * 100.0,
        measured.bandwidth / 1e9,
    );
    text += &match bound {
        DecodeBound::Compute => {
            let why = match fraction > IN_CACHES {
                true => "what a step reads stays in the processor's caches",
                false => "memory could give more",
            };
            format!(
                " Decoding is bound by {}: {why}. Attention in {} layers has {:.0} % of the time.",
                bound.name(),
                config.num_layers,
                decode.share(Part::Attention) * 100.0
            )
        }
        _ => format!(" Decoding is bound by {}.", bound.name()),
    };
    text
}

fn percent(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64 * 100.0
}

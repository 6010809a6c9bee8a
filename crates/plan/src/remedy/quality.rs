//! What a change costs in quality, with where that is known from; "not measured" where it is not.

use serde::Serialize;

use super::change::Change;
use crate::{Component, KvDtype, ModelShape, Storage, WeightScheme};

/// Reasoning scores of DeepSeek-R1 kept by 4-bit weights, relative to the release.
const R1_SOURCE: &str =
    "published reasoning scores of DeepSeek-R1 at 4 bits, relative to the release";
const R1_GPTQ: f64 = 0.965;
const R1_EXPERTS: f64 = 0.988;

/// What a change costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Quality {
    /// In words.
    pub text: String,
    /// The part of the reasoning scores that is kept, where somebody measured it.
    pub retained: Option<f64>,
    /// Who did, and on what.
    pub source: Option<String>,
}

impl Quality {
    fn same(text: &str) -> Quality {
        Quality {
            text: text.to_owned(),
            retained: Some(1.0),
            source: None,
        }
    }

    fn unmeasured(text: &str) -> Quality {
        Quality {
            text: text.to_owned(),
            retained: None,
            source: None,
        }
    }

    fn measured(retained: f64, text: String) -> Quality {
        Quality {
            text,
            retained: Some(retained),
            source: Some(R1_SOURCE.to_owned()),
        }
    }

    /// The least of several changes' qualities, in one sentence.
    pub fn of_all(parts: &[Quality]) -> Quality {
        let lossy = parts.iter().filter(|q| q.retained != Some(1.0));
        let texts: Vec<&str> = lossy.map(|q| q.text.as_str()).collect();
        let retained = parts
            .iter()
            .map(|q| q.retained)
            .try_fold(1.0, |all, one| one.map(|one| all * one));
        Quality {
            text: match (texts.is_empty(), parts.first()) {
                (true, Some(first)) => first.text.clone(),
                _ => texts.join("; "),
            },
            retained,
            source: parts.iter().find_map(|q| q.source.clone()),
        }
    }
}

/// What one change costs.
pub(super) fn of(change: &Change, shape: &ModelShape) -> Quality {
    match change {
        Change::Weights(scheme) => weights(scheme, shape),
        Change::Kv(dtype) => kv(*dtype),
        Change::Context(n) => {
            Quality::unmeasured(&format!("chains longer than {n} tokens are cut off"))
        }
        Change::Concurrency(_) => Quality::same("none: later requests wait"),
        Change::DropThinking => {
            Quality::same("none where the template drops earlier thinking, as R1's does")
        }
        _ => Quality::same("none: the same values"),
    }
}

fn kv(dtype: KvDtype) -> Quality {
    match dtype {
        KvDtype::F32 | KvDtype::F16 | KvDtype::Bf16 => Quality::same("none to speak of: 16 bits"),
        _ => Quality::unmeasured(&format!(
            "not measured for long chains ({} keys and values)",
            dtype.name()
        )),
    }
}

fn weights(scheme: &WeightScheme, shape: &ModelShape) -> Quality {
    let experts = shape
        .tensors
        .iter()
        .any(|t| t.component == Component::RoutedExperts);
    let r1 = shape.model_type == "deepseek_v3";
    let four_bits = |storage: &Storage| matches!(storage, Storage::IntGroups { bits: 4, .. });
    match scheme {
        WeightScheme::Experts(storage) if four_bits(storage) && r1 => Quality::measured(
            R1_EXPERTS,
            "98.8 % of R1's reasoning scores kept (GPTQ, experts only)".to_owned(),
        ),
        WeightScheme::Linear(storage) if four_bits(storage) && r1 => Quality::measured(
            R1_GPTQ,
            "96.5 % of R1's reasoning scores kept with GPTQ, 94.3 % with AWQ".to_owned(),
        ),
        WeightScheme::Experts(storage) if four_bits(storage) && experts => Quality::unmeasured(
            "not measured for this model (R1 kept 98.8 % of its reasoning scores)",
        ),
        WeightScheme::Linear(storage) if four_bits(storage) => Quality::unmeasured(
            "not measured for this model (R1 kept 96.5 % with GPTQ, 94.3 % with AWQ)",
        ),
        WeightScheme::Released => Quality::same("none: as released"),
        other => Quality::unmeasured(&format!(
            "{} weights: not measured; `scrimp eval` can",
            other.label()
        )),
    }
}

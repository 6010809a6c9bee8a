//! What to do about a verdict: changes, each run through the same prediction again, ranked by what
//! they buy, and combined until the workload is met.

mod candidates;
mod change;
mod hardware;
mod quality;
mod search;

use serde::Serialize;

pub use change::{Change, Devices, Setup, Topic, split_name};
pub use hardware::what_fits;
pub use quality::Quality;
pub use search::{Advice, advise};

use crate::verdict::{Binding, DecodeBound, judge};
use crate::{Error, ModelShape, Prediction, Verdict, predict};

/// What a setup comes to, in the figures that remedies are compared by.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Whether the workload is met.
    pub fits: bool,
    /// Sequences of the workload that fit at once.
    pub sequences: f64,
    /// KV tokens over the whole deployment.
    pub kv_tokens: u64,
    /// Sequences of the longest length that fit at once.
    pub max_concurrency: f64,
    /// Longest single sequence.
    pub max_context: u64,
    /// Weights on all devices together.
    pub weights_bytes: u64,
    /// Everything the workload needs on all devices together.
    pub demand_bytes: u64,
    /// Tokens a second at the workload's concurrency, at most.
    pub tokens_per_s: f64,
    /// Tokens a second of one sequence alone, at most.
    pub single_tokens_per_s: f64,
    /// Whose bytes decide.
    pub binding: Binding,
    /// What takes the time.
    pub decode_bound: DecodeBound,
}

/// A setup, predicted and judged.
#[derive(Clone, Debug)]
pub struct Evaluated {
    /// What was evaluated.
    pub setup: Setup,
    /// What each rank holds.
    pub prediction: Prediction,
    /// What binds.
    pub verdict: Verdict,
    /// The figures to compare by.
    pub outcome: Outcome,
}

/// Predicts and judges.
///
/// # Errors
/// When the deployment or the workload makes no sense.
pub fn evaluate(shape: &ModelShape, setup: &Setup) -> Result<Evaluated, Error> {
    setup.workload.check()?;
    let prediction = predict(shape, &setup.deployment)?;
    let verdict = judge(shape, &setup.deployment, &prediction, &setup.workload);
    let outcome = outcome(setup, &prediction, &verdict);
    Ok(Evaluated {
        setup: setup.clone(),
        prediction,
        verdict,
        outcome,
    })
}

fn outcome(setup: &Setup, prediction: &Prediction, verdict: &Verdict) -> Outcome {
    let parallel = &setup.deployment.parallel;
    let alike = f64::from(parallel.tp.max(1)) * f64::from(parallel.dp.max(1));
    let replicas = f64::from(parallel.dp.max(1));
    let one = setup.workload.context as f64;
    let tokens = (verdict.capacity.needed_tokens / replicas).max(one);
    let mut weights = 0.0;
    let mut demand = 0.0;
    for rank in &prediction.ranks {
        let stage = prediction.ranks.iter().filter(|r| r.rank.1 == rank.rank.1);
        let each = alike / stage.count().max(1) as f64;
        let fixed = rank.activation_peak_bytes + rank.cuda_graph_bytes + rank.overhead_bytes;
        let held = rank.weights_bytes();
        weights += held as f64 * each;
        demand += (held + fixed) as f64 * each + tokens * rank.kv_bytes_per_token * each;
    }
    Outcome {
        fits: verdict.fits,
        sequences: verdict.capacity.sequences,
        kv_tokens: prediction.kv_tokens,
        max_concurrency: prediction.max_concurrency,
        max_context: verdict.capacity.max_context,
        weights_bytes: weights as u64,
        demand_bytes: demand as u64,
        tokens_per_s: verdict.bandwidth.loaded.tokens_per_s,
        single_tokens_per_s: verdict.bandwidth.single.tokens_per_s,
        binding: verdict.capacity.binding,
        decode_bound: verdict.bandwidth.binding,
    }
}

/// A change, or several, with what it buys and costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Remedy {
    /// A few words.
    pub name: String,
    /// From what to what.
    pub change: String,
    /// Bytes that the workload needs less, over all devices; negative when it needs more.
    pub saves_bytes: i64,
    /// KV tokens gained.
    pub gains_tokens: i64,
    /// Sequences of the workload gained.
    pub gains_sequences: i64,
    /// What it costs in quality, or that nobody measured it.
    pub quality: String,
    /// The part of the reasoning scores kept, where measured.
    pub quality_retained: Option<f64>,
    /// Where that is from.
    pub quality_source: Option<String>,
    /// What it does to speed, in words.
    pub speed: String,
    /// Tokens a second at the workload's concurrency, after over before.
    pub decode_speedup: f64,
    /// Flags that put it into a `scrimp plan` command: appended, they win over earlier ones.
    pub flags: Vec<String>,
    /// Whether the workload is met with it.
    pub settles: bool,
    /// What the plan comes to with it.
    pub after: Outcome,
    /// The changes themselves.
    #[serde(skip)]
    pub changes: Vec<Change>,
    /// The changed deployment and workload.
    #[serde(skip)]
    pub setup: Setup,
}

impl Remedy {
    /// The remedy that these changes are, made in turn on what was evaluated.
    ///
    /// # Errors
    /// When the changed setup makes no sense to the engine.
    pub fn of(shape: &ModelShape, before: &Evaluated, changes: &[Change]) -> Result<Remedy, Error> {
        let mut setup = before.setup.clone();
        for change in changes {
            change.apply(&mut setup);
        }
        let after = evaluate(shape, &setup)?.outcome;
        let (old, new) = (&before.outcome, &after);
        let parts: Vec<Quality> = changes.iter().map(|c| quality::of(c, shape)).collect();
        let quality = Quality::of_all(&parts);
        let speedup = ratio(new.tokens_per_s, old.tokens_per_s);
        let join = |texts: Vec<String>, with: &str| texts.join(with);
        let mut gains_tokens = new.kv_tokens as i64 - old.kv_tokens as i64;
        if changes.contains(&Change::DropThinking) {
            // Room that finished turns would have kept in the prefix cache.
            let workload = &before.setup.workload;
            let dead = workload.mean_output() * workload.thinking_share;
            gains_tokens += (dead * old.sequences.min(workload.concurrency as f64)) as i64;
        }
        Ok(Remedy {
            name: join(changes.iter().map(Change::name).collect(), " + "),
            change: join(
                changes.iter().map(|c| c.describe(&before.setup)).collect(),
                "; ",
            ),
            saves_bytes: old.demand_bytes as i64 - new.demand_bytes as i64,
            gains_tokens,
            gains_sequences: new.sequences.floor() as i64 - old.sequences.floor() as i64,
            quality: quality.text,
            quality_retained: quality.retained,
            quality_source: quality.source,
            speed: speed(old, new),
            decode_speedup: speedup,
            flags: changes.iter().flat_map(Change::flags).collect(),
            settles: new.fits,
            after,
            changes: changes.to_vec(),
            setup,
        })
    }
}

fn ratio(new: f64, old: f64) -> f64 {
    if old > 0.0 && new > 0.0 {
        new / old
    } else {
        1.0
    }
}

fn speed(old: &Outcome, new: &Outcome) -> String {
    let together = ratio(new.tokens_per_s, old.tokens_per_s);
    let alone = ratio(new.single_tokens_per_s, old.single_tokens_per_s);
    if (together - 1.0).abs() < 0.02 && (alone - 1.0).abs() < 0.02 {
        return "decode as before".to_owned();
    }
    format!(
        "decode at most {together:.2}× together, {alone:.2}× alone ({:.0} and {:.0} tokens/s)",
        new.tokens_per_s, new.single_tokens_per_s
    )
}

#[cfg(test)]
mod tests;

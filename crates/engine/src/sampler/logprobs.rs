//! Log-probabilities of the model's own distribution: before temperature, bias and penalties.

use crate::request::TokenLogprobs;
use crate::sampler::select::{Candidate, sort_best};

/// Log-probability of `token` and of the `count` likeliest tokens, best first.
pub fn of(row: &[f32], token: u32, count: usize, scratch: &mut Vec<Candidate>) -> TokenLogprobs {
    let normaliser = log_sum_exp(row);
    let logprob = |x: f32| (f64::from(x) - normaliser) as f32;
    scratch.clear();
    if count > 0 {
        scratch.extend(row.iter().enumerate().map(|(i, &x)| (x, i as u32)));
    }
    let kept = sort_best(scratch, count);
    TokenLogprobs {
        logprob: logprob(row[token as usize]),
        top: scratch[..kept]
            .iter()
            .map(|&(x, id)| (id, logprob(x)))
            .collect(),
    }
}

/// `ln Σ exp(x)`, summed in double precision.
pub fn log_sum_exp(row: &[f32]) -> f64 {
    let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&x| f64::from((x - best).exp())).sum();
    f64::from(best) + sum.ln()
}

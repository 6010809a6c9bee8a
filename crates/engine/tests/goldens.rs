//! Every golden model, in every file format it comes in, against transformers' logits, on every
//! instruction set that this machine has.

#![allow(clippy::unwrap_used)] // in helpers, which the lint does not take for tests

mod common;

use common::{backend_at, feed, goldens, levels, runner_on, scattered};
use scrimp_cpu::Precision;
use scrimp_tensor::DType;

/// Largest difference over largest logit.
fn relative_error(found: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(found.len(), wanted.len());
    let largest = wanted.iter().fold(0.0f32, |a, x| a.max(x.abs()));
    let pairs = found.iter().zip(wanted);
    // `max` would pass over NaN.
    let worst = pairs.fold(0.0f32, |a, (x, y)| {
        let error = (x - y).abs();
        if error > a || error.is_nan() {
            error
        } else {
            a
        }
    });
    worst / largest
}

#[test]
fn logits_are_those_of_transformers() {
    let mut failures = Vec::new();
    let goldens = goldens();
    for (level, golden) in levels().flat_map(|l| goldens.iter().map(move |g| (l, g))) {
        let backend = backend_at(level, Precision::Exact);
        let mut runner = runner_on(backend, &golden.path, DType::F32);
        for (i, (ids, logits)) in golden.sequences.iter().enumerate() {
            let found = feed(&mut runner, ids, &scattered(3, 7), &[ids.len()]);
            let error = relative_error(&found, logits);
            println!("{level} {} {i}: {error:.2e}", golden.name);
            if error.is_nan() || error > 1e-4 {
                failures.push(format!("{level} {} {i}: {error:.2e}", golden.name));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

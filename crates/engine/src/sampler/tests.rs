//! The sampler against a slow, obvious version of itself, and against the law of large numbers.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Every step on the whole vocabulary, fully sorted, in double precision. Returns the eligible
/// tokens with their probabilities, best first.
fn obvious(row: &[f32], params: &SamplingParams, context: &SequenceContext<'_>) -> Vec<(u32, f64)> {
    let mut logits: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
    for (t, logit) in logits.iter_mut().enumerate() {
        let t = t as u32;
        let early = context.output.len() < params.min_tokens as usize;
        let allowed = context.allowed.is_none_or(|a| a.contains(&t))
            && !context.banned.contains(&t)
            && !(early && context.ending.contains(&t));
        if !allowed {
            *logit = f64::NEG_INFINITY;
        }
        *logit += f64::from(params.logit_bias.get(&t).copied().unwrap_or(0.0));
        let generated = context.output.iter().filter(|&&x| x == t).count();
        if generated > 0 || context.prompt.contains(&t) {
            let r = f64::from(params.repetition_penalty);
            *logit = if *logit > 0.0 { *logit / r } else { *logit * r };
        }
        if generated > 0 {
            *logit -= f64::from(params.presence_penalty);
            *logit -= f64::from(params.frequency_penalty) * generated as f64;
        }
    }
    let best = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut weights: Vec<(u32, f64)> = logits
        .iter()
        .enumerate()
        .map(|(t, x)| (t as u32, ((x - best) / f64::from(params.temperature)).exp()))
        .filter(|&(_, w)| w > 0.0 && w >= f64::from(params.min_p))
        .collect();
    weights.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    weights.truncate(params.top_k.map_or(usize::MAX, |k| k as usize));
    let total: f64 = weights.iter().map(|w| w.1).sum();
    let mut before = 0.0;
    weights.retain(|&(_, w)| {
        let keep = before < f64::from(params.top_p) * total;
        before += w;
        keep
    });
    let total: f64 = weights.iter().map(|w| w.1).sum();
    weights.iter().map(|&(t, w)| (t, w / total)).collect()
}

fn context<'a>(prompt: &'a [u32], output: &'a [u32]) -> SequenceContext<'a> {
    SequenceContext {
        prompt,
        output,
        ..SequenceContext::default()
    }
}

/// Frequencies over many seeds, held against the obvious probabilities by chi-square.
fn assert_distribution(row: &[f32], params: &SamplingParams, context: SequenceContext<'_>) {
    let expected = obvious(row, params, &context);
    let draws = 40_000u64;
    let mut seen: BTreeMap<u32, f64> = BTreeMap::new();
    let mut sampler = Sampler::default();
    for seed in 0..draws {
        let context = SequenceContext { seed, ..context };
        let drawn = sampler.sample(row, params, &context).unwrap();
        *seen.entry(drawn.token).or_default() += 1.0;
    }
    let mut chi = 0.0;
    for &(token, p) in &expected {
        let wanted = p * draws as f64;
        let got = seen.remove(&token).unwrap_or(0.0);
        chi += (got - wanted).powi(2) / wanted.max(1.0);
    }
    assert!(seen.is_empty(), "drew what is not eligible: {seen:?}");
    let freedom = expected.len() as f64;
    assert!(
        chi < freedom + 5.0 * (2.0 * freedom).sqrt() + 5.0,
        "chi-square {chi} of {freedom} tokens: {params:?}"
    );
}

const ROW: [f32; 9] = [1.0, 2.5, -0.3, 2.4, 0.0, 1.9, -3.0, 2.5, 0.7];

#[test]
fn draws_follow_the_distribution_of_every_setting() {
    let base = SamplingParams::default;
    let settings = [
        base(),
        SamplingParams {
            temperature: 0.6,
            top_p: 0.8,
            ..base()
        },
        SamplingParams {
            temperature: 1.7,
            top_k: Some(4),
            ..base()
        },
        SamplingParams {
            top_k: Some(5),
            top_p: 0.7,
            min_p: 0.1,
            ..base()
        },
        SamplingParams {
            min_p: 0.4,
            ..base()
        },
        SamplingParams {
            repetition_penalty: 1.8,
            ..base()
        },
        SamplingParams {
            presence_penalty: 1.1,
            frequency_penalty: 0.7,
            ..base()
        },
        SamplingParams {
            presence_penalty: -1.1,
            frequency_penalty: -0.2,
            ..base()
        },
        SamplingParams {
            logit_bias: [(6, 4.0), (1, -2.0)].into(),
            ..base()
        },
        SamplingParams {
            min_tokens: 9,
            ..base()
        },
    ];
    for params in settings {
        let plain = context(&[1, 2, 2], &[3, 5, 3]);
        assert_distribution(&ROW, &params, plain);
        let narrowed = SequenceContext {
            ending: &[7],
            banned: &[3],
            allowed: Some(&[0, 3, 5, 6, 7]),
            ..plain
        };
        assert_distribution(&ROW, &params, narrowed);
    }
}

#[test]
fn the_best_token_wins_at_temperature_zero_and_ties_go_to_the_lower_id() {
    let greedy = SamplingParams {
        temperature: 0.0,
        ..SamplingParams::default()
    };
    let sample = |params: &SamplingParams, context: &SequenceContext<'_>| {
        Sampler::default()
            .sample(&ROW, params, context)
            .unwrap()
            .token
    };
    assert_eq!(sample(&greedy, &context(&[], &[])), 1);
    let penalised = SamplingParams {
        repetition_penalty: 1.1,
        ..greedy.clone()
    };
    assert_eq!(sample(&penalised, &context(&[1], &[])), 7);
    let early = SamplingParams {
        min_tokens: 1,
        ..greedy.clone()
    };
    let ending = SequenceContext {
        ending: &[1, 7],
        ..context(&[], &[])
    };
    assert_eq!(sample(&early, &ending), 3);
    let late = SequenceContext {
        output: &[0],
        ..ending
    };
    assert_eq!(sample(&early, &late), 1);
    // A temperature that underflows everything but the best is greedy in effect, not an error.
    let cold = SamplingParams {
        temperature: 1e-30,
        top_k: Some(1),
        ..greedy
    };
    assert_eq!(sample(&cold, &context(&[], &[])), 1);
}

#[test]
fn a_token_depends_on_seed_and_index_alone() {
    let params = SamplingParams {
        top_p: 0.95,
        ..SamplingParams::default()
    };
    let output = [0u32; 64];
    let draw = |sampler: &mut Sampler, seed, i: usize| {
        let context = SequenceContext {
            seed,
            ..context(&[], &output[..i])
        };
        sampler.sample(&ROW, &params, &context).unwrap().token
    };
    let mut one = Sampler::default();
    let alone: Vec<u32> = (0..64).map(|i| draw(&mut one, 11, i)).collect();
    let mut shared = Sampler::default();
    let mixed: Vec<u32> = (0..64)
        .map(|i| {
            draw(&mut shared, i as u64, 63 - i);
            draw(&mut shared, 11, i)
        })
        .collect();
    assert_eq!(alone, mixed);
    let other: Vec<u32> = (0..64).map(|i| draw(&mut one, 12, i)).collect();
    assert_ne!(alone, other);
}

#[test]
fn bad_rows_are_errors() {
    let params = SamplingParams::default();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let result = Sampler::default().sample(&[0.0, bad], &params, &context(&[], &[]));
        assert!(matches!(
            result,
            Err(SampleError::NotFinite { token: 1, .. })
        ));
    }
    let all = SequenceContext {
        banned: &[0, 1],
        ..context(&[], &[])
    };
    for temperature in [0.0, 1.0] {
        let params = SamplingParams {
            temperature,
            ..SamplingParams::default()
        };
        let none = Sampler::default().sample(&[0.0, 1.0], &params, &all);
        assert_eq!(none, Err(SampleError::NothingEligible { vocab_size: 2 }));
        let empty = Sampler::default().sample(&[], &params, &context(&[], &[]));
        assert_eq!(empty, Err(SampleError::NothingEligible { vocab_size: 0 }));
    }
    let penalised = SamplingParams {
        presence_penalty: 1.0,
        ..SamplingParams::default()
    };
    let outside = Sampler::default().sample(&[0.0, 1.0], &penalised, &context(&[5], &[]));
    assert_eq!(
        outside,
        Err(SampleError::UnknownToken {
            token: 5,
            vocab_size: 2
        })
    );
}

#[test]
fn logprobs_are_of_the_raw_distribution_best_first() {
    let params = SamplingParams {
        temperature: 0.0,
        logit_bias: [(6, 50.0)].into(),
        logprobs: Some(3),
        ..SamplingParams::default()
    };
    let drawn = Sampler::default()
        .sample(&ROW, &params, &context(&[], &[]))
        .unwrap();
    assert_eq!(drawn.token, 6);
    let logprobs = drawn.logprobs.unwrap();
    let sum: f64 = ROW.iter().map(|&x| f64::from(x).exp()).sum();
    assert!((f64::from(logprobs.logprob) - (-3.0 - sum.ln())).abs() < 1e-5);
    let ids: Vec<u32> = logprobs.top.iter().map(|t| t.0).collect();
    assert_eq!(ids, [1, 7, 3]);
    assert!((f64::from(logprobs.top[2].1) - (2.4 - sum.ln())).abs() < 1e-5);
}

proptest! {
    /// On rows large enough that selection really selects, no draw leaves the obvious set, and
    /// the ends of the unit interval reach its ends.
    #[test]
    fn draws_are_always_eligible(
        row in prop::collection::vec(-8.0f32..8.0, 1..700),
        temperature in 0.05f32..3.0,
        top_p in 0.01f32..1.0,
        top_k in prop::option::of(1u32..300),
        min_p in prop_oneof![Just(0.0f32), 0.0f32..0.3],
        repetition_penalty in 0.5f32..2.0,
        history in prop::collection::vec(0u32..700, 0..30),
        seed: u64,
    ) {
        let params = SamplingParams {
            temperature, top_p, top_k, min_p, repetition_penalty, ..SamplingParams::default()
        };
        let seen: Vec<u32> = history.iter().map(|t| t % row.len() as u32).collect();
        let (prompt, output) = seen.split_at(seen.len() / 2);
        let context = SequenceContext { seed, ..context(prompt, output) };
        let expected = obvious(&row, &params, &context);
        let drawn = Sampler::default().sample(&row, &params, &context).unwrap().token;
        // Single precision may disagree about one token at the edge of the set.
        let loose = SamplingParams {
            top_p: (top_p + 1e-4).min(1.0),
            top_k: top_k.map(|k| k + 1),
            min_p: min_p * 0.9999,
            ..params
        };
        let allowed = obvious(&row, &loose, &context);
        prop_assert!(allowed.iter().any(|a| a.0 == drawn), "{drawn} not in {expected:?}");
    }
}

/// Lengths around the stretches that rows are looked at in.
const LENGTHS: [usize; 8] = [1, 15, 16, 1023, 1024, 1025, 3000, 49_152];

#[test]
fn the_first_of_the_best_is_found_wherever_it_lies() {
    for len in LENGTHS {
        let row: Vec<f32> = (0..len)
            .map(|i| (i * 7919 % 1009) as f32 - 2000.0)
            .collect();
        for at in [0, len / 3, len / 2, len - 1] {
            let mut row = row.clone();
            row[at] = 5.0;
            row[len - 1] = 5.0;
            assert_eq!(select::argmax(&row), Some(at as u32), "{at} of {len}");
            row[at] = f32::NEG_INFINITY;
            let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let first = row.iter().position(|&x| x == best).map(|i| i as u32);
            assert_eq!(select::argmax(&row), first, "all but {at} of {len}");
        }
        assert_eq!(select::argmax(&vec![f32::NEG_INFINITY; len]), Some(0));
    }
    assert_eq!(select::argmax(&[]), None);
}

#[test]
fn the_first_value_that_is_no_number_is_found() {
    for len in LENGTHS {
        let row: Vec<f32> = (0..len).map(|i| i as f32 * 1e30).collect();
        assert_eq!(select::first_not_finite(&row), None);
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, len / 2, len - 1] {
                let mut row = row.clone();
                row[at] = odd;
                row[len - 1] = odd;
                assert_eq!(select::first_not_finite(&row), Some(at), "{at} of {len}");
            }
        }
    }
}

//! Choosing experts: scores, groups, the best few, their weights.

use scrimp_backend::Routing;
use scrimp_model::{GroupScore, RouterConfig, Scoring};

/// Picks experts for every row; `scratch` holds twice `num_experts` values.
pub(crate) fn route(
    logits: &[f32],
    rows: usize,
    num_experts: usize,
    router: &RouterConfig,
    correction_bias: Option<&[f32]>,
    scratch: &mut [f32],
    routing: &mut Routing,
) {
    assert!(logits.len() >= rows * num_experts, "router logits");
    assert!(
        router.top_k <= num_experts,
        "{} of {num_experts} experts",
        router.top_k
    );
    let bias = correction_bias.map(|bias| &bias[..num_experts]);
    routing.top_k = router.top_k;
    routing.experts.clear();
    routing.weights.clear();
    let (scores, choice) = scratch.split_at_mut(num_experts);
    for row in logits.chunks_exact(num_experts.max(1)).take(rows) {
        score(row, router.scoring, scores);
        let choice = &mut choice[..num_experts];
        choice.copy_from_slice(scores);
        if let Some(bias) = bias {
            choice.iter_mut().zip(bias).for_each(|(c, b)| *c += b);
        }
        keep_best_groups(choice, router);
        pick(scores, choice, router, routing);
    }
}

/// `scores = scoring(logits)`.
fn score(logits: &[f32], scoring: Scoring, scores: &mut [f32]) {
    match scoring {
        Scoring::Sigmoid => {
            for (score, x) in scores.iter_mut().zip(logits) {
                *score = 1.0 / (1.0 + (-x).exp());
            }
        }
        Scoring::Softmax => {
            let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for (score, x) in scores.iter_mut().zip(logits) {
                *score = (x - top).exp();
                sum += *score;
            }
            scores.iter_mut().for_each(|score| *score /= sum);
        }
    }
}

/// Marks the experts of all but the best groups with -inf.
fn keep_best_groups(choice: &mut [f32], router: &RouterConfig) {
    let groups = router.n_group;
    if groups <= 1 || router.topk_group >= groups {
        return;
    }
    let size = choice.len() / groups;
    let rank = |group: &[f32]| {
        let (mut best, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for &c in group {
            if c > best {
                (best, second) = (c, best);
            } else if c > second {
                second = c;
            }
        }
        match router.group_score {
            GroupScore::Max => best,
            GroupScore::Top2Sum if size > 1 => best + second,
            GroupScore::Top2Sum => best,
        }
    };
    // A group stays when fewer than `topk_group` others are better, or equal and earlier. The best
    // ones are never marked, so that whoever lost to `topk_group` groups still does after others
    // were marked.
    for g in 0..groups {
        let own = rank(&choice[g * size..(g + 1) * size]);
        let better = (0..groups)
            .filter(|&other| {
                let theirs = rank(&choice[other * size..(other + 1) * size]);
                theirs > own || (theirs == own && other < g)
            })
            .count();
        if better >= router.topk_group {
            choice[g * size..(g + 1) * size].fill(f32::NEG_INFINITY);
        }
    }
}

/// Takes the `top_k` best by `choice`, weighted by `scores`.
fn pick(scores: &[f32], choice: &mut [f32], router: &RouterConfig, routing: &mut Routing) {
    let first = routing.weights.len();
    for _ in 0..router.top_k {
        // The earliest of the best; a taken or excluded expert is -inf, and NaN never wins.
        let mut best = None;
        for (e, &c) in choice.iter().enumerate() {
            if c > f32::NEG_INFINITY && best.is_none_or(|b: usize| c > choice[b]) {
                best = Some(e);
            }
        }
        // With nothing left (NaN logits), any expert that is not taken yet.
        let best = best.unwrap_or_else(|| {
            (0..choice.len())
                .find(|&e| !routing.experts[first..].contains(&(e as u32)))
                .unwrap_or(0)
        });
        choice[best] = f32::NEG_INFINITY;
        routing.experts.push(best as u32);
        routing.weights.push(scores[best]);
    }
    let weights = &mut routing.weights[first..];
    if router.norm_topk_prob {
        let sum: f32 = weights.iter().sum::<f32>() + 1e-20;
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    weights
        .iter_mut()
        .for_each(|w| *w *= router.routed_scaling_factor);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router(top_k: usize, scoring: Scoring) -> RouterConfig {
        RouterConfig {
            top_k,
            scoring,
            n_group: 1,
            topk_group: 1,
            group_score: GroupScore::Max,
            norm_topk_prob: false,
            routed_scaling_factor: 1.0,
            correction_bias: false,
        }
    }

    fn run(logits: &[f32], router: &RouterConfig, bias: Option<&[f32]>) -> Routing {
        let mut routing = Routing::default();
        let mut scratch = vec![0.0; 2 * logits.len()];
        route(
            logits,
            1,
            logits.len(),
            router,
            bias,
            &mut scratch,
            &mut routing,
        );
        routing
    }

    #[test]
    fn softmax_takes_the_best_and_ties_go_to_the_first() {
        let routing = run(&[0.0, 2.0, 1.0, 2.0], &router(3, Scoring::Softmax), None);
        assert_eq!(routing.experts, [1, 3, 2]);
        let e = std::f32::consts::E;
        let sum = 1.0 + 2.0 * e * e + e;
        assert!((routing.weights[0] - e * e / sum).abs() < 1e-6);
        assert!((routing.weights[2] - e / sum).abs() < 1e-6);
    }

    #[test]
    fn a_correction_bias_moves_the_choice_and_not_the_weight() {
        let mut config = router(1, Scoring::Sigmoid);
        config.routed_scaling_factor = 2.5;
        let routing = run(&[0.0, 1.0], &config, Some(&[5.0, 0.0]));
        assert_eq!(routing.experts, [0]);
        assert!((routing.weights[0] - 1.25).abs() < 1e-6);
    }

    #[test]
    fn groups_limit_the_choice() {
        let mut config = router(2, Scoring::Sigmoid);
        (config.n_group, config.topk_group) = (2, 1);
        // The single best expert is in the first group, the best pair in the second.
        let logits = [3.0, -9.0, 2.0, 2.0];
        assert_eq!(run(&logits, &config, None).experts, [0, 1]);
        config.group_score = GroupScore::Top2Sum;
        assert_eq!(run(&logits, &config, None).experts, [2, 3]);
    }

    #[test]
    fn normalised_weights_sum_to_the_scaling_factor() {
        let mut config = router(3, Scoring::Softmax);
        config.norm_topk_prob = true;
        config.routed_scaling_factor = 16.0;
        let routing = run(&[0.3, -1.0, 2.0, 0.1, 0.7], &config, None);
        assert!((routing.weights.iter().sum::<f32>() - 16.0).abs() < 1e-4);
    }

    #[test]
    fn nan_logits_still_give_distinct_experts() {
        let routing = run(&[f32::NAN; 4], &router(3, Scoring::Softmax), None);
        let mut experts = routing.experts.clone();
        experts.dedup();
        assert_eq!(experts.len(), 3);
    }
}

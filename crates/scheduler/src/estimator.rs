//! How long an answer will get, learnt from the answers before it.
//!
//! Admission reserves room for the length a sequence is *expected* to reach: reserving for
//! `max_tokens` would let in few, reserving for nothing would let in so many that they preempt
//! each other. The expectation is a high quantile of recent output lengths, apart for requests
//! that think and for those that do not, among lengths that the sequence can still have.
//!
//! Before enough is known, the guide's rule applies: a reasoning request takes 1.5 × the tokens
//! of a plain one. The guide multiplies `max_tokens`, which there is the answer one asks for;
//! here `max_tokens` is a hard limit that thinking counts against, so the factor goes on the
//! expected answer and the limit caps the product.

use std::collections::VecDeque;

/// How lengths are estimated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EstimatorConfig {
    /// Output tokens expected of a plain request before any has finished.
    pub cold_start_tokens: usize,
    /// Factor for a request that thinks.
    pub thinking_factor: f64,
    /// Quantile of the lengths seen, 0 to 1.
    pub quantile: f64,
    /// Lengths remembered of each kind.
    pub window: usize,
    /// Lengths of a kind from which on they are believed.
    pub min_samples: usize,
}

impl Default for EstimatorConfig {
    fn default() -> EstimatorConfig {
        EstimatorConfig {
            cold_start_tokens: 1024,
            thinking_factor: 1.5,
            quantile: 0.9,
            window: 256,
            min_samples: 8,
        }
    }
}

/// Expected output lengths, learnt from finished sequences.
#[derive(Clone, Debug)]
pub struct LengthEstimator {
    config: EstimatorConfig,
    plain: Recent,
    thinking: Recent,
}

/// The latest lengths of one kind.
#[derive(Clone, Debug, Default)]
struct Recent {
    by_age: VecDeque<usize>,
    sorted: Vec<usize>,
}

impl LengthEstimator {
    /// An estimator that has seen nothing.
    pub fn new(config: EstimatorConfig) -> LengthEstimator {
        LengthEstimator {
            config,
            plain: Recent::default(),
            thinking: Recent::default(),
        }
    }

    /// Learns that a sequence finished after `output_tokens` tokens.
    pub fn record(&mut self, thinking: bool, output_tokens: usize) {
        let window = self.config.window;
        let recent = match thinking {
            true => &mut self.thinking,
            false => &mut self.plain,
        };
        recent.push(output_tokens, window);
    }

    /// Output tokens that a sequence will have in the end, which has `so_far` now and may have
    /// `max_tokens`. At least `so_far + 1`, unless the limit is lower.
    pub fn expected(&self, thinking: bool, so_far: usize, max_tokens: usize) -> usize {
        let (recent, factor) = match thinking {
            true => (&self.thinking, self.config.thinking_factor),
            false => (&self.plain, 1.0),
        };
        let learnt = (recent.sorted.len() >= self.config.min_samples)
            .then(|| recent.quantile_above(so_far, self.config.quantile))
            .flatten();
        let cold = scaled(self.config.cold_start_tokens, factor);
        let expected = match learnt {
            Some(length) => length,
            None if cold > so_far => cold,
            // Longer than anything known: expect half as much again.
            None => scaled(so_far, 1.5),
        };
        expected.max(so_far + 1).min(max_tokens)
    }
}

fn scaled(tokens: usize, factor: f64) -> usize {
    (tokens as f64 * factor).ceil() as usize
}

impl Recent {
    fn push(&mut self, length: usize, window: usize) {
        self.by_age.push_back(length);
        let at = self.sorted.partition_point(|&l| l < length);
        self.sorted.insert(at, length);
        while self.by_age.len() > window {
            if let Some(oldest) = self.by_age.pop_front() {
                let at = self.sorted.partition_point(|&l| l < oldest);
                self.sorted.remove(at);
            }
        }
    }

    /// The quantile of the lengths above `floor` (the nearest-rank one); `None` without any.
    fn quantile_above(&self, floor: usize, quantile: f64) -> Option<usize> {
        let above = &self.sorted[self.sorted.partition_point(|&l| l <= floor)..];
        let rank = (quantile.clamp(0.0, 1.0) * above.len() as f64).ceil() as usize;
        above.get(rank.saturating_sub(1)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn estimator() -> LengthEstimator {
        LengthEstimator::new(EstimatorConfig {
            cold_start_tokens: 100,
            window: 20,
            ..EstimatorConfig::default()
        })
    }

    #[test]
    fn before_traffic_thinking_takes_half_as_much_again() {
        let e = estimator();
        assert_eq!(e.expected(false, 0, 1000), 100);
        assert_eq!(e.expected(true, 0, 1000), 150);
        assert_eq!(e.expected(true, 0, 120), 120, "max_tokens is a limit");
        assert_eq!(e.expected(true, 200, 1000), 300, "past the guess");
        assert_eq!(e.expected(true, 999, 1000), 1000);
    }

    #[test]
    fn traffic_is_believed_from_eight_on_and_apart_by_kind() {
        let mut e = estimator();
        for _ in 0..7 {
            e.record(true, 40);
        }
        assert_eq!(e.expected(true, 0, 1000), 150);
        e.record(true, 40);
        assert_eq!(e.expected(true, 0, 1000), 40);
        assert_eq!(e.expected(false, 0, 1000), 100);
    }

    #[test]
    fn the_estimate_is_the_ninth_of_ten_and_depends_on_what_is_there() {
        let mut e = estimator();
        for length in [10, 20, 30, 40, 50, 60, 70, 80, 90, 1000] {
            e.record(false, length);
        }
        assert_eq!(e.expected(false, 0, 5000), 90);
        assert_eq!(
            e.expected(false, 85, 5000),
            1000,
            "of 90 and 1000, the 9th tenth"
        );
        assert_eq!(e.expected(false, 1000, 5000), 1500, "longer than any seen");
    }

    #[test]
    fn old_lengths_are_forgotten() {
        let mut e = estimator();
        for length in std::iter::repeat_n(900, 20).chain(std::iter::repeat_n(5, 20)) {
            e.record(false, length);
        }
        assert_eq!(e.expected(false, 0, 5000), 5);
    }

    proptest! {
        #[test]
        fn always_ahead_of_the_sequence_and_within_its_limit(
            lengths in proptest::collection::vec((any::<bool>(), 0usize..500), 0..60),
            thinking: bool, so_far in 0usize..600, more in 1usize..600,
        ) {
            let mut e = estimator();
            for (kind, length) in lengths {
                e.record(kind, length);
            }
            let expected = e.expected(thinking, so_far, so_far + more);
            prop_assert!(expected > so_far && expected <= so_far + more);
        }
    }
}

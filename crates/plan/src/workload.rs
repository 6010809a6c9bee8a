//! The traffic: how many sequences at once, how long they get, what they share.
//!
//! A decoding sequence grows from its prompt to prompt and output, so at a random moment it holds
//! less than its full length; and long chains, which stay longest, are over-represented among those
//! that are running. Both are in [`Workload::live_tokens`].

use serde::Serialize;

use crate::Error;

/// Sigma of the log-normal that a mean alone is read as: p95 is 3.0 times the median then, about
/// what chains of thought on mixed problems show.
pub const SPREAD_OF_A_MEAN: f64 = 0.67;

/// The 95th and 99th percentiles of the standard normal distribution.
const Z95: f64 = 1.644_853_627;
const Z99: f64 = 2.326_347_874;

/// Lengths of outputs, in tokens: log-normal, from a median and a 95th percentile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OutputLengths {
    /// Half of the outputs are at most this long.
    pub p50: f64,
    /// 19 of 20 are at most this long.
    pub p95: f64,
}

impl OutputLengths {
    /// Every output with this mean, spread as long chains of thought usually are (docs/plan.md).
    pub fn of_mean(mean: f64) -> OutputLengths {
        let p50 = mean / (SPREAD_OF_A_MEAN * SPREAD_OF_A_MEAN / 2.0).exp();
        OutputLengths {
            p50,
            p95: p50 * (Z95 * SPREAD_OF_A_MEAN).exp(),
        }
    }

    /// Reads `MEAN` or `p50,p95`.
    ///
    /// # Errors
    /// When it is neither, or the numbers are not positive, or the second is below the first.
    pub fn parse(text: &str) -> Result<OutputLengths, Error> {
        let bad = |what: String| Error::Setting {
            setting: "--output-tokens",
            what,
        };
        let number = |part: &str| match part.trim().parse::<f64>() {
            Ok(n) if n.is_finite() && (1.0..=1e9).contains(&n) => Ok(n),
            _ => Err(bad(format!(
                "`{text}` is not a length: write a mean such as 4000, or a median and a 95th \
                 percentile such as 3000,12000 (1 to 1000000000 tokens)"
            ))),
        };
        match text.split_once(',') {
            None => Ok(OutputLengths::of_mean(number(text)?)),
            Some((p50, p95)) => {
                let (p50, p95) = (number(p50)?, number(p95)?);
                if p95 < p50 {
                    return Err(bad(format!(
                        "the 95th percentile {p95} is below the median {p50}: write the median first"
                    )));
                }
                Ok(OutputLengths { p50, p95 })
            }
        }
    }

    fn sigma(&self) -> f64 {
        (self.p95 / self.p50).ln().max(0.0) / Z95
    }

    /// The mean of `min(length, cap)` to the power `n`.
    fn moment(&self, n: i32, cap: f64) -> f64 {
        let (mu, sigma, n) = (self.p50.ln(), self.sigma(), f64::from(n));
        if sigma < 1e-9 {
            return self.p50.min(cap).powf(n);
        }
        let within = normal_cdf((cap.ln() - mu - n * sigma * sigma) / sigma);
        let beyond = 1.0 - normal_cdf((cap.ln() - mu) / sigma);
        (n * mu + n * n * sigma * sigma / 2.0).exp() * within + cap.powf(n) * beyond
    }

    /// The mean length, where none is longer than `cap`.
    pub fn mean(&self, cap: f64) -> f64 {
        self.moment(1, cap)
    }
}

/// The standard normal distribution function (Abramowitz and Stegun 7.1.26, off by 1.5e-7).
fn normal_cdf(x: f64) -> f64 {
    let z = x.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let poly = [
        1.061_405_429,
        -1.453_152_027,
        1.421_413_741,
        -0.284_496_736,
        0.254_829_592,
    ]
    .iter()
    .fold(0.0, |sum, c| (sum + c) * t);
    let erf = 1.0 - poly * (-z * z).exp();
    if x < 0.0 {
        (1.0 - erf) / 2.0
    } else {
        (1.0 + erf) / 2.0
    }
}

/// What is asked of a deployment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Workload {
    /// Longest sequence, prompt and output, in tokens.
    pub context: u64,
    /// Sequences at once.
    pub concurrency: u64,
    /// Tokens of a prompt.
    pub prompt_tokens: u64,
    /// Lengths of outputs; `None` plans every sequence at its longest, `context` tokens.
    pub output: Option<OutputLengths>,
    /// The part of a prompt that all sequences have in common (a system prompt), 0 to 1.
    pub prefix_share: f64,
    /// Whether the engine keeps a common prefix once.
    pub prefix_caching: bool,
    /// The part of an output that is thinking, 0 to 1: dead weight in the cache after the turn.
    pub thinking_share: f64,
    /// Whether thinking leaves the cache when the turn ends.
    pub drops_thinking: bool,
}

/// KV tokens that a workload holds at a random moment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LiveTokens {
    /// Mean of one sequence over its life, common prefix included.
    pub per_sequence: f64,
    /// Mean of the sum over all sequences, a common prefix counted once where it is kept once.
    pub mean: f64,
    /// 95th percentile of the sum.
    pub p95: f64,
    /// 99th percentile of the sum.
    pub p99: f64,
    /// Every sequence at its longest.
    pub worst: f64,
    /// The guide's `ReasoningKVCacheManager`: 1.5 times `max_tokens` for each sequence, where
    /// `max_tokens` is what the context leaves for output.
    pub guide: f64,
    /// What the plan has to hold: the 95th percentile, or the worst where no lengths are known.
    pub needed: f64,
}

impl Workload {
    /// `concurrency` sequences of up to `context` tokens, nothing known about their lengths.
    pub fn longest(context: u64, concurrency: u64) -> Workload {
        Workload {
            context,
            concurrency,
            prompt_tokens: 0,
            output: None,
            prefix_share: 0.0,
            prefix_caching: true,
            thinking_share: 0.8,
            drops_thinking: false,
        }
    }

    /// Whether it can be planned for at all.
    ///
    /// # Errors
    /// When a number is out of its range, or a prompt leaves no room for an output.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |setting, what| Err(Error::Setting { setting, what });
        if self.context == 0 || self.context > 1 << 40 {
            return wrong(
                "--context",
                format!("{} tokens: has to be 1 to 2^40", self.context),
            );
        }
        if self.concurrency == 0 || self.concurrency > 1 << 30 {
            return wrong(
                "--concurrency",
                format!("{} sequences: has to be 1 to 2^30", self.concurrency),
            );
        }
        if self.prompt_tokens >= self.context {
            return wrong(
                "--prompt-tokens",
                format!(
                    "{} tokens of prompt leave no room for an output in a context of {}: raise \
                     --context or shorten the prompt",
                    self.prompt_tokens, self.context
                ),
            );
        }
        for (setting, share) in [
            ("--prefix-share", self.prefix_share),
            ("--thinking-share", self.thinking_share),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return wrong(setting, format!("{share} is not a share: write 0 to 1"));
            }
        }
        Ok(())
    }

    /// Most tokens of output that the context leaves.
    pub fn max_output(&self) -> u64 {
        self.context.saturating_sub(self.prompt_tokens).max(1)
    }

    /// Mean tokens of output; the whole room for it where nothing is known.
    pub fn mean_output(&self) -> f64 {
        let cap = self.max_output() as f64;
        self.output.map_or(cap, |output| output.mean(cap))
    }

    /// Tokens that all sequences share and the cache holds once.
    pub fn shared_tokens(&self) -> f64 {
        if self.prefix_caching {
            self.prompt_tokens as f64 * self.prefix_share
        } else {
            0.0
        }
    }

    /// What the KV cache has to hold.
    ///
    /// A sequence with output length L passes through prompt + t for every t up to L; over all
    /// running sequences the mean of t is E\[L²\] / 2E\[L\], and of t², E\[L³\] / 3E\[L\]. Sums
    /// over the sequences are taken as normal, and never beyond the worst case.
    pub fn live_tokens(&self) -> LiveTokens {
        let sequences = self.concurrency as f64;
        let prompt = self.prompt_tokens as f64;
        let shared = self.shared_tokens();
        let once = if self.concurrency > 1 { shared } else { 0.0 };
        let longest = self.context as f64;
        let worst = sequences * (longest - once) + once;
        let guide = 1.5 * self.max_output() as f64 * sequences;
        let Some(output) = self.output else {
            // Nobody knows how long sequences get: half-way on average, full in the worst case.
            let per_sequence = prompt + (longest - prompt) / 2.0;
            let spread = (longest - prompt) / 12f64.sqrt() * sequences.sqrt();
            let mean = sequences * (per_sequence - once) + once;
            return LiveTokens {
                per_sequence,
                mean,
                p95: (mean + Z95 * spread).min(worst),
                p99: (mean + Z99 * spread).min(worst),
                worst,
                guide,
                needed: worst,
            };
        };
        let cap = self.max_output() as f64;
        let first = output.moment(1, cap).max(f64::MIN_POSITIVE);
        let grown = output.moment(2, cap) / (2.0 * first);
        let grown_squared = output.moment(3, cap) / (3.0 * first);
        let spread = (grown_squared - grown * grown).max(0.0).sqrt() * sequences.sqrt();
        let per_sequence = prompt + grown;
        let mean = sequences * (per_sequence - once) + once;
        let p95 = (mean + Z95 * spread).min(worst);
        LiveTokens {
            per_sequence,
            mean,
            p95,
            p99: (mean + Z99 * spread).min(worst),
            worst,
            guide,
            needed: p95,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_keeps_its_mean() {
        let lengths = OutputLengths::of_mean(4000.0);
        assert!((lengths.mean(1e12) / 4000.0 - 1.0).abs() < 1e-4);
        assert!((lengths.p95 / lengths.p50 - 3.01).abs() < 0.02);
    }

    #[test]
    fn lengths_are_read_or_refused() {
        let read = OutputLengths::parse("3000, 12000").unwrap();
        assert_eq!((read.p50, read.p95), (3000.0, 12000.0));
        for bad in ["", "x", "0", "-4", "nan", "inf", "5,4", "1,2,3", "1e30"] {
            assert!(OutputLengths::parse(bad).is_err(), "{bad}");
        }
    }

    /// Closed-form moments against the same integrals summed over quantiles.
    #[test]
    fn live_tokens_agree_with_a_simulated_population() {
        let mut workload = Workload::longest(20_000, 32);
        workload.prompt_tokens = 1000;
        workload.output = Some(OutputLengths {
            p50: 3000.0,
            p95: 15_000.0,
        });
        let (output, cap) = (workload.output.unwrap(), 19_000.0f64);
        // Quantiles by bisection of the distribution function.
        let lengths: Vec<f64> = (0..20_000)
            .map(|i| {
                let p = (f64::from(i) + 0.5) / 20_000.0;
                let (mut low, mut high) = (-8.0, 8.0);
                for _ in 0..60 {
                    let mid = (low + high) / 2.0;
                    if normal_cdf(mid) < p {
                        low = mid;
                    } else {
                        high = mid;
                    }
                }
                (output.p50.ln() + output.sigma() * low).exp().min(cap)
            })
            .collect();
        let steps: f64 = lengths.iter().sum();
        let held: f64 = lengths.iter().map(|l| l * (1000.0 + l / 2.0)).sum();
        let live = workload.live_tokens();
        assert!((live.per_sequence / (held / steps) - 1.0).abs() < 2e-3);
        assert!((live.mean / (32.0 * held / steps) - 1.0).abs() < 2e-3);
        assert!(live.mean < live.p95 && live.p95 < live.p99 && live.p99 <= live.worst);
        assert_eq!(live.needed, live.p95);
    }

    #[test]
    fn a_shared_prefix_is_held_once() {
        let mut workload = Workload::longest(4096, 10);
        workload.prompt_tokens = 2000;
        workload.prefix_share = 0.5;
        assert_eq!(workload.live_tokens().worst, 10.0 * 3096.0 + 1000.0);
        workload.prefix_caching = false;
        assert_eq!(workload.live_tokens().worst, 40_960.0);
        assert_eq!(workload.live_tokens().guide, 1.5 * 2096.0 * 10.0);
    }

    #[test]
    fn fixed_lengths_have_no_spread() {
        let mut workload = Workload::longest(4096, 4);
        workload.output = Some(OutputLengths {
            p50: 1000.0,
            p95: 1000.0,
        });
        let live = workload.live_tokens();
        assert!((live.per_sequence - 500.0).abs() < 1e-9);
        assert!((live.mean - 2000.0).abs() < 1e-9);
    }

    #[test]
    fn impossible_workloads_are_refused() {
        let good = Workload::longest(1000, 1);
        assert!(good.check().is_ok());
        let bad: [fn(&mut Workload); 5] = [
            |w| w.context = 0,
            |w| w.concurrency = 0,
            |w| w.prompt_tokens = 1000,
            |w| w.prefix_share = 1.5,
            |w| w.thinking_share = f64::NAN,
        ];
        for spoil in bad {
            let mut workload = good.clone();
            spoil(&mut workload);
            assert!(workload.check().is_err(), "{workload:?}");
        }
    }
}

//! A scored text in figures.

use serde::Serialize;

use crate::divergence::Divergence;

/// One token's score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScore {
    /// Tokens from the text's beginning.
    pub position: usize,
    /// The token.
    pub token: u32,
    /// Its negative log-likelihood, in nats.
    pub nll: f32,
    /// The model's likeliest token there.
    pub top: u32,
    /// Against the reference, where there is one.
    pub reference: Option<Divergence>,
}

/// What a model makes of a text. Divergences are `KL(reference ‖ model)` in nats a token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TextReport {
    /// Tokens that were scored.
    pub tokens: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Tokens between the beginnings of windows.
    pub stride: usize,
    /// How long it took.
    pub seconds: f64,
    /// `exp` of the mean negative log-likelihood.
    pub perplexity: f64,
    /// The reference's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_perplexity: Option<f64>,
    /// Mean divergence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_mean: Option<f64>,
    /// Half the tokens diverge less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_median: Option<f64>,
    /// 99 of 100 tokens diverge less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_p99: Option<f64>,
    /// The largest divergence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_max: Option<f64>,
    /// Share of tokens where both find the same token likeliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top1_agreement: Option<f64>,
    /// Every token's score, in the text's order.
    #[serde(skip)]
    pub scores: Vec<TokenScore>,
}

impl TextReport {
    pub(crate) fn of(
        scores: Vec<TokenScore>,
        window: usize,
        stride: usize,
        seconds: f64,
    ) -> TextReport {
        let mean = |of: &dyn Fn(&TokenScore) -> f64| {
            scores.iter().map(of).sum::<f64>() / scores.len().max(1) as f64
        };
        let divergences: Option<Vec<Divergence>> = scores.iter().map(|s| s.reference).collect();
        let divergences = divergences.filter(|d| !d.is_empty());
        let sorted = divergences.map(|d| {
            let mut kl: Vec<f32> = d.iter().map(|d| d.kl).collect();
            kl.sort_by(f32::total_cmp);
            kl
        });
        let with_reference = |of: &dyn Fn(&TokenScore, &Divergence) -> f64| {
            let of = |s: &TokenScore| s.reference.as_ref().map_or(0.0, |d| of(s, d));
            sorted.as_ref().map(|_| mean(&of))
        };
        TextReport {
            tokens: scores.len(),
            window,
            stride,
            seconds,
            perplexity: mean(&|s| f64::from(s.nll)).exp(),
            reference_perplexity: with_reference(&|_, d| f64::from(d.nll)).map(f64::exp),
            kl_mean: with_reference(&|_, d| f64::from(d.kl)),
            kl_median: sorted.as_deref().map(|kl| quantile(kl, 0.5)),
            kl_p99: sorted.as_deref().map(|kl| quantile(kl, 0.99)),
            kl_max: sorted.as_deref().map(|kl| quantile(kl, 1.0)),
            top1_agreement: with_reference(&|s, d| f64::from(u8::from(s.top == d.top))),
            scores,
        }
    }

    /// The `count` tokens that diverge most, worst first; none without a reference.
    pub fn worst(&self, count: usize) -> Vec<&TokenScore> {
        let mut compared: Vec<_> = self
            .scores
            .iter()
            .filter(|s| s.reference.is_some())
            .collect();
        let kl = |s: &TokenScore| s.reference.map_or(0.0, |d| d.kl);
        compared.sort_by(|a, b| kl(b).total_cmp(&kl(a)));
        compared.truncate(count);
        compared
    }
}

/// The smallest value that a share `q` of the sorted values does not exceed.
fn quantile(sorted: &[f32], q: f64) -> f64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    let index = rank.clamp(1, sorted.len().max(1)) - 1;
    sorted.get(index).map_or(0.0, |&kl| f64::from(kl))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(position: usize, kl: f32, agrees: bool) -> TokenScore {
        TokenScore {
            position,
            token: 0,
            nll: 1.0,
            top: 3,
            reference: Some(Divergence {
                kl,
                nll: 2.0,
                top: if agrees { 3 } else { 4 },
            }),
        }
    }

    #[test]
    fn a_report_of_known_divergences() {
        let scores = (0..100)
            .map(|i| token(i, i as f32 / 100.0, i % 4 != 0))
            .collect();
        let report = TextReport::of(scores, 8, 4, 0.5);
        assert_eq!(report.perplexity, 1f64.exp());
        assert_eq!(report.reference_perplexity, Some(2f64.exp()));
        let close = |found: Option<f64>, wanted: f64| (found.unwrap() - wanted).abs() < 1e-6;
        assert!(close(report.kl_mean, 0.495));
        assert!(close(report.kl_median, 0.49));
        assert!(close(report.kl_p99, 0.98));
        assert!(close(report.kl_max, 0.99));
        assert_eq!(report.top1_agreement, Some(0.75));
        let worst: Vec<usize> = report.worst(3).iter().map(|s| s.position).collect();
        assert_eq!(worst, [99, 98, 97]);
    }

    #[test]
    fn without_a_reference_there_is_only_perplexity() {
        let alone = TokenScore {
            reference: None,
            ..token(1, 0.0, true)
        };
        let report = TextReport::of(vec![alone], 8, 4, 0.5);
        let json = serde_json::to_value(&report).unwrap();
        assert!(json.get("kl_mean").is_none() && json.get("scores").is_none());
        assert!(report.worst(5).is_empty());
    }
}

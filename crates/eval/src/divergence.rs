//! Two distributions over the next token, from their logits.

/// What two rows of logits say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Comparison {
    /// The model's negative log-likelihood of the token, in nats.
    pub nll: f32,
    /// The model's likeliest token.
    pub top: u32,
    /// Against the reference, where there is one.
    pub reference: Option<Divergence>,
}

/// How far a model's distribution is from the reference's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// `KL(reference ‖ model)`, in nats; never negative.
    pub kl: f32,
    /// The reference's negative log-likelihood of the token, in nats.
    pub nll: f32,
    /// The reference's likeliest token.
    pub top: u32,
}

/// Compares a model's row of logits with the reference's, `[vocab_size]` each.
///
/// # Errors
/// The name of the one whose logits are not finite.
pub(crate) fn compare(
    model: &[f32],
    reference: Option<&[f32]>,
    token: u32,
) -> Result<Comparison, &'static str> {
    let q = Distribution::of(model).ok_or("the model")?;
    let reference = match reference {
        None => None,
        Some(row) => {
            let p = Distribution::of(row).ok_or("the reference")?;
            Some(Divergence {
                kl: kl(&p, &q) as f32,
                nll: p.nll(token),
                top: p.top,
            })
        }
    };
    Ok(Comparison {
        nll: q.nll(token),
        top: q.top,
        reference,
    })
}

struct Distribution<'a> {
    logits: &'a [f32],
    top: u32,
    /// `ln Σ exp(logit)`.
    log_sum: f64,
}

impl<'a> Distribution<'a> {
    /// `None` when a logit is NaN or +∞, or all are -∞.
    fn of(logits: &'a [f32]) -> Option<Distribution<'a>> {
        let mut top = 0;
        for (i, &x) in logits.iter().enumerate() {
            if x.is_nan() {
                return None;
            }
            if x > logits[top] {
                top = i;
            }
        }
        let best = *logits.get(top)?;
        if !best.is_finite() {
            return None;
        }
        let sum: f64 = logits.iter().map(|&x| f64::from((x - best).exp())).sum();
        Some(Distribution {
            logits,
            top: top as u32,
            log_sum: f64::from(best) + sum.ln(),
        })
    }

    fn nll(&self, token: u32) -> f32 {
        let logit = self.logits.get(token as usize).copied();
        (self.log_sum - f64::from(logit.unwrap_or(f32::NEG_INFINITY))) as f32
    }
}

/// `Σ p (ln p - ln q)`. Rounding may leave a difference of nearly equal distributions below 0.
fn kl(p: &Distribution<'_>, q: &Distribution<'_>) -> f64 {
    let shift = q.log_sum - p.log_sum;
    let sum: f64 = p
        .logits
        .iter()
        .zip(q.logits)
        .map(|(&a, &b)| {
            let log_p = (f64::from(a) - p.log_sum) as f32;
            let weight = f64::from(log_p.exp());
            if weight > 0.0 {
                weight * (f64::from(a) - f64::from(b) + shift)
            } else {
                0.0
            }
        })
        .sum();
    sum.max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_distributions() {
        // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4), both shifted.
        let p = [2f32.ln() + 3.0, 3.0, 3.0];
        let q = [-5.0, 2f32.ln() - 5.0, -5.0];
        let found = compare(&q, Some(&p), 0).unwrap();
        let reference = found.reference.unwrap();
        assert_eq!((found.top, reference.top), (1, 0));
        assert!((found.nll - 4f32.ln()).abs() < 1e-6);
        assert!((reference.nll - 2f32.ln()).abs() < 1e-6);
        let wanted = 0.5 * 2f32.ln() - 0.25 * 2f32.ln();
        assert!((reference.kl - wanted).abs() < 1e-6, "{}", reference.kl);
        assert_eq!(compare(&p, Some(&p), 0).unwrap().reference.unwrap().kl, 0.0);
    }

    #[test]
    fn impossible_tokens_are_infinitely_unlikely_and_no_number_is_said() {
        let row = [0.0, f32::NEG_INFINITY];
        assert_eq!(compare(&row, None, 1).unwrap().nll, f32::INFINITY);
        assert_eq!(compare(&row, None, 9).unwrap().nll, f32::INFINITY);
        let both = compare(&row, Some(&row), 0).unwrap().reference.unwrap();
        assert_eq!(both.kl, 0.0);
        assert_eq!(compare(&[0.0, f32::NAN], None, 0), Err("the model"));
        assert_eq!(compare(&[], None, 0), Err("the model"));
        assert_eq!(
            compare(&row, Some(&[f32::INFINITY, 0.0]), 0),
            Err("the reference")
        );
    }
}

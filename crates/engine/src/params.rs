//! What a request may ask of the sampler, checked once on the way in.

use std::collections::BTreeMap;

/// How tokens are chosen, with the meanings and defaults that vLLM's users know.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides logits; 0 is greedy. In 0..=100.
    pub temperature: f32,
    /// Keep the `k` best tokens; `None` keeps all.
    pub top_k: Option<u32>,
    /// Keep the smallest set of best tokens whose probability reaches this. In (0, 1].
    pub top_p: f32,
    /// Drop tokens below this share of the best one's probability. In 0..=1.
    pub min_p: f32,
    /// Divides (multiplies, when negative) the logits of tokens seen in prompt or output. In (0, 10].
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens seen in the output. In -2..=2.
    pub presence_penalty: f32,
    /// Subtracted for each time a token was seen in the output. In -2..=2.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens. Values in -100..=100.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Seed of the request's own random stream.
    pub seed: u64,
    /// Tokens before which end-of-sequence is never chosen.
    pub min_tokens: u32,
    /// Report the chosen token's log probability and those of so many best tokens.
    pub logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: 0,
            min_tokens: 0,
            logprobs: None,
        }
    }
}

/// A sampling parameter outside its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field} is {value}, but must be {allowed}")]
pub struct SamplingError {
    /// The parameter's name in the API.
    pub field: &'static str,
    /// The value given.
    pub value: String,
    /// What is allowed.
    pub allowed: &'static str,
}

/// Most `top_logprobs` a request may ask for (the OpenAI API's limit).
pub const MAX_LOGPROBS: u32 = 20;

impl SamplingParams {
    /// Checks every range, for a vocabulary of `vocab_size` tokens.
    ///
    /// # Errors
    /// Names the first field outside its range; NaN is outside every range.
    pub fn validate(&self, vocab_size: usize) -> Result<(), SamplingError> {
        let in_range = |x: f32, low: f32, high: f32| x >= low && x <= high;
        let above_zero = |x: f32, high: f32| x > 0.0 && x <= high;
        let ranges = [
            (
                "temperature",
                self.temperature,
                in_range(self.temperature, 0.0, 100.0),
                "from 0 to 100",
            ),
            (
                "top_p",
                self.top_p,
                above_zero(self.top_p, 1.0),
                "above 0 and at most 1",
            ),
            (
                "min_p",
                self.min_p,
                in_range(self.min_p, 0.0, 1.0),
                "from 0 to 1",
            ),
            (
                "repetition_penalty",
                self.repetition_penalty,
                above_zero(self.repetition_penalty, 10.0),
                "above 0 and at most 10",
            ),
            (
                "presence_penalty",
                self.presence_penalty,
                in_range(self.presence_penalty, -2.0, 2.0),
                "from -2 to 2",
            ),
            (
                "frequency_penalty",
                self.frequency_penalty,
                in_range(self.frequency_penalty, -2.0, 2.0),
                "from -2 to 2",
            ),
        ];
        for (field, value, ok, allowed) in ranges {
            if !ok {
                return Err(SamplingError {
                    field,
                    value: value.to_string(),
                    allowed,
                });
            }
        }
        if self.top_k == Some(0) {
            let value = "0".into();
            return Err(SamplingError {
                field: "top_k",
                value,
                allowed: "at least 1, or left out",
            });
        }
        if let Some(n) = self.logprobs.filter(|&n| n > MAX_LOGPROBS) {
            let value = n.to_string();
            return Err(SamplingError {
                field: "top_logprobs",
                value,
                allowed: "from 0 to 20",
            });
        }
        for (&token, &bias) in &self.logit_bias {
            if token as usize >= vocab_size {
                let value = token.to_string();
                return Err(SamplingError {
                    field: "logit_bias",
                    value,
                    allowed: "a token of the vocabulary",
                });
            }
            if !in_range(bias, -100.0, 100.0) {
                let value = bias.to_string();
                return Err(SamplingError {
                    field: "logit_bias",
                    value,
                    allowed: "from -100 to 100",
                });
            }
        }
        Ok(())
    }

    /// Whether the best token is always chosen.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_refuses_nan_and_what_is_out_of_range() {
        type Set = fn(&mut SamplingParams, f32);
        let fields: [(&str, Set, f32); 6] = [
            ("temperature", |p, x| p.temperature = x, -0.1),
            ("top_p", |p, x| p.top_p = x, 0.0),
            ("min_p", |p, x| p.min_p = x, 1.5),
            ("repetition_penalty", |p, x| p.repetition_penalty = x, -1.0),
            ("presence_penalty", |p, x| p.presence_penalty = x, 2.5),
            ("frequency_penalty", |p, x| p.frequency_penalty = x, -3.0),
        ];
        assert_eq!(SamplingParams::default().validate(10), Ok(()));
        for (name, set, bad) in fields {
            for x in [bad, f32::NAN, f32::INFINITY] {
                let mut params = SamplingParams::default();
                set(&mut params, x);
                assert_eq!(params.validate(10).unwrap_err().field, name, "{x}");
            }
        }
        let mut params = SamplingParams::default();
        params.logit_bias.insert(10, 1.0);
        assert_eq!(params.validate(10).unwrap_err().field, "logit_bias");
    }
}

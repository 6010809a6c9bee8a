//! The fields that chat and plain completions share → an engine request without its prompt.

use std::collections::BTreeMap;

use scrimp_engine::{GenerateRequest, Reasoning, SamplingParams};

use super::{MAX_CHOICES, MAX_LOGIT_BIAS};
use crate::api::{GenerationFields, LogitBias, Stop};
use crate::error::ApiError;

/// How to generate and how to answer.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The model asked for; `None` takes the one there is.
    pub model: Option<String>,
    /// How to stream, if at all.
    pub stream: Option<Stream>,
    /// What goes to the engine, but for `prompt` and `reasoning`.
    pub request: GenerateRequest,
}

/// How an answer is streamed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// A last chunk tells the usage.
    pub include_usage: bool,
    /// Every chunk tells the usage so far.
    pub continuous_usage: bool,
}

impl Generation {
    /// Checks and converts `fields`; `default_max_tokens` and `defaults` are used where they give
    /// nothing.
    pub(super) fn new(
        fields: GenerationFields,
        default_max_tokens: Option<usize>,
        defaults: &SamplingParams,
    ) -> Result<Self, ApiError> {
        if let Some(format) = fields
            .response_format
            .as_ref()
            .filter(|f| f.r#type != "text")
        {
            let message = format!(
                "response_format: only the type \"text\" is supported yet, not {:?}",
                clip(&format.r#type)
            );
            return Err(ApiError::unsupported("response_format", message));
        }
        if fields.cache_salt.as_deref() == Some("") {
            return Err(ApiError::invalid(
                "cache_salt",
                "cache_salt must not be empty",
            ));
        }
        let stream = stream(&fields)?;
        let max_tokens = fields
            .max_completion_tokens
            .or(fields.max_tokens)
            .or(default_max_tokens);
        let sampling = sampling(&fields, defaults)?;
        let min_tokens = sampling.min_tokens as usize;
        if let Some(max) = max_tokens.filter(|&max| max < min_tokens) {
            let message = format!("min_tokens is {min_tokens}, but max_tokens is only {max}");
            return Err(ApiError::invalid("min_tokens", message));
        }
        let request = GenerateRequest {
            prompt: Vec::new(),
            sampling,
            max_tokens,
            n: fields.n.unwrap_or(1),
            stop: match fields.stop {
                None => Vec::new(),
                Some(Stop::One(text)) => vec![text],
                Some(Stop::Many(texts)) => texts,
            },
            stop_token_ids: fields.stop_token_ids.unwrap_or_default(),
            ignore_eos: fields.ignore_eos.unwrap_or(false),
            skip_special_tokens: fields.skip_special_tokens.unwrap_or(true),
            reasoning: Reasoning::Off,
            thinking_token_budget: None,
            priority: fields.priority.unwrap_or(0),
            cache_salt: fields.cache_salt,
        };
        check(&request)?;
        Ok(Generation {
            model: fields.model,
            stream,
            request,
        })
    }

    /// Refuses more completions in all than one HTTP request may ask for.
    pub(super) fn check_choices(&self, prompts: usize) -> Result<(), ApiError> {
        let choices = prompts.saturating_mul(self.request.n);
        if choices <= MAX_CHOICES {
            return Ok(());
        }
        let message = format!(
            "{prompts} prompts with n = {} are {choices} completions, but one request may ask for \
             at most {MAX_CHOICES}",
            self.request.n
        );
        Err(ApiError::invalid("n", message))
    }
}

/// Checks with the engine's own rules before a prompt is tokenized at all.
fn check(request: &GenerateRequest) -> Result<(), ApiError> {
    let with_a_prompt = GenerateRequest {
        prompt: vec![0],
        ..request.clone()
    };
    with_a_prompt
        .validate(usize::MAX, usize::MAX)
        .map_err(ApiError::from)
}

fn stream(fields: &GenerationFields) -> Result<Option<Stream>, ApiError> {
    let options = fields.stream_options;
    if fields.stream != Some(true) {
        return match options {
            Some(_) => Err(ApiError::invalid(
                "stream_options",
                "stream_options needs stream",
            )),
            None => Ok(None),
        };
    }
    let options = options.unwrap_or_default();
    let continuous_usage = options.continuous_usage_stats.unwrap_or(false);
    let include_usage = options.include_usage.unwrap_or(false);
    Ok(Some(Stream {
        include_usage,
        continuous_usage,
    }))
}

fn sampling(
    fields: &GenerationFields,
    default: &SamplingParams,
) -> Result<SamplingParams, ApiError> {
    Ok(SamplingParams {
        temperature: fields.temperature.unwrap_or(default.temperature),
        top_k: fields.top_k.map_or(Ok(default.top_k), top_k)?,
        top_p: fields.top_p.unwrap_or(default.top_p),
        min_p: fields.min_p.unwrap_or(default.min_p),
        repetition_penalty: fields
            .repetition_penalty
            .unwrap_or(default.repetition_penalty),
        presence_penalty: fields.presence_penalty.unwrap_or(default.presence_penalty),
        frequency_penalty: fields
            .frequency_penalty
            .unwrap_or(default.frequency_penalty),
        logit_bias: logit_bias(fields.logit_bias.as_ref())?,
        seed: fields
            .seed
            .map_or_else(|| fastrand::u64(..), i64::cast_unsigned),
        min_tokens: fields.min_tokens.unwrap_or(0),
        logprobs: None,
    })
}

fn top_k(given: i64) -> Result<Option<u32>, ApiError> {
    match given {
        -1 | 0 => Ok(None),
        // A `k` beyond any vocabulary keeps all tokens.
        k if k > 0 => Ok(Some(u32::try_from(k).unwrap_or(u32::MAX))),
        k => {
            let message = format!("top_k is {k}, but must be at least 1, or 0 or -1 for all");
            Err(ApiError::invalid("top_k", message))
        }
    }
}

fn logit_bias(given: Option<&LogitBias>) -> Result<BTreeMap<u32, f32>, ApiError> {
    let Some(given) = given else {
        return Ok(BTreeMap::new());
    };
    if given.len() > MAX_LOGIT_BIAS {
        let message = format!(
            "logit_bias has {} entries, but at most {MAX_LOGIT_BIAS} may",
            given.len()
        );
        return Err(ApiError::invalid("logit_bias", message));
    }
    let entry = |(key, &bias): (&String, &f32)| match key.parse() {
        Ok(token) => Ok((token, bias)),
        Err(_) => {
            let message = format!(
                "logit_bias has the key {:?}, which is no token id",
                clip(key)
            );
            Err(ApiError::invalid("logit_bias", message))
        }
    };
    given.iter().map(entry).collect()
}

/// The start of a text from outside, short enough to be part of a message.
pub(super) fn clip(text: &str) -> String {
    text.chars().take(100).collect()
}

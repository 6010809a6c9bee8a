//! From a conversation or a text to a request, with the model's own sampling defaults.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use scrimp_engine::{GenerateRequest, Reasoning, SamplingParams};
use scrimp_text::TemplateInput;
use serde_json::{Map, Value, json};

use crate::opened::Opened;

/// A message of a conversation.
pub fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

/// The next turn of a conversation; `kwargs` go to the chat template.
pub fn chat(
    opened: &Opened,
    messages: &[Value],
    kwargs: &Map<String, Value>,
) -> Result<GenerateRequest> {
    let text = &opened.text;
    let Some(template) = &text.template else {
        bail!(
            "{} has no chat template: use --raw to continue a text as it is",
            opened.name
        );
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs() as i64);
    let prompt = template.render(&TemplateInput {
        messages,
        tools: None,
        add_generation_prompt: true,
        kwargs: Some(kwargs),
        now,
    })?;
    let reasoning = match &text.reasoning {
        Some(format) if format.is_open_after(&prompt) => Reasoning::Thinking,
        Some(_) => Reasoning::MayThink,
        None => Reasoning::Off,
    };
    Ok(GenerateRequest {
        prompt: text.tokenizer.encode(&prompt, false)?,
        reasoning,
        ..request(opened)
    })
}

/// A text to be continued as it is.
pub fn continuation(opened: &Opened, text: &str) -> Result<GenerateRequest> {
    let prompt = opened.text.tokenizer.encode(text, true)?;
    Ok(GenerateRequest {
        prompt,
        ..request(opened)
    })
}

/// One completion with the model's own sampling defaults.
fn request(opened: &Opened) -> GenerateRequest {
    GenerateRequest {
        sampling: sampling(opened),
        n: 1,
        skip_special_tokens: true,
        ..GenerateRequest::default()
    }
}

/// Sampling as the model's `generation_config.json` says, what it leaves out by default.
pub fn sampling(opened: &Opened) -> SamplingParams {
    let own = |name: &str| opened.generation.as_ref().and_then(|g| g.get(name));
    let float = |name: &str| own(name).and_then(Value::as_f64).map(|x| x as f32);
    let greedy = own("do_sample").and_then(Value::as_bool) == Some(false);
    let defaults = SamplingParams::default();
    let top_k = own("top_k").and_then(Value::as_u64).filter(|&k| k > 0);
    SamplingParams {
        temperature: match greedy {
            true => 0.0,
            false => float("temperature").unwrap_or(defaults.temperature),
        },
        top_k: top_k.and_then(|k| u32::try_from(k).ok()),
        top_p: float("top_p").unwrap_or(defaults.top_p),
        min_p: float("min_p").unwrap_or(defaults.min_p),
        repetition_penalty: float("repetition_penalty").unwrap_or(defaults.repetition_penalty),
        ..defaults
    }
}

//! Requests → prompts: the model's text side, as the server uses it.

use scrimp_engine::{GenerateRequest, Reasoning};
use scrimp_text::{ChatTemplate, ReasoningFormat, TemplateError, TemplateInput, Tokenizer};
use serde_json::{Map, Value};

use crate::answer::token_text;
use crate::app::unix_seconds;
use crate::error::ApiError;
use crate::parse::{
    ChatMessage, ChatRequest, CompletionRequest, Prompts, TemplateOptions, TokenizeInput,
};

/// Turns requests into tokens, and tokens into text. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ModelText {
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template; without one, chat is refused.
    pub template: Option<ChatTemplate>,
    /// The tags of its chain of thought; without them, all text is answer.
    pub reasoning: Option<ReasoningFormat>,
}

/// A prompt may be longer than the longest sequence by this factor before counting its tokens
/// stops: most refusals then say by how much it is too long.
const COUNTED: usize = 2;

impl ModelText {
    /// With the tags of thinking that the tokenizer or the template name, if any.
    pub fn new(tokenizer: Tokenizer, template: Option<ChatTemplate>) -> Self {
        let reasoning = ReasoningFormat::discover(&tokenizer, template.as_ref());
        ModelText {
            tokenizer,
            template,
            reasoning,
        }
    }

    /// The prompt of a conversation, ready to run.
    pub(crate) fn chat_request(
        &self,
        chat: &ChatRequest,
        max_model_len: usize,
    ) -> Result<GenerateRequest, ApiError> {
        let text = self.render(&chat.messages, &chat.template)?;
        let limit = max_model_len.saturating_mul(COUNTED);
        let reasoning = match &self.reasoning {
            None => Reasoning::Off,
            Some(format) if format.is_open_after(&text) => Reasoning::Thinking,
            Some(_) => Reasoning::MayThink,
        };
        Ok(GenerateRequest {
            // The template writes the first token itself.
            prompt: self.tokenizer.encode_within(&text, false, limit)?,
            reasoning,
            ..chat.generation.request.clone()
        })
    }

    /// The prompts of plain completions, ready to run, and their texts if they are to be echoed.
    pub(crate) fn completion_requests(
        &self,
        completion: &CompletionRequest,
        max_model_len: usize,
    ) -> Result<(Vec<GenerateRequest>, Vec<String>), ApiError> {
        let limit = max_model_len.saturating_mul(COUNTED);
        let special = completion.add_special_tokens;
        let encode = |text: &String| self.tokenizer.encode_within(text, special, limit);
        let prompts = match &completion.prompts {
            Prompts::Texts(texts) => texts.iter().map(encode).collect::<Result<_, _>>()?,
            Prompts::Tokens(lists) => lists.clone(),
        };
        let echoes = match &completion.prompts {
            _ if !completion.echo => Vec::new(),
            Prompts::Texts(texts) => texts.clone(),
            Prompts::Tokens(lists) => lists
                .iter()
                .map(|ids| self.tokenizer.decode(ids, true))
                .collect(),
        };
        let request = |prompt| GenerateRequest {
            prompt,
            ..completion.generation.request.clone()
        };
        Ok((prompts.into_iter().map(request).collect(), echoes))
    }

    /// The tokens of `input`.
    pub(crate) fn tokenize(&self, input: &TokenizeInput) -> Result<Vec<u32>, ApiError> {
        match input {
            TokenizeInput::Text {
                text,
                add_special_tokens,
            } => Ok(self.tokenizer.encode(text, *add_special_tokens)?),
            TokenizeInput::Chat { messages, template } => {
                let text = self.render(messages, template)?;
                Ok(self.tokenizer.encode(&text, false)?)
            }
        }
    }

    /// Each token's text by itself.
    pub(crate) fn token_texts(&self, tokens: &[u32]) -> Vec<String> {
        tokens
            .iter()
            .map(|&id| token_text(&self.tokenizer, id))
            .collect()
    }

    /// The text of `tokens`, special ones included.
    pub(crate) fn detokenize(&self, tokens: &[u32]) -> Result<String, ApiError> {
        if let Some(id) = tokens
            .iter()
            .find(|&&id| self.tokenizer.token_bytes(id).is_none())
        {
            let size = self.tokenizer.vocab_size();
            let message = format!("token {id} is not in the vocabulary of {size} tokens");
            return Err(ApiError::invalid("tokens", message));
        }
        Ok(self.tokenizer.decode(tokens, false))
    }

    /// The text of a conversation as the model was trained on it.
    fn render(
        &self,
        messages: &[ChatMessage],
        options: &TemplateOptions,
    ) -> Result<String, ApiError> {
        let template = self.template.as_ref().ok_or(TemplateError::Missing)?;
        let values: Vec<Value> = messages.iter().map(message_value).collect();
        let text = template.render(&TemplateInput {
            messages: &values,
            tools: (!options.tools.is_empty()).then_some(&options.tools),
            add_generation_prompt: options.add_generation_prompt,
            kwargs: Some(&options.kwargs),
            now: i64::try_from(unix_seconds()).unwrap_or(i64::MAX),
        })?;
        match messages.last() {
            Some(last) if options.continue_final_message => cut_after(text, last.content.trim()),
            _ => Ok(text),
        }
    }
}

/// A message as templates read it: only the fields that were given.
fn message_value(message: &ChatMessage) -> Value {
    let mut object = Map::new();
    let mut set = |name: &str, value: Value| object.insert(name.into(), value);
    set("role", message.role.as_str().into());
    set("content", message.content.as_str().into());
    if let Some(thinking) = &message.reasoning_content {
        set("reasoning_content", thinking.as_str().into());
    }
    if !message.tool_calls.is_empty() {
        set("tool_calls", Value::Array(message.tool_calls.clone()));
    }
    if let Some(id) = &message.tool_call_id {
        set("tool_call_id", id.as_str().into());
    }
    if let Some(name) = &message.name {
        set("name", name.as_str().into());
    }
    Value::Object(object)
}

/// Drops what the template wrote after the last message's text, so that the model goes on there.
fn cut_after(mut text: String, last: &str) -> Result<String, ApiError> {
    let end = text
        .rfind(last)
        .filter(|_| !last.is_empty())
        .map(|start| start + last.len());
    let end = end.ok_or_else(|| {
        let message = "continue_final_message: the last message's text is empty, or is not part \
                       of the prompt that the chat template makes";
        ApiError::invalid("continue_final_message", message)
    })?;
    text.truncate(end);
    Ok(text)
}

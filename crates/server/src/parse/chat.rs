//! The body of a chat completion, and of `/tokenize`, which takes a conversation too.

use scrimp_engine::SamplingParams;
use serde_json::{Map, Value};

use super::generation::{Generation, clip};
use super::{object, read, unsupported};
use crate::api::{ChatBody, Content, GenerationFields, InputMessage, TokenizeRequest};
use crate::error::ApiError;

/// A checked chat completion.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// The conversation; at least one message.
    pub messages: Vec<ChatMessage>,
    /// How the conversation becomes a prompt.
    pub template: TemplateOptions,
    /// How to generate.
    pub generation: Generation,
}

/// A checked message.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: Role,
    /// The text; empty only for an assistant that called tools or broke off while thinking.
    pub content: String,
    /// The thinking of an earlier turn.
    pub reasoning_content: Option<String>,
    /// Tools that the assistant called, as the API words them.
    pub tool_calls: Vec<Value>,
    /// Which call a tool's message answers.
    pub tool_call_id: Option<String>,
    /// Name of the participant.
    pub name: Option<String>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The operator (`developer` is OpenAI's newer name for it).
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// A tool that the model called.
    Tool,
}

impl Role {
    /// The name that chat templates know.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }

    fn parse(name: &str) -> Option<Role> {
        match name {
            "system" | "developer" => Some(Role::System),
            "user" => Some(Role::User),
            "assistant" => Some(Role::Assistant),
            "tool" => Some(Role::Tool),
            _ => None,
        }
    }
}

/// How a conversation becomes a prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TemplateOptions {
    /// Functions that the model may call.
    pub tools: Vec<Value>,
    /// Variables for the template.
    pub kwargs: Map<String, Value>,
    /// Whether the prompt ends by opening the assistant's turn.
    pub add_generation_prompt: bool,
    /// Whether the prompt ends inside the last message.
    pub continue_final_message: bool,
}

/// The body of `POST /v1/chat/completions`; sampling parameters that it leaves out are `defaults`.
///
/// # Errors
/// Says where the JSON is broken, which field is missing, has the wrong type or a value out of
/// range, or asks for something that is not supported.
pub fn parse_chat_request(body: &[u8], defaults: &SamplingParams) -> Result<ChatRequest, ApiError> {
    let object = object(body)?;
    unsupported::refuse_in_chat(&object)?;
    let fields: GenerationFields = read(&object)?;
    let chat: ChatBody = read(&object)?;

    let logprobs = logprobs(chat.logprobs, chat.top_logprobs)?;
    let mut template = TemplateOptions {
        tools: tools(chat.tools, chat.tool_choice.as_ref())?,
        kwargs: chat.chat_template_kwargs.unwrap_or_default(),
        add_generation_prompt: chat.add_generation_prompt.unwrap_or(true),
        continue_final_message: chat.continue_final_message.unwrap_or(false),
    };
    if chat.reasoning_effort.as_deref() == Some("none") {
        for switch in ["enable_thinking", "thinking"] {
            template.kwargs.entry(switch).or_insert(Value::Bool(false));
        }
    }
    let messages = messages(chat.messages)?;
    if template.continue_final_message {
        if chat.add_generation_prompt == Some(true) {
            let message = "continue_final_message and add_generation_prompt exclude each other";
            return Err(ApiError::invalid("continue_final_message", message));
        }
        template.add_generation_prompt = false;
    }
    let mut generation = Generation::new(fields, None, defaults)?;
    generation.check_choices(1)?;
    generation.request.thinking_token_budget = chat.thinking_token_budget;
    generation.request.sampling.logprobs = logprobs;
    generation
        .request
        .sampling
        .validate(usize::MAX)
        .map_err(scrimp_engine::RequestError::from)?;
    Ok(ChatRequest {
        messages,
        template,
        generation,
    })
}

/// What `/tokenize` turns into tokens.
#[derive(Clone, Debug)]
pub enum TokenizeInput {
    /// A text.
    Text {
        /// The text.
        text: String,
        /// Whether the model's own first token is put in front.
        add_special_tokens: bool,
    },
    /// A conversation.
    Chat {
        /// At least one message.
        messages: Vec<ChatMessage>,
        /// How it becomes a prompt.
        template: TemplateOptions,
    },
}

/// The body of `POST /tokenize`: the model asked for, the input, whether texts are wanted too.
///
/// # Errors
/// As [`parse_chat_request`]; exactly one of `prompt` and `messages` must be there.
pub fn parse_tokenize_request(
    body: &[u8],
) -> Result<(Option<String>, TokenizeInput, bool), ApiError> {
    let body: TokenizeRequest = read(&object(body)?)?;
    let input = match (body.prompt, body.messages) {
        (Some(text), None) => TokenizeInput::Text {
            text,
            add_special_tokens: body.add_special_tokens.unwrap_or(true),
        },
        (None, Some(list)) => TokenizeInput::Chat {
            messages: messages(list)?,
            template: TemplateOptions {
                tools: body.tools.unwrap_or_default(),
                kwargs: body.chat_template_kwargs.unwrap_or_default(),
                add_generation_prompt: body.add_generation_prompt.unwrap_or(true),
                continue_final_message: false,
            },
        },
        _ => {
            return Err(ApiError::invalid(
                "prompt",
                "give either prompt or messages",
            ));
        }
    };
    Ok((body.model, input, body.return_token_strs.unwrap_or(false)))
}

fn logprobs(wanted: Option<bool>, top: Option<u32>) -> Result<Option<u32>, ApiError> {
    match (wanted.unwrap_or(false), top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::invalid(
            "top_logprobs",
            "top_logprobs needs logprobs to be true",
        )),
    }
}

fn tools(tools: Option<Vec<Value>>, choice: Option<&Value>) -> Result<Vec<Value>, ApiError> {
    match choice {
        None | Some(Value::Null) => Ok(tools.unwrap_or_default()),
        Some(choice) if choice == "auto" => Ok(tools.unwrap_or_default()),
        Some(choice) if choice == "none" => Ok(Vec::new()),
        Some(_) => {
            let message = "tool_choice: only \"auto\" and \"none\" are supported; a call cannot \
                           be forced";
            Err(ApiError::unsupported("tool_choice", message))
        }
    }
}

fn messages(given: Vec<InputMessage>) -> Result<Vec<ChatMessage>, ApiError> {
    if given.is_empty() {
        return Err(ApiError::invalid(
            "messages",
            "messages is empty: give at least one",
        ));
    }
    given
        .into_iter()
        .enumerate()
        .map(|(index, given)| message(index, given))
        .collect()
}

fn message(index: usize, given: InputMessage) -> Result<ChatMessage, ApiError> {
    let role = Role::parse(&given.role).ok_or_else(|| {
        let message = format!(
            "messages[{index}].role is {:?}, but must be system, developer, user, assistant or \
             tool",
            clip(&given.role)
        );
        ApiError::invalid(format!("messages[{index}].role"), message)
    })?;
    let reasoning_content = given.reasoning_content.or(given.reasoning);
    let tool_calls = given.tool_calls.unwrap_or_default();
    let content = match given.content {
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => {
            let mut text = String::new();
            for (part_index, part) in parts.into_iter().enumerate() {
                let place = format!("messages[{index}].content[{part_index}]");
                if part.r#type != "text" {
                    let message = format!(
                        "{place}.type is {:?}, but only \"text\" is supported",
                        clip(&part.r#type)
                    );
                    return Err(ApiError::invalid(format!("{place}.type"), message));
                }
                let Some(part) = part.text else {
                    return Err(ApiError::invalid(
                        place.clone(),
                        format!("{place}.text is missing"),
                    ));
                };
                text.push_str(&part);
            }
            text
        }
        None if role == Role::Assistant
            && (!tool_calls.is_empty() || reasoning_content.is_some()) =>
        {
            String::new()
        }
        None => {
            let place = format!("messages[{index}].content");
            return Err(ApiError::invalid(
                place.clone(),
                format!("{place} is missing"),
            ));
        }
    };
    let (tool_call_id, name) = (given.tool_call_id, given.name);
    Ok(ChatMessage {
        role,
        content,
        reasoning_content,
        tool_calls,
        tool_call_id,
        name,
    })
}

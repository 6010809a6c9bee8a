//! The body of a plain completion.

use scrimp_engine::SamplingParams;

use super::generation::Generation;
use super::{object, read, unsupported};
use crate::api::{CompletionBody, GenerationFields, Prompt};
use crate::error::ApiError;

/// A checked plain completion.
#[derive(Clone, Debug)]
pub struct CompletionRequest {
    /// At least one.
    pub prompts: Prompts,
    /// Whether answers start with their prompt.
    pub echo: bool,
    /// Whether the model's own first token is put in front of a text.
    pub add_special_tokens: bool,
    /// How to generate.
    pub generation: Generation,
}

/// Prompts, as text or as token ids.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompts {
    /// Texts, to be tokenized.
    Texts(Vec<String>),
    /// Token ids.
    Tokens(Vec<Vec<u32>>),
}

impl Prompts {
    fn len(&self) -> usize {
        match self {
            Prompts::Texts(texts) => texts.len(),
            Prompts::Tokens(lists) => lists.len(),
        }
    }
}

impl CompletionRequest {
    /// Completions asked for: prompts times `n`.
    pub fn completions(&self) -> usize {
        self.prompts.len() * self.generation.request.n
    }
}

/// `max_tokens` of a plain completion that gives none (the OpenAI API's default).
const DEFAULT_MAX_TOKENS: usize = 16;

/// The body of `POST /v1/completions`; sampling parameters that it leaves out are `defaults`.
///
/// # Errors
/// Says where the JSON is broken, which field is missing, has the wrong type or a value out of
/// range, or asks for something that is not supported.
pub fn parse_completion_request(
    body: &[u8],
    defaults: &SamplingParams,
) -> Result<CompletionRequest, ApiError> {
    let object = object(body)?;
    unsupported::refuse_in_completion(&object)?;
    let fields: GenerationFields = read(&object)?;
    let body: CompletionBody = read(&object)?;

    let prompts = match body.prompt {
        Prompt::Text(text) => Prompts::Texts(vec![text]),
        Prompt::Texts(texts) => Prompts::Texts(texts),
        Prompt::Tokens(tokens) => Prompts::Tokens(vec![tokens]),
        Prompt::TokenLists(lists) => Prompts::Tokens(lists),
    };
    let count = prompts.len();
    if count == 0 {
        return Err(ApiError::invalid(
            "prompt",
            "prompt is an empty list: give at least one",
        ));
    }
    let echo = body.echo.unwrap_or(false);
    if echo && body.logprobs.is_some() {
        let message = "echo with logprobs would need the prompt's log probabilities, which are \
                       not supported: leave one of them out";
        return Err(ApiError::unsupported("echo", message));
    }
    let mut generation = Generation::new(fields, Some(DEFAULT_MAX_TOKENS), defaults)?;
    generation.check_choices(count)?;
    generation.request.sampling.logprobs = body.logprobs;
    generation
        .request
        .sampling
        .validate(usize::MAX)
        .map_err(scrimp_engine::RequestError::from)?;
    Ok(CompletionRequest {
        prompts,
        echo,
        add_special_tokens: body.add_special_tokens.unwrap_or(true),
        generation,
    })
}

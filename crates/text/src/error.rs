//! What can go wrong with a tokenizer or a chat template, said so that the reader knows what to do.

use std::path::PathBuf;

/// Why a tokenizer could not be loaded, or a text not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not the JSON it should be.
    #[error("{file} is not valid: {source}")]
    Json {
        /// Which file, by its usual name.
        file: &'static str,
        /// What the JSON reader said, with line and column.
        source: serde_json::Error,
    },
    /// The tokenizer is of a kind that scrimp does not run.
    #[error(
        "unsupported tokenizer: {what}. scrimp reads BPE tokenizers, byte-level or SentencePiece, from tokenizer.json or GGUF"
    )]
    Unsupported {
        /// The part that is not supported, with its name in the file.
        what: String,
    },
    /// The tokenizer is one that GGUF's key-values have no words for.
    #[error("a GGUF file cannot hold this tokenizer: {what}")]
    NotInGguf {
        /// What it has that they have not.
        what: String,
    },
    /// The tokenizer contradicts itself.
    #[error(
        "broken tokenizer: {what}. The file is damaged or was converted wrongly; fetch it again"
    )]
    Invalid {
        /// The contradiction, with the numbers.
        what: String,
    },
    /// The text has more tokens than the caller allows.
    #[error(
        "the text has more than {limit} tokens ({bytes} bytes in all); shorten it or raise the limit"
    )]
    TooManyTokens {
        /// Tokens allowed.
        limit: usize,
        /// Bytes of the whole text.
        bytes: usize,
    },
    /// The text is too long for this tokenizer's slow path (see [`crate::Tokenizer::encode`]).
    #[error(
        "the text has {bytes} bytes, but this model's tokenizer handles at most {limit} at once (its splitting rules only run on a backtracking engine); shorten the text"
    )]
    TooLong {
        /// Bytes of the text.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The `tokenizers` library refused.
    #[error("tokenizing failed: {message}")]
    Library {
        /// Its message.
        message: String,
    },
}

impl TokenizerError {
    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid { what: what.into() }
    }

    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into() }
    }

    pub(crate) fn library(source: Box<dyn std::error::Error + Send + Sync>) -> Self {
        Self::Library {
            message: source.to_string(),
        }
    }
}

/// Why a chat template could not be loaded or rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The model has no chat template.
    #[error(
        "this model has no chat template (looked in chat_template.jinja, chat_template.json, tokenizer_config.json and the GGUF metadata): it is probably a base model. Send plain text to /v1/completions, use an instruct model, or give a template file"
    )]
    Missing,
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that should hold the template is not valid JSON, or holds something else.
    #[error("no chat template can be read from {file}: {what}")]
    Config {
        /// Which file, by its usual name.
        file: &'static str,
        /// What is wrong in it.
        what: String,
    },
    /// The template does not parse.
    #[error("the chat template does not parse: {message}")]
    Syntax {
        /// The template engine's message, with the line.
        message: String,
    },
    /// The template itself refused the conversation (`raise_exception`): the caller's mistake.
    #[error("the model's chat template refuses this conversation: {message}")]
    Refused {
        /// The template's own words.
        message: String,
    },
    /// Rendering failed: a missing field, a wrong type, too deep a recursion.
    #[error(
        "the chat template failed: {message}. The messages may lack a field it needs, or hold one of the wrong type"
    )]
    Render {
        /// The template engine's message, with the line.
        message: String,
    },
    /// The template ran for too long.
    #[error(
        "the chat template was stopped after {limit} steps: it does not end, or the conversation is far too long"
    )]
    OutOfFuel {
        /// Steps allowed.
        limit: u64,
    },
    /// The template wrote too much.
    #[error("the chat template was stopped after writing {limit} bytes")]
    TooMuchOutput {
        /// Bytes allowed.
        limit: usize,
    },
}

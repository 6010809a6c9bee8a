//! The small files beside tokenizer.json: which tokens begin and end a text.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::TokenizerError;

/// What scrimp reads of `tokenizer_config.json`.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct TokenizerConfig {
    #[serde(default)]
    bos_token: Option<SpecialToken>,
    #[serde(default)]
    eos_token: Option<SpecialToken>,
    #[serde(default)]
    unk_token: Option<SpecialToken>,
    #[serde(default)]
    pad_token: Option<SpecialToken>,
    /// Whether a text starts with the beginning-of-text token; unset: as tokenizer.json says.
    #[serde(default)]
    pub add_bos_token: Option<bool>,
    /// Whether a text ends with the end-of-text token; unset: as tokenizer.json says.
    #[serde(default)]
    pub add_eos_token: Option<bool>,
    /// The chat template: a string, or a list of `{"name", "template"}`.
    #[serde(default)]
    pub chat_template: Option<Value>,
}

/// Written as a string, or as an object with the string in `content`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Text(String),
    Object { content: String },
}

impl SpecialToken {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Object { content: text } => text,
        }
    }
}

impl TokenizerConfig {
    /// Reads the file's bytes.
    ///
    /// # Errors
    /// [`TokenizerError::Json`] if they are not JSON or a field has the wrong type.
    pub fn parse(json: &[u8]) -> Result<Self, TokenizerError> {
        serde_json::from_slice(json).map_err(|source| TokenizerError::Json {
            file: "tokenizer_config.json",
            source,
        })
    }

    /// Reads `folder/tokenizer_config.json`; the default if there is none.
    ///
    /// # Errors
    /// [`TokenizerError::Read`] or [`TokenizerError::Json`].
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        match read_optional(&folder.join("tokenizer_config.json"))? {
            Some(json) => Self::parse(&json),
            None => Ok(Self::default()),
        }
    }

    /// The beginning-of-text token.
    pub fn bos_token(&self) -> Option<&str> {
        self.bos_token.as_ref().map(SpecialToken::text)
    }

    /// The end-of-text token.
    pub fn eos_token(&self) -> Option<&str> {
        self.eos_token.as_ref().map(SpecialToken::text)
    }

    /// The token for what is not in the vocabulary.
    pub fn unk_token(&self) -> Option<&str> {
        self.unk_token.as_ref().map(SpecialToken::text)
    }

    /// The token that fills up batches.
    pub fn pad_token(&self) -> Option<&str> {
        self.pad_token.as_ref().map(SpecialToken::text)
    }
}

/// The end-of-text ids of `folder/generation_config.json`; none if there is no such file.
pub(super) fn generation_eos(folder: &Path) -> Result<Vec<u32>, TokenizerError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Ids {
        One(u32),
        Many(Vec<u32>),
    }
    #[derive(Deserialize)]
    struct GenerationConfig {
        #[serde(default)]
        eos_token_id: Option<Ids>,
    }
    let Some(json) = read_optional(&folder.join("generation_config.json"))? else {
        return Ok(vec![]);
    };
    let config: GenerationConfig =
        serde_json::from_slice(&json).map_err(|source| TokenizerError::Json {
            file: "generation_config.json",
            source,
        })?;
    Ok(match config.eos_token_id {
        None => vec![],
        Some(Ids::One(id)) => vec![id],
        Some(Ids::Many(ids)) => ids,
    })
}

/// A file's bytes; `None` if there is no such file.
pub(super) fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_tokens_are_strings_or_objects() {
        let json = br#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>",
                        "pad_token": null, "add_bos_token": true, "model_max_length": 1e30}"#;
        let config = TokenizerConfig::parse(json).unwrap();
        assert_eq!(config.bos_token(), Some("<s>"));
        assert_eq!(config.eos_token(), Some("</s>"));
        assert_eq!(config.pad_token(), None);
        assert_eq!(config.add_bos_token, Some(true));
        assert!(TokenizerConfig::parse(b"{\"bos_token\": 3}").is_err());
    }
}

//! Chat templates: a conversation to the prompt that the model was trained on.
//!
//! Templates come with the model and are Jinja2 programs written for Hugging Face's
//! `apply_chat_template`; the output here is the same, byte for byte. They are run in bounds:
//! steps, recursion and output are limited, nothing outside the conversation can be reached, and
//! the clock is an argument. One hole is left: values nested many thousands deep, or shared over
//! and over, that the template engine itself prints (`~`, `join`), hashes or frees (fuzz/README.md).

mod arguments;
mod functions;
mod python;

use std::io;
use std::path::Path;

use minijinja::value::{Serde, Value};
use minijinja::{Environment, ErrorKind};
use regex_automata::meta::Regex;
use serde_json::Map;

use crate::{TemplateError, Tokenizer, TokenizerConfig};

/// Steps a template may take: an instruction, or 64 bytes of text made, is one. A message takes some
/// 100, so this is room for tens of thousands of them; it also bounds memory, to 256 MB.
const MAX_STEPS: u64 = 4_000_000;

/// How deep macros may call each other.
const RECURSION_LIMIT: usize = 200;

/// Bytes that a template may write.
const MAX_OUTPUT_BYTES: usize = 32 << 20;

/// Bytes that a template itself may have; published ones have under 20,000.
const MAX_SOURCE_BYTES: usize = 1 << 20;

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// A model's chat template, ready to render.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    env: Environment<'static>,
    source: String,
    has_tool_use: bool,
    /// `bos_token`, `eos_token` and so on, as the template sees them.
    special_tokens: Vec<(&'static str, String)>,
}

/// A conversation to render.
#[derive(Debug, Clone, Copy, Default)]
pub struct TemplateInput<'a> {
    /// Messages in OpenAI's form, each an object with at least `role`; given to the template as
    /// they are.
    pub messages: &'a [serde_json::Value],
    /// Tools in OpenAI's form (`{"type": "function", "function": {…}}`).
    pub tools: Option<&'a [serde_json::Value]>,
    /// Whether the prompt ends with the start of the assistant's turn.
    pub add_generation_prompt: bool,
    /// More variables (`chat_template_kwargs`: `enable_thinking`, `thinking`, …). They overrule
    /// everything but `messages` and `add_generation_prompt`.
    pub kwargs: Option<&'a Map<String, serde_json::Value>>,
    /// What `strftime_now` takes for now: seconds since 1970, UTC.
    pub now: i64,
}

impl ChatTemplate {
    /// A template from its text, e.g. `tokenizer.chat_template` of a GGUF file.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] if it does not parse; [`TemplateError::Config`] if it is over
    /// 1 MiB.
    pub fn from_source(source: &str) -> Result<Self, TemplateError> {
        Self::from_named(
            vec![(DEFAULT.to_owned(), source.to_owned())],
            "the template",
        )
    }

    /// The `chat_template` of tokenizer_config.json: a string, or a list of
    /// `{"name": …, "template": …}` of which `default` and `tool_use` are used.
    ///
    /// # Errors
    /// [`TemplateError::Missing`] if there is none; else as [`Self::from_source`].
    pub fn from_config(config: &TokenizerConfig) -> Result<Self, TemplateError> {
        let value = config
            .chat_template
            .as_ref()
            .ok_or(TemplateError::Missing)?;
        let template = Self::from_value(value, "tokenizer_config.json")?;
        Ok(template.with_special_tokens([
            ("bos_token", config.bos_token()),
            ("eos_token", config.eos_token()),
            ("unk_token", config.unk_token()),
            ("pad_token", config.pad_token()),
        ]))
    }

    /// The template of a model folder: `chat_template.jinja`, else `chat_template.json`, else
    /// tokenizer_config.json; special tokens from tokenizer_config.json.
    ///
    /// # Errors
    /// [`TemplateError::Missing`] if there is none; else as [`Self::from_config`], and
    /// [`TemplateError::Read`].
    pub fn from_folder(folder: &Path) -> Result<Self, TemplateError> {
        const CONFIG: &str = "tokenizer_config.json";
        let failed = |file, e: &dyn std::fmt::Display| TemplateError::Config {
            file,
            what: e.to_string(),
        };
        let mut config = TokenizerConfig::from_folder(folder).map_err(|e| failed(CONFIG, &e))?;
        if let Some(source) = read_optional(&folder.join("chat_template.jinja"))? {
            config.chat_template = Some(source.into());
        } else if let Some(json) = read_optional(&folder.join("chat_template.json"))? {
            const FILE: &str = "chat_template.json";
            let file: serde_json::Value =
                serde_json::from_str(&json).map_err(|e| failed(FILE, &e))?;
            config.chat_template = file.get("chat_template").cloned();
        }
        Self::from_config(&config)
    }

    fn from_value(value: &serde_json::Value, file: &'static str) -> Result<Self, TemplateError> {
        if let Some(source) = value.as_str() {
            return Self::from_named(vec![(DEFAULT.to_owned(), source.to_owned())], file);
        }
        let named = value.as_array().and_then(|list| {
            let text = |entry: &serde_json::Value, key| Some(entry.get(key)?.as_str()?.to_owned());
            list.iter()
                .map(|e| Some((text(e, "name")?, text(e, "template")?)))
                .collect()
        });
        let what = "chat_template is neither a string nor a list of {name, template}";
        Self::from_named(
            named.ok_or(TemplateError::Config {
                file,
                what: what.into(),
            })?,
            file,
        )
    }

    fn from_named(
        templates: Vec<(String, String)>,
        file: &'static str,
    ) -> Result<Self, TemplateError> {
        let mut env = functions::environment();
        let mut chosen = None;
        let mut has_tool_use = false;
        for (name, source) in templates {
            if name != DEFAULT && name != TOOL_USE {
                continue;
            }
            if source.len() > MAX_SOURCE_BYTES {
                let what = format!("it has {} bytes, over {MAX_SOURCE_BYTES}", source.len());
                return Err(TemplateError::Config { file, what });
            }
            env.add_template_owned(name.clone(), without_generation_tags(&source))
                .map_err(|e| TemplateError::Syntax {
                    message: describe(&e),
                })?;
            match name == DEFAULT {
                true => chosen = Some(source),
                false => has_tool_use = true,
            }
        }
        let source = chosen.ok_or_else(|| TemplateError::Config {
            file,
            what: "its list of templates has none named \"default\"".into(),
        })?;
        Ok(Self {
            env,
            source,
            has_tool_use,
            special_tokens: vec![],
        })
    }

    /// Sets special tokens by the names that templates use (`bos_token`, `eos_token`, …); those
    /// without text are left as they are.
    #[must_use]
    pub fn with_special_tokens<'t>(
        mut self,
        tokens: impl IntoIterator<Item = (&'static str, Option<&'t str>)>,
    ) -> Self {
        for (name, text) in tokens {
            if let Some(text) = text {
                self.special_tokens.retain(|(known, _)| *known != name);
                self.special_tokens.push((name, text.to_owned()));
            }
        }
        self
    }

    /// Takes `bos_token` and `eos_token` from a tokenizer: for GGUF files, which have no
    /// tokenizer_config.json.
    #[must_use]
    pub fn with_tokenizer(self, tokenizer: &Tokenizer) -> Self {
        let text = |id: Option<u32>| {
            tokenizer
                .token_bytes(id?)
                .and_then(|b| str::from_utf8(b).ok())
        };
        self.with_special_tokens([
            ("bos_token", text(tokenizer.bos())),
            ("eos_token", text(tokenizer.eos().first().copied())),
        ])
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Puts the arguments of tool calls into the form that the template takes. OpenAI's API sends
    /// JSON text; templates that apply `tojson` to it (Llama 3, Qwen) want the object, others
    /// (DeepSeek) the text. For a server to call before [`Self::render`], which changes nothing.
    pub fn adapt_arguments(&self, messages: &mut [serde_json::Value]) {
        if arguments::are_objects(&self.source) {
            arguments::parse(messages);
        }
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`TemplateError::Refused`] if the template rejects the conversation,
    /// [`TemplateError::Render`] if a message lacks what it needs, [`TemplateError::OutOfFuel`] or
    /// [`TemplateError::TooMuchOutput`] past the limits.
    pub fn render(&self, input: &TemplateInput) -> Result<String, TemplateError> {
        let name = match input.tools {
            Some(_) if self.has_tool_use => TOOL_USE,
            _ => DEFAULT,
        };
        let mut out = Limited::new(MAX_OUTPUT_BYTES);
        let rendered = self.env.get_template(name).and_then(|template| {
            template
                .render_captured_to(self.context(input), &mut out)
                .map(drop)
        });
        if out.is_full {
            return Err(TemplateError::TooMuchOutput { limit: out.limit });
        }
        rendered.map_err(|e| render_error(&e))?;
        String::from_utf8(out.bytes).map_err(|e| TemplateError::Render {
            message: e.to_string(),
        })
    }

    fn context(&self, input: &TemplateInput) -> Value {
        let mut variables: Vec<(String, Value)> = vec![
            ("tools".into(), Value::from(Serde(input.tools))),
            ("documents".into(), Value::from(())),
            ("strftime_now".into(), functions::strftime_now(input.now)),
        ];
        for (name, text) in &self.special_tokens {
            variables.push(((*name).into(), Value::from(text.as_str())));
        }
        for (name, value) in input.kwargs.into_iter().flatten() {
            variables.push((name.clone(), Value::from(Serde(value))));
        }
        variables.push(("messages".into(), Value::from(Serde(input.messages))));
        variables.push((
            "add_generation_prompt".into(),
            input.add_generation_prompt.into(),
        ));
        Value::from_pairs(variables)
    }
}

/// `{% generation %}` only marks the assistant's text for training, and is no Jinja tag.
fn without_generation_tags(source: &str) -> String {
    let Ok(tag) = Regex::new(r"\{%(-?)\s*(end)?generation\s*(-?)%\}") else {
        return source.to_owned();
    };
    let mut out = String::with_capacity(source.len());
    let mut done = 0;
    for found in tag.captures_iter(source) {
        let Some(span) = found.get_match() else {
            continue;
        };
        let part = |group| {
            found
                .get_group(group)
                .map_or("", |span| &source[span.range()])
        };
        let keyword = if part(2).is_empty() {
            "if true"
        } else {
            "endif"
        };
        out.push_str(&source[done..span.start()]);
        out.push_str(&format!("{{%{} {keyword} {}%}}", part(1), part(3)));
        done = span.end();
    }
    out.push_str(&source[done..]);
    out
}

/// A writer that refuses to hold more than its limit.
struct Limited {
    bytes: Vec<u8>,
    limit: usize,
    is_full: bool,
}

impl Limited {
    fn new(limit: usize) -> Self {
        Self {
            bytes: vec![],
            limit,
            is_full: false,
        }
    }
}

impl io::Write for &mut Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit - self.bytes.len() {
            self.is_full = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn render_error(error: &minijinja::Error) -> TemplateError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TemplateError::OutOfFuel { limit: MAX_STEPS };
    }
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(e) = cause {
        if let Some(refusal) = e.downcast_ref::<functions::Refusal>() {
            return TemplateError::Refused {
                message: refusal.0.clone(),
            };
        }
        if let Some(python::TooLong(limit)) = e.downcast_ref() {
            return TemplateError::TooMuchOutput { limit: *limit };
        }
        cause = e.source();
    }
    TemplateError::Render {
        message: describe(error),
    }
}

/// The error, its line, and the errors that caused it.
fn describe(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        text.push_str(": ");
        text.push_str(&e.to_string());
        cause = e.source();
    }
    text
}

fn read_optional(path: &Path) -> Result<Option<String>, TemplateError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TemplateError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

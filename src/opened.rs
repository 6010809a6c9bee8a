//! A model as the person named it: found, opened, its configuration and text side read.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use scrimp_checkpoint::{Checkpoint, Format, hub};
use scrimp_model::{MetaArray, MetaValue, Metadata, ModelConfig};
use scrimp_server::ModelText;
use scrimp_text::{ChatTemplate, GgufTokenizer, TemplateError, Tokenizer, TokenizerConfig};
use serde_json::Value;

use crate::{bundled, terminal};

/// An opened model: everything but its weights in memory.
pub struct Opened {
    /// As it was named, shortened to a file or folder name where it is a path.
    pub name: String,
    /// Its files.
    pub checkpoint: Checkpoint,
    /// Its shape.
    pub config: ModelConfig,
    /// Its tokenizer, chat template and thinking tags.
    pub text: ModelText,
    /// `generation_config.json`, where there is one.
    pub generation: Option<Value>,
}

/// Finds and opens a model, downloading it first where the name is a hub id. A GGUF file's
/// key-values are gone into its configuration and tokenizer.
pub fn open(model: &str) -> Result<Opened> {
    let (name, mut checkpoint) = find(model)?;
    let config = checkpoint.config()?;
    let metadata = checkpoint.take_metadata();
    read_text(name, checkpoint, config, metadata)
}

/// The same with the key-values of a GGUF file left where they are, to be written on.
pub fn open_source(model: &str) -> Result<Opened> {
    let (name, checkpoint) = find(model)?;
    let config = checkpoint.config()?;
    let metadata = checkpoint.metadata().cloned();
    read_text(name, checkpoint, config, metadata)
}

fn find(model: &str) -> Result<(String, Checkpoint)> {
    Ok(if model == bundled::NAME && !Path::new(model).exists() {
        (model.to_owned(), bundled::open()?)
    } else {
        let path = fetch(model)?;
        (short_name(model, &path), Checkpoint::open(&path)?)
    })
}

fn read_text(
    name: String,
    checkpoint: Checkpoint,
    config: ModelConfig,
    metadata: Option<Metadata>,
) -> Result<Opened> {
    let text = match (checkpoint.format(), metadata) {
        (Format::Gguf, Some(metadata)) => gguf_text(metadata)?,
        _ => folder_text(&checkpoint)?,
    };
    let generation = checkpoint.files().json("generation_config.json")?;
    Ok(Opened {
        name,
        checkpoint,
        config,
        text,
        generation,
    })
}

/// A path's last part; a hub id as it is.
fn short_name(model: &str, path: &Path) -> String {
    let last = path.file_name().filter(|_| Path::new(model).exists());
    last.map_or_else(
        || model.to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

fn fetch(model: &str) -> Result<PathBuf> {
    let settings = hub::HubSettings::from_vars(|name| std::env::var(name).ok());
    let mut bar: Option<(String, indicatif::ProgressBar)> = None;
    let path = hub::resolve(model, &settings, &mut |progress| match progress {
        hub::Progress::Bytes { file, done, total } => {
            let (name, bar) =
                bar.get_or_insert_with(|| (String::new(), terminal::byte_progress("", total)));
            if name != file {
                *name = file.to_owned();
                bar.reset();
                bar.set_length(total);
                bar.set_message(file.to_owned());
            }
            bar.set_position(done);
        }
        hub::Progress::Retry { file, reason } => {
            terminal::note(&format!("{file}: {reason}; trying again"));
        }
        hub::Progress::Offline { reason } => {
            terminal::note(&format!("using the cached copy of {model}: {reason}"));
        }
    })?;
    if let Some((_, bar)) = bar {
        bar.finish_and_clear();
    }
    Ok(path)
}

fn folder_text(checkpoint: &Checkpoint) -> Result<ModelText> {
    let files = checkpoint.files();
    let Some(json) = files.read("tokenizer.json")? else {
        bail!(
            "there is no tokenizer.json in {}: put the model's own beside it",
            files.place()
        );
    };
    let mut config = match files.read("tokenizer_config.json")? {
        Some(bytes) => TokenizerConfig::parse(&bytes)?,
        None => TokenizerConfig::default(),
    };
    if let Some(source) = files.text("chat_template.jinja")? {
        config.chat_template = Some(Value::String(source));
    }
    let tokenizer = Tokenizer::from_json(&json, &config)?;
    let template = optional(ChatTemplate::from_config(&config))?;
    Ok(ModelText::new(tokenizer, template))
}

fn gguf_text(metadata: Metadata) -> Result<ModelText> {
    let gguf = gguf_tokenizer(metadata);
    let source = gguf.chat_template.clone();
    let tokenizer = Tokenizer::from_gguf(gguf)?;
    let template = match source {
        Some(source) => Some(ChatTemplate::from_source(&source)?.with_tokenizer(&tokenizer)),
        None => None,
    };
    Ok(ModelText::new(tokenizer, template))
}

/// A model without a chat template can still complete plain text.
fn optional(template: Result<ChatTemplate, TemplateError>) -> Result<Option<ChatTemplate>> {
    match template {
        Ok(template) => Ok(Some(template)),
        Err(TemplateError::Missing) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The tokenizer's key-values of a GGUF header, missing ones left out.
pub fn gguf_tokenizer(mut metadata: Metadata) -> GgufTokenizer {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let mut array = |name: &str| match metadata.take(&key(name)) {
        Some(MetaValue::Array(array)) => array,
        _ => MetaArray::Unsigned(Vec::new()),
    };
    let texts = |array: MetaArray| match array {
        MetaArray::Text(values) => values,
        _ => Vec::new(),
    };
    let tokens = texts(array("tokens"));
    let merges = texts(array("merges"));
    let scores = match array("scores") {
        MetaArray::Float(values) => values.into_iter().map(|x| x as f32).collect(),
        _ => Vec::new(),
    };
    let token_types = match array("token_type") {
        MetaArray::Signed(values) => values.into_iter().map(|x| x as i32).collect(),
        MetaArray::Unsigned(values) => values.into_iter().map(|x| x as i32).collect(),
        _ => Vec::new(),
    };
    let id = |name: &str| {
        metadata
            .unsigned(&key(name))
            .and_then(|id| u32::try_from(id).ok())
    };
    GgufTokenizer {
        model: metadata.text(&key("model")).unwrap_or_default().to_owned(),
        pre: metadata.text(&key("pre")).map(str::to_owned),
        tokens,
        scores,
        token_types,
        merges,
        bos: id("bos_token_id"),
        eos: id("eos_token_id"),
        eot: id("eot_token_id"),
        unk: id("unknown_token_id"),
        add_bos: metadata.bool(&key("add_bos_token")),
        add_eos: metadata.bool(&key("add_eos_token")),
        add_space_prefix: metadata.bool(&key("add_space_prefix")),
        chat_template: metadata.text("tokenizer.chat_template").map(str::to_owned),
    }
}

//! A folder's tokenizer as GGUF key-values.

use anyhow::{Context, Result};
use scrimp_model::{MetaArray, MetaValue, Metadata};
use scrimp_text::{GgufTokenizer, TokenizerConfig};
use serde_json::Value;

use crate::opened::Opened;

/// Adds `tokenizer.*`.
pub fn add(metadata: &mut Metadata, opened: &Opened) -> Result<()> {
    let files = opened.checkpoint.files();
    let json = files.read("tokenizer.json")?;
    let json = json.context("there is no tokenizer.json, whose tokens a GGUF file has in it")?;
    let mut about = match files.read("tokenizer_config.json")? {
        Some(bytes) => TokenizerConfig::parse(&bytes)?,
        None => TokenizerConfig::default(),
    };
    if let Some(source) = files.text("chat_template.jinja")? {
        about.chat_template = Some(Value::String(source));
    }
    let config = &opened.config;
    let tokenizer = GgufTokenizer::from_json(&json, &about, config.vocab_size)?;
    let id_of = |token: Option<&str>| {
        let token = token?;
        let at = tokenizer.tokens.iter().position(|t| t == token)?;
        Some(at as u32)
    };
    let eos = tokenizer.eos.or(config.eos_token_ids.first().copied());
    // Others that end a text go where readers look for the ends of turns and messages.
    let others: Vec<u32> = config
        .eos_token_ids
        .iter()
        .copied()
        .filter(|id| Some(*id) != eos)
        .collect();
    let ids = [
        ("bos_token_id", tokenizer.bos.or(config.bos_token_id)),
        ("eos_token_id", eos),
        ("eot_token_id", others.first().copied()),
        ("eom_token_id", others.get(1).copied()),
        ("unknown_token_id", tokenizer.unk),
        ("padding_token_id", id_of(about.pad_token())),
    ];
    let flags = [
        ("add_bos_token", tokenizer.add_bos),
        ("add_eos_token", tokenizer.add_eos),
        ("add_space_prefix", tokenizer.add_space_prefix),
    ];
    let mut put = |key: &str, value| metadata.insert(format!("tokenizer.ggml.{key}"), value);
    for (key, id) in ids {
        // An id without a row is one that nobody can ever meet.
        if let Some(id) = id.filter(|id| (*id as usize) < config.vocab_size) {
            put(key, MetaValue::Unsigned(id.into()));
        }
    }
    for (key, flag) in flags {
        if let Some(flag) = flag {
            put(key, MetaValue::Bool(flag));
        }
    }
    put("model", MetaValue::Text(tokenizer.model));
    let pre = tokenizer.pre.unwrap_or_else(|| "default".to_owned());
    put("pre", MetaValue::Text(pre));
    put(
        "tokens",
        MetaValue::Array(MetaArray::Text(tokenizer.tokens)),
    );
    let kinds = tokenizer.token_types.into_iter().map(i64::from).collect();
    put("token_type", MetaValue::Array(MetaArray::Signed(kinds)));
    if !tokenizer.scores.is_empty() {
        let scores = tokenizer.scores.into_iter().map(f64::from).collect();
        put("scores", MetaValue::Array(MetaArray::Float(scores)));
    }
    if !tokenizer.merges.is_empty() {
        let merges = MetaArray::Text(tokenizer.merges);
        put("merges", MetaValue::Array(merges));
    }
    if let Some(template) = chat_template(about.chat_template.as_ref()) {
        metadata.insert("tokenizer.chat_template", MetaValue::Text(template));
    }
    Ok(())
}

/// The template; of several named ones, the default.
fn chat_template(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(source) => Some(source.clone()),
        Value::Array(named) => {
            let name = |t: &&Value| t["name"] == "default";
            let chosen = named.iter().find(name).or(named.first())?;
            chosen["template"].as_str().map(str::to_owned)
        }
        _ => None,
    }
}

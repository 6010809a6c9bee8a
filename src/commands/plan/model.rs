//! The model's shape, by whatever name it goes: files' headers, a config, the catalogue, a hub.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use scrimp_checkpoint::{Checkpoint, Format, hub};
use scrimp_plan::{ModelShape, TensorHeader, catalogue};
use serde_json::Value;

use crate::bundled;

/// Most bytes of a config.json.
const MAX_CONFIG: u64 = 64 << 20;

/// A shape, and where it is from.
pub struct Found {
    /// The model's name.
    pub name: String,
    /// Its inventory.
    pub shape: ModelShape,
    /// Where that was read.
    pub source: String,
}

/// Finds a model's shape. Weights are never read: headers where they are there.
pub fn find(model: &str) -> Result<Found> {
    let path = Path::new(model);
    if path.is_dir() {
        return folder(path);
    }
    if path.is_file() {
        return match path.extension().and_then(|e| e.to_str()) {
            Some("json") => bare(path, &stem(path)),
            _ => weights(path),
        };
    }
    if model == bundled::NAME {
        return of_checkpoint(model, &bundled::open()?, "built in");
    }
    match catalogue::find(model) {
        Ok(entry) => Ok(Found {
            shape: ModelShape::from_config(&entry.name, &entry.config)?,
            name: entry.name,
            source: entry.source,
        }),
        Err(unknown) => match hub::HubId::parse(model) {
            Some(id) => from_hub(&id, model).with_context(|| format!("{unknown}; on the hub")),
            None => Err(unknown.into()),
        },
    }
}

/// `config.json`, and the tensors that safetensors or GGUF headers list where there are some.
fn folder(path: &Path) -> Result<Found> {
    let config = path.join("config.json");
    let entries = fs::read_dir(path).with_context(|| format!("reading {}", path.display()))?;
    let has_weights = entries.filter_map(Result::ok).any(|entry| {
        let name = entry.path();
        matches!(
            name.extension().and_then(|e| e.to_str()),
            Some("safetensors" | "gguf")
        )
    });
    match (has_weights, config.is_file()) {
        (true, _) => weights(path),
        (false, true) => bare(&config, &stem(path)),
        (false, false) => bail!(
            "{} has neither a config.json nor weights: name a model folder, a config.json, a GGUF \
             or a name of the catalogue (--list models)",
            path.display()
        ),
    }
}

fn bare(path: &Path, name: &str) -> Result<Found> {
    let size = fs::metadata(path).map(|m| m.len()).unwrap_or(0);
    if size > MAX_CONFIG {
        bail!(
            "{} has {size} bytes: that is no config.json",
            path.display()
        );
    }
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let config: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))?;
    Ok(Found {
        shape: ModelShape::from_config(name, &config)?,
        name: name.to_owned(),
        source: path.display().to_string(),
    })
}

fn weights(path: &Path) -> Result<Found> {
    let name = path.file_name().map_or_else(
        || path.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    );
    of_checkpoint(&name, &Checkpoint::open(path)?, &path.display().to_string())
}

fn of_checkpoint(name: &str, checkpoint: &Checkpoint, source: &str) -> Result<Found> {
    let headers: Vec<TensorHeader> = checkpoint
        .infos()
        .map(|(_, info)| TensorHeader {
            name: info.name.clone(),
            shape: info.shape.iter().map(|&d| d as u64).collect(),
            dtype: info.dtype.to_string(),
            bytes: info.range.len() as u64,
        })
        .collect();
    let shape = match (checkpoint.format(), checkpoint.metadata()) {
        (Format::Gguf, Some(metadata)) => ModelShape::from_gguf(name, metadata, &headers)?,
        _ => {
            let config = checkpoint.files().json("config.json")?;
            let Some(config) = config else {
                bail!(
                    "there is no config.json in {}: put the model's own beside it",
                    checkpoint.files().place()
                );
            };
            ModelShape::from_tensors(name, &config, &headers)?
        }
    };
    Ok(Found {
        name: name.to_owned(),
        shape,
        source: format!("{source} (headers)"),
    })
}

fn from_hub(id: &hub::HubId, model: &str) -> Result<Found> {
    let settings = hub::HubSettings::from_vars(|name| std::env::var(name).ok());
    let config = format!("{}@{}:config.json", id.repo, id.revision);
    let path = hub::resolve(&config, &settings, &mut |_| {})?;
    bare(&path, model)
}

fn stem(path: &Path) -> String {
    let named = path
        .file_stem()
        .map(|name| name.to_string_lossy().into_owned());
    match named {
        // config.json is called after its folder.
        Some(name) if name == "config" => path
            .canonicalize()
            .ok()
            .and_then(|p| Some(p.parent()?.file_name()?.to_string_lossy().into_owned()))
            .unwrap_or(name),
        Some(_) if path.is_dir() => path
            .canonicalize()
            .ok()
            .and_then(|p| Some(p.file_name()?.to_string_lossy().into_owned()))
            .unwrap_or_else(|| path.display().to_string()),
        Some(name) => name,
        None => path.display().to_string(),
    }
}

//! What a GGUF file as output says: its name, its key-values, and where its tensors go.

mod metadata;
mod places;
mod tokenizer;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use scrimp_checkpoint::{GgufTensor, encode_gguf_header};
use scrimp_model::{ModelConfig, RopeConfig, RopeScaling};
use scrimp_quant::gguf::Prefix;
use scrimp_quant::{GgufFile, Recipe, Source};

use super::source::CheckpointSource;
use crate::opened::Opened;

/// The file's name in a folder of its own.
const NAME: &str = "model.gguf";

/// Where a file goes.
pub struct Destination {
    /// The folder that it lies in.
    pub folder: PathBuf,
    name: String,
    in_shared_folder: bool,
}

impl Destination {
    /// `DST.gguf` is the file itself; anything else is a folder for it.
    pub fn new(output: &Path) -> Destination {
        let named = output.extension().is_some_and(|e| e == "gguf") && !output.is_dir();
        match (named, output.file_name()) {
            (true, Some(name)) => Destination {
                folder: match output.parent() {
                    Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
                    _ => PathBuf::from("."),
                },
                name: name.to_string_lossy().into_owned(),
                in_shared_folder: true,
            },
            _ => Destination {
                folder: output.to_owned(),
                name: NAME.to_owned(),
                in_shared_folder: false,
            },
        }
    }
}

/// Everything about the file but its tensors' values. What GGUF has no words for is refused here,
/// before any work.
pub fn file(
    opened: &Opened,
    source: &CheckpointSource<'_>,
    recipe: &Recipe,
    to: &Destination,
) -> Result<GgufFile> {
    let metadata = metadata::of(opened, recipe)?;
    let places = places::of(source.tensors(), &opened.config)?;
    let header = move |tensors: &[scrimp_quant::pack::OutTensor]| {
        let tensors: Vec<GgufTensor> = tensors
            .iter()
            .map(|t| GgufTensor {
                name: t.name.clone(),
                dtype: t.dtype,
                shape: t.shape.clone(),
            })
            .collect();
        let prefix = encode_gguf_header(&metadata, &tensors).map_err(|e| e.to_string())?;
        Ok(Prefix {
            header: prefix.bytes,
            offsets: prefix.offsets,
            file_bytes: prefix.file_bytes,
        })
    };
    let file = GgufFile {
        name: to.name.clone(),
        in_shared_folder: to.in_shared_folder,
        places,
        vectors: rotary_divisors(&opened.config)?.into_iter().collect(),
        header: Box::new(header),
    };
    file.check_stacks(&recipe.select(source.tensors())?)?;
    Ok(file)
}

/// The table that rotary frequencies are divided by, for scalings that GGUF has no keys for.
fn rotary_divisors(config: &ModelConfig) -> Result<Option<(String, Vec<f32>)>> {
    let plain = RopeConfig {
        scaling: RopeScaling::None,
        ..config.rope.clone()
    };
    let divisors = match &config.rope.scaling {
        RopeScaling::Factors { factors } => factors.clone(),
        RopeScaling::Llama3 { .. } => {
            let scaled = config.rope.inv_freq();
            let pairs = plain.inv_freq().into_iter().zip(scaled);
            pairs.map(|(plain, scaled)| plain / scaled).collect()
        }
        _ => return Ok(None),
    };
    if config.architecture != scrimp_model::Architecture::Llama {
        bail!("GGUF's readers divide rotary frequencies by a table in Llamas alone");
    }
    Ok(Some(("rope_freqs.weight".to_owned(), divisors)))
}

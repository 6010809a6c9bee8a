//! What can go wrong with a model's files: always which file, which tensor, and what to do.

use std::path::PathBuf;

use scrimp_model::ConfigError;
use scrimp_tensor::{DType, TensorError};

use crate::{GgufError, SafetensorsError};

/// A model that could not be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system would not read a file.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A path that holds no model.
    #[error("{} is no model: {why}", path.display())]
    NotAModel {
        /// The path.
        path: PathBuf,
        /// What was found and what was looked for.
        why: String,
    },
    /// A safetensors file that is damaged.
    #[error("{}: {source}", file.display())]
    Safetensors {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: SafetensorsError,
    },
    /// A GGUF file that is damaged.
    #[error("{}: {source}", file.display())]
    Gguf {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// A configuration that describes no model scrimp can run.
    #[error("{file}: {source}")]
    Config {
        /// The file.
        file: String,
        /// What is wrong with it.
        source: ConfigError,
    },
    /// A file that is no JSON.
    #[error("{file} is not valid JSON: {source}")]
    Json {
        /// The file.
        file: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A file that should be text and is not.
    #[error("{file} is not UTF-8 text")]
    NotText {
        /// The file.
        file: String,
    },
    /// A file far larger than its kind ever is.
    #[error("{file} has {size} bytes; a file of its kind has at most {limit}")]
    TooLarge {
        /// The file.
        file: String,
        /// Its size, bytes.
        size: u64,
        /// The limit, bytes.
        limit: u64,
    },
    /// A file a model needs.
    #[error("{name} is missing from {place}")]
    MissingFile {
        /// The file.
        name: String,
        /// Where it was looked for.
        place: String,
    },
    /// An index that does not say what it should.
    #[error("{}: {why}", file.display())]
    Index {
        /// The index.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A shard that the index names and that is not there.
    #[error("shard {shard:?} is missing from {}; {tensors} tensors are in it", folder.display())]
    MissingShard {
        /// The folder.
        folder: PathBuf,
        /// The shard's file name.
        shard: String,
        /// How many tensors the index puts in it.
        tensors: usize,
    },
    /// Tensors that the index puts into a shard that does not have them.
    #[error("{} does not hold {}, which the index puts there", shard.display(), listed(names))]
    NotInShard {
        /// The shard.
        shard: PathBuf,
        /// The tensors.
        names: Vec<String>,
    },
    /// Tensors of a shard that the index does not know.
    #[error("{} holds {}, which the index does not list", shard.display(), listed(names))]
    NotInIndex {
        /// The shard.
        shard: PathBuf,
        /// The tensors.
        names: Vec<String>,
    },
    /// One name in two files.
    #[error("tensor {tensor:?} is in {} and again in {}", first.display(), second.display())]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
        /// The file it was found in first.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// Parts of a split GGUF that do not belong together.
    #[error("{}: {why}", file.display())]
    Split {
        /// The part.
        file: PathBuf,
        /// What does not fit.
        why: String,
    },
    /// Tensors that the model needs and that no file has.
    #[error("the model has no tensor {}", listed(names))]
    MissingTensors {
        /// The tensors.
        names: Vec<String>,
    },
    /// Tensors that the model has no use for: it is probably of another architecture.
    #[error(
        "the model has tensors that its configuration does not call for: {}",
        listed(names)
    )]
    SurplusTensors {
        /// The tensors.
        names: Vec<String>,
    },
    /// A tensor of another shape than the configuration calls for.
    #[error("tensor {tensor:?} has shape {found:?}, but the configuration calls for {wanted:?}")]
    WrongShape {
        /// The tensor.
        tensor: String,
        /// Its shape in the file, outermost first.
        found: Vec<usize>,
        /// The shape asked for.
        wanted: Vec<usize>,
    },
    /// A tensor whose values are of a type that cannot be used there.
    #[error("tensor {tensor:?} is stored as {found}; {wanted}")]
    WrongDType {
        /// The tensor.
        tensor: String,
        /// Its type in the file.
        found: DType,
        /// What would do.
        wanted: &'static str,
    },
    /// Bytes, type and shape of a tensor that do not agree.
    #[error("tensor {tensor:?}: {source}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What does not agree.
        source: TensorError,
    },
}

/// A few names, and how many more there are.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|n| format!("{n:?}")).collect();
    match names.len().checked_sub(SHOWN) {
        None | Some(0) => shown.join(", "),
        Some(more) => format!("{} and {more} more", shown.join(", ")),
    }
}

//! The small files of a model's folder: configuration, tokenizer, templates.

use std::borrow::Cow;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::CheckpointError;

/// Far above the largest tokenizer.json in use.
const MAX_FILE: u64 = 512 << 20;

/// Where a model's small files are.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Folder(PathBuf),
    Static(Vec<(&'static str, &'static [u8])>),
    Nowhere,
}

impl ModelFiles {
    /// The files of a folder.
    pub fn folder(path: &Path) -> ModelFiles {
        ModelFiles {
            source: Source::Folder(path.to_owned()),
        }
    }

    /// Files compiled into the program: names and contents.
    pub fn from_static(files: &[(&'static str, &'static [u8])]) -> ModelFiles {
        ModelFiles {
            source: Source::Static(files.to_vec()),
        }
    }

    /// No files: a lone GGUF has all in it.
    pub fn none() -> ModelFiles {
        ModelFiles {
            source: Source::Nowhere,
        }
    }

    /// Where they are, for messages.
    pub fn place(&self) -> String {
        match &self.source {
            Source::Folder(path) => path.display().to_string(),
            Source::Static(_) => "the built-in model".to_owned(),
            Source::Nowhere => "the GGUF file".to_owned(),
        }
    }

    /// The contents of file `name`; `None` when there is no such file.
    ///
    /// # Errors
    /// When the file is there and cannot be read, or is larger than any of its kind.
    pub fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, CheckpointError> {
        match &self.source {
            Source::Folder(path) => read_file(&path.join(name)),
            Source::Static(files) => {
                let found = files.iter().find(|(file, _)| *file == name);
                Ok(found.map(|(_, bytes)| Cow::Borrowed(*bytes)))
            }
            Source::Nowhere => Ok(None),
        }
    }

    /// File `name` as text; `None` when there is no such file.
    ///
    /// # Errors
    /// As [`ModelFiles::read`], and when it is not UTF-8.
    pub fn text(&self, name: &str) -> Result<Option<String>, CheckpointError> {
        let Some(bytes) = self.read(name)? else {
            return Ok(None);
        };
        match String::from_utf8(bytes.into_owned()) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(CheckpointError::NotText {
                file: self.named(name),
            }),
        }
    }

    /// File `name` as JSON; `None` when there is no such file.
    ///
    /// # Errors
    /// As [`ModelFiles::read`], and when it is not JSON.
    pub fn json(&self, name: &str) -> Result<Option<Value>, CheckpointError> {
        let Some(bytes) = self.read(name)? else {
            return Ok(None);
        };
        let json = serde_json::from_slice(&bytes).map_err(|source| CheckpointError::Json {
            file: self.named(name),
            source,
        })?;
        Ok(Some(json))
    }

    /// The file's name with its place, for messages.
    pub(crate) fn named(&self, name: &str) -> String {
        match &self.source {
            Source::Folder(path) => path.join(name).display().to_string(),
            Source::Static(_) | Source::Nowhere => format!("{name} of {}", self.place()),
        }
    }
}

fn read_file(path: &Path) -> Result<Option<Cow<'static, [u8]>>, CheckpointError> {
    let io = |source| CheckpointError::Io {
        file: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(io)?,
    };
    let size = file.metadata().map_err(io)?.len();
    let mut bytes = Vec::new();
    // Take one byte more than the limit: a pipe or a growing file says nothing of its size.
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(CheckpointError::TooLarge {
            file: path.display().to_string(),
            size: size.max(bytes.len() as u64),
            limit: MAX_FILE,
        });
    }
    Ok(Some(Cow::Owned(bytes)))
}

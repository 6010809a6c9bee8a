//! How far a run is, on disk.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use crate::job::JobError;
use crate::report::TensorReport;
use crate::shards::{self, ShardWriter, WriteError};
use crate::store::RowStore;

/// What is finished, and what it was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Of source, recipe and tokens.
    pub fingerprint: String,
    /// For messages.
    pub scheme: String,
    /// Units finished: what is outside of layers, then each layer.
    pub units: usize,
    /// Their tensors.
    pub tensors: Vec<TensorReport>,
}

impl Manifest {
    pub fn new(fingerprint: String, scheme: &str) -> Manifest {
        Manifest {
            fingerprint,
            scheme: scheme.to_owned(),
            units: 0,
            tensors: Vec::new(),
        }
    }

    /// Reads it, where there is one.
    pub fn load(path: &Path) -> Result<Option<Manifest>, JobError> {
        let json = match fs::read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            read => read.map_err(shards::io_error(path))?,
        };
        let manifest = serde_json::from_slice(&json).map_err(|error| JobError::Damaged {
            path: path.display().to_string(),
            why: error.to_string(),
        })?;
        Ok(Some(manifest))
    }

    /// Replaces it on disk.
    pub fn save(&self, path: &Path) -> Result<(), WriteError> {
        let json = serde_json::to_vec(self).unwrap_or_default();
        shards::replace_file(path, &json)
    }
}

/// Puts finished units on the disk while the next one is computed.
pub(super) struct Saver {
    manifest: Manifest,
    path: PathBuf,
    pending: Option<JoinHandle<Result<(), WriteError>>>,
}

impl Saver {
    pub fn new(manifest: Manifest, path: PathBuf) -> Saver {
        Saver {
            manifest,
            path,
            pending: None,
        }
    }

    /// Units finished.
    pub fn units(&self) -> usize {
        self.manifest.units
    }

    /// Takes a unit as finished: its shards and activations go to the disk, then the manifest.
    pub fn finish_unit(
        &mut self,
        reports: Vec<TensorReport>,
        writer: &ShardWriter,
        hidden: Option<&RowStore>,
    ) -> Result<(), WriteError> {
        self.join()?;
        self.manifest.units += 1;
        self.manifest.tensors.extend(reports);
        let (manifest, path) = (self.manifest.clone(), self.path.clone());
        let mut syncs = writer.syncs()?;
        if let Some(hidden) = hidden {
            syncs.push(hidden.sync_later()?);
        }
        let save = move || {
            for (file, path) in syncs {
                file.sync_data().map_err(shards::io_error(&path))?;
            }
            manifest.save(&path)
        };
        let spawned = std::thread::Builder::new()
            .name("scrimp-save".into())
            .spawn(save);
        self.pending = Some(spawned.map_err(shards::io_error(&self.path))?);
        Ok(())
    }

    /// Waits until the last unit is on the disk.
    pub fn wait(mut self) -> Result<Vec<TensorReport>, WriteError> {
        self.join()?;
        Ok(self.manifest.tensors)
    }

    fn join(&mut self) -> Result<(), WriteError> {
        match self.pending.take().map(JoinHandle::join) {
            Some(Ok(saved)) => saved,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

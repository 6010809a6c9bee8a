//! The loop over a checkpoint: planned, bounded, resumable.
//!
//! ```text
//! plan      what is written where, and how many bytes each stage holds at most
//! manifest  how far a run is, on disk
//! matrix    one matrix: read, quantize, pack, write, report
//! inputs    what a group of matrices with one input shares: Hessian, scales, factor
//! layer     a layer's stages, each calibrated on those before it
//! feed_forward  its second half
//! experts   the same for a mixture of experts
//! ```
//!
//! The unit of progress is a layer. What a finished one leaves is on the disk before the manifest
//! says so: its tensors in the shards, and the activations that the next one starts from. A run
//! that goes on repeats the unfinished layer and writes the same bytes again.

mod experts;
mod feed_forward;
mod inputs;
mod layer;
mod manifest;
mod matrix;
mod plan;

use std::fs;
use std::path::{Path, PathBuf};

use scrimp_memory::{Category, MemoryLedger, OverBudget};
use serde_json::Value;

use crate::calibrate::{CalibrateError, CalibrationSet, Calibrator};
use crate::factor;
use crate::gguf::GgufFile;
use crate::recipe::{Recipe, RecipeError, Scheme};
use crate::report::{Report, TensorReport};
use crate::shards::{self, ShardWriter, WriteError};
use crate::source::{Role, Source, SourceError};
use crate::store::RowStore;
use layer::LayerRun;
use manifest::{Manifest, Saver};
pub use plan::JobPlan;

/// Folder in the output that an unfinished run keeps its manifest and activations in.
pub const WORK_FOLDER: &str = ".scrimp-quantize";
/// The report's name in the output.
pub const REPORT: &str = "quantization_report.json";

/// Why a quantization did not finish.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum JobError {
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    OverBudget(#[from] OverBudget),
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    #[error("{scheme} is made from calibration tokens, and there are none")]
    NoTokens { scheme: &'static str },
    #[error(
        "the disk of {place} has {free} bytes free; {wanted} are needed ({output} of output, {scratch} of activations)"
    )]
    Disk {
        place: String,
        free: u64,
        wanted: u64,
        output: u64,
        scratch: u64,
    },
    #[error("{folder} is not empty: name another folder, or go on with --resume")]
    NotEmpty { folder: String },
    #[error("{file} is there already: name another file, or go on with --resume")]
    FileExists { file: String },
    #[error("{folder} holds no unfinished quantization to resume")]
    NothingToResume { folder: String },
    #[error(
        "{folder} holds another quantization, of {what}: it cannot be resumed with these settings"
    )]
    OtherRun { folder: String, what: String },
    #[error("{path}: {why}")]
    Damaged { path: String, why: String },
    #[error("layer {layer} has no {role:?}, which calibrating needs")]
    Missing { layer: usize, role: Role },
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Layers finished.
    pub layers_done: usize,
    /// Layers there are.
    pub layers: usize,
    /// Weights of matrices finished.
    pub weights_done: usize,
    /// Weights of matrices there are.
    pub weights: usize,
    /// Relative error of the matrix finished last.
    pub error: f64,
}

/// A quantization, ready to be planned and run.
pub struct Job<'a> {
    /// What is read.
    pub source: &'a dyn Source,
    /// What is wanted.
    pub recipe: &'a Recipe,
    /// Tokens, and what computes layers.
    pub calibration: Option<(&'a CalibrationSet, &'a mut dyn Calibrator)>,
    /// Where the output goes.
    pub folder: &'a Path,
    /// Where activations are kept meanwhile.
    pub scratch: &'a Path,
    /// Holds it to its budget.
    pub ledger: &'a MemoryLedger,
    /// Whether it goes on with what is in `folder`.
    pub resume: bool,
    /// What says that a source is the same: names, sizes, times.
    pub identity: &'a str,
    /// Small files of the output: names and contents. `config.json` among them gets the
    /// quantization's description.
    pub files: Vec<(String, Vec<u8>)>,
    /// `config.json` before that.
    pub config: Value,
    /// The one file to write instead of shards and small files, where the format is GGUF.
    pub gguf: Option<&'a GgufFile>,
    /// Bytes that the source's tensors take.
    pub bytes_in: usize,
    /// Width of a head whose values are projected by a matrix of their own: grouped-query
    /// attention.
    pub head_dim: Option<usize>,
    /// Threads that compute.
    pub threads: usize,
}

impl Job<'_> {
    /// What it will take.
    ///
    /// # Errors
    /// When the recipe does not fit the source.
    pub fn plan(&self) -> Result<JobPlan, JobError> {
        let calibration = self.calibration.as_ref();
        if self.recipe.scheme.needs_calibration()
            && calibration.is_none_or(|(set, _)| set.tokens() == 0)
        {
            let scheme = self.recipe.scheme.name();
            return Err(JobError::NoTokens { scheme });
        }
        let calibration = calibration.map(|(set, calibrator)| (*set, &**calibrator));
        Ok(JobPlan::new(
            self.source,
            self.recipe,
            calibration,
            self.gguf,
            self.threads,
        )?)
    }

    /// Most bytes that rounding to nearest without a calibration would hold instead.
    ///
    /// # Errors
    /// When the recipe does not fit the source.
    pub fn peak_of_rounding(&self) -> Result<usize, JobError> {
        let recipe = Recipe {
            scheme: Scheme::Int4Rtn,
            ..self.recipe.clone()
        };
        Ok(JobPlan::new(self.source, &recipe, None, self.gguf, self.threads)?.peak_bytes)
    }

    /// Does it.
    ///
    /// # Errors
    /// When something cannot be read, written, held in memory or computed. What was finished
    /// stays, for a later run to go on with.
    pub fn run(mut self, progress: &mut dyn FnMut(Progress)) -> Result<Report, JobError> {
        let plan = self.plan()?;
        let work = work_folder(self.folder, self.gguf);
        let fingerprint = self.fingerprint();
        let manifest_path = work.join("manifest.json");
        let manifest = match self.find_manifest(&manifest_path, &fingerprint)? {
            Found::Finished(report) => {
                // It may have been stopped while it cleared up.
                let _ = fs::remove_dir_all(&work);
                return Ok(report);
            }
            Found::Unfinished(manifest) => manifest,
            Found::Nothing => {
                self.check_disk(&plan)?;
                Manifest::new(fingerprint, self.recipe.scheme.name())
            }
        };
        // One reservation for all stages: a second one beside it could not be had either.
        let what = plan.peak_stage.as_str();
        let _held = self
            .ledger
            .reserve(Category::Staging, plan.peak_bytes, what)?;
        if let Some((set, calibrator)) = &mut self.calibration {
            calibrator.reserve(set.longest())?;
        }
        for folder in [self.folder, work.as_path(), self.scratch] {
            fs::create_dir_all(folder).map_err(shards::io_error(folder))?;
        }
        if manifest.units == 0 {
            manifest.save(&manifest_path)?;
        }
        let writer = ShardWriter::open(self.folder, plan.layout.clone())?;
        let set = self.calibration.as_ref().map(|(set, _)| *set);
        let hidden = match set {
            Some(_) => Some(self.hidden_stores(&plan)?),
            None => None,
        };
        let mut saver = Saver::new(manifest, manifest_path);
        let mut run = LayerRun::new(&mut self, &plan, &writer, hidden.as_ref());
        let layers = plan.layers.len();
        while saver.units() < layers + 1 {
            let unit = saver.units();
            let layers_done = unit.saturating_sub(1);
            let mut said = |weights_done, error| {
                progress(Progress {
                    layers_done,
                    layers,
                    weights_done,
                    weights: plan.weights,
                    error,
                });
            };
            let reports = match unit {
                0 => run.outside(&mut said)?,
                _ => run.layer(unit - 1, &mut said)?,
            };
            let store = hidden.as_ref().map(|h| &h[unit % h.len()]);
            saver.finish_unit(reports, &writer, store)?;
        }
        let tensors = saver.wait()?;
        let report = self.report(&plan, tensors);
        self.finish(&plan, writer, &report, &work)?;
        Ok(report)
    }

    /// Three files in turn: the next layer's input, the current one's, and the one that may still
    /// be on its way to the disk.
    fn hidden_stores(&self, plan: &JobPlan) -> Result<[RowStore; 3], WriteError> {
        let open =
            |i: usize| RowStore::open(&self.scratch.join(format!("hidden.{i}")), plan.hidden);
        Ok([open(0)?, open(1)?, open(2)?])
    }

    fn find_manifest(&self, path: &Path, fingerprint: &str) -> Result<Found, JobError> {
        let folder = self.folder.display().to_string();
        let other = |what: &str| JobError::OtherRun {
            folder: folder.clone(),
            what: what.to_owned(),
        };
        if let (Some(gguf), false) = (self.shared_folder(), self.resume) {
            let taken = [
                self.folder.join(&gguf.name),
                work_folder(self.folder, self.gguf),
            ];
            return match taken.into_iter().find(|path| path.exists()) {
                Some(path) => Err(JobError::FileExists {
                    file: path.display().to_string(),
                }),
                None => Ok(Found::Nothing),
            };
        }
        if !self.resume {
            let occupied =
                fs::read_dir(self.folder).is_ok_and(|mut entries| entries.next().is_some());
            return match occupied {
                true => Err(JobError::NotEmpty { folder }),
                false => Ok(Found::Nothing),
            };
        }
        if let Some(manifest) = Manifest::load(path)? {
            return match manifest.fingerprint == fingerprint {
                true => Ok(Found::Unfinished(manifest)),
                false => Err(other(&manifest.scheme)),
            };
        }
        let report = self.report_path();
        if let Ok(json) = fs::read(&report) {
            let damaged = |why: String| JobError::Damaged {
                path: report.display().to_string(),
                why,
            };
            let stored: Value =
                serde_json::from_slice(&json).map_err(|e| damaged(e.to_string()))?;
            if stored["fingerprint"] != fingerprint {
                return Err(other(stored["scheme"].as_str().unwrap_or("another source")));
            }
            let report = serde_json::from_value(stored).map_err(|e| damaged(e.to_string()))?;
            return Ok(Found::Finished(report));
        }
        let occupied = match self.shared_folder() {
            Some(gguf) => self.folder.join(&gguf.name).exists(),
            None => fs::read_dir(self.folder)
                .is_ok_and(|entries| entries.flatten().any(|e| e.file_name() != WORK_FOLDER)),
        };
        match occupied {
            true => Err(JobError::NothingToResume { folder }),
            // Killed before the first manifest: nothing was done yet.
            false => Ok(Found::Nothing),
        }
    }

    fn shared_folder(&self) -> Option<&GgufFile> {
        self.gguf.filter(|gguf| gguf.in_shared_folder)
    }

    fn report_path(&self) -> PathBuf {
        match self.shared_folder() {
            Some(gguf) => self.folder.join(format!("{}.report.json", gguf.name)),
            None => self.folder.join(REPORT),
        }
    }

    fn check_disk(&self, plan: &JobPlan) -> Result<(), JobError> {
        let (output, scratch) = (plan.output_bytes as u64, plan.scratch_bytes as u64);
        let folder = free_disk(self.folder);
        let other = free_disk(self.scratch);
        let together = folder.zip(other).is_none_or(|((_, a), (_, b))| a == b);
        let checks = match together {
            true => vec![(self.folder, folder, output + scratch)],
            false => vec![
                (self.folder, folder, output),
                (self.scratch, other, scratch),
            ],
        };
        for (place, free, wanted) in checks {
            if let Some((free, _)) = free
                && free < wanted
            {
                return Err(JobError::Disk {
                    place: place.display().to_string(),
                    free,
                    wanted,
                    output,
                    scratch,
                });
            }
        }
        Ok(())
    }

    /// Everything that decides the output's bytes.
    fn fingerprint(&self) -> String {
        use sha2::{Digest, Sha256};
        let mut hash = Sha256::new();
        hash.update(env!("CARGO_PKG_VERSION"));
        hash.update(serde_json::to_string(self.recipe).unwrap_or_default());
        hash.update(self.identity);
        hash.update(self.config.to_string());
        if let Some(Ok(prefix)) = self.gguf.map(|gguf| (gguf.header)(&[])) {
            hash.update(prefix.header);
        }
        for tensor in self.source.tensors() {
            hash.update(format!(
                "{} {:?} {}",
                tensor.name, tensor.shape, tensor.dtype
            ));
        }
        if let Some((set, _)) = &self.calibration {
            for sequence in &set.sequences {
                hash.update((sequence.len() as u64).to_le_bytes());
                sequence
                    .iter()
                    .for_each(|token| hash.update(token.to_le_bytes()));
            }
        }
        let digest = hash.finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn report(&self, plan: &JobPlan, tensors: Vec<TensorReport>) -> Report {
        Report {
            scheme: self.recipe.scheme.name().to_owned(),
            format: self.recipe.format.name().to_owned(),
            bits_per_weight: plan.bits_per_weight,
            bytes_in: self.bytes_in,
            bytes_out: plan.output_bytes,
            tensors,
        }
    }

    /// Small files, final names, and last of all the end of the unfinished run's own folder.
    fn finish(
        &self,
        plan: &JobPlan,
        writer: ShardWriter,
        report: &Report,
        work: &Path,
    ) -> Result<(), JobError> {
        writer.finish()?;
        let json = |value: &Value| {
            let text = serde_json::to_string_pretty(value).unwrap_or_default();
            (text + "\n").into_bytes()
        };
        let mut files = self.files.clone();
        if self.gguf.is_none() {
            let mut config = self.config.clone();
            config["quantization_config"] = plan.config.clone();
            files.push(("config.json".into(), json(&config)));
        }
        if let Some(index) = plan.layout.index() {
            files.push(("model.safetensors.index.json".into(), json(&index)));
        }
        let mut stored = serde_json::to_value(report).unwrap_or_default();
        stored["fingerprint"] = self.fingerprint().into();
        for (name, contents) in &files {
            shards::replace_file(&self.folder.join(name), contents)?;
        }
        shards::replace_file(&self.report_path(), &json(&stored))?;
        shards::sync_folder(self.folder)?;
        for entry in fs::read_dir(self.scratch).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let ours = name
                .to_str()
                .is_some_and(|n| n.starts_with("hidden.") || layer::STORES.contains(&n));
            if ours {
                // Left behind, it is in nobody's way.
                let _ = fs::remove_file(entry.path());
            }
        }
        fs::remove_dir_all(work).map_err(shards::io_error(work))?;
        Ok(())
    }
}

/// The folder that an unfinished run keeps its manifest and activations in.
pub fn work_folder(folder: &Path, gguf: Option<&GgufFile>) -> PathBuf {
    match gguf.filter(|gguf| gguf.in_shared_folder) {
        Some(gguf) => folder.join(format!(".{}{WORK_FOLDER}", gguf.name)),
        None => folder.join(WORK_FOLDER),
    }
}

enum Found {
    Nothing,
    Unfinished(Manifest),
    Finished(Report),
}

/// Free bytes of a path's file system, and which one it is.
fn free_disk(path: &Path) -> Option<(u64, u64)> {
    let existing = path
        .ancestors()
        .find(|p| p.exists() || p.as_os_str().is_empty())?;
    let existing = match existing.as_os_str().is_empty() {
        true => Path::new("."),
        false => existing,
    };
    let stat = rustix::fs::statvfs(existing).ok()?;
    Some((stat.f_bavail * stat.f_frsize, stat.f_fsid))
}

/// Joins notes.
fn add_note(note: &mut Option<String>, more: Option<String>) {
    if let Some(more) = more {
        factor::add(note, more);
    }
}

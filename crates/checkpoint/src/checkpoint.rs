//! An open model: its tensors by name, wherever they are.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use scrimp_model::Metadata;
use scrimp_tensor::{DType, MatrixView, TensorView};

use crate::mmap::Bytes;
use crate::{CheckpointError, ModelFiles, TensorInfo};

/// Kind of file the weights are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// safetensors, with Hugging Face's tensor names.
    Safetensors,
    /// GGUF, with its own tensor names.
    Gguf,
}

/// A file with weights.
pub(crate) struct WeightFile {
    pub path: PathBuf,
    pub bytes: Bytes,
    /// In the order of their bytes.
    pub tensors: Vec<TensorInfo>,
}

/// A model's files, opened. Weights stay in the mapped files: views borrow from here.
pub struct Checkpoint {
    pub(crate) format: Format,
    pub(crate) weights: Vec<WeightFile>,
    pub(crate) files: ModelFiles,
    pub(crate) metadata: Option<Metadata>,
    /// Name to file and place in it.
    by_name: HashMap<String, (usize, usize)>,
}

impl Checkpoint {
    /// Builds the table of names.
    pub(crate) fn new(
        format: Format,
        weights: Vec<WeightFile>,
        files: ModelFiles,
        metadata: Option<Metadata>,
    ) -> Result<Checkpoint, CheckpointError> {
        let mut by_name: HashMap<String, (usize, usize)> = HashMap::new();
        for (f, file) in weights.iter().enumerate() {
            // The header has been read: its pages, often megabytes of vocabulary, may go.
            file.bytes.release(0..usize::MAX);
            for (t, tensor) in file.tensors.iter().enumerate() {
                if let Some((first, _)) = by_name.insert(tensor.name.clone(), (f, t)) {
                    return Err(CheckpointError::DuplicateTensor {
                        tensor: tensor.name.clone(),
                        first: weights[first].path.clone(),
                        second: file.path.clone(),
                    });
                }
            }
        }
        Ok(Checkpoint {
            format,
            weights,
            files,
            metadata,
            by_name,
        })
    }

    /// Kind of file the weights are in, which decides how tensors are named.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Configuration, tokenizer and templates, where they are files of their own.
    pub fn files(&self) -> &ModelFiles {
        &self.files
    }

    /// Key-values of a GGUF, its tokenizer among them.
    pub fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }

    /// Takes them out: a vocabulary is megabytes, and whoever has built a tokenizer of it needs it no
    /// more. [`Checkpoint::config`] is to be asked before.
    pub fn take_metadata(&mut self) -> Option<Metadata> {
        self.metadata.take()
    }

    /// Every tensor, in the order of the files: reading in this order reads each file once through.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, TensorView<'_>)> {
        self.weights.iter().flat_map(|file| {
            let view = |info| (info_name(info), view(file, info));
            file.tensors.iter().map(view)
        })
    }

    /// What the headers say of every tensor, in the order of the files, and the file each is in.
    pub fn infos(&self) -> impl Iterator<Item = (&Path, &TensorInfo)> {
        self.weights.iter().flat_map(|file| {
            let path = file.path.as_path();
            file.tensors.iter().map(move |info| (path, info))
        })
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Bytes of all tensors.
    pub fn weight_bytes(&self) -> u64 {
        self.infos().map(|(_, info)| info.range.len() as u64).sum()
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The tensor of this name, if there is one.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        self.place(name).map(|(file, info)| view(file, info))
    }

    /// The tensor of this name, of exactly this shape (outermost first).
    ///
    /// # Errors
    /// When there is no such tensor, or it has another shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>, CheckpointError> {
        let tensor = self
            .get(name)
            .ok_or_else(|| CheckpointError::MissingTensors {
                names: vec![name.to_owned()],
            })?;
        if tensor.shape != shape {
            return Err(CheckpointError::WrongShape {
                tensor: name.to_owned(),
                found: tensor.shape,
                wanted: shape.to_vec(),
            });
        }
        Ok(tensor)
    }

    /// A small float tensor (a norm, a bias, scales), decoded. The file's alignment does not matter.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`], and when it holds integers.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let tensor = self.tensor(name, shape)?;
        if !tensor.dtype.is_float() {
            return Err(CheckpointError::WrongDType {
                tensor: name.to_owned(),
                found: tensor.dtype,
                wanted: "floating-point values are wanted",
            });
        }
        tensor.to_f32().map_err(|source| CheckpointError::Tensor {
            tensor: name.to_owned(),
            source,
        })
    }

    /// A weight as a matrix of its stored form. E4M3 takes its scales, `NAME_scale_inv`, along:
    /// they are copied into `scales`, for a file aligns nothing, and cover tiles of `fp8_tile`.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`], and when the values are integers, or E4M3 without a tile.
    pub fn matrix<'a>(
        &'a self,
        name: &str,
        (rows, cols): (usize, usize),
        fp8_tile: Option<(usize, usize)>,
        scales: &'a mut Vec<f32>,
    ) -> Result<MatrixView<'a>, CheckpointError> {
        let tensor = self.tensor(name, &[rows, cols])?;
        let wrong = |source| CheckpointError::Tensor {
            tensor: name.to_owned(),
            source,
        };
        match (tensor.dtype, fp8_tile) {
            (DType::F8E4M3, Some(tile)) => {
                let shape = [rows.div_ceil(tile.0), cols.div_ceil(tile.1)];
                *scales = self.floats(&format!("{name}_scale_inv"), &shape)?;
                MatrixView::from_fp8_tiles(rows, cols, tensor.bytes, scales, tile).map_err(wrong)
            }
            (DType::F8E4M3, None) => Err(CheckpointError::WrongDType {
                tensor: name.to_owned(),
                found: tensor.dtype,
                wanted: "quantization_config.weight_block_size has to say which values share a scale",
            }),
            (dtype, _) if !dtype.is_float() => Err(CheckpointError::WrongDType {
                tensor: name.to_owned(),
                found: dtype,
                wanted: "floating-point or block-quantized values are wanted",
            }),
            (dtype, _) => MatrixView::from_blocks(dtype, rows, cols, tensor.bytes).map_err(wrong),
        }
    }

    /// Checks that every wanted tensor is there, and that nobody is left over whom `ignored` does
    /// not excuse.
    ///
    /// # Errors
    /// When tensors are missing, or else when some are surplus; all are named.
    pub fn check_names<'n>(
        &self,
        wanted: impl IntoIterator<Item = &'n str>,
        ignored: impl Fn(&str) -> bool,
    ) -> Result<(), CheckpointError> {
        let wanted: HashSet<&str> = wanted.into_iter().collect();
        let missing = wanted.iter().filter(|name| !self.contains(name));
        let mut names: Vec<String> = missing.map(|name| (*name).to_owned()).collect();
        if !names.is_empty() {
            names.sort_unstable();
            return Err(CheckpointError::MissingTensors { names });
        }
        let surplus = self.infos().map(|(_, info)| info.name.as_str());
        let surplus = surplus.filter(|name| !wanted.contains(name) && !ignored(name));
        let names: Vec<String> = surplus.map(str::to_owned).collect();
        if !names.is_empty() {
            return Err(CheckpointError::SurplusTensors { names });
        }
        Ok(())
    }

    /// Where a tensor's bytes are on disk: file, and range in it.
    pub fn location(&self, name: &str) -> Option<(&Path, Range<usize>)> {
        let (file, info) = self.place(name)?;
        Some((&file.path, info.range.clone()))
    }

    /// Whether its weights are part of the program, and so in memory for as long as it runs.
    pub fn is_in_memory(&self) -> bool {
        let mut files = self.weights.iter();
        files.all(|file| matches!(file.bytes, Bytes::Static(_)))
    }

    /// Drops a tensor's pages from resident memory once they have been copied or computed on. They
    /// come back from the file when touched again. Unknown names are passed over.
    pub fn release(&self, name: &str) {
        if let Some((file, info)) = self.place(name) {
            file.bytes.release(info.range.clone());
        }
    }

    /// Asks the system to read a tensor ahead of use. Unknown names are passed over.
    pub fn will_need(&self, name: &str) {
        if let Some((file, info)) = self.place(name) {
            file.bytes.will_need(info.range.clone());
        }
    }

    /// The same for a range of a tensor's bytes, cut to what it has.
    pub fn will_need_part(&self, name: &str, part: Range<usize>) {
        if let Some((file, info)) = self.place(name) {
            let within = |at: usize| info.range.start.saturating_add(at).min(info.range.end);
            file.bytes.will_need(within(part.start)..within(part.end));
        }
    }

    fn place(&self, name: &str) -> Option<(&WeightFile, &TensorInfo)> {
        let &(file, tensor) = self.by_name.get(name)?;
        let file = &self.weights[file];
        Some((file, &file.tensors[tensor]))
    }
}

fn info_name(info: &TensorInfo) -> &str {
    &info.name
}

/// Ranges were checked against the file when it was opened.
fn view<'a>(file: &'a WeightFile, info: &TensorInfo) -> TensorView<'a> {
    TensorView {
        dtype: info.dtype,
        shape: info.shape.clone(),
        bytes: &file.bytes.as_slice()[info.range.clone()],
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint")
            .field("format", &self.format)
            .field(
                "files",
                &self.weights.iter().map(|w| &w.path).collect::<Vec<_>>(),
            )
            .field("tensors", &self.by_name.len())
            .finish_non_exhaustive()
    }
}

//! Model files on disk, opened as named tensors: safetensors (single, sharded) and GGUF (single,
//! split), by memory map, or compiled into the program.
//!
//! Nothing here computes with weights or copies them: a [`TensorView`](scrimp_tensor::TensorView)
//! borrows the mapped file. Every length and offset in a file is untrusted, and is checked against
//! the file's size before anything is allocated or sliced. The only `unsafe` code is in `mmap`.

mod checkpoint;
mod config;
mod error;
mod files;
mod gguf;
pub mod hub;

#[allow(unsafe_code)]
mod mmap;
mod open;
mod safetensors;

pub use checkpoint::{Checkpoint, Format};
pub use error::CheckpointError;
pub use files::ModelFiles;
pub use gguf::{
    GgufError, GgufHeader, GgufPrefix, GgufTensor, GgufWriteError, encode_gguf_header,
    parse_gguf_header,
};
pub use safetensors::{SafetensorsError, SafetensorsHeader, parse_safetensors_header};

use std::ops::Range;

use scrimp_tensor::{DType, Shape};

/// A tensor as a file's header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name in the file.
    pub name: String,
    /// How its values are stored.
    pub dtype: DType,
    /// Extents, outermost first.
    pub shape: Shape,
    /// Where its bytes are, from the start of the file.
    pub range: Range<usize>,
}

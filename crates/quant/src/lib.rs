//! Quantization: from a checkpoint in floats to one in 4 or 8 bits, in bounded memory.
//!
//! ```text
//! recipe      what is wanted: scheme, group, format, what stays
//! source      the checkpoint to read, as named weights with roles (a trait)
//! calibrate   a decoder layer's activations, stage by stage (a trait)
//! grid, rtn   grids of a group and the search for their range
//! hessian     what a calibration says of a projection's input
//! gptq, awq   the two algorithms that use it
//! pack        bytes of each format
//! gguf        blocks of a GGUF file, and where in it each weight goes
//! shards      safetensors files whose headers come first and whose tensors follow as they are made
//! job         the loop over layers: one resident at a time, resumable at every boundary
//! ```
//!
//! Nothing here knows how a checkpoint names or stores its tensors, or how a layer is computed:
//! both come in through traits. Everything is deterministic: the same inputs give the same bytes,
//! whatever the number of threads and wherever a run was interrupted.

pub mod awq;
pub mod calibrate;
pub mod factor;
pub mod gguf;
pub mod gptq;
pub mod grid;
pub mod hessian;
pub mod job;
mod lanes;
pub mod pack;
pub mod quantized;
pub mod recipe;
pub mod report;
pub mod rtn;
pub mod shards;
pub mod source;
pub mod store;

pub use calibrate::{CalibrationSet, Calibrator, Routed, Tower};
pub use gguf::{Arrangement, GgufFile, GgufPlace};
pub use grid::{Grid, GridSpec};
pub use job::{Job, JobError, Progress};
pub use quantized::Quantized;
pub use recipe::{Format, GGUF_GROUP, Recipe, RecipeError, Scheme};
pub use report::{Report, TensorReport};
pub use source::{Role, Source, SourceError, SourceTensor};

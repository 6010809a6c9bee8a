//! What a model needs on a machine, under an engine's rules, and what binds it: before loading.
//!
//! Pure arithmetic: no IO, no clock, no questions to the machine. A [`ModelShape`] (from a
//! `config.json`, a GGUF header or the catalogue) and a [`Deployment`] (machine, engine, splits,
//! formats) give a [`Prediction`]; a [`Workload`] turns that into a verdict and remedies.

pub mod catalogue;
pub mod check;
mod deployment;
pub mod devices;
pub mod emit;
pub mod engines;
mod error;
pub mod log;
mod names;
pub mod placement;
mod prediction;
pub mod remedy;
pub mod report;
mod shape;
pub mod verdict;
mod weights;
mod workload;

pub use deployment::{
    Deployment, Device, Engine, EngineKind, KvDtype, MemoryRule, Parallel, Version, WeightScheme,
};
pub use engines::predict;
pub use error::Error;
pub use prediction::{Prediction, RankPlan};
pub use remedy::Remedy;
pub use shape::{
    Component, LayerCache, LlamaCppCache, MlaCacheMode, ModelShape, Role, Split, Storage,
    TensorGroup, TensorHeader, caches_from_config,
};
pub use verdict::Verdict;
pub use weights::{GgmlType, StoredBytes, stored_bytes};
pub use workload::{LiveTokens, OutputLengths, Workload};

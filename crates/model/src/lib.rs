//! What a model is: shape, layers, routing, rotary embedding, cache layout.
//!
//! Pure data and arithmetic: no IO, no clock. Everything that is planned, loaded or run is sized
//! from the one [`ModelConfig`], which is parsed and checked here and nowhere else.

mod check;
mod config;
mod counts;
mod error;
pub mod fields;
mod gguf;
mod hf;
mod hf_attention;
mod hf_moe;
mod kv;
mod metadata;
mod moe;
mod quantization;
mod rope;
mod rope_hf;

pub use config::{
    Architecture, AttentionConfig, GqaConfig, LayerSpec, MlaConfig, MlpSpec, ModelConfig,
};
pub use counts::ParameterCounts;
pub use error::ConfigError;
pub use kv::KvLayout;
pub use metadata::{MetaArray, MetaValue, Metadata};
pub use moe::{GroupScore, MoeConfig, MoeLayerFreq, RouterConfig, Scoring};
pub use quantization::Quantization;
pub use rope::{RopeConfig, RopeScaling};

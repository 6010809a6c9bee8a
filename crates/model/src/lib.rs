//! What a model is: shape, layers, routing, rotary embedding, cache layout.
//!
//! Pure data and arithmetic: no IO, no clock. Everything that is planned, loaded or run is sized
//! from the one [`ModelConfig`], which is parsed and checked here and nowhere else.

mod config;
mod kv;
mod moe;
mod rope;

pub use config::{
    Architecture, AttentionConfig, GqaConfig, LayerSpec, MlaConfig, MlpSpec, ModelConfig,
};
pub use kv::KvLayout;
pub use moe::{GroupScore, MoeConfig, MoeLayerFreq, RouterConfig, Scoring};
pub use rope::{RopeConfig, RopeScaling};

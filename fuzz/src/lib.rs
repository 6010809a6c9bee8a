//! What several targets do with what they parsed.

use scrimp_model::{KvLayout, ModelConfig};
use scrimp_tensor::DType;

/// Sizes everything from a configuration that was accepted: nothing may overflow or be NaN.
pub fn use_config(config: &ModelConfig) {
    assert!(config.parameter_counts().total() > 0);
    assert!(config.attention_scale() > 0.0);
    let layout = KvLayout::of(config, DType::F32, 16);
    assert!(layout.bytes_per_block() > 0);
    assert_eq!(config.layers().count(), config.num_layers);
    let inv_freq = config.rope.inv_freq();
    assert_eq!(inv_freq.len() * 2, config.rope.dim);
    let mut out = vec![f32::NAN; 2 * config.rope.dim];
    config.rope.cos_sin(&inv_freq, &[0, u32::MAX], &mut out);
    assert!(out.iter().all(|v| v.is_finite()), "{:?}", config.rope);
}

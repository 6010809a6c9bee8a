//! Rotary position embedding: its frequencies under every scaling rule, and the attention scale.

/// Rotary embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Width of the rotated part of a head.
    pub dim: usize,
    /// Base of the frequencies.
    pub theta: f32,
    /// How frequencies are stretched for contexts past the trained one.
    pub scaling: RopeScaling,
    /// Whether a pair is two neighbours (`x[2i], x[2i+1]`: DeepSeek, GGUF's Llama) instead of
    /// two halves (`x[i], x[i + dim/2]`: Hugging Face's Llama and Qwen).
    pub interleaved: bool,
}

/// Rules that stretch rotary frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// All positions divided by `factor`.
    Linear {
        /// Stretch.
        factor: f32,
    },
    /// Llama-3.1's smooth split by wavelength.
    Llama3 {
        /// Stretch of low frequencies.
        factor: f32,
        /// Wavelengths above `original / low_freq_factor` are stretched.
        low_freq_factor: f32,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// Trained context, tokens.
        original_max_position_embeddings: usize,
    },
    /// YaRN (arXiv 2309.00071), with DeepSeek's `mscale` variants.
    Yarn {
        /// Stretch.
        factor: f32,
        /// Rotations above which a dimension is kept.
        beta_fast: f32,
        /// Rotations below which a dimension is stretched.
        beta_slow: f32,
        /// Trained context, tokens.
        original_max_position_embeddings: usize,
        /// Factor on cos and sin, worked out from `attention_factor`, `mscale`,
        /// `mscale_all_dim`.
        attention_factor: f32,
        /// Square of the softmax temperature DeepSeek applies on the attention scale:
        /// `(0.1 · mscale_all_dim · ln(factor) + 1)²`, or 1.
        softmax_scale: f32,
        /// Whether the ramp's ends are rounded to whole dimensions (the default).
        truncate: bool,
    },
    /// Frequencies divided by given factors (GGUF's `rope_freqs.weight`).
    Factors {
        /// `dim / 2` divisors.
        factors: Vec<f32>,
    },
}

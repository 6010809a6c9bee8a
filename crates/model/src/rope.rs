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

/// `0.1 · m · ln(scale) + 1`, YaRN's temperature; 1 for a context that is not stretched.
pub(crate) fn mscale(scale: f64, m: f64) -> f64 {
    if scale <= 1.0 {
        1.0
    } else {
        0.1 * m * scale.ln() + 1.0
    }
}

impl RopeConfig {
    /// The `dim / 2` angles that one position adds, in radians, highest first.
    ///
    /// Computed in f32 in the order of transformers' `modeling_rope_utils`, so that rounding is
    /// the same; only the power is taken in f64 and rounded once.
    pub fn inv_freq(&self) -> Vec<f32> {
        let power = |i: usize| {
            let exponent = (2 * i) as f32 / self.dim as f32;
            f64::from(self.theta).powf(f64::from(exponent)) as f32
        };
        let powers: Vec<f32> = (0..self.dim / 2).map(power).collect();
        let plain = powers.iter().map(|p| 1.0 / p);
        match &self.scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
            RopeScaling::Factors { factors } => plain.zip(factors).map(|(f, by)| f / by).collect(),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let trained = *original_max_position_embeddings as f32;
                plain
                    .map(|f| llama3(f, trained, *factor, *low_freq_factor, *high_freq_factor))
                    .collect()
            }
            RopeScaling::Yarn { factor, .. } => {
                let (low, width) = self.yarn_ramp();
                let blend = |(i, p): (usize, f32)| {
                    let kept = 1.0 - ((i as f32 - low) / width).clamp(0.0, 1.0);
                    (1.0 / (factor * p)) * (1.0 - kept) + (1.0 / p) * kept
                };
                powers.into_iter().enumerate().map(blend).collect()
            }
        }
    }

    /// Where YaRN's ramp begins and how wide it is, in pairs: those before are kept, those after
    /// stretched.
    fn yarn_ramp(&self) -> (f32, f32) {
        let RopeScaling::Yarn {
            beta_fast,
            beta_slow,
            original_max_position_embeddings,
            truncate,
            ..
        } = &self.scaling
        else {
            return (0.0, 1.0);
        };
        let pair_that_turns = |times: f32| {
            let turns = *original_max_position_embeddings as f64
                / (f64::from(times) * std::f64::consts::TAU);
            self.dim as f64 * turns.ln() / (2.0 * f64::from(self.theta).ln())
        };
        let (mut low, mut high) = (pair_that_turns(*beta_fast), pair_that_turns(*beta_slow));
        if *truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(self.dim as f64 - 1.0));
        if low == high {
            high += 0.001; // a ramp of no width would divide by zero
        }
        (low as f32, (high - low) as f32)
    }

    /// Factor on cos and sin: 1 but for YaRN.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn {
                attention_factor, ..
            } => attention_factor,
            _ => 1.0,
        }
    }

    /// Factor on the attention scale: 1 but for latent attention with YaRN's `mscale_all_dim`.
    pub fn softmax_scale(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { softmax_scale, .. } => softmax_scale,
            _ => 1.0,
        }
    }

    /// Cosines and sines of `positions`, with the attention factor in them.
    ///
    /// `inv_freq` is what [`RopeConfig::inv_freq`] gave. `out` takes `dim` values a position:
    /// `dim / 2` cosines, then `dim / 2` sines. Positions past the end of `out` are left out.
    pub fn cos_sin(&self, inv_freq: &[f32], positions: &[u32], out: &mut [f32]) {
        let scale = self.attention_factor();
        let half = inv_freq.len();
        for (row, &position) in out.chunks_exact_mut(2 * half.max(1)).zip(positions) {
            let (cos, sin) = row.split_at_mut(half);
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(inv_freq) {
                // The angle is rounded to f32, as in training; its cosine need not be.
                let angle = f64::from(position as f32 * frequency);
                *cos = angle.cos() as f32 * scale;
                *sin = angle.sin() as f32 * scale;
            }
        }
    }
}

/// One frequency under Llama-3.1's rule: kept, stretched, or between the two.
fn llama3(frequency: f32, trained: f32, factor: f32, low: f32, high: f32) -> f32 {
    let wavelength = (1.0 / frequency) * std::f32::consts::TAU;
    if wavelength < trained / high {
        return frequency;
    }
    if wavelength > trained / low {
        return frequency / factor;
    }
    let smooth = ((1.0 / wavelength) * trained - low) / (high - low);
    (1.0 - smooth) * frequency / factor + smooth * frequency
}

//! What a model is, as numbers: the one description that planning, loading and running share.

use scrimp_tensor::DType;

use crate::{MoeConfig, Quantization, RopeConfig};

/// Model families that the decoder runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are the families' own
pub enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    DeepseekV2,
    DeepseekV3,
}

/// A decoder-only transformer's shape and constants.
///
/// Made from a Hugging Face `config.json` ([`ModelConfig::from_hf`]) or from a GGUF header
/// ([`ModelConfig::from_gguf`]), and checked there: every extent is non-zero and small enough
/// that products of a few of them do not overflow.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Decoder layers, without multi-token-prediction layers.
    pub num_layers: usize,
    /// Width of a dense feed-forward layer.
    pub intermediate_size: usize,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f32,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Attention of every layer.
    pub attention: AttentionConfig,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Mixture of experts, where the model has one.
    pub moe: Option<MoeConfig>,
    /// Token put in front of a prompt.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
    /// Multi-token-prediction layers that follow in the file; they are not run.
    pub num_nextn_predict_layers: usize,
    /// Type the weights were released in, where the config says.
    pub dtype: Option<DType>,
    /// Rows and columns of FP8 scale tiles, where weights are stored so.
    pub fp8_tile: Option<(usize, usize)>,
    /// How packed integer weights are to be read, where there are some.
    pub quantization: Option<Quantization>,
}

/// How a layer's attention projects queries, keys and values.
#[derive(Clone, Debug, PartialEq)]
pub enum AttentionConfig {
    /// Grouped-query attention (multi-head when `num_kv_heads == num_heads`).
    Gqa(GqaConfig),
    /// Multi-head latent attention.
    Mla(MlaConfig),
}

/// Shape of grouped-query attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GqaConfig {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head (not always `hidden_size / num_heads`).
    pub head_dim: usize,
    /// Whether q, k and v projections have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub o_bias: bool,
    /// Whether queries and keys are RMS-normed per head before rotation.
    pub qk_norm: bool,
}

/// Shape of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlaConfig {
    /// Query heads.
    pub num_heads: usize,
    /// Width of the query's low-rank bottleneck; `None` projects queries directly.
    pub q_lora_rank: Option<usize>,
    /// Width of the cached latent.
    pub kv_lora_rank: usize,
    /// Width of a head's part without position.
    pub qk_nope_head_dim: usize,
    /// Width of the rotated part, shared by all heads on the key side.
    pub qk_rope_head_dim: usize,
    /// Width of a head's value.
    pub v_head_dim: usize,
    /// Whether `q_a`, `kv_a` and output projections have biases.
    pub attention_bias: bool,
}

/// What one decoder layer is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// Index of the layer, from 0.
    pub index: usize,
    /// Its feed-forward half.
    pub mlp: MlpSpec,
}

/// A layer's feed-forward half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpSpec {
    /// One gated feed-forward of this width.
    Dense {
        /// Width between the projections.
        intermediate_size: usize,
    },
    /// Routed experts (and shared ones), as [`ModelConfig::moe`] describes.
    Moe,
}

impl ModelConfig {
    /// What layer `index` is made of.
    pub fn layer(&self, index: usize) -> LayerSpec {
        let routed = self.moe.as_ref().is_some_and(|moe| moe.is_moe_layer(index));
        let mlp = if routed {
            MlpSpec::Moe
        } else {
            MlpSpec::Dense {
                intermediate_size: self.intermediate_size,
            }
        };
        LayerSpec { index, mlp }
    }

    /// What attention logits are multiplied by: `1 / √(key width)`, sharpened where YaRN asks.
    pub fn attention_scale(&self) -> f32 {
        let width = match &self.attention {
            AttentionConfig::Gqa(gqa) => gqa.head_dim,
            AttentionConfig::Mla(mla) => mla.qk_nope_head_dim + mla.qk_rope_head_dim,
        };
        ((width as f64).powf(-0.5) * f64::from(self.rope.softmax_scale())) as f32
    }

    /// All layers, first to last.
    pub fn layers(&self) -> impl Iterator<Item = LayerSpec> + '_ {
        (0..self.num_layers).map(|index| self.layer(index))
    }
}

impl AttentionConfig {
    /// Query heads.
    pub fn num_heads(&self) -> usize {
        match self {
            AttentionConfig::Gqa(gqa) => gqa.num_heads,
            AttentionConfig::Mla(mla) => mla.num_heads,
        }
    }
}

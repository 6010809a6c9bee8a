//! What a token leaves behind in the KV cache, derived from the model's shape.

use scrimp_tensor::DType;

use crate::{AttentionConfig, ModelConfig};

/// Shape of the KV cache: what is kept per token and layer.
///
/// Grouped-query attention keeps a key and a value per KV head. Latent attention keeps one row of
/// `kv_lora_rank + qk_rope_head_dim` values that serves as the key of every head, and whose first
/// `kv_lora_rank` values are also the value: one head whose value is a prefix of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Layers that keep a cache.
    pub num_layers: usize,
    /// Heads kept per token; 1 for latent attention.
    pub num_kv_heads: usize,
    /// Values in a key.
    pub key_dim: usize,
    /// Values in a value.
    pub value_dim: usize,
    /// Whether the value is the key's first `value_dim` values, and is not stored again.
    pub value_in_key: bool,
    /// Stored type: F32, F16 or BF16.
    pub dtype: DType,
    /// Tokens per block.
    pub block_size: usize,
}

impl KvLayout {
    /// The cache that `config` needs.
    pub fn of(config: &ModelConfig, dtype: DType, block_size: usize) -> KvLayout {
        let (num_kv_heads, key_dim, value_dim, value_in_key) = match &config.attention {
            AttentionConfig::Gqa(gqa) => (gqa.num_kv_heads, gqa.head_dim, gqa.head_dim, false),
            AttentionConfig::Mla(mla) => (
                1,
                mla.kv_lora_rank + mla.qk_rope_head_dim,
                mla.kv_lora_rank,
                true,
            ),
        };
        KvLayout {
            num_layers: config.num_layers,
            num_kv_heads,
            key_dim,
            value_dim,
            value_in_key,
            dtype,
            block_size,
        }
    }

    /// Values kept per token and layer.
    pub fn values_per_token_layer(&self) -> usize {
        let value = if self.value_in_key { 0 } else { self.value_dim };
        self.num_kv_heads * (self.key_dim + value)
    }

    /// Bytes a token takes over all layers: 70,272 for DeepSeek-R1 in BF16.
    pub fn bytes_per_token(&self) -> usize {
        self.num_layers * self.values_per_token_layer() * self.dtype.block_bytes()
    }

    /// Bytes a block takes over all layers.
    pub fn bytes_per_block(&self) -> usize {
        self.bytes_per_token() * self.block_size
    }
}

//! How many parameters a model has, and where: exact, from its shape alone.

use std::ops::Add;

use crate::{AttentionConfig, MlpSpec, ModelConfig};

/// Parameters by component. Quantization scales and multi-token-prediction layers are not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParameterCounts {
    /// Token embedding.
    pub embedding: u64,
    /// Attention projections and their biases.
    pub attention: u64,
    /// Feed-forward of dense layers.
    pub dense_mlp: u64,
    /// Routed experts.
    pub routed_experts: u64,
    /// Shared experts.
    pub shared_experts: u64,
    /// Routers, correction biases included.
    pub router: u64,
    /// Every norm.
    pub norms: u64,
    /// Output head; 0 when it is the embedding.
    pub head: u64,
}

impl ParameterCounts {
    /// All of them: 671,026,419,200 for DeepSeek-R1.
    pub fn total(&self) -> u64 {
        self.embedding
            + self.attention
            + self.dense_mlp
            + self.routed_experts
            + self.shared_experts
            + self.router
            + self.norms
            + self.head
    }
}

impl Add for ParameterCounts {
    type Output = ParameterCounts;

    fn add(self, other: ParameterCounts) -> ParameterCounts {
        ParameterCounts {
            embedding: self.embedding + other.embedding,
            attention: self.attention + other.attention,
            dense_mlp: self.dense_mlp + other.dense_mlp,
            routed_experts: self.routed_experts + other.routed_experts,
            shared_experts: self.shared_experts + other.shared_experts,
            router: self.router + other.router,
            norms: self.norms + other.norms,
            head: self.head + other.head,
        }
    }
}

impl ModelConfig {
    /// Parameters of the whole model.
    pub fn parameter_counts(&self) -> ParameterCounts {
        let embedding = self.vocab_size as u64 * self.hidden_size as u64;
        let outside = ParameterCounts {
            embedding,
            norms: self.hidden_size as u64,
            head: if self.tie_word_embeddings {
                0
            } else {
                embedding
            },
            ..ParameterCounts::default()
        };
        (0..self.num_layers).fold(outside, |sum, index| sum + self.layer_counts(index))
    }

    /// Parameters of layer `index`.
    pub fn layer_counts(&self, index: usize) -> ParameterCounts {
        let hidden = self.hidden_size as u64;
        let (attention, attention_norms) = self.attention.counts(hidden);
        let counts = ParameterCounts {
            attention,
            norms: attention_norms + 2 * hidden,
            ..ParameterCounts::default()
        };
        match (self.layer(index).mlp, &self.moe) {
            (MlpSpec::Moe, Some(moe)) => {
                let expert = 3 * hidden * moe.moe_intermediate_size as u64;
                let bias = u64::from(moe.router.correction_bias);
                ParameterCounts {
                    routed_experts: moe.num_experts as u64 * expert,
                    shared_experts: moe.num_shared_experts as u64 * expert,
                    router: moe.num_experts as u64 * (hidden + bias),
                    ..counts
                }
            }
            _ => ParameterCounts {
                dense_mlp: 3 * hidden * self.intermediate_size as u64,
                ..counts
            },
        }
    }
}

impl AttentionConfig {
    /// Parameters of projections with their biases, and of norms inside the attention.
    fn counts(&self, hidden: u64) -> (u64, u64) {
        match self {
            AttentionConfig::Gqa(gqa) => {
                let q = (gqa.num_heads * gqa.head_dim) as u64;
                let qkv = q + 2 * (gqa.num_kv_heads * gqa.head_dim) as u64;
                let biases = u64::from(gqa.qkv_bias) * qkv + u64::from(gqa.o_bias) * hidden;
                let norms = if gqa.qk_norm {
                    2 * gqa.head_dim as u64
                } else {
                    0
                };
                (hidden * (qkv + q) + biases, norms)
            }
            AttentionConfig::Mla(mla) => {
                let heads = mla.num_heads as u64;
                let q = heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim) as u64;
                let latent = mla.kv_lora_rank as u64;
                let kv_a = latent + mla.qk_rope_head_dim as u64;
                let kv_b = heads * (mla.qk_nope_head_dim + mla.v_head_dim) as u64;
                let (query, q_rank) = match mla.q_lora_rank {
                    Some(rank) => (rank as u64 * (hidden + q), rank as u64),
                    None => (hidden * q, 0),
                };
                let biases = u64::from(mla.attention_bias) * (q_rank + kv_a + hidden);
                let values = heads * mla.v_head_dim as u64;
                let matrices = query + hidden * kv_a + latent * kv_b + values * hidden;
                (matrices + biases, q_rank + latent)
            }
        }
    }
}

//! The decoder's weights as the decoder uses them: layer by layer, by role.

use std::collections::HashMap;

use scrimp_backend::{Backend, Expert};
use scrimp_model::{AttentionConfig, MlpSpec, ModelConfig};

use crate::weights::WeightError;
use crate::weights::names::Slot;
use crate::weights::spec::WeightId;

/// A projection.
pub struct Linear<B: Backend> {
    /// `[out, in]`.
    pub weight: B::Matrix,
    /// `[out]`.
    pub bias: Option<B::Buffer>,
}

/// A gated feed-forward: `down(silu(gate(x)) ⊙ up(x))`.
pub struct MlpWeights<B: Backend> {
    /// `[width, hidden]`.
    pub gate: B::Matrix,
    /// `[width, hidden]`.
    pub up: B::Matrix,
    /// `[hidden, width]`.
    pub down: B::Matrix,
}

/// Grouped-query attention.
pub struct GqaWeights<B: Backend> {
    /// `[num_heads · head_dim, hidden]`.
    pub q: Linear<B>,
    /// `[num_kv_heads · head_dim, hidden]`.
    pub k: Linear<B>,
    /// `[num_kv_heads · head_dim, hidden]`.
    pub v: Linear<B>,
    /// Norms of queries and keys, `[head_dim]` each.
    pub qk_norm: Option<(B::Buffer, B::Buffer)>,
    /// `[hidden, num_heads · head_dim]`.
    pub o: Linear<B>,
}

/// Latent attention.
pub struct MlaWeights<B: Backend> {
    /// To `num_heads · (qk_nope + qk_rope)`.
    pub q: MlaQuery<B>,
    /// `[kv_lora_rank + qk_rope, hidden]`: the latent and the shared rotary key.
    pub kv_a: Linear<B>,
    /// Norm of the latent, `[kv_lora_rank]`.
    pub kv_a_norm: B::Buffer,
    /// From the latent to keys and values.
    pub kv_b: KvExpand<B>,
    /// `[hidden, num_heads · v_head_dim]`.
    pub o: Linear<B>,
}

/// How queries are projected.
pub enum MlaQuery<B: Backend> {
    /// At once.
    Direct(Linear<B>),
    /// Through a bottleneck with a norm.
    LowRank {
        /// `[q_lora_rank, hidden]`.
        a: Linear<B>,
        /// `[q_lora_rank]`.
        norm: B::Buffer,
        /// `[num_heads · (qk_nope + qk_rope), q_lora_rank]`.
        b: B::Matrix,
    },
}

/// How the latent becomes keys and values.
pub enum KvExpand<B: Backend> {
    /// `[num_heads · (qk_nope + v), kv_lora_rank]`: for each head its key rows, then its value's.
    Joint(B::Matrix),
    /// Two matrices.
    Split {
        /// `[num_heads · kv_lora_rank, qk_nope]`: for each head its key rows, transposed.
        key: B::Matrix,
        /// `[num_heads · v, kv_lora_rank]`.
        value: B::Matrix,
    },
}

/// A layer's attention.
pub enum AttentionWeights<B: Backend> {
    /// Grouped-query.
    Gqa(GqaWeights<B>),
    /// Latent.
    Mla(MlaWeights<B>),
}

/// A layer's routed experts.
pub struct MoeWeights<B: Backend> {
    /// `[num_experts, hidden]`, in F32.
    pub router: B::Matrix,
    /// `[num_experts]`, for the choice alone.
    pub correction_bias: Option<B::Buffer>,
    /// One for each index.
    pub experts: Vec<Expert<B>>,
    /// All shared experts as one.
    pub shared: Option<MlpWeights<B>>,
}

/// A layer's feed-forward half.
pub enum LayerMlp<B: Backend> {
    /// One gated feed-forward.
    Dense(MlpWeights<B>),
    /// Experts.
    Moe(MoeWeights<B>),
}

/// One decoder layer.
pub struct LayerWeights<B: Backend> {
    /// `[hidden]`.
    pub attention_norm: B::Buffer,
    /// Attention half.
    pub attention: AttentionWeights<B>,
    /// `[hidden]`.
    pub mlp_norm: B::Buffer,
    /// Feed-forward half.
    pub mlp: LayerMlp<B>,
}

/// Weights outside of layers.
pub struct ModelWeights<B: Backend> {
    /// `[vocab, hidden]`.
    pub embedding: B::Matrix,
    /// `[hidden]`.
    pub norm: B::Buffer,
    /// `[vocab, hidden]`; `None` when the head is the embedding.
    pub head: Option<B::Matrix>,
}

impl<B: Backend> MlpWeights<B> {
    fn matrices(&self) -> [&B::Matrix; 3] {
        [&self.gate, &self.up, &self.down]
    }
}

impl<B: Backend> ModelWeights<B> {
    /// Embedding, and head where there is one.
    pub fn matrices(&self) -> Vec<&B::Matrix> {
        std::iter::once(&self.embedding).chain(&self.head).collect()
    }
}

impl<B: Backend> LayerWeights<B> {
    /// Every matrix, in the order of a step.
    pub fn matrices(&self) -> Vec<&B::Matrix> {
        let mut all = match &self.attention {
            AttentionWeights::Gqa(a) => {
                vec![&a.q.weight, &a.k.weight, &a.v.weight, &a.o.weight]
            }
            AttentionWeights::Mla(a) => {
                let mut all = match &a.q {
                    MlaQuery::Direct(q) => vec![&q.weight],
                    MlaQuery::LowRank { a, b, .. } => vec![&a.weight, b],
                };
                all.push(&a.kv_a.weight);
                match &a.kv_b {
                    KvExpand::Joint(both) => all.push(both),
                    KvExpand::Split { key, value } => all.extend([key, value]),
                }
                all.push(&a.o.weight);
                all
            }
        };
        match &self.mlp {
            LayerMlp::Dense(mlp) => all.extend(mlp.matrices()),
            LayerMlp::Moe(moe) => {
                all.push(&moe.router);
                all.extend(moe.experts.iter().flat_map(|e| [&e.gate, &e.up, &e.down]));
                all.extend(moe.shared.iter().flat_map(MlpWeights::matrices));
            }
        }
        all
    }
}

/// A weight on the device.
pub(super) enum Loaded<B: Backend> {
    Matrix(B::Matrix),
    Vector(B::Buffer),
}

/// Loaded weights waiting to be put in their places.
pub(super) struct Parts<B: Backend> {
    loaded: HashMap<WeightId, Loaded<B>>,
    layer: usize,
}

impl<B: Backend> Parts<B> {
    pub(super) fn new() -> Self {
        Parts {
            loaded: HashMap::new(),
            layer: 0,
        }
    }

    pub(super) fn insert(&mut self, id: WeightId, weight: Loaded<B>) {
        self.loaded.insert(id, weight);
    }

    /// Takes everything apart into layers and the rest.
    pub(super) fn assemble(
        mut self,
        config: &ModelConfig,
    ) -> Result<(ModelWeights<B>, Vec<LayerWeights<B>>), WeightError> {
        let mut layers = Vec::with_capacity(config.num_layers);
        for spec in config.layers() {
            self.layer = spec.index;
            layers.push(LayerWeights {
                attention_norm: self.vector(Slot::AttentionNorm)?,
                attention: match config.attention {
                    AttentionConfig::Gqa(_) => AttentionWeights::Gqa(self.gqa()?),
                    AttentionConfig::Mla(_) => AttentionWeights::Mla(self.mla()?),
                },
                mlp_norm: self.vector(Slot::MlpNorm)?,
                mlp: match spec.mlp {
                    MlpSpec::Dense { .. } => {
                        LayerMlp::Dense(self.mlp([Slot::Gate, Slot::Up, Slot::Down])?)
                    }
                    MlpSpec::Moe => LayerMlp::Moe(self.moe(config)?),
                },
            });
        }
        self.layer = 0;
        let model = ModelWeights {
            embedding: self.matrix(Slot::Embedding)?,
            norm: self.vector(Slot::FinalNorm)?,
            head: self.optional_matrix(Slot::Head, 0),
        };
        Ok((model, layers))
    }

    fn gqa(&mut self) -> Result<GqaWeights<B>, WeightError> {
        let norms = (
            self.optional_vector(Slot::QNorm),
            self.optional_vector(Slot::KNorm),
        );
        Ok(GqaWeights {
            q: self.linear(Slot::Q, Slot::QBias)?,
            k: self.linear(Slot::K, Slot::KBias)?,
            v: self.linear(Slot::V, Slot::VBias)?,
            qk_norm: norms.0.zip(norms.1),
            o: self.linear(Slot::O, Slot::OBias)?,
        })
    }

    fn mla(&mut self) -> Result<MlaWeights<B>, WeightError> {
        let q = match self.optional_vector(Slot::QANorm) {
            Some(norm) => MlaQuery::LowRank {
                a: self.linear(Slot::QA, Slot::QABias)?,
                norm,
                b: self.matrix(Slot::QB)?,
            },
            None => MlaQuery::Direct(self.linear(Slot::Q, Slot::QBias)?),
        };
        let kv_b = match self.optional_matrix(Slot::KB, 0) {
            Some(key) => KvExpand::Split {
                key,
                value: self.matrix(Slot::VB)?,
            },
            None => KvExpand::Joint(self.matrix(Slot::KvB)?),
        };
        Ok(MlaWeights {
            q,
            kv_a: self.linear(Slot::KvA, Slot::KvABias)?,
            kv_a_norm: self.vector(Slot::KvANorm)?,
            kv_b,
            o: self.linear(Slot::O, Slot::OBias)?,
        })
    }

    fn moe(&mut self, config: &ModelConfig) -> Result<MoeWeights<B>, WeightError> {
        let moe = config.moe.as_ref();
        let experts = (0..moe.map_or(0, |m| m.num_experts))
            .map(|e| {
                Ok(Expert {
                    gate: self.expert(Slot::ExpertGate, e)?,
                    up: self.expert(Slot::ExpertUp, e)?,
                    down: self.expert(Slot::ExpertDown, e)?,
                })
            })
            .collect::<Result<Vec<_>, WeightError>>()?;
        let shared = moe.is_some_and(|m| m.num_shared_experts > 0);
        let slots = [Slot::SharedGate, Slot::SharedUp, Slot::SharedDown];
        Ok(MoeWeights {
            router: self.matrix(Slot::Router)?,
            correction_bias: self.optional_vector(Slot::CorrectionBias),
            experts,
            shared: shared.then(|| self.mlp(slots)).transpose()?,
        })
    }

    fn mlp(&mut self, [gate, up, down]: [Slot; 3]) -> Result<MlpWeights<B>, WeightError> {
        Ok(MlpWeights {
            gate: self.matrix(gate)?,
            up: self.matrix(up)?,
            down: self.matrix(down)?,
        })
    }

    fn linear(&mut self, weight: Slot, bias: Slot) -> Result<Linear<B>, WeightError> {
        Ok(Linear {
            weight: self.matrix(weight)?,
            bias: self.optional_vector(bias),
        })
    }

    fn matrix(&mut self, slot: Slot) -> Result<B::Matrix, WeightError> {
        self.expert(slot, 0)
    }

    fn expert(&mut self, slot: Slot, expert: usize) -> Result<B::Matrix, WeightError> {
        let layer = self.layer;
        self.optional_matrix(slot, expert)
            .ok_or(WeightError::NotLoaded {
                slot,
                layer,
                expert,
            })
    }

    fn vector(&mut self, slot: Slot) -> Result<B::Buffer, WeightError> {
        let (layer, expert) = (self.layer, 0);
        self.optional_vector(slot).ok_or(WeightError::NotLoaded {
            slot,
            layer,
            expert,
        })
    }

    fn optional_matrix(&mut self, slot: Slot, expert: usize) -> Option<B::Matrix> {
        match self.take(slot, expert)? {
            Loaded::Matrix(matrix) => Some(matrix),
            Loaded::Vector(_) => None,
        }
    }

    fn optional_vector(&mut self, slot: Slot) -> Option<B::Buffer> {
        match self.take(slot, 0)? {
            Loaded::Vector(vector) => Some(vector),
            Loaded::Matrix(_) => None,
        }
    }

    fn take(&mut self, slot: Slot, expert: usize) -> Option<Loaded<B>> {
        let layer = self.layer;
        self.loaded.remove(&WeightId {
            slot,
            layer,
            expert,
        })
    }
}

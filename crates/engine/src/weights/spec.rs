//! Which weights a model has: the one list that checking, planning and loading all walk.

use scrimp_model::{AttentionConfig, GqaConfig, MlaConfig, MlpSpec, ModelConfig, MoeConfig};

use crate::weights::names::{Component, Scheme, Slot};

/// Names one weight of the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightId {
    /// Its role.
    pub slot: Slot,
    /// Its layer; 0 for weights outside of layers.
    pub layer: usize,
    /// Its expert; 0 for weights outside of experts.
    pub expert: usize,
}

/// What a weight is to the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `[rows, cols]`, kept in its stored form.
    Matrix {
        /// Outputs.
        rows: usize,
        /// Inputs.
        cols: usize,
    },
    /// `[rows, cols]`, kept in F32: what it decides (a routing) is not to be rounded.
    FloatMatrix {
        /// Outputs.
        rows: usize,
        /// Inputs.
        cols: usize,
    },
    /// `len` values, kept in F32.
    Vector {
        /// Values.
        len: usize,
    },
}

/// A weight, the tensor it comes from, and that tensor's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightSpec {
    /// Which weight.
    pub id: WeightId,
    /// Name of its tensor in the file.
    pub tensor: String,
    /// What it is.
    pub kind: Kind,
    /// Shape of the tensor, outermost first; more than the weight's own where experts or heads
    /// are stacked.
    pub shape: Vec<usize>,
    /// First of the tensor's rows that are this weight's.
    pub first_row: usize,
}

impl WeightSpec {
    /// The group it is counted in.
    pub fn component(&self) -> Component {
        self.id.slot.component()
    }
}

/// All weights of `config` in a file of this scheme that `has` certain tensors: which of two ways
/// of storing something is used follows from what is there.
pub fn weight_specs(
    config: &ModelConfig,
    scheme: Scheme,
    has: &dyn Fn(&str) -> bool,
) -> Vec<WeightSpec> {
    let mut list = List {
        scheme,
        has,
        layer: 0,
        specs: Vec::new(),
    };
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    list.matrix(Slot::Embedding, vocab, hidden);
    for layer in config.layers() {
        list.layer = layer.index;
        list.vector(Slot::AttentionNorm, hidden);
        match &config.attention {
            AttentionConfig::Gqa(gqa) => list.gqa(gqa, hidden),
            AttentionConfig::Mla(mla) => list.mla(mla, hidden),
        }
        list.vector(Slot::MlpNorm, hidden);
        match (layer.mlp, &config.moe) {
            (MlpSpec::Moe, Some(moe)) => list.moe(moe, hidden),
            (MlpSpec::Dense { intermediate_size }, _) => {
                list.mlp(
                    [Slot::Gate, Slot::Up, Slot::Down],
                    intermediate_size,
                    hidden,
                );
            }
            (MlpSpec::Moe, None) => {} // a layer is one of experts only where the config has some
        }
    }
    list.layer = 0;
    list.vector(Slot::FinalNorm, hidden);
    if !list.ties_head(config) {
        list.matrix(Slot::Head, vocab, hidden);
    }
    list.specs
}

/// The list as it grows, layer by layer.
struct List<'a> {
    scheme: Scheme,
    has: &'a dyn Fn(&str) -> bool,
    layer: usize,
    specs: Vec<WeightSpec>,
}

impl List<'_> {
    /// Hugging Face configs say whether the head is the embedding. GGUF files say it by leaving
    /// the head out.
    fn ties_head(&self, config: &ModelConfig) -> bool {
        match self.scheme {
            Scheme::HuggingFace => config.tie_word_embeddings,
            Scheme::Gguf => !self.contains(Slot::Head),
        }
    }

    fn contains(&self, slot: Slot) -> bool {
        let name = self.scheme.name(slot, self.layer, 0);
        name.is_some_and(|name| (self.has)(&name))
    }

    fn push(&mut self, slot: Slot, expert: usize, kind: Kind, shape: Vec<usize>, first_row: usize) {
        let Some(tensor) = self.scheme.name(slot, self.layer, expert) else {
            return;
        };
        let id = WeightId {
            slot,
            layer: self.layer,
            expert,
        };
        self.specs.push(WeightSpec {
            id,
            tensor,
            kind,
            shape,
            first_row,
        });
    }

    fn vector(&mut self, slot: Slot, len: usize) {
        self.push(slot, 0, Kind::Vector { len }, vec![len], 0);
    }

    fn matrix(&mut self, slot: Slot, rows: usize, cols: usize) {
        self.push(slot, 0, Kind::Matrix { rows, cols }, vec![rows, cols], 0);
    }

    /// A matrix for each head, stored as a tensor of three dimensions.
    fn heads(&mut self, slot: Slot, heads: usize, rows: usize, cols: usize) {
        let kind = Kind::Matrix {
            rows: heads * rows,
            cols,
        };
        self.push(slot, 0, kind, vec![heads, rows, cols], 0);
    }

    fn linear(&mut self, weight: Slot, bias: Option<Slot>, rows: usize, cols: usize) {
        self.matrix(weight, rows, cols);
        if let Some(bias) = bias {
            self.vector(bias, rows);
        }
    }

    fn gqa(&mut self, gqa: &GqaConfig, hidden: usize) {
        let (q, kv) = (
            gqa.num_heads * gqa.head_dim,
            gqa.num_kv_heads * gqa.head_dim,
        );
        let qkv_bias = |slot| gqa.qkv_bias.then_some(slot);
        self.linear(Slot::Q, qkv_bias(Slot::QBias), q, hidden);
        self.linear(Slot::K, qkv_bias(Slot::KBias), kv, hidden);
        self.linear(Slot::V, qkv_bias(Slot::VBias), kv, hidden);
        if gqa.qk_norm {
            self.vector(Slot::QNorm, gqa.head_dim);
            self.vector(Slot::KNorm, gqa.head_dim);
        }
        self.linear(Slot::O, gqa.o_bias.then_some(Slot::OBias), hidden, q);
    }

    fn mla(&mut self, mla: &MlaConfig, hidden: usize) {
        let heads = mla.num_heads;
        let q = heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim);
        let bias = |slot| mla.attention_bias.then_some(slot);
        match mla.q_lora_rank {
            Some(rank) => {
                self.linear(Slot::QA, bias(Slot::QABias), rank, hidden);
                self.vector(Slot::QANorm, rank);
                self.matrix(Slot::QB, q, rank);
            }
            None => self.matrix(Slot::Q, q, hidden),
        }
        let latent = mla.kv_lora_rank;
        let kv_a = latent + mla.qk_rope_head_dim;
        self.linear(Slot::KvA, bias(Slot::KvABias), kv_a, hidden);
        self.vector(Slot::KvANorm, latent);
        let (key, value) = (mla.qk_nope_head_dim, mla.v_head_dim);
        if self.contains(Slot::KB) {
            self.heads(Slot::KB, heads, latent, key);
            self.heads(Slot::VB, heads, value, latent);
        } else {
            self.matrix(Slot::KvB, heads * (key + value), latent);
        }
        self.linear(Slot::O, bias(Slot::OBias), hidden, heads * value);
    }

    fn mlp(&mut self, [gate, up, down]: [Slot; 3], width: usize, hidden: usize) {
        self.matrix(gate, width, hidden);
        self.matrix(up, width, hidden);
        self.matrix(down, hidden, width);
    }

    fn moe(&mut self, moe: &MoeConfig, hidden: usize) {
        let (experts, width) = (moe.num_experts, moe.moe_intermediate_size);
        let router = Kind::FloatMatrix {
            rows: experts,
            cols: hidden,
        };
        self.push(Slot::Router, 0, router, vec![experts, hidden], 0);
        if moe.router.correction_bias {
            self.vector(Slot::CorrectionBias, experts);
        }
        for (slot, rows, cols) in [
            (Slot::ExpertGate, width, hidden),
            (Slot::ExpertUp, width, hidden),
            (Slot::ExpertDown, hidden, width),
        ] {
            let kind = Kind::Matrix { rows, cols };
            for expert in 0..experts {
                let (shape, first_row) = match self.scheme.stacks_experts() {
                    true => (vec![experts, rows, cols], expert * rows),
                    false => (vec![rows, cols], 0),
                };
                self.push(slot, expert, kind, shape, first_row);
            }
        }
        if moe.num_shared_experts > 0 {
            let shared = [Slot::SharedGate, Slot::SharedUp, Slot::SharedDown];
            self.mlp(shared, moe.num_shared_experts * width, hidden);
        }
    }
}

impl Kind {
    /// Values in it.
    pub fn len(self) -> usize {
        match self {
            Kind::Matrix { rows, cols } | Kind::FloatMatrix { rows, cols } => rows * cols,
            Kind::Vector { len } => len,
        }
    }

    /// Whether it has no values; never so for a checked config.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

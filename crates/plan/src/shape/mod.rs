//! A model as tensors and caches: every byte question is answered from this one inventory.
//!
//! The inventory comes from a `config.json` ([`ModelShape::from_config`]) or from the headers of a
//! checkpoint ([`ModelShape::from_tensors`]), never from a table of answers.

mod attention;
mod builder;
mod caches;
mod config;
mod experts;
mod families;
mod gguf;
mod headers;
mod kv;
mod layers;
mod linear_attention;
mod release;
mod totals;
mod vision;

pub use caches::caches_from_config;
pub use headers::TensorHeader;
pub use kv::{LlamaCppCache, MlaCacheMode};

use crate::GgmlType;

/// Whether a `model_type` is in the table of families.
pub(crate) fn is_known_type(model_type: &str) -> bool {
    families::find(model_type).is_some()
}

/// A model's parts, as reports list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// Token embedding.
    Embedding,
    /// Attention projections and their biases; linear-attention mixers too.
    Attention,
    /// Feed-forward of dense layers.
    DenseMlp,
    /// Routed experts.
    RoutedExperts,
    /// Shared experts and their gates.
    SharedExperts,
    /// Routers with their correction biases.
    Router,
    /// Every norm, and other small vectors (sinks, decays).
    Norms,
    /// Output head; absent where it is the embedding.
    Head,
    /// Multi-token-prediction layers.
    Mtp,
    /// Vision tower and projector.
    Vision,
}

/// How values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    /// 4 bytes a value.
    F32,
    /// 2 bytes a value.
    F16,
    /// 2 bytes a value.
    Bf16,
    /// 1 byte a value; scales, where it has some, are counted apart.
    Fp8,
    /// 1 byte a value and a 32-bit scale for each tile of this many rows and columns.
    Fp8Tiles(u32, u32),
    /// 1 byte a value and a 16-bit scale a row (compressed-tensors' `channel` strategy).
    Fp8Rows,
    /// 1 byte a value, one scale a row.
    Int8Rows,
    /// Packed integers of `bits`, a 16-bit scale (and a packed zero point when not symmetric) for
    /// each `group` values of a row.
    IntGroups {
        /// Bits a value.
        bits: u8,
        /// Values a scale.
        group: u32,
        /// Without zero points.
        symmetric: bool,
    },
    /// 4-bit floats with a scale byte for each 32 values.
    Mxfp4,
    /// 4-bit floats with an FP8 scale for each 16 values and a 32-bit scale a tensor.
    Nvfp4,
    /// A block format of llama.cpp; its scales are inside the blocks.
    Ggml(GgmlType),
}

/// What a tensor is to a quantizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A matrix that is multiplied: quantization schemes apply.
    Linear,
    /// A table that is looked up.
    Embedding,
    /// A vector or small table kept in its own type.
    Kept,
}

/// How tensor parallelism divides a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// Every rank holds all of it (norms, routers, MLA's down-projections).
    Replicated,
    /// By output rows.
    Rows,
    /// By input columns.
    Columns,
    /// By rows of whole KV heads: replicated where ranks outnumber them. The number is heads.
    KvHeads(u32),
    /// By vocabulary rows, padded as the engine pads.
    Vocab,
}

/// Equal tensors of one layer: `count` matrices of `rows` × `columns` (vectors have 1 row).
#[derive(Clone, Debug, PartialEq)]
pub struct TensorGroup {
    /// Where reports count it.
    pub component: Component,
    /// Short name, as in the checkpoint: `q_proj`, `experts.gate_proj`.
    pub name: String,
    /// Layer index; `None` outside the layers.
    pub layer: Option<u32>,
    /// How many such tensors (experts).
    pub count: u64,
    /// Of `count`, how many one token uses.
    pub active: u64,
    /// Output rows.
    pub rows: u64,
    /// Input columns.
    pub columns: u64,
    /// As released.
    pub storage: Storage,
    /// What a quantizer may do with it.
    pub role: Role,
    /// What tensor parallelism does with it.
    pub split: Split,
}

impl TensorGroup {
    /// Values in all tensors of the group, without quantization scales.
    pub fn values(&self) -> u64 {
        self.count * self.rows * self.columns
    }
}

/// What one layer keeps per sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerCache {
    /// Keys and values of every token.
    Full {
        /// KV heads.
        heads: u32,
        /// Values in a key.
        key: u32,
        /// Values in a value.
        value: u32,
    },
    /// Keys and values of the last `window` tokens.
    Sliding {
        /// KV heads.
        heads: u32,
        /// Values in a key.
        key: u32,
        /// Values in a value.
        value: u32,
        /// Tokens kept.
        window: u32,
    },
    /// One latent row a token, shared by all heads, with its rotated part.
    Latent {
        /// Values in the latent.
        rank: u32,
        /// Rotated values.
        rope: u32,
    },
    /// A latent row, and the keys of an indexer that picks what to attend to (DeepSeek-V3.2).
    IndexedLatent {
        /// Values in the latent.
        rank: u32,
        /// Rotated values.
        rope: u32,
        /// Values of an indexer key.
        index: u32,
    },
    /// A state of fixed size whatever the length (linear attention, state-space layers).
    State {
        /// Values of the convolution's state.
        conv: u64,
        /// Values of the recurrent state.
        recurrent: u64,
    },
    /// Nothing.
    None,
}

/// A model's shape: everything that planning asks of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelShape {
    /// Name to print.
    pub name: String,
    /// `model_type` of its config.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden_size: u64,
    /// Rows of the embedding.
    pub vocab_size: u64,
    /// Query heads.
    pub num_attention_heads: u64,
    /// Widest feed-forward that one token passes, in values.
    pub intermediate_size: u64,
    /// Experts that one token uses; 0 without experts.
    pub experts_per_token: u64,
    /// Routed experts a layer; 0 without experts.
    pub num_experts: u64,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: u64,
    /// Type of unquantized weights and activations.
    pub dtype: Storage,
    /// `quantization_config.quant_method` (and format), where the release is quantized.
    pub quantization: Option<String>,
    /// Why `tensors` is empty, where the config determines the caches and not the weights.
    pub undetermined: Option<String>,
    /// All weights.
    pub tensors: Vec<TensorGroup>,
    /// What each layer keeps, first to last.
    pub caches: Vec<LayerCache>,
}

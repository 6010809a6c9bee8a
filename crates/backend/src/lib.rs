//! What a device must be able to do: hold weights and a paged KV cache, and run a decoder's steps.
//!
//! Everything above this crate is written against [`Backend`] and names no device, no instruction
//! set and no weight format. An implementation owns its kernels, its threads and its layouts; a
//! scalar reference implementation of every operation is what it is tested against.
//!
//! **One promise binds every implementation:** a row's result depends on that row's inputs alone.
//! How many rows share a call, where a prompt was cut, in which blocks a sequence lies: none of it
//! may change a bit of the result. Batched, chunked, preempted and resumed generations then give
//! the same tokens as a lone one.
//!
//! Activations are f32, row-major, one row per token. Shape errors are bugs of the caller and
//! panic; what a file or a request can cause is checked before it reaches a backend.

mod batch;
mod ops;

use std::borrow::Cow;
use std::sync::Arc;

use scrimp_model::{KvLayout, RouterConfig};
use scrimp_tensor::{DType, GroupedForm, MatrixView};

pub use batch::{AttentionBatch, SequenceRows};
pub use ops::{Expand, Expert, HeadRows, Input, Norm, Projection, Routing, Segments};

/// A device that runs a decoder's operations.
pub trait Backend: Sized + Send + 'static {
    /// Scratch or constant vector of f32 values on the device.
    type Buffer: Send + Sync;
    /// A weight matrix in the device's resident layout.
    type Matrix: Send + Sync;
    /// A paged KV cache.
    type KvCache: Send;

    /// One line for people: device, instruction set, threads.
    fn description(&self) -> String;

    // Memory. The `*_bytes` functions are what the plan is made of: they say beforehand exactly
    // how many bytes the matching allocation will take.

    /// Bytes that [`Backend::load_matrix`] will keep for a matrix of this shape and storage.
    fn matrix_bytes(&self, rows: usize, cols: usize, storage: MatrixStorage) -> usize;

    /// Puts a stored matrix into the device's layout. The view is not kept.
    ///
    /// # Errors
    /// When the device is out of memory or has no kernel for the storage.
    fn load_matrix(&mut self, view: &MatrixView<'_>) -> Result<Self::Matrix, BackendError>;

    /// Bytes of a buffer of `len` values.
    fn buffer_bytes(&self, len: usize) -> usize;

    /// A zeroed buffer of `len` values.
    ///
    /// # Errors
    /// When the device is out of memory.
    fn alloc(&mut self, len: usize) -> Result<Self::Buffer, BackendError>;

    /// Fills the front of a buffer from host values.
    fn write(&mut self, buffer: &mut Self::Buffer, values: &[f32]);

    /// The first `len` values of a buffer, on the host.
    fn read<'a>(&mut self, buffer: &'a Self::Buffer, len: usize) -> Cow<'a, [f32]>;

    /// Bytes of a cache of `num_blocks` blocks, padding included.
    fn kv_cache_bytes(&self, layout: &KvLayout, num_blocks: usize) -> usize;

    /// A cache of `num_blocks` blocks.
    ///
    /// # Errors
    /// When the device is out of memory or cannot store the layout's type.
    fn alloc_kv_cache(
        &mut self,
        layout: &KvLayout,
        num_blocks: usize,
    ) -> Result<Self::KvCache, BackendError>;

    /// Bytes of private workspace that steps within `shape` need.
    fn workspace_bytes(&self, shape: &WorkspaceShape) -> usize;

    /// Allocates the workspace once; later operations within `shape` allocate nothing.
    ///
    /// # Errors
    /// When the device is out of memory.
    fn reserve_workspace(&mut self, shape: &WorkspaceShape) -> Result<(), BackendError>;

    // Operations, in the order in which a decoder layer uses them.

    /// `out[r] = table[ids[r]]`: decoded embedding rows, `[ids.len(), cols]`.
    fn embed(&mut self, table: &Self::Matrix, ids: &[u32], out: &mut Self::Buffer);

    /// `out[r] = x[r] / rms(x[r]) · weight`, rows of `norm.weight`'s length.
    fn rms_norm(
        &mut self,
        x: &Self::Buffer,
        rows: usize,
        norm: Norm<'_, Self>,
        out: &mut Self::Buffer,
    );

    /// Several projections of one input: `out = (x or norm(x)) · Wᵀ + bias`, each `[rows, W.rows]`,
    /// added to what `out` holds where the projection accumulates.
    ///
    /// All of them share one pass over the input (its norm, its quantization).
    fn linear(&mut self, input: Input<'_, Self>, projections: &mut [Projection<'_, Self>]);

    /// `out = silu(x · gateᵀ) ⊙ (x · upᵀ)`, `[rows, gate.rows]`.
    fn gate_up_silu(
        &mut self,
        input: Input<'_, Self>,
        gate: &Self::Matrix,
        up: &Self::Matrix,
        out: &mut Self::Buffer,
    );

    /// RMS norm in place of every vector that `segments` names; `norm.weight` has
    /// `segments.dim` values.
    fn norm_segments(
        &mut self,
        x: &mut Self::Buffer,
        rows: usize,
        segments: Segments,
        norm: Norm<'_, Self>,
    );

    /// Rotates in place every vector that `segments` names.
    ///
    /// `cos_sin` holds, for each row, `dim / 2` cosines and then `dim / 2` sines, with the
    /// rotary attention factor already in them. Pairs are neighbours when `interleaved`, else
    /// halves.
    fn rope(
        &mut self,
        x: &mut Self::Buffer,
        rows: usize,
        segments: Segments,
        cos_sin: &[f32],
        interleaved: bool,
    );

    /// Copies vectors: `to` and `from` name the same count and width.
    fn copy_segments(
        &mut self,
        x: &Self::Buffer,
        rows: usize,
        from: Segments,
        out: &mut Self::Buffer,
        to: Segments,
    );

    /// A matrix of its own for each head: `out[r, h] = W_h · x[r, h]`, or `W_hᵀ · x[r, h]` when
    /// `transposed`, where `W_h` is the rows that `heads` names for head `h`.
    ///
    /// This is what absorbs MLA's `kv_b_proj` into queries and expands latents into values, from
    /// the one resident copy of it.
    #[allow(clippy::too_many_arguments)] // a matrix product's operands, each with its layout
    fn head_linear(
        &mut self,
        x: &Self::Buffer,
        rows: usize,
        from: Segments,
        weight: &Self::Matrix,
        heads: HeadRows,
        out: &mut Self::Buffer,
        to: Segments,
    );

    /// Stores keys `[rows, kv_heads, key_dim]` (and values `[rows, kv_heads, value_dim]`, unless
    /// the layout keeps them inside the key) at the given slots: `slot = block · block_size +
    /// offset`.
    fn store_kv(
        &mut self,
        cache: &mut Self::KvCache,
        layer: usize,
        keys: &Self::Buffer,
        values: Option<&Self::Buffer>,
        slots: &[u32],
    );

    /// Causal attention through block tables: queries `[rows, num_heads, key_dim]`, out
    /// `[rows, num_heads, value_dim]`; head `h` reads KV head `h · kv_heads / num_heads`.
    #[allow(clippy::too_many_arguments)] // queries, cache and out, each with what names its part
    fn attention(
        &mut self,
        q: &Self::Buffer,
        num_heads: usize,
        cache: &Self::KvCache,
        layer: usize,
        batch: &AttentionBatch<'_>,
        scale: f32,
        out: &mut Self::Buffer,
    );

    /// Whether the plain form, [`Backend::expanded_attention`], is asked for where a step is `rows`
    /// rows of one sequence.
    ///
    /// Off unless a person chose it: then a token's bits depend on how its prompt was cut.
    fn expands_latents(&self, rows: usize) -> bool {
        let _ = rows;
        false
    }

    /// Causal latent attention in plain form: the keys and values of every head are computed from
    /// the whole context's latents first. Queries `[rows, num_heads, nope + rope]`, out
    /// `[rows, num_heads, value_dim]`.
    ///
    /// The same as absorbing, attending and expanding but for rounding; it takes fewer operations
    /// where a context meets many rows.
    #[allow(clippy::too_many_arguments)] // attention's, and where keys and values come from
    fn expanded_attention(
        &mut self,
        q: &Self::Buffer,
        num_heads: usize,
        cache: &Self::KvCache,
        layer: usize,
        batch: &AttentionBatch<'_>,
        expand: Expand<'_, Self>,
        scale: f32,
        out: &mut Self::Buffer,
    );

    /// Copies whole blocks `(source, destination)` of every layer: copy-on-write.
    fn copy_blocks(&mut self, cache: &mut Self::KvCache, copies: &[(u32, u32)]);

    /// Picks experts for every row of router logits `[rows, num_experts]`.
    fn route(
        &mut self,
        logits: &Self::Buffer,
        rows: usize,
        num_experts: usize,
        router: &RouterConfig,
        correction_bias: Option<&Self::Buffer>,
        routing: &mut Routing,
    );

    /// `out[r] += Σ_k weight_k · down_k(silu(gate_k(x[r])) ⊙ up_k(x[r]))` over the row's chosen
    /// experts, summed in the order of the choice. Tokens are grouped so that an expert's weights
    /// are read once.
    fn moe(
        &mut self,
        x: &Self::Buffer,
        rows: usize,
        routing: &Routing,
        experts: &[Expert<Self>],
        out: &mut Self::Buffer,
    );

    /// `out[i] = x[rows[i]]`, rows of `cols` values.
    fn gather_rows(&mut self, x: &Self::Buffer, cols: usize, rows: &[u32], out: &mut Self::Buffer);
}

/// The stored form of a matrix, without its bytes: enough to plan with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MatrixStorage {
    /// Plain or block values of one type.
    Blocks(DType),
    /// E4M3 values with a scale per tile of so many rows and columns.
    Fp8Tiles(usize, usize),
    /// Integer codes with scales for groups of columns.
    Grouped(GroupedForm),
}

/// The largest step a workspace must serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkspaceShape {
    /// Tokens in one step.
    pub max_rows: usize,
    /// Rows of the largest input that is rounded finely, of `hidden_size` values each.
    pub max_fine_rows: usize,
    /// Widest input of any projection.
    pub max_cols: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key width in the cache.
    pub key_dim: usize,
    /// Value width in the cache.
    pub value_dim: usize,
    /// Longest context of a sequence, tokens.
    pub max_context: usize,
    /// Latent attention: key width of a head in plain form; 0 elsewhere.
    pub expanded_key_dim: usize,
    /// The same of values.
    pub expanded_value_dim: usize,
    /// Experts a token is sent to; 0 without experts.
    pub top_k: usize,
    /// Experts of a layer.
    pub num_experts: usize,
    /// Width of an expert.
    pub expert_width: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Whether some matrices take activations in int8 with one step for each token
    /// ([`GroupedForm::int8_tokens`]).
    pub int8_tokens: bool,
}

/// What can go wrong on a device.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BackendError {
    /// An allocation was refused.
    #[error("the device has no room for {bytes} bytes of {what}")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
        /// What they were for.
        what: &'static str,
    },
    /// No kernel for a stored form.
    #[error("no kernel computes on {what}")]
    Unsupported {
        /// What was asked for.
        what: Arc<str>,
    },
}

//! Working memory of a step: allocated once, sized by the plan, reused by every layer.

use std::convert::Infallible;

use scrimp_backend::{Backend, BackendError, WorkspaceShape};
use scrimp_model::{AttentionConfig, ModelConfig, Quantization};

/// The largest step that is planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimits {
    /// Rows of a step (`max_num_batched_tokens`).
    pub max_rows: usize,
    /// Rows whose logits are held at once; a step that wants more gets them in parts.
    pub max_logit_rows: usize,
    /// Tokens of a sequence.
    pub max_context: usize,
}

/// One thing for each buffer of a step: its length, or the buffer itself.
pub(crate) struct Scratch<T> {
    /// The residual stream, `[rows, hidden]`.
    pub hidden: T,
    /// Normed rows that experts read, `[rows, hidden]`.
    pub normed: T,
    /// Queries, `[rows, num_heads · query width]`.
    pub q: T,
    /// MLA: the query's bottleneck, `[rows, q_lora_rank]`.
    pub q_low: T,
    /// MLA: queries in the space of the latent, `[rows, num_heads · key_dim]`.
    pub q_latent: T,
    /// Keys, `[rows, kv_heads · key_dim]`; MLA's latent with its rotary part.
    pub k: T,
    /// Values, `[rows, kv_heads · value_dim]`; MLA keeps none.
    pub v: T,
    /// MLA: attention's output in the space of the latent, `[rows, num_heads · kv_lora_rank]`.
    pub latent: T,
    /// Attention's output, `[rows, num_heads · value width]`.
    pub attended: T,
    /// Between the projections of a feed-forward, `[rows, width]`.
    pub gated: T,
    /// `[rows, num_experts]`.
    pub router_logits: T,
    /// Rows whose logits are wanted, `[max_logit_rows, hidden]`.
    pub sampled: T,
    /// `[max_logit_rows, vocab]`.
    pub logits: T,
}

impl<T> Scratch<T> {
    /// The same for every part.
    fn try_map<U, E>(self, mut f: impl FnMut(T) -> Result<U, E>) -> Result<Scratch<U>, E> {
        Ok(Scratch {
            hidden: f(self.hidden)?,
            normed: f(self.normed)?,
            q: f(self.q)?,
            q_low: f(self.q_low)?,
            q_latent: f(self.q_latent)?,
            k: f(self.k)?,
            v: f(self.v)?,
            latent: f(self.latent)?,
            attended: f(self.attended)?,
            gated: f(self.gated)?,
            router_logits: f(self.router_logits)?,
            sampled: f(self.sampled)?,
            logits: f(self.logits)?,
        })
    }
}

impl Scratch<usize> {
    /// Values in each buffer.
    fn lengths(config: &ModelConfig, limits: &StepLimits) -> Scratch<usize> {
        let rows = limits.max_rows;
        let heads = config.attention.num_heads();
        let widths = AttentionWidths::of(&config.attention);
        let moe = config.moe.as_ref();
        Scratch {
            hidden: rows * config.hidden_size,
            normed: moe.map_or(0, |_| rows * config.hidden_size),
            q: rows * heads * widths.query,
            q_low: rows * widths.q_low,
            q_latent: rows * heads * widths.q_latent,
            k: rows * widths.k,
            v: rows * widths.v,
            latent: rows * heads * widths.latent,
            attended: rows * heads * widths.attended,
            gated: rows * widest_mlp(config),
            router_logits: moe.map_or(0, |m| rows * m.num_experts),
            sampled: limits.max_logit_rows * config.hidden_size,
            logits: limits.max_logit_rows * config.vocab_size,
        }
    }
}

/// Allocates every buffer, and the backend's own workspace.
pub(crate) fn allocate<B: Backend>(
    backend: &mut B,
    config: &ModelConfig,
    limits: &StepLimits,
) -> Result<Scratch<B::Buffer>, BackendError> {
    backend.reserve_workspace(&workspace_shape(config, limits))?;
    Scratch::lengths(config, limits).try_map(|len| backend.alloc(len))
}

/// Bytes that the steps of a decoder take: scratch, the backend's workspace, and what is kept on
/// the host for each row.
pub fn activation_bytes<B: Backend>(
    backend: &B,
    config: &ModelConfig,
    limits: &StepLimits,
) -> usize {
    let mut bytes = backend.workspace_bytes(&workspace_shape(config, limits));
    let Ok(_) = Scratch::lengths(config, limits).try_map(|len| {
        bytes += backend.buffer_bytes(len);
        Ok::<(), Infallible>(())
    });
    bytes + limits.max_rows * host_bytes_per_row(config)
}

/// Cosines and sines, and the chosen experts with their weights.
fn host_bytes_per_row(config: &ModelConfig) -> usize {
    let top_k = config.moe.as_ref().map_or(0, |m| m.router.top_k);
    config.rope.dim * size_of::<f32>() + top_k * (size_of::<u32>() + size_of::<f32>())
}

/// Values per head (`query`, `q_latent`, `latent`, `attended`) or per row (the others).
struct AttentionWidths {
    query: usize,
    q_low: usize,
    q_latent: usize,
    k: usize,
    v: usize,
    latent: usize,
    attended: usize,
}

impl AttentionWidths {
    fn of(attention: &AttentionConfig) -> AttentionWidths {
        match attention {
            AttentionConfig::Gqa(gqa) => AttentionWidths {
                query: gqa.head_dim,
                q_low: 0,
                q_latent: 0,
                k: gqa.num_kv_heads * gqa.head_dim,
                v: gqa.num_kv_heads * gqa.head_dim,
                latent: 0,
                attended: gqa.head_dim,
            },
            AttentionConfig::Mla(mla) => AttentionWidths {
                query: mla.qk_nope_head_dim + mla.qk_rope_head_dim,
                q_low: mla.q_lora_rank.unwrap_or(0),
                q_latent: mla.kv_lora_rank + mla.qk_rope_head_dim,
                k: mla.kv_lora_rank + mla.qk_rope_head_dim,
                v: 0,
                latent: mla.kv_lora_rank,
                attended: mla.v_head_dim,
            },
        }
    }
}

/// Width of the widest feed-forward that is computed as one: dense, or all shared experts.
fn widest_mlp(config: &ModelConfig) -> usize {
    let shared = config
        .moe
        .as_ref()
        .map_or(0, |m| m.num_shared_experts * m.moe_intermediate_size);
    config.intermediate_size.max(shared)
}

fn workspace_shape(config: &ModelConfig, limits: &StepLimits) -> WorkspaceShape {
    let heads = config.attention.num_heads();
    let widths = AttentionWidths::of(&config.attention);
    let (key_dim, value_dim) = match &config.attention {
        AttentionConfig::Gqa(gqa) => (gqa.head_dim, gqa.head_dim),
        AttentionConfig::Mla(mla) => (mla.kv_lora_rank + mla.qk_rope_head_dim, mla.kv_lora_rank),
    };
    let (expanded_key_dim, expanded_value_dim) = match &config.attention {
        AttentionConfig::Gqa(_) => (0, 0),
        AttentionConfig::Mla(mla) => (mla.qk_nope_head_dim + mla.qk_rope_head_dim, mla.v_head_dim),
    };
    let inputs = [
        config.hidden_size,
        widest_mlp(config),
        heads * widths.attended,
        widths.q_low,
        widths.latent.max(widths.query),
    ];
    let moe = config.moe.as_ref();
    WorkspaceShape {
        max_rows: limits.max_rows.max(limits.max_logit_rows),
        max_fine_rows: limits.max_logit_rows,
        max_cols: inputs.into_iter().max().unwrap_or(0),
        num_heads: heads,
        key_dim,
        value_dim,
        max_context: limits.max_context,
        expanded_key_dim,
        expanded_value_dim,
        top_k: moe.map_or(0, |m| m.router.top_k),
        num_experts: moe.map_or(0, |m| m.num_experts),
        expert_width: moe.map_or(0, |m| m.moe_intermediate_size),
        hidden_size: config.hidden_size,
        int8_tokens: matches!(
            config.quantization,
            Some(Quantization::CompressedTensors { int8_tokens: true })
        ),
    }
}

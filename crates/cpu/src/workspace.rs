//! Scratch that steps need beside the caller's buffers, sized once.

use scrimp_backend::{BackendError, WorkspaceShape};

use crate::kernels::attention::{MAX_QUERIES, SEGMENT, STATE, padded, scratch_len};
use crate::kernels::gemm_int::act_row_bytes;
use crate::level::Precision;
use crate::memory::{Aligned, Plain};
use crate::ops::latent::HEADS;

/// Private memory of a backend.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// Normed rows, f32.
    pub(crate) normed: Aligned<f32>,
    /// Rows as blocks of integers.
    pub(crate) int8: Aligned<u8>,
    /// Rows as int8 blocks with one step for each row.
    pub(crate) int8_tokens: Aligned<u8>,
    /// Rows as BF16.
    pub(crate) bf16: Aligned<u16>,
    /// States of attention's segments, for one row.
    pub(crate) states: Aligned<f32>,
    /// Attention's scratch, each thread's own.
    pub(crate) attention: Aligned<f32>,
    /// Plain latent attention: a context's latents, and keys and values of some heads.
    pub(crate) latents: Aligned<f32>,
    pub(crate) expanded_keys: Aligned<f32>,
    pub(crate) expanded_values: Aligned<f32>,
    /// Experts' activations, and their outputs.
    pub(crate) expert_acts: Aligned<f32>,
    pub(crate) expert_outs: Aligned<f32>,
    /// Row of each grouped slot, place of each slot, starts of experts and of their chunks.
    pub(crate) slots: Aligned<u32>,
    /// Router's scores.
    pub(crate) scores: Aligned<f32>,
}

/// Lengths of a workspace's parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lengths {
    normed: usize,
    int8: usize,
    int8_tokens: usize,
    bf16: usize,
    states: usize,
    attention: usize,
    latents: usize,
    expanded_keys: usize,
    expanded_values: usize,
    expert_acts: usize,
    expert_outs: usize,
    slots: usize,
    scores: usize,
}

/// What of a backend's making decides which forms of activations it needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forms {
    pub(crate) precision: Precision,
    pub(crate) bf16_dot: bool,
    pub(crate) expands_latents: bool,
    pub(crate) threads: usize,
}

impl Lengths {
    pub(crate) fn of(shape: &WorkspaceShape, forms: Forms) -> Lengths {
        let slots = shape.max_rows * shape.top_k;
        let fast = forms.precision == Precision::Fast;
        let rows_of = |per_row: &dyn Fn(usize) -> usize| {
            (shape.max_rows * per_row(shape.max_cols.max(shape.hidden_size)))
                .max(slots * per_row(shape.expert_width))
        };
        let attention = if shape.num_heads == 0 {
            0
        } else {
            forms.threads
        };
        let expanded = match forms.expands_latents && shape.expanded_key_dim > 0 {
            true => shape.max_context,
            false => 0,
        };
        Lengths {
            normed: shape.max_rows * shape.max_cols.max(shape.hidden_size),
            int8: if fast {
                let fine = shape.max_fine_rows * act_row_bytes::<2>(shape.hidden_size);
                rows_of(&act_row_bytes::<1>).max(fine)
            } else {
                0
            },
            int8_tokens: if shape.int8_tokens {
                rows_of(&act_row_bytes::<1>)
            } else {
                0
            },
            bf16: if fast && forms.bf16_dot {
                rows_of(&|cols| cols.next_multiple_of(2))
            } else {
                0
            },
            states: states_len(shape.num_heads, shape.max_context, shape.value_dim),
            attention: attention * scratch_len(shape.key_dim, shape.value_dim),
            latents: expanded * padded(shape.key_dim),
            expanded_keys: HEADS * expanded * padded(shape.expanded_key_dim),
            expanded_values: HEADS * expanded * padded(shape.expanded_value_dim),
            expert_acts: slots * shape.expert_width,
            expert_outs: slots * shape.hidden_size,
            slots: slots_len(slots, shape.num_experts),
            scores: 2 * shape.num_experts,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        let floats = self.normed
            + self.states
            + self.attention
            + self.latents
            + self.expanded_keys
            + self.expanded_values
            + self.expert_acts
            + self.expert_outs
            + self.scores;
        4 * floats + 4 * self.slots + self.int8 + self.int8_tokens + 2 * self.bf16
    }
}

/// Values of the segments' states of one row.
pub(crate) fn states_len(num_heads: usize, max_context: usize, value_dim: usize) -> usize {
    num_heads * max_context.div_ceil(SEGMENT) * (STATE + padded(value_dim))
}

/// Integers that grouping slots by expert takes.
pub(crate) fn slots_len(slots: usize, num_experts: usize) -> usize {
    if slots == 0 {
        return 0;
    }
    2 * slots + 3 * (num_experts + 1)
}

impl Workspace {
    pub(crate) fn new(lengths: &Lengths) -> Result<Workspace, BackendError> {
        const WHAT: &str = "workspace";
        Ok(Workspace {
            normed: Aligned::resident(lengths.normed, WHAT)?,
            int8: Aligned::resident(lengths.int8, WHAT)?,
            int8_tokens: Aligned::resident(lengths.int8_tokens, WHAT)?,
            bf16: Aligned::resident(lengths.bf16, WHAT)?,
            states: Aligned::resident(lengths.states, WHAT)?,
            attention: Aligned::resident(lengths.attention, WHAT)?,
            latents: Aligned::resident(lengths.latents, WHAT)?,
            expanded_keys: Aligned::resident(lengths.expanded_keys, WHAT)?,
            expanded_values: Aligned::resident(lengths.expanded_values, WHAT)?,
            expert_acts: Aligned::resident(lengths.expert_acts, WHAT)?,
            expert_outs: Aligned::resident(lengths.expert_outs, WHAT)?,
            slots: Aligned::resident(lengths.slots, WHAT)?,
            scores: Aligned::resident(lengths.scores, WHAT)?,
        })
    }
}

/// The first `len` values, grown where the reserved shape was smaller.
///
/// # Panics
/// When growing past what was reserved is refused: a caller's mistake, as reserving reports it.
pub(crate) fn at_least<T: Plain>(part: &mut Aligned<T>, len: usize) -> &mut [T] {
    if part.as_slice().len() < len {
        *part = Aligned::zeroed(len, "workspace").unwrap_or_else(|error| panic!("{error}"));
    }
    &mut part.as_mut_slice()[..len]
}

/// Threads times what each needs of attention's scratch.
pub(crate) fn attention_len(threads: usize, key_dim: usize, value_dim: usize) -> usize {
    const { assert!(MAX_QUERIES > 0) };
    threads * scratch_len(key_dim, value_dim)
}

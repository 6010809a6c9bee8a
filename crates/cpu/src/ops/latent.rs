//! Latent attention in plain form: keys and values of a whole context, some heads at a time.
//!
//! ```text
//! region  latent[t] = cache[t]                                   as f32
//! for heads, four at a time
//!   region  key[h][t] = (W_k[h] · latent[t], rotary[t])           chunks of (head, positions)
//!           value[h][t] = W_v[h] · latent[t]
//!   region  out[r][h] = attention of q[r][h] over key[h], value[h]
//! ```
//!
//! A key costs `latent · (nope + value)` products once, and then `nope + rope + value` for each
//! row instead of `2 · latent + rope`: it pays for hundreds of rows.

use scrimp_backend::{AttentionBatch, Expand, HeadRows};
use scrimp_tensor::DType;

use crate::CpuBackend;
use crate::cache::CpuKvCache;
use crate::kernels::attention::{Attention, KvHead, MAX_QUERIES, padded};
use crate::kernels::elementwise::LoadArgs;
use crate::kernels::gemm::Gemm;
use crate::kernels::table::KernelTable;
use crate::matrix::CpuMatrix;
use crate::memory::Shared;
use crate::ops::attention::check_tables;
use crate::ops::{parts, share};
use crate::pool::Pool;
use crate::workspace::{Workspace, at_least, attention_len};

/// Heads whose keys and values are kept at a time.
pub(crate) const HEADS: usize = 4;
/// Positions that a chunk expands: whole tiles of the product.
const POSITIONS: usize = 96;

/// The table of a context that lies in one piece.
const ONE_BLOCK: &[u32] = &[0];

/// Operands of [`attention`].
pub(crate) struct Expanded<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) num_heads: usize,
    pub(crate) cache: &'a CpuKvCache,
    pub(crate) layer: usize,
    pub(crate) batch: &'a AttentionBatch<'a>,
    pub(crate) expand: Expand<'a, CpuBackend>,
    pub(crate) scale: f32,
    pub(crate) out: Shared<'a, f32>,
}

/// Widths of a head.
#[derive(Clone, Copy)]
struct Widths {
    latent: usize,
    rope: usize,
    nope: usize,
    value: usize,
}

impl Widths {
    fn key(&self) -> usize {
        self.nope + self.rope
    }
}

fn check(op: &Expanded<'_>) -> Widths {
    let (layout, expand) = (&op.cache.layout, &op.expand);
    assert!(layout.value_in_key && layout.num_kv_heads == 1, "latents");
    let widths = Widths {
        latent: layout.value_dim,
        rope: layout.key_dim - layout.value_dim,
        nope: expand.keys.count,
        value: expand.values.count,
    };
    assert_eq!(expand.weight.cols, widths.latent, "width of a latent");
    for rows in [&expand.keys, &expand.values] {
        let last = rows.offset + op.num_heads.saturating_sub(1) * rows.stride + rows.count;
        assert!(!rows.transposed && last <= expand.weight.rows, "{rows:?}");
    }
    let vectors = op.batch.num_rows() * op.num_heads;
    assert!(op.q.len() >= vectors * widths.key(), "queries");
    assert!(op.out.len() >= vectors * widths.value, "outputs");
    check_tables(op.cache, op.batch);
    widths
}

/// Causal attention of a batch, sequence by sequence.
pub(crate) fn attention(
    pool: &mut Pool,
    table: &KernelTable,
    workspace: &mut Workspace,
    op: Expanded<'_>,
) {
    let widths = check(&op);
    for s in 0..op.batch.num_seqs() {
        load(pool, table, workspace, &op, s);
        for first in (0..op.num_heads).step_by(HEADS) {
            let heads = first..(first + HEADS).min(op.num_heads);
            expand(pool, table, workspace, &op, s, widths, heads.clone());
        }
    }
}

/// A sequence's latents, rotary keys behind them, `[context][padded width]`.
fn load(
    pool: &mut Pool,
    table: &KernelTable,
    workspace: &mut Workspace,
    op: &Expanded<'_>,
    s: usize,
) {
    let sequence = op.batch.sequence(s);
    let context = sequence.first_position + sequence.num_rows;
    let (layout, width) = (&op.cache.layout, padded(op.cache.layout.key_dim));
    let out = Shared::new(at_least(&mut workspace.latents, context * width));
    let kernel = table
        .kv(layout.dtype)
        .expect("checked when the cache was made")
        .load;
    let (finder, bytes) = (op.cache.slots(), op.cache.bytes.as_slice());
    let parts = parts(context, width, pool.threads());
    pool.run(parts, &|part, _| {
        for t in share(context, part, parts) {
            let block = sequence.blocks[t / layout.block_size] as usize;
            let slot = block * layout.block_size + t % layout.block_size;
            let (key, _) = finder.find(op.layer, 0, slot);
            // SAFETY: the slot is in the cache, padded to whole lanes; positions are written apart.
            unsafe {
                kernel(&LoadArgs {
                    x: bytes[key..].as_ptr(),
                    dim: layout.key_dim,
                    out: out.slice(t * width, width).as_mut_ptr(),
                });
            }
        }
    });
}

/// Rows of one head's matrix times positions `from ..` of the latents.
///
/// # Safety
/// `out` is writable for `positions` rows of `rows.count` values, `stride` apart.
unsafe fn product(
    table: &KernelTable,
    weight: &CpuMatrix,
    rows: &HeadRows,
    head: usize,
    (latents, positions): (&[f32], usize),
    out: *mut f32,
    stride: usize,
) {
    let first = rows.offset + head * rows.stride;
    let width = latents.len() / positions;
    // SAFETY: `check` held the rows and the width of a latent against the matrix; `out` by
    // contract.
    unsafe {
        (table.format(weight.format).gemm_float)(&Gemm {
            weight: weight.packed(),
            from: first,
            to: first + rows.count,
            acts: latents.as_ptr().cast(),
            act_stride: width * 4,
            index: std::ptr::null(),
            rows: positions,
            out,
            out_stride: stride,
            bias: std::ptr::null(),
            accumulate: false,
        });
    }
}

/// Some heads of a sequence: their keys and values, then what their queries see.
fn expand(
    pool: &mut Pool,
    table: &KernelTable,
    workspace: &mut Workspace,
    op: &Expanded<'_>,
    s: usize,
    widths: Widths,
    heads: std::ops::Range<usize>,
) {
    let sequence = op.batch.sequence(s);
    let context = sequence.first_position + sequence.num_rows;
    // Padding is never written, and zero from the start.
    let (key, value) = (padded(widths.key()), padded(widths.value));
    let width = padded(op.cache.layout.key_dim);
    let latents = &workspace.latents.as_slice()[..context * width];
    let keys = at_least(&mut workspace.expanded_keys, HEADS * context * key);
    let values = at_least(&mut workspace.expanded_values, HEADS * context * value);
    let (keys, values) = (Shared::new(keys), Shared::new(values));
    let chunks = context.div_ceil(POSITIONS);
    pool.run(heads.len() * chunks, &|chunk, _| {
        let (i, from) = (chunk / chunks, chunk % chunks * POSITIONS);
        let (head, count) = (heads.start + i, POSITIONS.min(context - from));
        let rows = (&latents[from * width..(from + count) * width], count);
        let weight = op.expand.weight;
        // SAFETY: every chunk has positions of its own of one head.
        unsafe {
            let k = keys.slice((i * context + from) * key, count * key);
            let v = values.slice((i * context + from) * value, count * value);
            let (k_at, v_at) = (k.as_mut_ptr(), v.as_mut_ptr());
            product(table, weight, &op.expand.keys, head, rows, k_at, key);
            product(table, weight, &op.expand.values, head, rows, v_at, value);
            for (k, latent) in k.chunks_exact_mut(key).zip(rows.0.chunks_exact(width)) {
                k[widths.nope..widths.key()]
                    .copy_from_slice(&latent[widths.latent..widths.latent + widths.rope]);
            }
        }
    });

    let layout = &op.cache.layout;
    let len = attention_len(
        pool.threads(),
        layout.key_dim.max(key),
        layout.value_dim.max(value),
    );
    let scratch = at_least(&mut workspace.attention, len);
    let each = scratch.len() / pool.threads();
    let scratch = Shared::new(scratch);
    let attend = table.kv(DType::F32).expect("a cache may be of f32").attend;
    let steps = sequence.num_rows.div_ceil(MAX_QUERIES);
    pool.run(heads.len() * steps, &|chunk, thread| {
        let (i, first) = (chunk / steps, chunk % steps * MAX_QUERIES);
        let rows = MAX_QUERIES.min(sequence.num_rows - first);
        let at = (sequence.row_start + first) * op.num_heads + heads.start + i;
        // SAFETY: positions below `to` were just written; every chunk writes rows of its own of
        // one head, and every thread has scratch of its own.
        unsafe {
            attend(&Attention {
                kv: KvHead {
                    keys: keys.as_mut_ptr().add(i * context * key).cast(),
                    values: values.as_mut_ptr().add(i * context * value).cast(),
                    block_stride: 0,
                    key_step: key,
                    dim_step: 1,
                    value_step: value,
                    block_size: context,
                },
                blocks: ONE_BLOCK.as_ptr(),
                q: op.q.as_ptr().add(at * widths.key()),
                q_stride: op.num_heads * widths.key(),
                rows,
                heads: 1,
                position: sequence.first_position + first,
                key_dim: widths.key(),
                value_dim: widths.value,
                scale: op.scale,
                from: 0,
                to: sequence.first_position + first + rows,
                out: op.out.as_mut_ptr().add(at * widths.value),
                out_stride: op.num_heads * widths.value,
                partial: false,
                next: None,
                scratch: scratch.slice(thread * each, each).as_mut_ptr(),
            });
        }
    });
}

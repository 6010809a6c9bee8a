//! Attention shared out: by KV head and rows, or by segments of one long context.

use scrimp_backend::{AttentionBatch, SequenceRows};

use crate::cache::CpuKvCache;
use crate::kernels::attention::{
    Attention, MAX_QUERIES, MergeArgs, SEGMENT, STATE, padded, scratch_len,
};
use crate::kernels::elementwise::StoreArgs;
use crate::kernels::table::KernelTable;
use crate::memory::Shared;
use crate::ops::parts;
use crate::pool::Pool;
use crate::simd::KernelFn;
use crate::workspace::{Workspace, at_least, attention_len, states_len};

/// Operands of [`attention`].
pub(crate) struct AttentionOp<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) num_heads: usize,
    pub(crate) cache: &'a CpuKvCache,
    pub(crate) layer: usize,
    pub(crate) batch: &'a AttentionBatch<'a>,
    pub(crate) scale: f32,
    pub(crate) out: &'a mut [f32],
}

/// How query vectors are grouped into calls: rows and heads of one call.
#[derive(Clone, Copy)]
struct Grouping {
    /// Query heads that share a KV head.
    group: usize,
    rows: usize,
    heads: usize,
}

impl Grouping {
    fn of(group: usize) -> Grouping {
        Grouping {
            group,
            rows: (MAX_QUERIES / group).max(1),
            heads: group.min(MAX_QUERIES),
        }
    }

    /// Calls for each KV head and each step of rows.
    fn head_calls(&self) -> usize {
        self.group.div_ceil(self.heads)
    }

    /// The `call`-th heads, of KV head 0.
    fn heads(&self, call: usize) -> std::ops::Range<usize> {
        call * self.heads..((call + 1) * self.heads).min(self.group)
    }
}

/// Asserts that tables name blocks of the cache, and enough of them.
fn check_batch(op: &AttentionOp<'_>) {
    let layout = &op.cache.layout;
    let rows = op.batch.num_rows();
    assert!(
        op.num_heads.is_multiple_of(layout.num_kv_heads),
        "heads per KV head"
    );
    assert!(
        op.q.len() >= rows * op.num_heads * layout.key_dim,
        "queries"
    );
    assert!(
        op.out.len() >= rows * op.num_heads * layout.value_dim,
        "outputs"
    );
    check_tables(op.cache, op.batch);
}

/// The part of it that is the tables alone.
pub(crate) fn check_tables(cache: &CpuKvCache, batch: &AttentionBatch<'_>) {
    let layout = &cache.layout;
    for s in 0..batch.num_seqs() {
        let sequence = batch.sequence(s);
        let context = sequence.first_position + sequence.num_rows;
        assert!(
            sequence.blocks.len() * layout.block_size >= context,
            "sequence {s}: {} blocks for {context} positions",
            sequence.blocks.len()
        );
        assert!(
            sequence
                .blocks
                .iter()
                .all(|&b| (b as usize) < cache.num_blocks),
            "sequence {s} names blocks past {}",
            cache.num_blocks
        );
    }
}

/// Causal attention of a batch.
pub(crate) fn attention(
    pool: &mut Pool,
    table: &KernelTable,
    workspace: &mut Workspace,
    mut op: AttentionOp<'_>,
) {
    check_batch(&op);
    let layout = op.cache.layout;
    let grouping = Grouping::of(op.num_heads / layout.num_kv_heads);
    let per_step = layout.num_kv_heads * grouping.head_calls();
    let calls_of = |s: &SequenceRows<'_>| s.num_rows.div_ceil(grouping.rows) * per_step;
    let sequences = || (0..op.batch.num_seqs()).map(|s| op.batch.sequence(s));
    let calls: usize = sequences().map(|s| calls_of(&s)).sum();
    let longest = op
        .batch
        .context_lens
        .iter()
        .max()
        .map_or(0, |&n| n as usize);
    let threads = pool.threads();
    if threads > 1 && calls < 4 * threads && longest > SEGMENT {
        return by_segments(pool, table, workspace, &mut op, grouping);
    }
    let scratch = at_least(
        &mut workspace.attention,
        attention_len(threads, layout.key_dim, layout.value_dim),
    );
    let scratch = Shared::new(scratch);
    let out = Shared::new(op.out);
    let (cache, batch) = (op.cache, op.batch);
    let attend = table
        .kv(layout.dtype)
        .expect("checked when the cache was made")
        .attend;
    let call_at = |mut call: usize, scratch: *mut f32| {
        for s in 0..batch.num_seqs() {
            let sequence = batch.sequence(s);
            let calls = calls_of(&sequence);
            if call >= calls {
                call -= calls;
                continue;
            }
            let (step, call) = (call / per_step, call % per_step);
            let (kv_head, call) = (call / grouping.head_calls(), call % grouping.head_calls());
            let heads = grouping.heads(call);
            let first = step * grouping.rows;
            let rows = grouping.rows.min(sequence.num_rows - first);
            let head = kv_head * grouping.group + heads.start;
            let at = (sequence.row_start + first) * op.num_heads + head;
            return Attention {
                kv: cache.head(op.layer, kv_head),
                blocks: sequence.blocks.as_ptr(),
                q: op.q[at * layout.key_dim..].as_ptr(),
                q_stride: op.num_heads * layout.key_dim,
                rows,
                heads: heads.len(),
                position: sequence.first_position + first,
                key_dim: layout.key_dim,
                value_dim: layout.value_dim,
                scale: op.scale,
                from: 0,
                to: sequence.first_position + first + rows,
                out: out.as_mut_ptr().wrapping_add(at * layout.value_dim),
                out_stride: op.num_heads * layout.value_dim,
                partial: false,
                next: None,
                scratch,
            };
        }
        unreachable!("call {call} past the last sequence's")
    };
    // SAFETY: the batch was checked; every call writes rows and heads of its own.
    unsafe { in_turn(pool, calls, attend, &scratch, call_at) }
}

/// Calls that a thread takes at a time: few enough that threads end together.
fn calls_in_turn(calls: usize, threads: usize) -> usize {
    (calls / (8 * threads)).max(1)
}

/// Runs every call once, some in turn on one thread, each told where the one after it begins.
///
/// # Safety
/// `call_at` gives calls whose operands are as the kernel wants them, for scratch of a thread's
/// share, and that write apart from one another.
unsafe fn in_turn(
    pool: &mut Pool,
    calls: usize,
    attend: KernelFn<Attention>,
    scratch: &Shared<'_, f32>,
    call_at: impl Fn(usize, *mut f32) -> Attention + Sync,
) {
    let threads = pool.threads();
    let (span, each) = (calls_in_turn(calls, threads), scratch.len() / threads);
    pool.run(calls.div_ceil(span), &|chunk, thread| {
        // SAFETY: every thread has scratch of its own.
        let scratch = unsafe { scratch.slice(thread * each, each) }.as_mut_ptr();
        let (first, end) = (chunk * span, calls.min((chunk + 1) * span));
        let mut call = call_at(first, scratch);
        for next in first + 1..=end {
            let next = (next < end).then(|| call_at(next, scratch));
            call.next = next.as_ref().map(Attention::upcoming);
            // SAFETY: by contract.
            unsafe { attend(&call) }
            let Some(next) = next else { return };
            call = next;
        }
    });
}

/// The same, one row at a time, each segment of its context apart.
fn by_segments(
    pool: &mut Pool,
    table: &KernelTable,
    workspace: &mut Workspace,
    op: &mut AttentionOp<'_>,
    grouping: Grouping,
) {
    let layout = op.cache.layout;
    let threads = pool.threads();
    let each = scratch_len(layout.key_dim, layout.value_dim);
    let scratch = at_least(&mut workspace.attention, threads * each);
    let scratch = Shared::new(scratch);
    let kernels = table
        .kv(layout.dtype)
        .expect("checked when the cache was made");
    let state = STATE + padded(layout.value_dim);
    let calls = layout.num_kv_heads * grouping.head_calls();
    let out = Shared::new(op.out);
    for s in 0..op.batch.num_seqs() {
        let sequence = op.batch.sequence(s);
        for r in 0..sequence.num_rows {
            let (row, context) = (sequence.row_start + r, sequence.first_position + r + 1);
            let segments = context.div_ceil(SEGMENT);
            let len = states_len(op.num_heads, context, layout.value_dim);
            let states = Shared::new(at_least(&mut workspace.states, len));
            let call_at = |call: usize, scratch: *mut f32| {
                let (call, segment) = (call / segments, call % segments);
                let kv_head = call / grouping.head_calls();
                let heads = grouping.heads(call % grouping.head_calls());
                let head = kv_head * grouping.group + heads.start;
                let at = row * op.num_heads + head;
                let state_at = (head * segments + segment) * state;
                Attention {
                    kv: op.cache.head(op.layer, kv_head),
                    blocks: sequence.blocks.as_ptr(),
                    q: op.q[at * layout.key_dim..].as_ptr(),
                    q_stride: 0,
                    rows: 1,
                    heads: heads.len(),
                    position: context - 1,
                    key_dim: layout.key_dim,
                    value_dim: layout.value_dim,
                    scale: op.scale,
                    from: segment * SEGMENT,
                    to: ((segment + 1) * SEGMENT).min(context),
                    out: states.as_mut_ptr().wrapping_add(state_at),
                    out_stride: segments * state,
                    partial: true,
                    next: None,
                    scratch,
                }
            };
            // SAFETY: as in `attention`; every call has states of its own.
            unsafe { in_turn(pool, calls * segments, kernels.attend, &scratch, call_at) }
            let merges = parts(op.num_heads, segments * state, threads);
            pool.run(merges, &|part, thread| {
                for head in crate::ops::share(op.num_heads, part, merges) {
                    // SAFETY: all states are written; every head's output is one part's.
                    unsafe {
                        (table.merge)(&MergeArgs {
                            states: states.as_mut_ptr().add(head * segments * state),
                            stride: state,
                            segments,
                            value_dim: layout.value_dim,
                            out: out
                                .as_mut_ptr()
                                .add((row * op.num_heads + head) * layout.value_dim),
                            scratch: scratch.slice(thread * each, each).as_mut_ptr(),
                        });
                    }
                }
            });
        }
    }
}

/// Stores keys and values at slots.
pub(crate) fn store_kv(
    pool: &mut Pool,
    table: &KernelTable,
    cache: &mut CpuKvCache,
    layer: usize,
    keys: &[f32],
    values: Option<&[f32]>,
    slots: &[u32],
) {
    let layout = cache.layout;
    let rows = slots.len();
    let (heads, key_dim, value_dim) = (layout.num_kv_heads, layout.key_dim, layout.value_dim);
    assert!(keys.len() >= rows * heads * key_dim, "keys");
    assert_eq!(
        values.is_none(),
        layout.value_in_key,
        "values where they are kept"
    );
    assert!(
        values.is_none_or(|values| values.len() >= rows * heads * value_dim),
        "values"
    );
    let store = table
        .kv(layout.dtype)
        .expect("checked when the cache was made")
        .store;
    let parts = parts(rows, heads * (key_dim + value_dim), pool.threads());
    let finder = cache.slots();
    let dim_step = finder.dim_step();
    let bytes = Shared::new(cache.bytes.as_mut_slice());
    pool.run(parts, &|part, _| {
        for row in crate::ops::share(rows, part, parts) {
            for head in 0..heads {
                let (key, value) = finder.find(layer, head, slots[row] as usize);
                let (k, v) = (
                    (row * heads + head) * key_dim,
                    (row * heads + head) * value_dim,
                );
                // SAFETY: `find` checks its bounds; slots are distinct, so rows write apart.
                unsafe {
                    store(&StoreArgs {
                        x: keys[k..].as_ptr(),
                        dim: key_dim,
                        out: bytes.as_mut_ptr().add(key),
                        step: dim_step,
                    });
                    if let Some(values) = values {
                        store(&StoreArgs {
                            x: values[v..].as_ptr(),
                            dim: value_dim,
                            out: bytes.as_mut_ptr().add(value),
                            step: 1,
                        });
                    }
                }
            }
        }
    });
}

//! Experts: tokens grouped so that each expert's weights are read once.
//!
//! ```text
//! group   slots (row, k) by expert                       counting sort
//! region  act[place] = silu(x · gateᵀ) ⊙ (x · upᵀ)        chunks of (expert, weight rows)
//! region  outs[place] = act · downᵀ                       likewise
//! region  out[row] += Σ_k weight · outs[place of (row, k)]
//! ```

use scrimp_backend::{Expert, Routing};

use crate::CpuBackend;
use crate::kernels::elementwise::WeightedSumArgs;
use crate::kernels::table::KernelTable;
use crate::matrix::CpuMatrix;
use crate::memory::Shared;
use crate::ops::linear::{Call, Forms, GateUp, Rounding, Source, form_of, gated_chunk, prepare};
use crate::ops::{parts, share};
use crate::pool::Pool;
use crate::simd::LANES;
use crate::workspace::{Workspace, at_least, slots_len};

/// Operands of [`moe`].
pub(crate) struct Moe<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) routing: &'a Routing,
    pub(crate) experts: &'a [Expert<CpuBackend>],
    pub(crate) out: &'a mut [f32],
}

/// Slots grouped by expert.
struct Groups<'a> {
    /// `[slots]`: token of each place.
    tokens: &'a mut [u32],
    /// `[slots]`: place of each slot `row · top_k + k`.
    places: &'a mut [u32],
    /// `[experts + 1]`: first place of each expert.
    starts: &'a mut [u32],
    /// `[experts + 1]`: first chunk of each expert, in the first and in the second region.
    gated_chunks: &'a mut [u32],
    down_chunks: &'a mut [u32],
}

impl<'a> Groups<'a> {
    fn new(memory: &'a mut [u32], routing: &Routing, num_experts: usize) -> Groups<'a> {
        let slots = routing.experts.len();
        let (tokens, rest) = memory.split_at_mut(slots);
        let (places, rest) = rest.split_at_mut(slots);
        let (starts, rest) = rest.split_at_mut(num_experts + 1);
        let (gated_chunks, down_chunks) = rest.split_at_mut(num_experts + 1);
        starts.fill(0);
        for &e in &routing.experts {
            assert!((e as usize) < num_experts, "expert {e} of {num_experts}");
            starts[e as usize + 1] += 1;
        }
        for e in 0..num_experts {
            starts[e + 1] += starts[e];
        }
        // `gated_chunks` counts each expert's places while they are given out.
        gated_chunks.fill(0);
        for (slot, &e) in routing.experts.iter().enumerate() {
            let e = e as usize;
            let place = starts[e] + gated_chunks[e];
            gated_chunks[e] += 1;
            places[slot] = place;
            tokens[place as usize] = (slot / routing.top_k) as u32;
        }
        Groups {
            tokens,
            places,
            starts,
            gated_chunks,
            down_chunks,
        }
    }

    /// Places of an expert.
    fn of(&self, expert: usize) -> std::ops::Range<usize> {
        self.starts[expert] as usize..self.starts[expert + 1] as usize
    }
}

/// Fills `chunks` with running counts; returns their sum.
fn count_chunks(starts: &[u32], chunks: &mut [u32], of: impl Fn(usize) -> usize) -> usize {
    let mut sum = 0;
    for e in 0..chunks.len() {
        chunks[e] = sum;
        if e + 1 < chunks.len() && starts[e + 1] > starts[e] {
            sum += of(e) as u32;
        }
    }
    sum as usize
}

/// Expert of a chunk, and its number among the expert's.
fn find(chunks: &[u32], chunk: usize) -> (usize, usize) {
    let expert = chunks.partition_point(|&first| first as usize <= chunk) - 1;
    (expert, chunk - chunks[expert] as usize)
}

/// Weight rows of a chunk of a down projection.
const DOWN_CHUNK: usize = 8 * LANES;

/// Adds every row's weighted experts to `out`.
pub(crate) fn moe(
    pool: &mut Pool,
    table: &KernelTable,
    rounding: Rounding,
    workspace: &mut Workspace,
    op: Moe<'_>,
) {
    let Moe {
        x,
        rows,
        routing,
        experts,
        out,
    } = op;
    let Some(first) = experts.first() else {
        return;
    };
    let (width, hidden) = (first.gate.rows, first.gate.cols);
    let (top_k, slots) = (routing.top_k, routing.experts.len());
    assert_eq!(
        (slots, routing.weights.len()),
        (rows * top_k, rows * top_k),
        "routing"
    );
    if slots == 0 {
        return;
    }
    for e in experts {
        let shapes = [&e.gate, &e.up, &e.down].map(|m| (m.rows, m.cols));
        assert_eq!(
            shapes,
            [(width, hidden), (width, hidden), (hidden, width)],
            "an expert"
        );
    }
    assert!(
        x.len() >= rows * hidden && out.len() >= rows * hidden,
        "moe's rows"
    );
    let threads = pool.threads();
    let memory = at_least(&mut workspace.slots, slots_len(slots, experts.len()));
    let groups = Groups::new(memory, routing, experts.len());
    let acts = at_least(&mut workspace.expert_acts, slots * width);
    let outs = at_least(&mut workspace.expert_outs, slots * hidden);
    let mut forms = Forms {
        normed: &mut workspace.normed,
        int8: &mut workspace.int8,
        int8_tokens: &mut workspace.int8_tokens,
        bf16: &mut workspace.bf16,
    };

    let source = Source {
        x,
        rows,
        cols: hidden,
        norm: None,
    };
    let form = |m: &CpuMatrix| form_of(table, rounding, m);
    let wanted = experts.iter().flat_map(|e| [form(&e.gate), form(&e.up)]);
    let prepared = prepare(pool, table, &mut forms, source, wanted);
    let step = gated_chunk(width, threads);
    let chunks = count_chunks(groups.starts, groups.gated_chunks, |_| width.div_ceil(step));
    let shared = Shared::new(&mut *acts);
    let grouped = &groups;
    pool.run(chunks, &|chunk, _| {
        let (e, chunk) = find(grouped.gated_chunks, chunk);
        let places = grouped.of(e);
        let (from, to) = (chunk * step, ((chunk + 1) * step).min(width));
        let op = GateUp {
            gate: &experts[e].gate,
            up: &experts[e].up,
            acts: &prepared,
            rounding,
            index: Some(&grouped.tokens[places.clone()]),
            rows: places.len(),
        };
        // SAFETY: an expert's places are its own, and columns `from .. to` this chunk's.
        unsafe {
            let out = shared.as_mut_ptr().add(places.start * width + from);
            op.run(table, (from, to), out, width);
        }
    });

    let source = Source {
        x: acts,
        rows: slots,
        cols: width,
        norm: None,
    };
    let wanted = experts.iter().map(|e| form(&e.down));
    let prepared = prepare(pool, table, &mut forms, source, wanted);
    let per_expert = hidden.div_ceil(DOWN_CHUNK);
    let chunks = count_chunks(groups.starts, groups.down_chunks, |_| per_expert);
    let shared = Shared::new(&mut *outs);
    let grouped = &groups;
    pool.run(chunks, &|chunk, _| {
        let (e, chunk) = find(grouped.down_chunks, chunk);
        let places = grouped.of(e);
        let (from, to) = (chunk * DOWN_CHUNK, ((chunk + 1) * DOWN_CHUNK).min(hidden));
        let weight = &experts[e].down;
        let call = Call {
            weight,
            acts: prepared.get(form(weight)),
            index: None,
            row: places.start,
            rows: places.len(),
            from,
            to,
            out_stride: hidden,
            bias: None,
            accumulate: false,
        };
        // SAFETY: as above.
        unsafe { call.run(table, shared.as_mut_ptr().add(places.start * hidden + from)) }
    });

    let parts = parts(rows, hidden * top_k, threads);
    let out = Shared::new(out);
    let (outs, places) = (&*outs, &*groups.places);
    pool.run(parts, &|part, _| {
        for row in share(rows, part, parts) {
            let slot = row * top_k;
            // SAFETY: a row is one part's alone; places are below `slots`, whose rows are written.
            unsafe {
                (table.weighted_sum)(&WeightedSumArgs {
                    x: outs.as_ptr(),
                    index: places[slot..slot + top_k].as_ptr(),
                    weights: routing.weights[slot..slot + top_k].as_ptr(),
                    terms: top_k,
                    cols: hidden,
                    out: out.slice(row * hidden, hidden).as_mut_ptr(),
                });
            }
        }
    });
}

//! Tokens per second of a whole decoder of SmolLM2-135M's shape, random weights, no sampling.
//!
//! ```text
//! cargo run --release -p scrimp-cpu --example decoder -- [FORMAT] [THREADS] [LEVEL]
//! ```

use std::time::Instant;

use scrimp_backend::{AttentionBatch, Backend, BackendError, Input, Norm, Projection, Segments};
use scrimp_cpu::{
    CpuBackend, CpuBuffer, CpuKvCache, CpuMatrix, CpuOptions, bandwidth::read_bandwidth,
};
use scrimp_model::KvLayout;
use scrimp_tensor::{DType, MatrixView};

const HIDDEN: usize = 576;
const WIDTH: usize = 1536;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const DIM: usize = 64;
const LAYERS: usize = 30;
const VOCAB: usize = 49152;

struct Layer {
    q: CpuMatrix,
    k: CpuMatrix,
    v: CpuMatrix,
    o: CpuMatrix,
    gate: CpuMatrix,
    up: CpuMatrix,
    down: CpuMatrix,
}

struct Model {
    layers: Vec<Layer>,
    head: CpuMatrix,
    ones: CpuBuffer,
    bytes: usize,
}

/// Activations of a step.
struct Scratch {
    x: CpuBuffer,
    q: CpuBuffer,
    k: CpuBuffer,
    v: CpuBuffer,
    attended: CpuBuffer,
    act: CpuBuffer,
    logits: CpuBuffer,
}

fn load(
    b: &mut CpuBackend,
    dtype: DType,
    n: usize,
    cols: usize,
) -> Result<CpuMatrix, BackendError> {
    // Any bytes whose scales are ordinary numbers will do.
    let bytes = vec![0x1au8; dtype.row_bytes(cols).map_or(0, |row| row * n)];
    let view = MatrixView::from_blocks(dtype, n, cols, &bytes);
    b.load_matrix(&view.map_err(|error| BackendError::Unsupported {
        what: error.to_string().into(),
    })?)
}

impl Model {
    fn new(b: &mut CpuBackend, dtype: DType) -> Result<Model, BackendError> {
        let mut layers = Vec::new();
        let mut bytes = 0;
        for _ in 0..LAYERS {
            let mut matrix = |n, cols| {
                let m = load(b, dtype, n, cols)?;
                bytes += m.bytes();
                Ok(m)
            };
            layers.push(Layer {
                q: matrix(HEADS * DIM, HIDDEN)?,
                k: matrix(KV_HEADS * DIM, HIDDEN)?,
                v: matrix(KV_HEADS * DIM, HIDDEN)?,
                o: matrix(HIDDEN, HEADS * DIM)?,
                gate: matrix(WIDTH, HIDDEN)?,
                up: matrix(WIDTH, HIDDEN)?,
                down: matrix(HIDDEN, WIDTH)?,
            });
        }
        let head = load(b, dtype, VOCAB, HIDDEN)?;
        bytes += head.bytes();
        let mut ones = b.alloc(HIDDEN)?;
        b.write(&mut ones, &[1.0; HIDDEN]);
        Ok(Model {
            layers,
            head,
            ones,
            bytes,
        })
    }
}

/// One projection.
fn project<'a>(
    weight: &'a CpuMatrix,
    out: &'a mut CpuBuffer,
    accumulate: bool,
) -> Projection<'a, CpuBackend> {
    Projection {
        weight,
        bias: None,
        out,
        accumulate,
    }
}

/// The newest `rows` tokens of each sequence of a batch through all layers; logits of the last
/// row of each.
fn step(
    b: &mut CpuBackend,
    model: &Model,
    s: &mut Scratch,
    cache: &mut CpuKvCache,
    batch: &AttentionBatch<'_>,
    slots: &[u32],
    cos_sin: &[f32],
) {
    let rows = slots.len();
    let norm = Norm {
        weight: &model.ones,
        dim: HIDDEN,
        eps: 1e-5,
    };
    for (i, layer) in model.layers.iter().enumerate() {
        let input = Input {
            x: &s.x,
            rows,
            norm: Some(norm),
            fine: false,
        };
        b.linear(
            input,
            &mut [
                project(&layer.q, &mut s.q, false),
                project(&layer.k, &mut s.k, false),
                project(&layer.v, &mut s.v, false),
            ],
        );
        b.rope(&mut s.q, rows, Segments::dense(HEADS, DIM), cos_sin, false);
        b.rope(
            &mut s.k,
            rows,
            Segments::dense(KV_HEADS, DIM),
            cos_sin,
            false,
        );
        b.store_kv(cache, i, &s.k, Some(&s.v), slots);
        b.attention(&s.q, HEADS, cache, i, batch, 0.125, &mut s.attended);
        let input = Input {
            x: &s.attended,
            rows,
            norm: None,
            fine: false,
        };
        b.linear(input, &mut [project(&layer.o, &mut s.x, true)]);
        let input = Input {
            x: &s.x,
            rows,
            norm: Some(norm),
            fine: false,
        };
        b.gate_up_silu(input, &layer.gate, &layer.up, &mut s.act);
        let input = Input {
            x: &s.act,
            rows,
            norm: None,
            fine: false,
        };
        b.linear(input, &mut [project(&layer.down, &mut s.x, true)]);
    }
    let input = Input {
        x: &s.x,
        rows: batch.num_seqs(),
        norm: Some(norm),
        fine: false,
    };
    b.linear(input, &mut [project(&model.head, &mut s.logits, false)]);
}

/// Seconds of a step of `seqs` sequences with `rows` new tokens each, at a context.
fn time(
    b: &mut CpuBackend,
    model: &Model,
    (seqs, rows, context): (usize, usize, usize),
) -> Result<f64, BackendError> {
    let layout = KvLayout {
        num_layers: LAYERS,
        num_kv_heads: KV_HEADS,
        key_dim: DIM,
        value_dim: DIM,
        value_in_key: false,
        dtype: DType::BF16,
        block_size: 16,
    };
    let per_seq = context.div_ceil(16);
    let mut cache = b.alloc_kv_cache(&layout, seqs * per_seq)?;
    let n = seqs * rows;
    let mut s = Scratch {
        x: b.alloc(n * HIDDEN)?,
        q: b.alloc(n * HIDDEN)?,
        k: b.alloc(n * KV_HEADS * DIM)?,
        v: b.alloc(n * KV_HEADS * DIM)?,
        attended: b.alloc(n * HIDDEN)?,
        act: b.alloc(n * WIDTH)?,
        logits: b.alloc(seqs * VOCAB)?,
    };
    b.write(&mut s.x, &vec![0.01; n * HIDDEN]);
    let starts: Vec<u32> = (0..=seqs).map(|i| (i * per_seq) as u32).collect();
    let cu: Vec<u32> = (0..=seqs).map(|i| (i * rows) as u32).collect();
    let tables: Vec<u32> = (0..(seqs * per_seq) as u32).collect();
    let lens = vec![context as u32; seqs];
    let slots: Vec<u32> = (0..n)
        .map(|i| (i / rows * per_seq * 16 + context - rows + i % rows) as u32)
        .collect();
    let batch = AttentionBatch {
        cu_seqlens_q: &cu,
        context_lens: &lens,
        block_tables: &tables,
        table_starts: &starts,
    };
    let cos_sin = vec![0.5; n * DIM];
    let mut best = f64::INFINITY;
    let begun = Instant::now();
    while begun.elapsed().as_secs_f64() < 2.0 {
        let started = Instant::now();
        step(b, model, &mut s, &mut cache, &batch, &slots, &cos_sin);
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let name = args.next().unwrap_or_else(|| "Q8_0".to_owned());
    let dtype = DType::all()
        .find(|dtype| dtype.name() == name)
        .ok_or_else(|| format!("{name} is no format"))?;
    let options = CpuOptions {
        threads: args.next().map(|n| n.parse()).transpose()?,
        level: args.next().map(|level| level.parse()).transpose()?,
        ..CpuOptions::default()
    };
    let mut b = CpuBackend::new(options)?;
    let limit = read_bandwidth(&mut b)?;
    let model = Model::new(&mut b, dtype)?;
    println!(
        "{}; {name}, {} MB; reads {:.1} GB/s: at most {:.0} tokens/s",
        b.description(),
        model.bytes / 1_000_000,
        limit / 1e9,
        limit / model.bytes as f64
    );
    for (seqs, rows, context) in [
        (1, 1, 64),
        (1, 1, 1024),
        (1, 1, 6144),
        (8, 1, 128),
        (1, 512, 512),
    ] {
        let seconds = time(&mut b, &model, (seqs, rows, context))?;
        println!(
            "{seqs} sequences, {rows} new tokens each, {context} positions: {:8.1} tokens/s",
            (seqs * rows) as f64 / seconds
        );
    }
    Ok(())
}

//! How fast the kernels are: GB/s of weights for one row, GFLOP/s for many, for every format.
//!
//! ```text
//! cargo run --release -p scrimp-cpu --example kernels -- [THREADS] [LEVEL]
//! ```
//!
//! Weights are those of a small model's layer, as many layers as do not fit in the caches.

use std::time::Instant;

use scrimp_backend::{AttentionBatch, Backend, BackendError, Input, Projection};
use scrimp_cpu::{CpuBackend, CpuMatrix, CpuOptions, bandwidth::read_bandwidth};
use scrimp_model::KvLayout;
use scrimp_tensor::{DType, MatrixView};

const FORMATS: [DType; 11] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::F8E4M3,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q8_0,
    DType::Q4K,
    DType::Q5K,
    DType::Q6K,
];
/// Weight bytes read in turn.
const BYTES: usize = 96 << 20;
const SHAPE: (usize, usize) = (1536, 768);

/// Nanoseconds that this thread has been running, where the system says so.
fn on_cpu() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split(' ').next()?.parse().ok()
}

/// Seconds of a run: the fastest of some batches long enough for the clock; of this thread's own
/// time when it computes alone, so that a busy machine's other work counts less.
fn fastest(batches: usize, alone: bool, mut run: impl FnMut()) -> f64 {
    let started = Instant::now();
    run();
    let runs = (0.04 / started.elapsed().as_secs_f64())
        .ceil()
        .clamp(1.0, 1e4) as usize;
    let mut batch = || {
        let (started, cpu) = (Instant::now(), on_cpu());
        (0..runs).for_each(|_| run());
        match (cpu, on_cpu()) {
            (Some(from), Some(to)) if alone => (to - from) / 1e9 / runs as f64,
            _ => started.elapsed().as_secs_f64() / runs as f64,
        }
    };
    (0..batches).map(|_| batch()).fold(f64::INFINITY, f64::min)
}

/// Time of a product of `rows` rows with every matrix in turn.
fn linear(b: &mut CpuBackend, weights: &[CpuMatrix], rows: usize) -> Result<f64, BackendError> {
    let (n, cols) = SHAPE;
    let mut x = b.alloc(rows * cols)?;
    let values: Vec<f32> = (0..rows * cols)
        .map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0)
        .collect();
    b.write(&mut x, &values);
    let mut out = b.alloc(rows * n)?;
    Ok(fastest(4, b.threads() == 1, || {
        for weight in weights {
            let projection = Projection {
                weight,
                bias: None,
                out: &mut out,
                accumulate: false,
            };
            let input = Input {
                x: &x,
                rows,
                norm: None,
                fine: false,
            };
            b.linear(input, &mut [projection]);
        }
    }))
}

/// Time of attention of the last `rows` of `context` positions; SmolLM2-135M's heads.
fn attention(b: &mut CpuBackend, rows: usize, context: usize) -> Result<f64, BackendError> {
    let layout = KvLayout {
        num_layers: 1,
        num_kv_heads: 3,
        key_dim: 64,
        value_dim: 64,
        value_in_key: false,
        dtype: DType::BF16,
        block_size: 16,
    };
    let blocks: Vec<u32> = (0..context.div_ceil(16) as u32).collect();
    let mut cache = b.alloc_kv_cache(&layout, blocks.len())?;
    let mut kv = b.alloc(context * 192)?;
    b.write(&mut kv, &vec![0.1; context * 192]);
    let slots: Vec<u32> = (0..context as u32).collect();
    b.store_kv(&mut cache, 0, &kv, Some(&kv), &slots);
    let (q, mut out) = (b.alloc(rows * 576)?, b.alloc(rows * 576)?);
    let batch = AttentionBatch {
        cu_seqlens_q: &[0, rows as u32],
        context_lens: &[context as u32],
        block_tables: &blocks,
        table_starts: &[0, blocks.len() as u32],
    };
    Ok(fastest(4, b.threads() == 1, || {
        b.attention(&q, 9, &cache, 0, &batch, 0.125, &mut out);
    }))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let options = CpuOptions {
        threads: args.next().map(|n| n.parse()).transpose()?,
        level: args.next().map(|level| level.parse()).transpose()?,
        ..CpuOptions::default()
    };
    let mut b = CpuBackend::new(options)?;
    let limit = read_bandwidth(&mut b)?;
    println!("{}; reads {:.1} GB/s", b.description(), limit / 1e9);
    let (n, cols) = SHAPE;
    for dtype in FORMATS {
        let bytes = vec![0x2au8; dtype.row_bytes(cols)? * n];
        let view = MatrixView::from_blocks(dtype, n, cols, &bytes)?;
        let count = BYTES / bytes.len();
        let weights = (0..count)
            .map(|_| b.load_matrix(&view))
            .collect::<Result<Vec<_>, _>>()?;
        let total: usize = weights.iter().map(CpuMatrix::bytes).sum();
        let one = linear(&mut b, &weights, 1)?;
        let few = weights.len().min(8);
        let flops = (2 * n * cols * few) as f64;
        print!(
            "{:8} {:6.1} GB/s ({:3.0}%)",
            dtype.name(),
            total as f64 / one / 1e9,
            100.0 * total as f64 / one / limit
        );
        for rows in [1, 8, 64, 512] {
            let time = linear(&mut b, &weights[..few], rows)?;
            print!(
                "   {rows} rows: {:5.0} GFLOP/s",
                flops * rows as f64 / time / 1e9
            );
        }
        println!();
    }
    for (rows, context) in [(1, 128), (1, 1024), (1, 6144), (512, 512), (512, 4096)] {
        let time = attention(&mut b, rows, context)?;
        println!(
            "attention of {rows} rows, {context} positions: {:8.1} us",
            time * 1e6
        );
    }
    Ok(())
}

//! Latent attention of a prompt's chunk in both forms, of DeepSeek-V3's widths: how much faster the
//! plain one is.
//!
//! ```text
//! cargo run --release -p scrimp-cpu --example latent -- [THREADS] [HEADS]
//! ```

use std::time::Instant;

use scrimp_backend::{AttentionBatch, Backend, BackendError, Expand, HeadRows, Segments};
use scrimp_cpu::{CpuBackend, CpuOptions};
use scrimp_model::KvLayout;
use scrimp_tensor::{DType, MatrixView};

const LATENT: usize = 512;
const ROPE: usize = 64;
const NOPE: usize = 128;
const VALUE: usize = 128;
const BLOCK: usize = 16;

/// Seconds of the faster of two runs.
fn seconds(mut run: impl FnMut()) -> f64 {
    let mut once = || {
        let started = Instant::now();
        run();
        started.elapsed().as_secs_f64()
    };
    once().min(once())
}

/// Seconds of both forms for the last `rows` of `context` positions.
fn measure(
    b: &mut CpuBackend,
    heads: usize,
    rows: usize,
    context: usize,
) -> Result<(f64, f64), Box<dyn std::error::Error>> {
    let n = heads * (NOPE + VALUE);
    let stored: Vec<u8> = (0..n * LATENT)
        .flat_map(|i| half_bits((i * 7919 % 1000) as f32 / 16000.0 - 0.03))
        .collect();
    let weight = b.load_matrix(&MatrixView::from_blocks(DType::BF16, n, LATENT, &stored)?)?;
    let layout = KvLayout {
        num_layers: 1,
        num_kv_heads: 1,
        key_dim: LATENT + ROPE,
        value_dim: LATENT,
        value_in_key: true,
        dtype: DType::F16,
        block_size: BLOCK,
    };
    let blocks: Vec<u32> = (0..context.div_ceil(BLOCK) as u32).collect();
    let mut cache = b.alloc_kv_cache(&layout, blocks.len())?;
    let filled = |b: &mut CpuBackend, len: usize| -> Result<_, BackendError> {
        let mut buffer = b.alloc(len)?;
        let values: Vec<f32> = (0..len).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect();
        b.write(&mut buffer, &values);
        Ok(buffer)
    };
    let latents = filled(b, context * (LATENT + ROPE))?;
    let slots: Vec<u32> = (0..context as u32).collect();
    b.store_kv(&mut cache, 0, &latents, None, &slots);
    let q = filled(b, rows * heads * (NOPE + ROPE))?;
    let mut carried = b.alloc(rows * heads * (LATENT + ROPE))?;
    let mut seen = b.alloc(rows * heads * LATENT)?;
    let mut out = b.alloc(rows * heads * VALUE)?;
    let batch = AttentionBatch {
        cu_seqlens_q: &[0, rows as u32],
        context_lens: &[context as u32],
        block_tables: &blocks,
        table_starts: &[0, blocks.len() as u32],
    };
    let rows_of = |offset, count, transposed| HeadRows {
        offset,
        stride: NOPE + VALUE,
        count,
        transposed,
    };
    let expand = Expand {
        weight: &weight,
        keys: rows_of(0, NOPE, false),
        values: rows_of(NOPE, VALUE, false),
    };
    let from = Segments::dense(heads, NOPE + ROPE).part(0, NOPE);
    let to = Segments::dense(heads, LATENT + ROPE).part(0, LATENT);
    let latent = Segments::dense(heads, LATENT);
    let value = Segments::dense(heads, VALUE);
    let absorbed = seconds(|| {
        let keys = rows_of(0, NOPE, true);
        b.head_linear(&q, rows, from, &weight, keys, &mut carried, to);
        b.attention(&carried, heads, &cache, 0, &batch, 0.1, &mut seen);
        let values = rows_of(NOPE, VALUE, false);
        b.head_linear(&seen, rows, latent, &weight, values, &mut out, value);
    });
    let plain = seconds(|| {
        b.expanded_attention(&q, heads, &cache, 0, &batch, expand, 0.1, &mut out);
    });
    Ok((absorbed, plain))
}

/// BF16 of a value, its low bits dropped.
fn half_bits(v: f32) -> [u8; 2] {
    ((v.to_bits() >> 16) as u16).to_le_bytes()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let options = CpuOptions {
        threads: args.next().map(|n| n.parse()).transpose()?,
        expand_latents_from: Some(1),
        ..CpuOptions::default()
    };
    let heads = args.next().map_or(Ok(16), |n| n.parse())?;
    let mut b = CpuBackend::new(options)?;
    println!("{}, {heads} heads", b.description());
    for (rows, context) in [
        (128, 2048),
        (512, 512),
        (512, 2048),
        (512, 4096),
        (2048, 4096),
    ] {
        let (absorbed, plain) = measure(&mut b, heads, rows, context)?;
        println!(
            "{rows:5} rows of {context:5}: absorbed {:7.1} ms, plain {:7.1} ms, {:.2} times as fast",
            absorbed * 1e3,
            plain * 1e3,
            absorbed / plain
        );
    }
    Ok(())
}

//! How long an operation takes under other settings, tried on this machine.
//!
//! A remedy that changes how attention or projections are computed is predicted by doing a little
//! of both: the request's own context over a cache of either type, or a token's pass through the
//! model's own matrices at either precision. Ratios of such times scale the recorded ones.

use std::time::{Duration, Instant};

use scrimp_backend::{AttentionBatch, Backend, BackendError, Input, Projection, WorkspaceShape};
use scrimp_checkpoint::Checkpoint;
use scrimp_cpu::{CpuBackend, CpuOptions};
use scrimp_model::{AttentionConfig, KvLayout, ModelConfig};
use scrimp_tensor::MatrixView;

/// How long a pass is repeated.
const TIME: Duration = Duration::from_millis(120);
/// Most bytes of weights that are tried.
const MAX_WEIGHTS: usize = 256 << 20;
/// Rows that are stored in the cache at a time.
const STORE_ROWS: usize = 128;

/// Seconds of one decode step's attention, all layers, over `context` tokens.
///
/// # Errors
/// When the backend has no room or no kernel.
pub fn attention_seconds(
    cpu: CpuOptions,
    config: &ModelConfig,
    kv: &KvLayout,
    context: usize,
) -> Result<f64, BackendError> {
    let mut backend = CpuBackend::new(cpu)?;
    let context = context.max(1);
    let blocks = context.div_ceil(kv.block_size);
    let heads = config.attention.num_heads();
    let value_dim = match &config.attention {
        AttentionConfig::Gqa(gqa) => gqa.head_dim,
        AttentionConfig::Mla(mla) => mla.kv_lora_rank,
    };
    backend.reserve_workspace(&WorkspaceShape {
        max_rows: STORE_ROWS,
        num_heads: heads,
        key_dim: kv.key_dim,
        value_dim,
        max_context: context,
        ..WorkspaceShape::default()
    })?;
    let mut cache = backend.alloc_kv_cache(kv, blocks)?;
    fill(&mut backend, &mut cache, kv, context)?;
    let q = values(&mut backend, heads * kv.key_dim)?;
    let mut out = backend.alloc(heads * value_dim)?;
    let tables: Vec<u32> = (0..blocks as u32).collect();
    let batch = AttentionBatch {
        cu_seqlens_q: &[0, 1],
        context_lens: &[context as u32],
        block_tables: &tables,
        table_starts: &[0, blocks as u32],
    };
    Ok(fastest(|| {
        for layer in 0..kv.num_layers {
            backend.attention(&q, heads, &cache, layer, &batch, 0.1, &mut out);
        }
    }))
}

/// Writes every position of every layer: pages that were never written are all one page.
fn fill(
    backend: &mut CpuBackend,
    cache: &mut <CpuBackend as Backend>::KvCache,
    kv: &KvLayout,
    context: usize,
) -> Result<(), BackendError> {
    let rows = STORE_ROWS.min(context);
    let keys = values(backend, rows * kv.num_kv_heads * kv.key_dim)?;
    let stored = values(backend, rows * kv.num_kv_heads * kv.value_dim)?;
    let stored = (!kv.value_in_key).then_some(&stored);
    for first in (0..context).step_by(rows) {
        let slots: Vec<u32> = (first..(first + rows).min(context))
            .map(|slot| slot as u32)
            .collect();
        for layer in 0..kv.num_layers {
            backend.store_kv(cache, layer, &keys, stored, &slots);
        }
    }
    Ok(())
}

/// A buffer of numbers that are neither all alike nor tiny.
fn values(
    backend: &mut CpuBackend,
    len: usize,
) -> Result<<CpuBackend as Backend>::Buffer, BackendError> {
    let mut buffer = backend.alloc(len)?;
    let values: Vec<f32> = (0..len)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0)
        .collect();
    backend.write(&mut buffer, &values);
    Ok(buffer)
}

/// Seconds of one token's way through the checkpoint's matrices, or as many of them as
/// are tried.
///
/// # Errors
/// When the backend has no room or no kernel for any of them.
pub fn linear_seconds(cpu: CpuOptions, checkpoint: &Checkpoint) -> Result<f64, BackendError> {
    let mut backend = CpuBackend::new(cpu)?;
    let (mut matrices, mut bytes, mut widest, mut longest) = (Vec::new(), 0, 1, 1);
    for (_, tensor) in checkpoint.tensors() {
        let &[rows, cols] = tensor.shape.as_slice() else {
            continue;
        };
        if bytes + tensor.bytes.len() > MAX_WEIGHTS {
            break;
        }
        let Ok(view) = MatrixView::from_blocks(tensor.dtype, rows, cols, tensor.bytes) else {
            continue;
        };
        bytes += tensor.bytes.len();
        widest = widest.max(cols);
        longest = longest.max(rows);
        matrices.push(backend.load_matrix(&view)?);
    }
    backend.reserve_workspace(&WorkspaceShape {
        max_rows: 1,
        max_cols: widest,
        hidden_size: widest,
        ..WorkspaceShape::default()
    })?;
    let x = values(&mut backend, widest)?;
    let mut out = backend.alloc(longest)?;
    Ok(fastest(|| {
        for matrix in &matrices {
            let input = Input {
                x: &x,
                rows: 1,
                norm: None,
                fine: false,
            };
            let mut projection = [Projection {
                weight: matrix,
                bias: None,
                out: &mut out,
                accumulate: false,
            }];
            backend.linear(input, &mut projection);
        }
    }))
}

/// The least of several times, after one that does not count.
fn fastest(mut pass: impl FnMut()) -> f64 {
    pass();
    let started = Instant::now();
    let mut best = f64::INFINITY;
    while best.is_infinite() || started.elapsed() < TIME {
        let pass_started = Instant::now();
        pass();
        best = best.min(pass_started.elapsed().as_secs_f64());
    }
    best.max(1e-9)
}

//! Steps within the reserved shape allocate nothing, and what is planned is what is taken.

#![allow(clippy::unwrap_used)] // helpers outside of test functions

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Random, backend, buffer, weight_bytes};
use scrimp_backend::{
    AttentionBatch, Backend, Expert, Input, Norm, Projection, Routing, WorkspaceShape,
};
use scrimp_cpu::{CpuLevel, CpuMatrix, Precision};
use scrimp_model::KvLayout;
use scrimp_tensor::{DType, MatrixView};

/// Counts allocations.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn a_step_within_the_reserved_shape_allocates_nothing() {
    let mut random = Random::new(1);
    let (rows, hidden, width, heads, context) = (24, 256, 512, 4, 1100);
    for precision in [Precision::Exact, Precision::Fast] {
        let mut b = backend(CpuLevel::detect(), precision, 2);
        let shape = WorkspaceShape {
            max_rows: rows,
            max_fine_rows: rows,
            max_cols: width,
            num_heads: heads,
            key_dim: 64,
            value_dim: 64,
            max_context: context,
            expanded_key_dim: 0,
            expanded_value_dim: 0,
            top_k: 2,
            num_experts: 4,
            expert_width: 64,
            hidden_size: hidden,
            int8_tokens: true,
        };
        assert!(b.workspace_bytes(&shape) > 0);
        b.reserve_workspace(&shape).unwrap();
        let mut load = |dtype, n, cols| -> CpuMatrix {
            let bytes = weight_bytes(&mut random, dtype, n, cols);
            b.load_matrix(&MatrixView::from_blocks(dtype, n, cols, &bytes).unwrap())
                .unwrap()
        };
        let q8 = load(DType::Q8_0, hidden, hidden);
        let (gate, up) = (
            load(DType::Q4K, width, hidden),
            load(DType::Q4K, width, hidden),
        );
        let down = load(DType::BF16, hidden, width);
        let experts: Vec<_> = (0..4)
            .map(|_| Expert {
                gate: load(DType::BF16, 64, hidden),
                up: load(DType::Q8_0, 64, hidden),
                down: load(DType::Q4_0, hidden, 64),
            })
            .collect();
        let layout = KvLayout {
            num_layers: 1,
            num_kv_heads: 2,
            key_dim: 64,
            value_dim: 64,
            value_in_key: false,
            dtype: DType::F16,
            block_size: 16,
        };
        let blocks: Vec<u32> = (0..69).collect();
        let mut cache = b.alloc_kv_cache(&layout, 69).unwrap();
        let x = buffer(&mut b, &vec![0.5; rows * hidden]);
        let ones = buffer(&mut b, &vec![1.0; hidden]);
        let mut a = b.alloc(rows * width).unwrap();
        let mut c = b.alloc(rows * hidden).unwrap();
        let mut routing = Routing {
            top_k: 2,
            experts: [0, 2].repeat(rows),
            weights: [0.5, 0.25].repeat(rows),
        };
        let router = scrimp_model::RouterConfig {
            top_k: 2,
            scoring: scrimp_model::Scoring::Softmax,
            n_group: 1,
            topk_group: 1,
            group_score: scrimp_model::GroupScore::Max,
            norm_topk_prob: true,
            routed_scaling_factor: 1.0,
            correction_bias: false,
        };
        for (n, context) in [(rows as u32, 40), (1, context as u32)] {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            let norm = Norm {
                weight: &ones,
                dim: hidden,
                eps: 1e-5,
            };
            let input = Input {
                x: &x,
                rows: n as usize,
                norm: Some(norm),
                fine: false,
            };
            let projection = Projection {
                weight: &q8,
                bias: None,
                out: &mut c,
                accumulate: false,
            };
            b.linear(input, &mut [projection]);
            let input = Input {
                x: &x,
                rows: n as usize,
                norm: Some(norm),
                fine: true,
            };
            let projection = Projection {
                weight: &q8,
                bias: None,
                out: &mut c,
                accumulate: false,
            };
            b.linear(input, &mut [projection]);
            let slots = [0u32; 24];
            for slot in &slots[..n as usize] {
                b.store_kv(&mut cache, 0, &c, Some(&c), &[*slot]);
            }
            let batch = AttentionBatch {
                cu_seqlens_q: &[0, n],
                context_lens: &[context],
                block_tables: &blocks,
                table_starts: &[0, 69],
            };
            b.attention(&x, heads, &cache, 0, &batch, 0.125, &mut c);
            let input = Input {
                x: &x,
                rows: n as usize,
                norm: Some(norm),
                fine: false,
            };
            b.gate_up_silu(input, &gate, &up, &mut a);
            let input = Input {
                x: &a,
                rows: n as usize,
                norm: None,
                fine: false,
            };
            let projection = Projection {
                weight: &down,
                bias: None,
                out: &mut c,
                accumulate: true,
            };
            b.linear(input, &mut [projection]);
            b.route(&c, n as usize, 4, &router, None, &mut routing);
            b.moe(&x, n as usize, &routing, &experts, &mut c);
            let after = ALLOCATIONS.load(Ordering::Relaxed);
            assert_eq!(after - before, 0, "{precision:?}, {n} rows of {context}");
        }
    }
}

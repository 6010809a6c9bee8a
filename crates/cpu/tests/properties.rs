//! Any shape, any cut, any team: a row's bits are its own.

#![allow(clippy::unwrap_used)] // helpers outside of test functions

mod common;

use common::{
    Random, TREATMENTS, WEIGHTS, assert_bits, assert_close, backend, buffer, decoded, levels,
    product, rounded, values, weight_bytes,
};
use proptest::prelude::*;
use scrimp_backend::{AttentionBatch, Backend, Input, Projection};
use scrimp_cpu::{CpuBackend, CpuMatrix, Precision};
use scrimp_model::KvLayout;
use scrimp_tensor::{DType, MatrixView};

fn linear(
    b: &mut CpuBackend,
    x: &[f32],
    cols: usize,
    weight: &CpuMatrix,
    n: usize,
    fine: bool,
) -> Vec<f32> {
    let rows = x.len() / cols;
    let (x, mut out) = (buffer(b, x), b.alloc(rows * n).unwrap());
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
        fine,
    };
    b.linear(input, &mut [projection]);
    values(b, &out, rows * n)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_product_is_right_and_the_same_however_its_rows_are_cut(
        seed in any::<u64>(),
        format in 0..WEIGHTS.len(),
        n in 1usize..90,
        blocks in 1usize..12,
        odd in 0usize..32,
        rows in 1usize..71,
        cut in 0usize..71,
        threads in 1usize..5,
        treatment in 0..TREATMENTS.len(),
    ) {
        let mut random = Random::new(seed);
        let dtype = WEIGHTS[format];
        let cols = match dtype.block_len() {
            1 => 32 * blocks + odd,
            32 => 32 * blocks,
            len => len * blocks.min(3),
        };
        let bytes = weight_bytes(&mut random, dtype, n, cols);
        let view = MatrixView::from_blocks(dtype, n, cols, &bytes).unwrap();
        let weights = decoded(&view);
        let x = random.values(rows * cols);
        let (precision, fine) = TREATMENTS[treatment];
        for level in levels() {
            let what = format!("{dtype} {n}x{cols}, {rows} rows, {level} {precision:?} fine {fine}");
            let mut b = backend(level, precision, threads);
            let w = b.load_matrix(&view).unwrap();
            let whole = linear(&mut b, &x, cols, &w, n, fine);
            let seen = rounded(&x, cols, dtype, level, (precision, fine));
            assert_close(&whole, &product(&seen, &weights, cols), &what);
            let cut = cut.min(rows);
            let mut parts = linear(&mut b, &x[..cut * cols], cols, &w, n, fine);
            parts.extend(linear(&mut b, &x[cut * cols..], cols, &w, n, fine));
            assert_bits(&parts, &whole, &what);
        }
    }

    #[test]
    fn a_context_is_the_same_in_any_blocks_and_cuts(
        seed in any::<u64>(),
        n in 1usize..301,
        cut in 0usize..301,
        group in 1usize..6,
        kv_heads in 1usize..4,
        dim in prop::sample::select(vec![16usize, 40, 64, 80, 128]),
        dtype in prop::sample::select(vec![DType::F32, DType::F16, DType::BF16]),
        threads in 1usize..4,
    ) {
        let mut random = Random::new(seed);
        let heads = group * kv_heads;
        let (kv, q) = (random.values(n * kv_heads * dim), random.values(n * heads * dim));
        for level in levels() {
            let mut b = backend(level, Precision::Fast, threads);
            let mut first: Option<Vec<f32>> = None;
            for block_size in [1usize, 8, 16, 32] {
                let layout = KvLayout {
                    num_layers: 1,
                    num_kv_heads: kv_heads,
                    key_dim: dim,
                    value_dim: dim,
                    value_in_key: false,
                    dtype,
                    block_size,
                };
                let count = n.div_ceil(block_size);
                let mut blocks: Vec<u32> = (0..count as u32 + 1).collect();
                for i in (1..blocks.len()).rev() {
                    blocks.swap(i, random.below(i + 1));
                }
                let mut cache = b.alloc_kv_cache(&layout, count + 1).unwrap();
                let slots: Vec<u32> = (0..n)
                    .map(|p| blocks[p / block_size] * block_size as u32 + (p % block_size) as u32)
                    .collect();
                let keys = buffer(&mut b, &kv);
                b.store_kv(&mut cache, 0, &keys, Some(&keys), &slots);
                let mut out = Vec::new();
                let cut = cut.min(n);
                for (from, to) in [(0, cut), (cut, n)] {
                    let queries = buffer(&mut b, &q[from * heads * dim..to * heads * dim]);
                    let len = (to - from) * heads * dim;
                    let mut part = b.alloc(len).unwrap();
                    let batch = AttentionBatch {
                        cu_seqlens_q: &[0, (to - from) as u32],
                        context_lens: &[to as u32],
                        block_tables: &blocks[..count],
                        table_starts: &[0, count as u32],
                    };
                    b.attention(&queries, heads, &cache, 0, &batch, 0.2, &mut part);
                    out.extend(values(&mut b, &part, len));
                }
                // The first position sees itself alone, whatever the scores are.
                for (i, v) in out[..heads * dim].iter().enumerate() {
                    let own = kv[i / dim / group * dim + i % dim];
                    prop_assert!((v - own).abs() <= 0.01 * own.abs() + 1e-6);
                }
                let first = first.get_or_insert_with(|| out.clone());
                assert_bits(&out, first, &format!("{level} {block_size} {n} {cut}"));
            }
        }
    }
}

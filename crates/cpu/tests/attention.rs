//! Attention over every cache type against its definition, and against itself however it is cut.

#![allow(clippy::unwrap_used)] // helpers outside of test functions

mod common;

use common::{Random, assert_bits, backend, buffer, levels, values};
use half::{bf16, f16};
use scrimp_backend::{AttentionBatch, Backend};
use scrimp_cpu::{CpuBackend, CpuKvCache, CpuLevel, Precision};
use scrimp_model::KvLayout;
use scrimp_tensor::DType;

/// Heads of a made-up model.
#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    key_dim: usize,
    value_dim: usize,
    value_in_key: bool,
}

const fn gqa(heads: usize, kv_heads: usize, dim: usize) -> Shape {
    Shape {
        heads,
        kv_heads,
        key_dim: dim,
        value_dim: dim,
        value_in_key: false,
    }
}

const fn mla(heads: usize, key_dim: usize, value_dim: usize) -> Shape {
    Shape {
        heads,
        kv_heads: 1,
        key_dim,
        value_dim,
        value_in_key: true,
    }
}

const SHAPES: [Shape; 8] = [
    gqa(4, 4, 16),
    gqa(6, 2, 40),
    gqa(9, 3, 64),
    gqa(2, 1, 80),
    gqa(5, 1, 128),
    gqa(40, 1, 24),
    mla(5, 576, 512),
    mla(3, 40, 24),
];

/// Keys, values and queries of one sequence.
struct Tokens {
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
}

impl Tokens {
    fn new(random: &mut Random, shape: Shape, n: usize) -> Tokens {
        Tokens {
            keys: random.values(n * shape.kv_heads * shape.key_dim),
            values: random.values(n * shape.kv_heads * shape.value_dim),
            queries: random.values(n * shape.heads * shape.key_dim),
        }
    }
}

fn stored(v: f32, dtype: DType) -> f64 {
    f64::from(match dtype {
        DType::F16 => f16::from_f32(v).to_f32(),
        DType::BF16 => bf16::from_f32(v).to_f32(),
        _ => v,
    })
}

/// Softmax attention of row `row` and head `head`, by its definition in f64.
fn defined(t: &Tokens, shape: Shape, dtype: DType, row: usize, head: usize) -> Vec<f64> {
    let kv = head * shape.kv_heads / shape.heads;
    let q = &t.queries[(row * shape.heads + head) * shape.key_dim..][..shape.key_dim];
    let key = |p: usize| &t.keys[(p * shape.kv_heads + kv) * shape.key_dim..][..shape.key_dim];
    let scores: Vec<f64> = (0..=row)
        .map(|p| {
            q.iter()
                .zip(key(p))
                .map(|(&a, &b)| f64::from(a) * stored(b, dtype))
                .sum::<f64>()
        })
        .map(|s| s * f64::from(SCALE))
        .collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
    let sum: f64 = weights.iter().sum();
    (0..shape.value_dim)
        .map(|d| {
            let value = |p: usize| {
                if shape.value_in_key {
                    key(p)[d]
                } else {
                    t.values[(p * shape.kv_heads + kv) * shape.value_dim + d]
                }
            };
            weights
                .iter()
                .enumerate()
                .map(|(p, w)| w * stored(value(p), dtype))
                .sum::<f64>()
                / sum
        })
        .collect()
}

const SCALE: f32 = 0.17;

/// A cache holding a sequence in the given blocks.
fn filled(
    b: &mut CpuBackend,
    shape: Shape,
    dtype: DType,
    block_size: usize,
    blocks: &[u32],
    t: &Tokens,
    n: usize,
) -> CpuKvCache {
    let layout = KvLayout {
        num_layers: 2,
        num_kv_heads: shape.kv_heads,
        key_dim: shape.key_dim,
        value_dim: shape.value_dim,
        value_in_key: shape.value_in_key,
        dtype,
        block_size,
    };
    let num_blocks = blocks.iter().max().map_or(1, |&b| b as usize + 1);
    let mut cache = b.alloc_kv_cache(&layout, num_blocks).unwrap();
    let slots: Vec<u32> = (0..n)
        .map(|p| blocks[p / block_size] * block_size as u32 + (p % block_size) as u32)
        .collect();
    let (keys, vals) = (buffer(b, &t.keys), buffer(b, &t.values));
    let vals = (!shape.value_in_key).then_some(&vals);
    b.store_kv(&mut cache, 1, &keys, vals, &slots);
    cache
}

/// Attention of the newest rows `from .. to`.
fn attend(
    b: &mut CpuBackend,
    shape: Shape,
    cache: &CpuKvCache,
    blocks: &[u32],
    t: &Tokens,
    (from, to): (usize, usize),
) -> Vec<f32> {
    let width = shape.heads * shape.key_dim;
    let q = buffer(b, &t.queries[from * width..to * width]);
    let len = (to - from) * shape.heads * shape.value_dim;
    let mut out = b.alloc(len).unwrap();
    let batch = AttentionBatch {
        cu_seqlens_q: &[0, (to - from) as u32],
        context_lens: &[to as u32],
        block_tables: blocks,
        table_starts: &[0, blocks.len() as u32],
    };
    b.attention(&q, shape.heads, cache, 1, &batch, SCALE, &mut out);
    values(b, &out, len)
}

/// Enough blocks for `n` positions, in a shuffled order.
fn shuffled(random: &mut Random, n: usize, block_size: usize) -> Vec<u32> {
    let mut blocks: Vec<u32> = (0..n.div_ceil(block_size) as u32 + 2).collect();
    for i in (1..blocks.len()).rev() {
        blocks.swap(i, random.below(i + 1));
    }
    blocks.truncate(n.div_ceil(block_size));
    blocks
}

#[test]
fn attention_is_softmax_over_what_a_row_may_see() {
    let mut random = Random::new(1);
    for shape in SHAPES {
        for (n, dtype) in [
            (1, DType::F32),
            (31, DType::F16),
            (33, DType::BF16),
            (70, DType::F32),
        ] {
            let t = Tokens::new(&mut random, shape, n);
            for level in levels() {
                let mut b = backend(level, Precision::Fast, 2);
                let blocks = shuffled(&mut random, n, 16);
                let cache = filled(&mut b, shape, dtype, 16, &blocks, &t, n);
                let got = attend(&mut b, shape, &cache, &blocks, &t, (0, n));
                for (i, got) in got.chunks_exact(shape.value_dim).enumerate() {
                    let want = defined(&t, shape, dtype, i / shape.heads, i % shape.heads);
                    for (g, w) in got.iter().zip(want) {
                        let error = (f64::from(*g) - w).abs();
                        assert!(
                            error < 4e-5,
                            "{shape:?} {dtype} {level}, vector {i}: {g} not {w}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_bits_in_any_blocks_however_its_prompt_is_cut() {
    let mut random = Random::new(2);
    for shape in SHAPES {
        for dtype in [DType::F32, DType::BF16] {
            let n = 100;
            let t = Tokens::new(&mut random, shape, n);
            for level in levels() {
                let mut b = backend(level, Precision::Fast, 2);
                let blocks = shuffled(&mut random, n, 16);
                let cache = filled(&mut b, shape, dtype, 16, &blocks, &t, n);
                let whole = attend(&mut b, shape, &cache, &blocks, &t, (0, n));
                let width = shape.heads * shape.value_dim;
                for block_size in [1, 8, 32] {
                    let blocks = shuffled(&mut random, n, block_size);
                    let cache = filled(&mut b, shape, dtype, block_size, &blocks, &t, n);
                    let mut from = 0;
                    while from < n {
                        let to = (from + 1 + random.below(40)).min(n);
                        let part = attend(&mut b, shape, &cache, &blocks, &t, (from, to));
                        let what = format!("{shape:?} {dtype} {level} {block_size} {from}..{to}");
                        assert_bits(&part, &whole[from * width..to * width], &what);
                        from = to;
                    }
                }
            }
        }
    }
}

#[test]
fn a_long_context_is_the_same_bits_on_one_thread_and_on_many() {
    let mut random = Random::new(3);
    for (shape, n) in [
        (gqa(3, 1, 64), 1300),
        (mla(2, 48, 32), 1025),
        (gqa(34, 1, 16), 513),
    ] {
        let t = Tokens::new(&mut random, shape, n);
        for level in levels() {
            let mut results = Vec::new();
            for threads in [1, 2, 5] {
                let mut b = backend(level, Precision::Fast, threads);
                let blocks = shuffled(&mut random, n, 16);
                let cache = filled(&mut b, shape, DType::F16, 16, &blocks, &t, n);
                let last = attend(&mut b, shape, &cache, &blocks, &t, (n - 1, n));
                let tail = attend(&mut b, shape, &cache, &blocks, &t, (n - 60, n));
                let width = last.len();
                assert_bits(
                    &last,
                    &tail[tail.len() - width..],
                    &format!("{shape:?} {level}"),
                );
                let head = last.len() / shape.value_dim - 1;
                let want = defined(&t, shape, DType::F16, n - 1, head);
                for (g, w) in last[head * shape.value_dim..].iter().zip(want) {
                    assert!(
                        (f64::from(*g) - w).abs() < 4e-5,
                        "{shape:?} {level}: {g} not {w}"
                    );
                }
                results.push(last);
            }
            assert_bits(&results[1], &results[0], "two threads");
            assert_bits(&results[2], &results[0], "five threads");
        }
    }
}

#[test]
fn sequences_in_a_batch_do_not_touch_each_other() {
    let mut random = Random::new(4);
    let shape = gqa(6, 2, 40);
    let sizes = [(5, 5), (40, 1), (17, 9), (1, 1)];
    let sequences: Vec<Tokens> = sizes
        .iter()
        .map(|&(n, _)| Tokens::new(&mut random, shape, n))
        .collect();
    for level in levels() {
        let mut b = backend(level, Precision::Fast, 3);
        let (mut alone, mut queries) = (Vec::new(), Vec::new());
        let (mut cu, mut lens, mut starts, mut tables) = (vec![0], vec![], vec![0], vec![]);
        let layout = KvLayout {
            num_layers: 2,
            num_kv_heads: 2,
            key_dim: 40,
            value_dim: 40,
            value_in_key: false,
            dtype: DType::F32,
            block_size: 8,
        };
        let mut shared = b.alloc_kv_cache(&layout, 16).unwrap();
        for (t, (n, rows)) in sequences.iter().zip(sizes) {
            let own: Vec<u32> = (0..n.div_ceil(8) as u32).collect();
            let cache = filled(&mut b, shape, DType::F32, 8, &own, t, n);
            alone.extend(attend(&mut b, shape, &cache, &own, t, (n - rows, n)));
            queries.extend_from_slice(&t.queries[(n - rows) * 240..]);
            let base = tables.len() as u32;
            tables.extend(own.iter().map(|block| block + base));
            let slots: Vec<u32> = (0..n as u32).map(|p| base * 8 + p).collect();
            let (keys, vals) = (buffer(&mut b, &t.keys), buffer(&mut b, &t.values));
            b.store_kv(&mut shared, 1, &keys, Some(&vals), &slots);
            cu.push(cu.last().unwrap() + rows as u32);
            lens.push(n as u32);
            starts.push(tables.len() as u32);
        }
        let batch = AttentionBatch {
            cu_seqlens_q: &cu,
            context_lens: &lens,
            block_tables: &tables,
            table_starts: &starts,
        };
        let q = buffer(&mut b, &queries);
        let mut out = b.alloc(alone.len()).unwrap();
        b.attention(&q, 6, &shared, 1, &batch, SCALE, &mut out);
        let together = values(&mut b, &out, alone.len());
        assert_bits(&together, &alone, &format!("{level}"));
    }
}

#[test]
fn copied_blocks_hold_the_same_tokens() {
    let mut random = Random::new(5);
    let (shape, n) = (gqa(2, 2, 16), 20);
    let t = Tokens::new(&mut random, shape, n);
    let mut b = backend(CpuLevel::Portable, Precision::Fast, 1);
    let mut cache = filled(&mut b, shape, DType::BF16, 8, &[5, 1, 3], &t, n);
    let before = attend(&mut b, shape, &cache, &[5, 1, 3], &t, (0, n));
    b.copy_blocks(&mut cache, &[(5, 0), (1, 2), (3, 4)]);
    let after = attend(&mut b, shape, &cache, &[0, 2, 4], &t, (0, n));
    assert_bits(&after, &before, "copied");
}

#[test]
fn an_empty_batch_is_no_work() {
    let mut b = backend(CpuLevel::detect(), Precision::Fast, 2);
    let t = Tokens::new(&mut Random::new(6), gqa(1, 1, 16), 1);
    let cache = filled(&mut b, gqa(1, 1, 16), DType::F32, 16, &[0], &t, 1);
    let batch = AttentionBatch {
        cu_seqlens_q: &[0],
        context_lens: &[],
        block_tables: &[],
        table_starts: &[0],
    };
    let (q, mut out) = (b.alloc(0).unwrap(), b.alloc(0).unwrap());
    b.attention(&q, 1, &cache, 1, &batch, 1.0, &mut out);
}

//! Latent attention in plain form, against absorbing, attending and expanding.

#![allow(clippy::unwrap_used)] // helpers outside of test functions

mod common;

use common::{Random, assert_bits, buffer, levels, values, weight_bytes};
use scrimp_backend::{AttentionBatch, Backend, Expand, HeadRows, Segments};
use scrimp_cpu::{CpuBackend, CpuKvCache, CpuLevel, CpuMatrix, CpuOptions};
use scrimp_model::KvLayout;
use scrimp_tensor::{DType, MatrixView};

const HEADS: usize = 5;
const LATENT: usize = 64;
const ROPE: usize = 10;
const NOPE: usize = 24;
const VALUE: usize = 20;
const BLOCK: usize = 4;

/// A sequence's latents in scattered blocks of a cache, and the matrix that expands them.
struct Setup {
    backend: CpuBackend,
    cache: CpuKvCache,
    weight: CpuMatrix,
    blocks: Vec<u32>,
}

fn setup(level: CpuLevel, dtype: DType, cache_type: DType, context: usize) -> Setup {
    let mut random = Random::new(7);
    let options = CpuOptions {
        threads: Some(2),
        level: Some(level),
        expand_latents_from: Some(1),
        ..CpuOptions::default()
    };
    let mut backend = CpuBackend::new(options).unwrap();
    let n = HEADS * (NOPE + VALUE);
    let bytes = weight_bytes(&mut random, dtype, n, LATENT);
    let view = MatrixView::from_blocks(dtype, n, LATENT, &bytes).unwrap();
    let weight = backend.load_matrix(&view).unwrap();
    let layout = KvLayout {
        num_layers: 2,
        num_kv_heads: 1,
        key_dim: LATENT + ROPE,
        value_dim: LATENT,
        value_in_key: true,
        dtype: cache_type,
        block_size: BLOCK,
    };
    let count = context.div_ceil(BLOCK);
    let mut blocks: Vec<u32> = (0..count as u32).collect();
    for i in (1..count).rev() {
        blocks.swap(i, random.below(i + 1));
    }
    let mut cache = backend.alloc_kv_cache(&layout, count).unwrap();
    let latents = buffer(&mut backend, &random.values(context * (LATENT + ROPE)));
    let slot = |t: usize| blocks[t / BLOCK] * BLOCK as u32 + (t % BLOCK) as u32;
    let slots: Vec<u32> = (0..context).map(slot).collect();
    backend.store_kv(&mut cache, 1, &latents, None, &slots);
    Setup {
        backend,
        cache,
        weight,
        blocks,
    }
}

fn rows_of(offset: usize, count: usize, transposed: bool) -> HeadRows {
    HeadRows {
        offset,
        stride: NOPE + VALUE,
        count,
        transposed,
    }
}

impl Setup {
    fn plain(&mut self, q: &[f32], context: usize) -> Vec<f32> {
        let b = &mut self.backend;
        let rows = q.len() / (HEADS * (NOPE + ROPE));
        let (q, mut out) = (buffer(b, q), b.alloc(rows * HEADS * VALUE).unwrap());
        let expand = Expand {
            weight: &self.weight,
            keys: rows_of(0, NOPE, false),
            values: rows_of(NOPE, VALUE, false),
        };
        let batch = AttentionBatch {
            cu_seqlens_q: &[0, rows as u32],
            context_lens: &[context as u32],
            block_tables: &self.blocks,
            table_starts: &[0, self.blocks.len() as u32],
        };
        assert!(b.expands_latents(rows));
        b.expanded_attention(&q, HEADS, &self.cache, 1, &batch, expand, 0.2, &mut out);
        values(b, &out, rows * HEADS * VALUE)
    }

    fn absorbed(&mut self, q: &[f32], context: usize) -> Vec<f32> {
        let b = &mut self.backend;
        let rows = q.len() / (HEADS * (NOPE + ROPE));
        let q = buffer(b, q);
        let mut carried = b.alloc(rows * HEADS * (LATENT + ROPE)).unwrap();
        let mut seen = b.alloc(rows * HEADS * LATENT).unwrap();
        let mut out = b.alloc(rows * HEADS * VALUE).unwrap();
        let from = Segments::dense(HEADS, NOPE + ROPE);
        let to = Segments::dense(HEADS, LATENT + ROPE);
        let (w, keys) = (&self.weight, rows_of(0, NOPE, true));
        let (nope, latent) = (from.part(0, NOPE), to.part(0, LATENT));
        b.head_linear(&q, rows, nope, w, keys, &mut carried, latent);
        let (rotary, behind) = (from.part(NOPE, ROPE), to.part(LATENT, ROPE));
        b.copy_segments(&q, rows, rotary, &mut carried, behind);
        let batch = AttentionBatch {
            cu_seqlens_q: &[0, rows as u32],
            context_lens: &[context as u32],
            block_tables: &self.blocks,
            table_starts: &[0, self.blocks.len() as u32],
        };
        b.attention(&carried, HEADS, &self.cache, 1, &batch, 0.2, &mut seen);
        let (from, to) = (
            Segments::dense(HEADS, LATENT),
            Segments::dense(HEADS, VALUE),
        );
        let values_of = rows_of(NOPE, VALUE, false);
        b.head_linear(&seen, rows, from, w, values_of, &mut out, to);
        values(b, &out, rows * HEADS * VALUE)
    }
}

#[test]
fn both_forms_agree_but_for_rounding() {
    let mut random = Random::new(8);
    for level in levels() {
        for (dtype, cache_type) in [
            (DType::F32, DType::F32),
            (DType::BF16, DType::F16),
            (DType::Q8_0, DType::BF16),
        ] {
            for (context, rows) in [(1, 1), (7, 3), (130, 130), (600, 45)] {
                let mut setup = setup(level, dtype, cache_type, context);
                let q = random.values(rows * HEADS * (NOPE + ROPE));
                let (plain, absorbed) = (setup.plain(&q, context), setup.absorbed(&q, context));
                let largest = absorbed.iter().fold(0.0f32, |a, v| a.max(v.abs()));
                for (i, (a, b)) in plain.iter().zip(&absorbed).enumerate() {
                    assert!(
                        (a - b).abs() <= 2e-5 * largest,
                        "{level} {dtype} {cache_type}, {rows} of {context}: value {i} is {a}, not {b}"
                    );
                }
            }
        }
    }
}

#[test]
fn rows_of_the_plain_form_do_not_touch_each_other() {
    let mut random = Random::new(9);
    for level in levels() {
        let (context, rows) = (300, 100);
        let q = random.values(rows * HEADS * (NOPE + ROPE));
        let mut setup = setup(level, DType::BF16, DType::F16, context);
        let whole = setup.plain(&q, context);
        let cut = 37;
        let (a, b) = q.split_at(cut * HEADS * (NOPE + ROPE));
        let mut parts = setup.plain(a, context - (rows - cut));
        parts.extend(setup.plain(b, context));
        assert_bits(&parts, &whole, &format!("{level}"));
    }
}

//! A sequence's logits are the same bits however it is cut, where its blocks lie, and whatever
//! else is computed beside it, on every instruction set that this machine has.

#![allow(clippy::unwrap_used)] // in helpers, which the lint does not take for tests

mod common;

use common::{BLOCK, Golden, backend_at, feed, goldens, levels, runner, runner_on, scattered};
use scrimp_cpu::{CpuBackend, CpuLevel, Precision};
use scrimp_engine::batch::{Batch, Logits, SequenceStep};
use scrimp_engine::runner::ModelRunner;
use scrimp_tensor::DType;

/// Feeds two sequences side by side in chunks of different lengths, and returns their logits.
fn side_by_side(
    runner: &mut ModelRunner<CpuBackend>,
    sequences: [&[u32]; 2],
    blocks: [&[u32]; 2],
    chunks: [usize; 2],
) -> [Vec<f32>; 2] {
    let mut done = [0, 0];
    let mut logits = [Vec::new(), Vec::new()];
    while (0..2).any(|s| done[s] < sequences[s].len()) {
        let mut batch = Batch::default();
        let mut owner = Vec::new();
        for s in [1, 0] {
            let end = sequences[s].len().min(done[s] + chunks[s]);
            if end == done[s] {
                continue;
            }
            let step = SequenceStep {
                token_ids: &sequences[s][done[s]..end],
                num_computed: done[s],
                blocks: blocks[s],
                logits: Logits::All,
            };
            batch.push(&step, BLOCK);
            owner.extend(vec![s; end - done[s]]);
            done[s] = end;
        }
        runner
            .execute(&batch, &mut |rows| {
                for (i, row) in rows.iter() {
                    logits[owner[i]].extend_from_slice(row);
                }
            })
            .unwrap();
    }
    logits
}

fn assert_same_bits(found: &[f32], wanted: &[f32], what: &str) {
    let differing = found
        .iter()
        .zip(wanted)
        .filter(|(a, b)| a.to_bits() != b.to_bits())
        .count();
    assert_eq!(found.len(), wanted.len(), "{what}");
    assert_eq!(differing, 0, "{what}: of {} logits", wanted.len());
}

fn check(golden: &Golden, level: CpuLevel, precision: Precision, kv: DType) {
    let runner = &mut runner_on(backend_at(level, precision), &golden.path, kv);
    let [(first, _), (second, _)] = &golden.sequences[..] else {
        panic!("{} has no two sequences", golden.name);
    };
    let name = format!("{} {level} {precision:?} {kv}", golden.name);
    let whole: Vec<Vec<f32>> = [first, second]
        .map(|ids| feed(runner, ids, &scattered(0, 1), &[ids.len()]))
        .into();
    assert!(whole[0].iter().all(|x| x.is_finite()), "{name}");
    for chunks in [&[1][..], &[2], &[5, 1, 13], &[17], &[31, 1]] {
        let cut = feed(runner, first, &scattered(11, 3), chunks);
        assert_same_bits(&cut, &whole[0], &format!("{name}: chunks of {chunks:?}"));
    }
    for chunks in [[100, 100], [1, 9], [7, 1], [1, 1], [16, 3]] {
        // Even blocks in one order to the one, odd ones in another to the other.
        let even: Vec<u32> = scattered(6, 3).into_iter().filter(|b| b % 2 == 0).collect();
        let odd: Vec<u32> = scattered(1, 7).into_iter().filter(|b| b % 2 == 1).collect();
        let both = side_by_side(runner, [first, second], [&even, &odd], chunks);
        for s in 0..2 {
            let what = format!("{name}: sequence {s} beside the other in chunks of {chunks:?}");
            assert_same_bits(&both[s], &whole[s], &what);
        }
    }
}

fn check_all(precision: Precision, kv: DType) {
    for golden in goldens() {
        for level in levels() {
            check(&golden, level, precision, kv);
        }
    }
}

#[test]
fn exact() {
    check_all(Precision::Exact, DType::F32);
}

#[test]
fn fast() {
    check_all(Precision::Fast, DType::F32);
}

#[test]
fn half_width_caches() {
    check_all(Precision::Exact, DType::F16);
    check_all(Precision::Fast, DType::BF16);
}

#[test]
fn copied_blocks_go_on_like_their_originals() {
    for golden in goldens() {
        let mut runner = runner(&golden.path, Precision::Fast, DType::F32);
        let (ids, _) = &golden.sequences[0];
        let (own, copy) = (scattered(0, 1), scattered(80, 1));
        let whole = feed(&mut runner, ids, &own, &[ids.len()]);
        // The first half again, in blocks of its own; the second half in copies of them.
        let half = (2 * BLOCK + 2).min(ids.len() - 3);
        feed(&mut runner, &ids[..half], &own, &[half]);
        let mut batch = Batch::default();
        let step = SequenceStep {
            token_ids: &ids[half..],
            num_computed: half,
            blocks: &copy,
            logits: Logits::All,
        };
        batch.push(&step, BLOCK);
        batch.copies = (0..half.div_ceil(BLOCK))
            .map(|i| (own[i], copy[i]))
            .collect();
        let mut rest = Vec::new();
        runner
            .execute(&batch, &mut |rows| rest.extend_from_slice(rows.values))
            .unwrap();
        let vocab = runner.model().vocab_size;
        assert_same_bits(&rest, &whole[half * vocab..], &golden.name);
    }
}

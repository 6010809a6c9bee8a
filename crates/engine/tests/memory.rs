//! What is planned is what is reserved; what does not fit is refused; everything comes back.

#![allow(clippy::unwrap_used)] // in helpers, which the lint does not take for tests

mod common;

use common::{BLOCK, LIMITS, NUM_BLOCKS, backend, goldens};
use scrimp_backend::Backend;
use scrimp_checkpoint::Checkpoint;
use scrimp_cpu::Precision;
use scrimp_engine::decoder::activation_bytes;
use scrimp_engine::runner::{LoadError, ModelRunner, RunnerConfig};
use scrimp_engine::weights::Inventory;
use scrimp_memory::{Category, MemoryLedger};
use scrimp_model::KvLayout;
use scrimp_tensor::DType;

#[test]
fn the_plan_is_what_is_reserved() {
    for golden in goldens() {
        let checkpoint = Checkpoint::open(&golden.path).unwrap();
        let model = checkpoint.config().unwrap();
        let cpu = backend(Precision::Fast);
        let kv = KvLayout::of(&model, DType::BF16, BLOCK);
        let plan = Inventory::new(&model, &checkpoint)
            .unwrap()
            .weight_plan(&cpu);
        let weights: usize = plan.iter().map(|(_, bytes)| bytes).sum();
        let activations = activation_bytes(&cpu, &model, &LIMITS);
        let cache = cpu.kv_cache_bytes(&kv, NUM_BLOCKS);
        let total = weights + activations + cache;
        let config = RunnerConfig {
            limits: LIMITS,
            kv,
            num_blocks: NUM_BLOCKS,
        };

        let ledger = MemoryLedger::new(total);
        let (mut last, mut calls) = (0, 0);
        let runner = ModelRunner::load(&model, &checkpoint, cpu, config, &ledger, &mut |p| {
            assert!(p.done > last && p.done <= p.total, "{}", p.tensor);
            (last, calls) = (p.done, calls + 1);
        })
        .unwrap();
        assert!(calls > 10, "{}", golden.name);
        let snapshot = ledger.snapshot();
        assert_eq!(snapshot.category(Category::Weights).used, weights);
        assert_eq!(snapshot.category(Category::Activations).used, activations);
        assert_eq!(snapshot.category(Category::KvCache).used, cache);
        assert_eq!(runner.weight_bytes(), weights);
        drop(runner);
        assert_eq!(ledger.snapshot().total.used, 0, "{}", golden.name);

        let cpu = backend(Precision::Fast);
        let tight = MemoryLedger::new(total - 1);
        let refused = ModelRunner::load(&model, &checkpoint, cpu, config, &tight, &mut |_| {});
        assert!(
            matches!(refused, Err(LoadError::OverBudget(_))),
            "{}",
            golden.name
        );
        assert_eq!(tight.snapshot().total.used, 0, "{}", golden.name);
    }
}

#[test]
fn batches_beyond_the_limits_are_refused() {
    use scrimp_engine::batch::{Batch, BatchError, Logits, SequenceStep};
    let golden = &goldens()[0];
    let mut runner = common::runner(&golden.path, Precision::Exact, DType::F32);
    let blocks = common::scattered(0, 1);
    let vocab_size = runner.model().vocab_size;
    let mut refused = |tokens: &[u32], num_computed| {
        let mut batch = Batch::default();
        let step = SequenceStep {
            token_ids: tokens,
            num_computed,
            blocks: &blocks,
            logits: Logits::Last,
        };
        batch.push(&step, BLOCK);
        runner
            .execute(&batch, &mut |_| panic!("was computed"))
            .unwrap_err()
    };
    let (found, limit) = (LIMITS.max_rows + 1, LIMITS.max_rows);
    let what = "rows";
    assert_eq!(
        refused(&vec![0; found], 0),
        BatchError::TooLarge { what, found, limit }
    );
    let (found, limit) = (LIMITS.max_context + 1, LIMITS.max_context);
    let what = "tokens of context";
    assert_eq!(
        refused(&[0], limit),
        BatchError::TooLarge { what, found, limit }
    );
    let token = vocab_size as u32;
    assert_eq!(
        refused(&[token], 0),
        BatchError::UnknownToken { token, vocab_size }
    );
}

//! Steps by hand: who takes part, with how many tokens, and who has to wait or to go.

#![allow(clippy::unwrap_used)] // in helpers of tests

use scrimp_memory::{BlockPool, BlockPoolConfig, CopyBlock, TokenId};
use scrimp_scheduler::{
    AddError, ConfigError, EstimatorConfig, FinishReason, Finished, NewSequence, Scheduler,
    SchedulerConfig, SchedulerOutput, SeqId, SequenceStatus,
};

fn pool(num_blocks: usize) -> BlockPool {
    BlockPool::new(BlockPoolConfig {
        num_blocks,
        block_size: 4,
        max_blocks_per_seq: 64,
        bytes_per_block: 10,
        enable_prefix_caching: true,
    })
    .unwrap()
}

/// Blocks of 4, at most 16 tokens a step, 4 sequences, 100 tokens long.
fn config() -> SchedulerConfig {
    SchedulerConfig {
        max_num_batched_tokens: 16,
        max_num_seqs: 4,
        max_model_len: 100,
        estimator: EstimatorConfig {
            cold_start_tokens: 1,
            ..EstimatorConfig::default()
        },
    }
}

fn scheduler(num_blocks: usize) -> Scheduler {
    Scheduler::new(config(), pool(num_blocks)).unwrap()
}

/// A prompt of `len` tokens that shares no block with one of another `seed`.
fn prompt(seed: u32, len: usize) -> Vec<TokenId> {
    (0..len as u32).map(|i| seed * 1000 + i).collect()
}

fn add(scheduler: &mut Scheduler, seed: u32, len: usize, max_tokens: usize) -> SeqId {
    let request = NewSequence::new(prompt(seed, len), max_tokens);
    scheduler.add(request).unwrap()[0]
}

/// Runs a step whose samples are all token 7.
fn step(scheduler: &mut Scheduler) -> (SchedulerOutput, Vec<Finished>) {
    let output = scheduler.schedule();
    scheduler.complete();
    let mut over = output.finished.clone();
    for part in output.scheduled.iter().filter(|part| part.samples) {
        for &id in std::iter::once(&part.id).chain(&part.forks) {
            over.extend(scheduler.update(id, 7, None));
        }
    }
    scheduler.check_integrity().unwrap();
    (output, over)
}

/// (sequence, first position, tokens) of each part.
fn parts(output: &SchedulerOutput) -> Vec<(u64, usize, usize)> {
    let part = |p: &scrimp_scheduler::ScheduledSeq| (p.id.0, p.start, p.num_tokens);
    output.scheduled.iter().map(part).collect()
}

fn status(scheduler: &Scheduler, id: SeqId) -> SequenceStatus {
    scheduler.sequence(id).unwrap().status()
}

#[test]
fn prefill_is_cut_to_the_budget_and_mixed_with_decode() {
    let mut s = scheduler(64);
    add(&mut s, 1, 10, 50);
    add(&mut s, 2, 30, 50);
    assert_eq!(parts(&step(&mut s).0), [(0, 0, 10), (1, 0, 6)]);
    assert_eq!(parts(&step(&mut s).0), [(0, 10, 1), (1, 6, 15)]);
    let (third, _) = step(&mut s);
    assert_eq!(parts(&third), [(0, 11, 1), (1, 21, 9)]);
    assert!(third.scheduled.iter().all(|part| part.samples));
    assert_eq!(parts(&step(&mut s).0), [(0, 12, 1), (1, 30, 1)]);
}

#[test]
fn a_step_is_a_flat_batch() {
    let mut s = scheduler(64);
    add(&mut s, 1, 5, 50);
    add(&mut s, 2, 3, 50);
    step(&mut s);
    add(&mut s, 3, 2, 50);
    let (output, _) = step(&mut s);
    assert_eq!(output.input_ids, [7, 7, 3000, 3001]);
    assert_eq!(output.positions().collect::<Vec<_>>(), [5, 3, 0, 1]);
    assert_eq!(output.cu_seqlens_q().collect::<Vec<_>>(), [0, 1, 2, 4]);
    assert_eq!(output.context_lens().collect::<Vec<_>>(), [6, 4, 2]);
    assert_eq!(output.block_tables, [0, 1, 2, 3], "two blocks, one, one");
    assert_eq!(output.slot_mapping().collect::<Vec<_>>(), [5, 11, 12, 13]);
}

#[test]
fn a_long_prompt_in_front_leaves_a_token_for_each_sequence_behind_it() {
    let mut s = scheduler(64);
    let late = add(&mut s, 1, 4, 50);
    step(&mut s);
    // Lower priority number: goes in front of the one that already runs.
    let urgent = NewSequence {
        priority: -1,
        ..NewSequence::new(prompt(2, 40), 50)
    };
    let urgent = s.add(urgent).unwrap()[0];
    assert_eq!(parts(&step(&mut s).0), [(late.0, 4, 1), (urgent.0, 0, 15)]);
    assert_eq!(parts(&step(&mut s).0), [(urgent.0, 15, 15), (late.0, 5, 1)]);
}

#[test]
fn impossible_requests_are_refused_at_once_with_numbers() {
    let mut s = scheduler(5);
    let mut refuse = |request| s.add(request).unwrap_err();
    assert_eq!(refuse(NewSequence::new(vec![], 1)), AddError::EmptyPrompt);
    assert_eq!(refuse(NewSequence::new(vec![1], 0)), AddError::NoTokens);
    for n in [0, 5] {
        let request = NewSequence {
            n,
            ..NewSequence::new(vec![1], 1)
        };
        assert_eq!(refuse(request), AddError::BadCount { n, max_num_seqs: 4 });
    }
    assert_eq!(
        refuse(NewSequence::new(prompt(1, 100), 1)).to_string(),
        "the prompt has 100 tokens, and the longest context is 100: shorten it to at most 99 tokens"
    );
    assert_eq!(
        refuse(NewSequence::new(prompt(1, 21), 1)).to_string(),
        "the prompt has 21 tokens, which need 6 KV cache blocks, and there are 5 (20 tokens): \
         shorten it, or give the server more memory"
    );
    assert!(!s.has_unfinished());
    assert!(s.add(NewSequence::new(prompt(1, 20), usize::MAX)).is_ok());
}

#[test]
fn limits_that_do_not_go_together_are_refused() {
    let new = |config| Scheduler::new(config, pool(8)).unwrap_err();
    let zero = SchedulerConfig {
        max_num_seqs: 0,
        ..config()
    };
    assert_eq!(
        new(zero),
        ConfigError::Zero {
            name: "max-num-seqs"
        }
    );
    let few = SchedulerConfig {
        max_num_batched_tokens: 3,
        ..config()
    };
    let error = ConfigError::BudgetBelowSeqs {
        max_num_batched_tokens: 3,
        max_num_seqs: 4,
    };
    assert_eq!(new(few), error);
    let long = SchedulerConfig {
        max_model_len: 257,
        ..config()
    };
    assert!(new(long).to_string().ends_with("at most 256"));
}

#[test]
fn admission_waits_for_room_at_the_expected_length() {
    let mut cold = config();
    cold.estimator.cold_start_tokens = 12;
    let mut s = Scheduler::new(cold, pool(6)).unwrap();
    let first = add(&mut s, 1, 4, 50);
    let second = add(&mut s, 2, 4, 50);
    // Each is expected to reach 16 tokens, 4 blocks; there are 6.
    assert_eq!(parts(&step(&mut s).0), [(first.0, 0, 4)]);
    assert_eq!(status(&s, second), SequenceStatus::Waiting);
    s.abort(first);
    assert_eq!(parts(&step(&mut s).0), [(second.0, 0, 4)]);
    s.abort(second);
    // Eight short answers later, two blocks each are enough.
    for seed in 10..18 {
        add(&mut s, seed, 4, 2);
        while s.has_unfinished() {
            step(&mut s);
        }
    }
    add(&mut s, 3, 4, 50);
    add(&mut s, 4, 4, 50);
    assert_eq!(step(&mut s).0.scheduled.len(), 2);
}

#[test]
fn the_youngest_gives_way_and_comes_back_first() {
    let mut s = scheduler(6);
    let old = add(&mut s, 1, 9, 50);
    let young = add(&mut s, 2, 5, 50);
    let waiting = add(&mut s, 3, 5, 50);
    // 3 + 2 blocks, then the old one takes the sixth, then the young one needs one.
    let mut preempted = Vec::new();
    for _ in 0..9 {
        preempted.extend(step(&mut s).0.preempted);
    }
    assert_eq!(
        preempted,
        [young],
        "preempted once, then waits for real room"
    );
    assert_eq!(status(&s, young), SequenceStatus::Preempted);
    let kept = s.sequence(young).unwrap().output_token_ids().len();
    assert!(kept > 0 && s.sequence(young).unwrap().block_table().is_empty());
    assert_eq!(status(&s, waiting), SequenceStatus::Waiting);
    s.abort(old);
    let (output, _) = step(&mut s);
    assert_eq!(
        output.scheduled[0].id, young,
        "in front of the one that never ran"
    );
    let cost = s.abort(young).unwrap().stats;
    assert_eq!((cost.preemptions, cost.output_tokens), (1, kept + 1));
    assert_eq!(s.stats().num_preemptions, 1);
}

#[test]
fn a_preempted_sequence_finds_its_full_blocks_in_the_cache() {
    let mut s = scheduler(6);
    let old = add(&mut s, 1, 9, 50);
    let young = add(&mut s, 2, 5, 50);
    while step(&mut s).0.preempted.is_empty() {}
    assert_eq!(s.sequence(young).unwrap().num_tokens(), 9);
    s.abort(old);
    assert_eq!(parts(&step(&mut s).0), [(young.0, 8, 1)]);
    assert_eq!(
        s.abort(young).unwrap().stats.cached_tokens,
        0,
        "of its prompt, when it came"
    );
}

#[test]
fn priority_decides_who_goes_first_and_who_gives_way() {
    let mut s = Scheduler::new(
        SchedulerConfig {
            max_num_seqs: 2,
            ..config()
        },
        pool(4),
    )
    .unwrap();
    let low = NewSequence {
        priority: 5,
        ..NewSequence::new(prompt(1, 4), 50)
    };
    let low = s.add(low).unwrap()[0];
    let normal = add(&mut s, 2, 4, 50);
    let high = NewSequence {
        priority: -5,
        ..NewSequence::new(prompt(3, 4), 50)
    };
    let high = s.add(high).unwrap()[0];
    assert_eq!(parts(&step(&mut s).0), [(high.0, 0, 4), (normal.0, 0, 4)]);
    s.abort(normal);
    assert_eq!(step(&mut s).0.scheduled[1].id, low);
    let preempted: Vec<SeqId> = (0..6).flat_map(|_| step(&mut s).0.preempted).collect();
    assert_eq!(preempted, [low]);
}

#[test]
fn the_last_one_running_ends_with_length_when_the_pool_is_full() {
    let mut s = scheduler(3);
    let id = add(&mut s, 1, 5, 90);
    let over: Vec<Finished> = (0..20).flat_map(|_| step(&mut s).1).collect();
    assert_eq!(over.len(), 1);
    assert_eq!((over[0].id, over[0].reason), (id, FinishReason::Length));
    // 12 slots hold the prompt and 7 tokens; the eighth was sampled and never read.
    let stats = over[0].stats;
    assert_eq!(
        (stats.output_tokens, stats.peak_blocks, stats.peak_kv_bytes),
        (8, 3, 30)
    );
    assert_eq!(s.stats().usage.protected_blocks, 0);
}

#[test]
fn lengths_are_kept() {
    let mut s = scheduler(64);
    let short = add(&mut s, 1, 5, 3);
    let long = add(&mut s, 2, 5, 1000);
    let over: Vec<Finished> = (0..100).flat_map(|_| step(&mut s).1).collect();
    let ends: Vec<_> = over
        .iter()
        .map(|f| (f.id, f.reason, f.stats.output_tokens))
        .collect();
    let length = FinishReason::Length;
    assert_eq!(ends, [(short, length, 3), (long, length, 95)]);
}

#[test]
fn continuations_share_the_prompt_and_copy_its_last_block() {
    let mut s = scheduler(64);
    let request = NewSequence {
        n: 3,
        ..NewSequence::new(prompt(1, 6), 50)
    };
    let ids = s.add(request).unwrap();
    assert_eq!(status(&s, ids[1]), SequenceStatus::WaitingOnParent(ids[0]));
    let (output, _) = step(&mut s);
    assert_eq!(output.scheduled[0].forks, ids[1..]);
    assert_eq!(s.stats().usage.protected_blocks, 2);
    let tables: Vec<_> = ids
        .iter()
        .map(|&id| s.sequence(id).unwrap().block_table())
        .collect();
    assert!(tables.iter().all(|table| table.blocks() == [0, 1]));
    let (output, _) = step(&mut s);
    assert_eq!(parts(&output), [(0, 6, 1), (1, 6, 1), (2, 6, 1)]);
    let copies = [CopyBlock { src: 1, dst: 2 }, CopyBlock { src: 1, dst: 3 }];
    assert_eq!(output.copies, copies, "the last one keeps the block");
    assert_eq!(output.block_tables, [0, 2, 0, 3, 0, 1]);
    assert_eq!(s.abort(ids[2]).unwrap().stats.cached_tokens, 6);
}

#[test]
fn continuations_without_room_wait_and_find_the_prompt_in_the_cache() {
    let mut s = scheduler(64);
    let others = [add(&mut s, 8, 1, 50), add(&mut s, 9, 1, 50)];
    let request = NewSequence {
        n: 3,
        ..NewSequence::new(prompt(1, 6), 50)
    };
    let ids = s.add(request).unwrap();
    let (output, _) = step(&mut s);
    assert_eq!(output.scheduled[2].forks, [ids[1]], "the fourth of four");
    assert_eq!(status(&s, ids[2]), SequenceStatus::Waiting);
    s.abort(others[0]);
    let (output, _) = step(&mut s);
    assert!(
        parts(&output).contains(&(ids[2].0, 4, 2)),
        "{:?}",
        parts(&output)
    );
}

#[test]
fn children_outlive_a_parent_that_is_aborted_before_its_prompt_is_done() {
    let mut s = scheduler(64);
    let request = NewSequence {
        n: 2,
        ..NewSequence::new(prompt(1, 20), 1)
    };
    let ids = s.add(request).unwrap();
    step(&mut s);
    s.abort(ids[0]).unwrap();
    s.check_integrity().unwrap();
    let over: Vec<Finished> = (0..3).flat_map(|_| step(&mut s).1).collect();
    assert_eq!(over[0].id, ids[1]);
    assert_eq!(over[0].stats.cached_tokens, 16, "of the parent's prompt");
}

#[test]
fn an_abort_in_any_state_frees_at_once() {
    let mut s = scheduler(64);
    let ids = s
        .add(NewSequence {
            n: 2,
            ..NewSequence::new(prompt(1, 20), 9)
        })
        .unwrap();
    assert_eq!(s.abort(ids[1]).unwrap().reason, FinishReason::Abort);
    step(&mut s);
    assert_eq!(
        s.stats().usage.protected_blocks,
        4,
        "in the middle of its prompt"
    );
    let output = s.schedule();
    s.abort(ids[0]).unwrap();
    assert_eq!(s.stats().usage.protected_blocks, 0, "while the model runs");
    s.complete();
    assert_eq!(s.update(output.scheduled[0].id, 7, None), None);
    s.check_integrity().unwrap();
    assert!(!s.has_unfinished() && s.abort(ids[0]).is_none());
}

#[test]
fn a_step_that_fails_is_handed_out_again_with_its_copies() {
    let mut s = scheduler(64);
    s.add(NewSequence {
        n: 2,
        ..NewSequence::new(prompt(1, 6), 50)
    })
    .unwrap();
    step(&mut s);
    let failed = s.schedule();
    assert_eq!(failed.copies.len(), 1);
    let again = s.schedule();
    assert_eq!(failed, again);
    s.complete();
    s.update(again.scheduled[0].id, 7, None);
    s.update(again.scheduled[1].id, 7, None);
    assert_eq!(s.schedule().copies, []);
}

#[test]
fn a_token_nobody_awaits_changes_nothing() {
    let mut s = scheduler(64);
    let id = add(&mut s, 1, 4, 50);
    assert_eq!(
        s.update(id, 7, Some(FinishReason::Stop)),
        None,
        "not computed"
    );
    step(&mut s);
    assert_eq!(
        s.update(id, 7, Some(FinishReason::Stop)),
        None,
        "it has its token"
    );
    assert_eq!(s.update(SeqId(99), 7, None), None);
    assert_eq!(s.sequence(id).unwrap().output_token_ids(), [7]);
}

#[test]
fn thinking_of_a_finished_turn_is_first_to_go() {
    let mut s = scheduler(64);
    let id = add(&mut s, 1, 8, 9);
    s.set_thinking_from(id, 8);
    while s.has_unfinished() {
        step(&mut s);
    }
    // 16 tokens are computed: two blocks of prompt, two of thinking and answer.
    let usage = s.stats().usage;
    assert_eq!((usage.evictable_blocks, usage.thinking_blocks), (4, 2));
    s.clear_prefix_cache();
    assert_eq!(s.stats().usage.free_blocks, 64);
}

#[test]
fn the_prefix_cache_counts_tokens_once_a_request() {
    let mut s = scheduler(64);
    for _ in 0..2 {
        add(&mut s, 1, 10, 1);
        step(&mut s);
    }
    let counters = s.stats().counters;
    assert_eq!((counters.prefix_queries, counters.prefix_hits), (20, 8));
}

//! Fleets of random requests on machines of every size: all end, in bounded time, with the very
//! tokens they have when alone, and give back every block.

#![allow(clippy::unwrap_used)] // in helpers of tests

mod fleet;

use fleet::{Fleet, Machine, Request};
use proptest::prelude::*;

fn machine() -> impl Strategy<Value = Machine> {
    let size = (1usize..40, 1usize..6, 1usize..8, 0usize..24, 4usize..120);
    let rest = (
        any::<bool>(),
        1usize..60,
        prop_oneof![4 => Just(0), 1 => 2usize..6],
    );
    (size, rest).prop_map(
        |((num_blocks, block_size, seqs, more_tokens, len), (caching, cold, fail_every))| Machine {
            num_blocks,
            block_size,
            max_num_batched_tokens: seqs + more_tokens,
            max_num_seqs: seqs,
            max_model_len: len,
            enable_prefix_caching: caching,
            cold_start_tokens: cold,
            fail_every,
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    // Prompts of two token values with a common head, so that prefixes meet.
    let prompt = (0usize..20, proptest::collection::vec(0u32..2, 1..20))
        .prop_map(|(zeros, tail)| [vec![0; zeros], tail].concat());
    let lengths = (
        1usize..40,
        prop_oneof![1 => Just(usize::MAX), 2 => 1usize..40],
    );
    let rest = (
        0usize..30,
        prop_oneof![4 => Just(0), 1 => -1i32..3],
        any::<bool>(),
        prop_oneof![4 => Just(0u8), 1 => Just(1)],
        prop_oneof![3 => Just(1usize), 1 => 2usize..5],
        proptest::option::weighted(0.15, 0usize..30),
    );
    (prompt, lengths, rest).prop_map(|(prompt, (max_tokens, natural_len), rest)| {
        let (arrival, priority, thinking, salt, n, abort_after) = rest;
        Request {
            arrival,
            prompt,
            max_tokens,
            natural_len,
            priority,
            thinking,
            salt,
            n,
            abort_after,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn every_request_ends_in_bounded_steps_as_if_alone(
        machine in machine(), requests in proptest::collection::vec(request(), 1..25),
    ) {
        Fleet::new(machine, requests).run();
    }
}

/// A small deterministic generator, so that the large fleets below are the same on every run.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) as usize % end
    }
}

/// `count` chats: a common system prompt, some turns in common, thinking, a few priorities.
fn chats(count: usize, seed: u64) -> Vec<Request> {
    let mut rng = Lcg(seed);
    let system: Vec<u32> = (0..40).map(|_| rng.below(5) as u32).collect();
    (0..count)
        .map(|index| {
            let turns = (0..rng.below(60)).map(|i| (i % 3) as u32);
            let own = (0..1 + rng.below(20))
                .map(|_| rng.below(5) as u32)
                .collect::<Vec<_>>();
            Request {
                arrival: index / 4,
                prompt: system.iter().copied().chain(turns).chain(own).collect(),
                max_tokens: 1 + rng.below(150),
                natural_len: 1 + rng.below(200),
                priority: [0, 0, 0, 1, -1][rng.below(5)],
                thinking: rng.below(2) == 0,
                salt: (rng.below(8) == 0).into(),
                n: [1, 1, 1, 2, 4][rng.below(5)],
                abort_after: (rng.below(10) == 0).then(|| rng.below(100)),
            }
        })
        .collect()
}

fn large_machine(num_blocks: usize) -> Machine {
    Machine {
        num_blocks,
        block_size: 16,
        max_num_batched_tokens: 256,
        max_num_seqs: 32,
        max_model_len: 400,
        enable_prefix_caching: true,
        cold_start_tokens: 20,
        fail_every: 0,
    }
}

#[test]
fn hundreds_of_requests_on_a_pool_far_too_small() {
    let mut fleet = Fleet::new(large_machine(48), chats(500, 1));
    fleet.run();
    assert!(fleet.refused.is_empty());
    assert!(fleet.preemptions > 0, "the pool was large enough");
    let counters = fleet.scheduler.stats().counters;
    assert!(counters.prefix_hits > 0 && counters.evictions > 0 && counters.copies > 0);
    assert!(counters.thinking_evictions > 0);
}

#[test]
fn with_room_for_all_nobody_is_preempted() {
    let mut fleet = Fleet::new(large_machine(4096), chats(500, 2));
    fleet.run();
    assert_eq!(fleet.preemptions, 0);
    assert!(fleet.max_running > 16, "{} ran at once", fleet.max_running);
}

#[test]
fn the_same_requests_give_the_same_steps() {
    let run = |seed| {
        let mut fleet = Fleet::new(large_machine(48), chats(120, seed));
        fleet.run();
        (
            fleet.steps,
            fleet.preemptions,
            fleet.scheduler.stats().counters,
        )
    };
    assert_eq!(run(3), run(3));
}

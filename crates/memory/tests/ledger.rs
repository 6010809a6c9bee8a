//! The ledger against a naive model of itself, and what its refusals say.

use proptest::prelude::*;
use scrimp_memory::{Category, MemoryLedger, Reservation};

const KIB: usize = 1024;

#[test]
fn a_refusal_says_who_asked_for_what_and_who_has_it() {
    let ledger = MemoryLedger::new(100 * KIB);
    let _head = ledger
        .reserve(Category::Weights, 20 * KIB, "lm_head")
        .unwrap();
    let _layers = [1, 2].map(|_| {
        ledger
            .reserve(Category::Weights, 25 * KIB, "layers")
            .unwrap()
    });
    let _pool = ledger
        .reserve(Category::KvCache, 10 * KIB, "block pool")
        .unwrap();
    let _small = ledger.reserve(Category::Other, KIB, "tokenizer").unwrap();
    let error = ledger
        .reserve(Category::Activations, 20 * KIB, "logits")
        .unwrap_err();
    assert_eq!(
        (error.asked, error.free, error.budget),
        (20 * KIB, 19 * KIB, 100 * KIB)
    );
    assert_eq!(
        error.to_string(),
        "cannot reserve 20.00 KiB of activations for logits: 19.00 KiB of the 100.00 KiB budget \
         is free; held by layers 50.00 KiB (weights), lm_head 20.00 KiB (weights), \
         block pool 10.00 KiB (kv_cache)"
    );
    assert_eq!(ledger.free(), 19 * KIB, "a refusal takes nothing");
}

#[test]
fn peaks_stay_when_bytes_go_back() {
    let ledger = MemoryLedger::new(100);
    drop(ledger.reserve(Category::Staging, 60, "shard").unwrap());
    let kept = ledger.reserve(Category::KvCache, 50, "pool").unwrap();
    let seen = ledger.snapshot();
    assert_eq!(
        (seen.total.used, seen.total.peak, seen.free()),
        (50, 60, 50)
    );
    assert_eq!(seen.category(Category::Staging).used, 0);
    assert_eq!(seen.category(Category::Staging).peak, 60);
    assert_eq!(seen.category(Category::KvCache).used, 50);
    assert_eq!(seen.holders.len(), 1, "{:?}", seen.holders);
    drop(kept);
    assert!(ledger.snapshot().holders.is_empty());
}

#[test]
fn the_budget_is_one_for_all_clones_and_threads() {
    let ledger = MemoryLedger::new(1000);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let ledger = ledger.clone();
            scope.spawn(move || {
                for bytes in 0..500 {
                    let held = ledger.reserve(Category::Other, bytes, "thread");
                    assert!(ledger.snapshot().total.used <= 1000);
                    drop(held);
                }
            });
        }
    });
    assert_eq!(ledger.free(), 1000);
}

#[test]
fn sizes_near_the_end_of_the_address_space_do_not_wrap() {
    let ledger = MemoryLedger::new(usize::MAX);
    let mut all = ledger
        .reserve(Category::Weights, usize::MAX, "all")
        .unwrap();
    assert!(
        ledger
            .reserve(Category::Weights, usize::MAX, "more")
            .is_err()
    );
    assert!(all.grow(1).is_err());
    assert!(ledger.reserve(Category::Weights, 0, "nothing").is_ok());
}

#[derive(Clone, Debug)]
enum Op {
    Reserve(usize, usize),
    Drop(usize),
    Split(usize, usize),
    Shrink(usize, usize),
    Grow(usize, usize),
}

fn op() -> impl Strategy<Value = Op> {
    let bytes = 0usize..400;
    prop_oneof![
        (0usize..5, bytes.clone()).prop_map(|(c, b)| Op::Reserve(c, b)),
        any::<usize>().prop_map(Op::Drop),
        (any::<usize>(), bytes.clone()).prop_map(|(i, b)| Op::Split(i, b)),
        (any::<usize>(), bytes.clone()).prop_map(|(i, b)| Op::Shrink(i, b)),
        (any::<usize>(), bytes).prop_map(|(i, b)| Op::Grow(i, b)),
    ]
}

proptest! {
    #[test]
    fn the_sum_of_what_is_held_is_what_is_used(
        budget in 0usize..1000, ops in proptest::collection::vec(op(), 0..80),
    ) {
        let ledger = MemoryLedger::new(budget);
        let mut held: Vec<Reservation> = Vec::new();
        let mut sizes: Vec<(Category, usize)> = Vec::new();
        let mut peak = 0;
        for op in ops {
            let used: usize = sizes.iter().map(|(_, b)| b).sum();
            let at = |i: usize| (!sizes.is_empty()).then(|| i % sizes.len());
            match op {
                Op::Reserve(c, bytes) => {
                    let category = Category::ALL[c];
                    let got = ledger.reserve(category, bytes, "x");
                    prop_assert_eq!(got.is_ok(), used + bytes <= budget);
                    if let Ok(got) = got {
                        held.push(got);
                        sizes.push((category, bytes));
                    }
                }
                Op::Drop(i) => if let Some(i) = at(i) {
                    drop(held.swap_remove(i));
                    sizes.swap_remove(i);
                },
                Op::Split(i, bytes) => if let Some(i) = at(i) {
                    let got = held[i].split(bytes);
                    prop_assert_eq!(got.is_ok(), bytes <= sizes[i].1);
                    if let Ok(got) = got {
                        held.push(got);
                        sizes[i].1 -= bytes;
                        sizes.push((sizes[i].0, bytes));
                    }
                },
                Op::Shrink(i, bytes) => if let Some(i) = at(i) {
                    let ok = held[i].shrink(bytes).is_ok();
                    prop_assert_eq!(ok, bytes <= sizes[i].1);
                    if ok { sizes[i].1 -= bytes; }
                },
                Op::Grow(i, bytes) => if let Some(i) = at(i) {
                    let ok = held[i].grow(bytes).is_ok();
                    prop_assert_eq!(ok, used + bytes <= budget);
                    if ok { sizes[i].1 += bytes; }
                },
            }
            let used: usize = sizes.iter().map(|(_, b)| b).sum();
            peak = peak.max(used);
            let seen = ledger.snapshot();
            prop_assert_eq!((seen.total.used, seen.total.peak), (used, peak));
            for category in Category::ALL {
                let of = sizes.iter().filter(|(c, _)| *c == category);
                prop_assert_eq!(seen.category(category).used, of.map(|(_, b)| b).sum::<usize>());
            }
            prop_assert_eq!(seen.holders.iter().map(|h| h.bytes).sum::<usize>(), used);
            for (reservation, (_, bytes)) in held.iter().zip(&sizes) {
                prop_assert_eq!(reservation.bytes(), *bytes);
            }
        }
        drop(held);
        prop_assert_eq!(ledger.free(), budget);
    }
}

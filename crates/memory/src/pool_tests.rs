//! The pool on small cases by hand, then under random operations with a memory behind it.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::prefix_cache::PrefixCache;
use crate::{
    BlockError, BlockHash, BlockId, BlockPool, BlockPoolConfig, BlockTable, CopyBlock, TokenId,
};

fn pool(num_blocks: usize, block_size: usize) -> BlockPool {
    BlockPool::new(BlockPoolConfig {
        num_blocks,
        block_size,
        max_blocks_per_seq: 64,
        bytes_per_block: 1000,
        enable_prefix_caching: true,
    })
    .unwrap()
}

/// A table with `tokens` computed, from the cache where it can be.
fn filled(pool: &mut BlockPool, tokens: &[TokenId]) -> BlockTable {
    let mut table = BlockTable::new(b"");
    let cached = pool.attach_prefix(&mut table, tokens);
    pool.allocate(&mut table, cached, tokens.len()).unwrap();
    pool.commit(&mut table, tokens, tokens.len());
    table
}

fn hit(pool: &BlockPool, tokens: &[TokenId]) -> usize {
    pool.lookup(tokens, b"").num_tokens
}

fn tokens(range: std::ops::Range<u32>) -> Vec<TokenId> {
    range.collect()
}

#[test]
fn a_pool_needs_blocks_and_slots() {
    for (num_blocks, block_size) in [(0, 16), (16, 0), (1 << 40, 16), (u32::MAX as usize, 1)] {
        let config = BlockPoolConfig {
            num_blocks,
            block_size,
            ..pool(1, 1).config().clone()
        };
        let error = BlockPool::new(config).unwrap_err();
        assert_eq!(
            error,
            BlockError::BadPool {
                num_blocks,
                block_size
            }
        );
    }
}

#[test]
fn a_hit_leaves_the_last_token_and_whole_blocks_only() {
    let mut pool = pool(8, 4);
    let mut table = filled(&mut pool, &tokens(0..10));
    pool.free(&mut table);
    assert_eq!(hit(&pool, &tokens(0..10)), 8);
    assert_eq!(hit(&pool, &tokens(0..9)), 8);
    assert_eq!(
        hit(&pool, &tokens(0..8)),
        4,
        "the eighth token's logits are wanted"
    );
    assert_eq!(hit(&pool, &tokens(0..4)), 0);
    assert_eq!(hit(&pool, &tokens(1..9)), 0);
    assert_eq!(hit(&pool, &[0, 1, 2, 3, 9, 5, 6, 7, 8]), 4);
    assert_eq!(hit(&pool, &[]), 0);
    let usage = pool.usage();
    assert_eq!(
        (
            usage.protected_blocks,
            usage.evictable_blocks,
            usage.free_blocks
        ),
        (0, 2, 6)
    );
}

#[test]
fn salts_do_not_share_but_each_has_its_own() {
    let mut pool = pool(8, 2);
    let mut table = filled(&mut pool, &tokens(0..6));
    assert_eq!(pool.lookup(&tokens(0..7), b"salt").num_tokens, 0);
    let mut salted = BlockTable::new(b"salt");
    pool.allocate(&mut salted, 0, 4).unwrap();
    pool.commit(&mut salted, &tokens(0..4), 4);
    pool.free(&mut salted);
    pool.free(&mut table);
    assert_eq!(pool.lookup(&tokens(0..7), b"").num_tokens, 6);
    assert_eq!(pool.lookup(&tokens(0..7), b"salt").num_tokens, 4);
    assert_eq!(pool.lookup(&tokens(0..7), b"sal").num_tokens, 0);
}

#[test]
fn blocks_are_taken_free_first_then_thinking_then_least_recently_used() {
    let mut pool = pool(7, 2);
    let mut a = filled(&mut pool, &tokens(0..4));
    let mut b = filled(&mut pool, &tokens(10..14));
    let mut c = filled(&mut pool, &tokens(20..24));
    let (a0, a1) = (a.blocks()[0], a.blocks()[1]);
    let (b0, b1) = (b.blocks()[0], b.blocks()[1]);
    let (c0, c1) = (c.blocks()[0], c.blocks()[1]);
    pool.mark_thinking(&b, 3);
    for table in [&mut a, &mut b, &mut c] {
        pool.free(table);
    }
    assert_eq!(pool.usage().thinking_blocks, 1);
    let mut again = filled(&mut pool, &tokens(0..3));
    assert_eq!(
        again.blocks()[0],
        a0,
        "a hit makes a's first block the latest used"
    );
    pool.free(&mut again);
    let mut all = BlockTable::new(b"");
    pool.allocate(&mut all, 0, 14).unwrap();
    let order = &all.blocks()[1..];
    assert_eq!(order, [b1, a1, b0, c1, c0, a0]);
    assert_eq!(
        (
            pool.counters().evictions,
            pool.counters().thinking_evictions
        ),
        (6, 1)
    );
    pool.check_integrity([&all]).unwrap();
}

#[test]
fn a_hit_takes_the_thinking_mark_off() {
    let mut pool = pool(4, 2);
    let mut table = filled(&mut pool, &tokens(0..4));
    pool.mark_thinking(&table, 0);
    pool.free(&mut table);
    assert_eq!(pool.usage().thinking_blocks, 2);
    let mut again = filled(&mut pool, &tokens(0..3));
    pool.free(&mut again);
    assert_eq!(pool.usage().thinking_blocks, 1);
    pool.check_integrity([]).unwrap();
}

#[test]
fn whoever_writes_a_shared_block_first_gets_a_copy() {
    let mut pool = pool(4, 4);
    let mut parent = filled(&mut pool, &tokens(0..6));
    let mut child = pool.fork(&parent);
    let shared = parent.blocks()[1];
    assert_eq!(pool.blocks_needed(&parent, 6, 7), 1);
    let copies = pool.allocate(&mut parent, 6, 7).unwrap();
    assert_eq!(
        copies,
        [CopyBlock {
            src: shared,
            dst: parent.blocks()[1]
        }]
    );
    assert_eq!(child.blocks()[1], shared);
    assert_eq!(
        pool.allocate(&mut child, 6, 7).unwrap(),
        [],
        "the last holder writes in place"
    );
    assert_eq!(child.blocks()[0], parent.blocks()[0]);
    pool.check_integrity([&parent, &child]).unwrap();
    assert_eq!(
        (pool.usage().protected_blocks, pool.usage().tokens_in_use),
        (3, 4 + 2 + 2)
    );
    assert_eq!(pool.counters().copies, 1);
    pool.free(&mut parent);
    pool.free(&mut child);
    assert_eq!(pool.num_available(), 4);
}

#[test]
fn a_block_that_can_be_hit_is_not_written_either() {
    let mut pool = pool(4, 2);
    let mut table = filled(&mut pool, &tokens(0..4));
    let first = table.blocks()[0];
    let copy = pool.ensure_writable(&mut table, 0).unwrap().unwrap();
    assert_eq!(
        copy,
        CopyBlock {
            src: first,
            dst: table.blocks()[0]
        }
    );
    pool.check_integrity([&table]).unwrap();
    assert_eq!(hit(&pool, &tokens(0..3)), 2);
    let error = pool.ensure_writable(&mut table, 2).unwrap_err();
    assert_eq!(error, BlockError::NoSuchBlock { index: 2, len: 2 });
}

#[test]
fn equal_blocks_computed_twice_are_kept_once() {
    let mut pool = pool(8, 2);
    let (mut a, mut b) = (BlockTable::new(b""), BlockTable::new(b""));
    for table in [&mut a, &mut b] {
        pool.allocate(table, 0, 5).unwrap();
    }
    for table in [&mut a, &mut b] {
        pool.commit(table, &tokens(0..5), 5);
    }
    assert_eq!(a.blocks()[..2], b.blocks()[..2]);
    assert_ne!(a.blocks()[2], b.blocks()[2]);
    assert_eq!(
        (pool.usage().protected_blocks, pool.counters().duplicates),
        (4, 2)
    );
    pool.check_integrity([&a, &b]).unwrap();
}

#[test]
fn refusals_take_nothing_and_say_how_much() {
    let mut pool = pool(3, 2);
    let mut a = filled(&mut pool, &tokens(0..3));
    let mut b = BlockTable::new(b"");
    let error = pool.allocate(&mut b, 0, 4).unwrap_err();
    assert_eq!(
        error,
        BlockError::OutOfBlocks {
            needed: 2,
            available: 1,
            total: 3
        }
    );
    let error = pool.allocate(&mut a, 3, 129).unwrap_err();
    assert!(matches!(
        error,
        BlockError::TableFull {
            needed: 65,
            max_blocks_per_seq: 64,
            ..
        }
    ));
    assert!(b.is_empty() && a.len() == 2);
    pool.check_integrity([&a, &b]).unwrap();
}

#[test]
fn usage_is_told_in_blocks_and_in_tokens() {
    let mut pool = pool(10, 16);
    let table = filled(&mut pool, &tokens(0..17));
    let usage = pool.usage();
    assert_eq!((usage.by_blocks(), usage.by_tokens()), (0.2, 17.0 / 160.0));
    assert_eq!(
        (usage.protected_bytes(), usage.evictable_bytes()),
        (2000, 0)
    );
    pool.check_integrity([&table]).unwrap();
}

#[test]
fn without_caching_nothing_is_found_and_nothing_lingers() {
    let mut config = pool(4, 2).config().clone();
    config.enable_prefix_caching = false;
    let mut pool = BlockPool::new(config).unwrap();
    let mut table = filled(&mut pool, &tokens(0..8));
    pool.free(&mut table);
    assert_eq!(hit(&pool, &tokens(0..8)), 0);
    assert_eq!(pool.usage().free_blocks, 4);
}

#[test]
fn integrity_checks_can_fail() {
    let mut pool = pool(4, 2);
    let table = filled(&mut pool, &tokens(0..4));
    assert!(pool.check_integrity([]).is_err(), "a table is missing");
    assert!(
        pool.check_integrity([&table, &table]).is_err(),
        "a table is there twice"
    );
    pool.blocks[table.blocks()[0] as usize].block_hash = None;
    assert!(
        pool.check_integrity([&table]).is_err(),
        "the cache finds a block without hash"
    );
}

/// What the memory behind the pool would hold in a slot: the whole prefix that the key and the
/// value there depend on.
type Slot = Option<(Vec<u8>, Vec<TokenId>)>;

/// A pool, the memory behind it, and the sequences in it.
struct World {
    pool: BlockPool,
    memory: Vec<Slot>,
    seqs: Vec<(BlockTable, Vec<TokenId>)>,
}

#[derive(Clone, Debug)]
enum Op {
    /// A sequence with this salt and these tokens, computed as far as blocks allow.
    Start(u8, Vec<TokenId>),
    /// More tokens for a sequence.
    Extend(usize, Vec<TokenId>),
    Fork(usize),
    Free(usize),
    FreeThinking(usize, usize),
    Write(usize, usize),
    ClearCache,
}

fn op() -> impl Strategy<Value = Op> {
    // Two token values and two salts, so that prefixes meet often.
    let tokens = |most| proptest::collection::vec(0u32..2, 1..most);
    prop_oneof![
        4 => (0u8..2, tokens(14)).prop_map(|(salt, t)| Op::Start(salt, t)),
        6 => (any::<usize>(), tokens(5)).prop_map(|(i, t)| Op::Extend(i, t)),
        2 => any::<usize>().prop_map(Op::Fork),
        2 => any::<usize>().prop_map(Op::Free),
        2 => (any::<usize>(), 0usize..12).prop_map(|(i, from)| Op::FreeThinking(i, from)),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(i, b)| Op::Write(i, b)),
        1 => Just(Op::ClearCache),
    ]
}

impl World {
    fn new(num_blocks: usize, block_size: usize, cache: PrefixCache) -> World {
        let mut pool = pool(num_blocks, block_size);
        pool.prefix_cache = cache;
        World {
            memory: vec![None; num_blocks * block_size],
            pool,
            seqs: Vec::new(),
        }
    }

    fn run(&mut self, op: Op) {
        let pick = |i: usize| (!self.seqs.is_empty()).then(|| i % self.seqs.len());
        match op {
            Op::Start(salt, tokens) => {
                let mut table = BlockTable::new(&[salt]);
                let expected = self.pool.lookup(&tokens, &[salt]);
                let cached = self.pool.attach_prefix(&mut table, &tokens);
                assert_eq!(cached, expected.num_tokens);
                assert!(cached < tokens.len());
                self.seqs.push((table, tokens));
                self.compute(self.seqs.len() - 1);
            }
            Op::Extend(i, tokens) => {
                if let Some(i) = pick(i) {
                    self.seqs[i].1.extend(tokens);
                    self.compute(i);
                }
            }
            Op::Fork(i) => {
                if let Some(i) = pick(i) {
                    let (table, tokens) = &self.seqs[i];
                    let child = (self.pool.fork(table), tokens.clone());
                    self.seqs.push(child);
                }
            }
            Op::Free(i) => {
                if let Some(i) = pick(i) {
                    let (mut table, _) = self.seqs.swap_remove(i);
                    self.pool.free(&mut table);
                }
            }
            Op::FreeThinking(i, from) => {
                if let Some(i) = pick(i) {
                    let (mut table, _) = self.seqs.swap_remove(i);
                    self.pool.mark_thinking(&table, from);
                    self.pool.free(&mut table);
                }
            }
            Op::Write(i, block) => self.rewrite(pick(i), block),
            Op::ClearCache => self.pool.clear_cache(),
        }
    }

    /// Computes what sequence `i` has not computed, if there are blocks; else its tokens go.
    fn compute(&mut self, i: usize) {
        let (table, tokens) = &mut self.seqs[i];
        let (start, end) = (table.num_tokens(), tokens.len());
        let needed = self.pool.blocks_needed(table, start, end);
        let available = self.pool.num_available();
        match self.pool.allocate(table, start, end) {
            Ok(copies) => {
                assert_eq!(available - self.pool.num_available(), needed);
                let size = self.pool.config().block_size;
                copy_all(&mut self.memory, &copies, size);
                for at in start..end {
                    let slot = table.blocks()[at / size] as usize * size + at % size;
                    self.memory[slot] = Some((table.extra_keys().into(), tokens[..=at].to_vec()));
                }
                self.pool.commit(table, tokens, end);
            }
            Err(error) => {
                assert!(needed > available, "{error}");
                tokens.truncate(start);
            }
        }
    }

    /// Makes some block of sequence `i` its own.
    fn rewrite(&mut self, i: Option<usize>, block: usize) {
        let Some((table, _)) = i.map(|i| &mut self.seqs[i]) else {
            return;
        };
        if table.is_empty() {
            return;
        }
        if let Ok(copy) = self.pool.ensure_writable(table, block % table.len()) {
            let copies: Vec<CopyBlock> = copy.into_iter().collect();
            copy_all(&mut self.memory, &copies, self.pool.config().block_size);
        }
    }

    /// The pool's own promises, and that every sequence finds its own keys and values.
    fn check(&self) {
        let tables = self.seqs.iter().map(|(table, _)| table);
        self.pool.check_integrity(tables).unwrap();
        let size = self.pool.config().block_size;
        let mut held: BTreeSet<BlockId> = BTreeSet::new();
        for (table, tokens) in &self.seqs {
            assert_eq!(table.num_tokens(), tokens.len());
            held.extend(table.blocks());
            for at in 0..tokens.len() {
                let slot = table.blocks()[at / size] as usize * size + at % size;
                let expected = (table.extra_keys().to_vec(), tokens[..=at].to_vec());
                assert_eq!(self.memory[slot].as_ref(), Some(&expected));
            }
        }
        assert_eq!(self.pool.usage().protected_blocks, held.len());
    }
}

fn copy_all(memory: &mut [Slot], copies: &[CopyBlock], size: usize) {
    for copy in copies {
        for offset in 0..size {
            let value = memory[copy.src as usize * size + offset].clone();
            memory[copy.dst as usize * size + offset] = value;
        }
    }
}

/// A hash with three values, so that most blocks collide.
fn weak(parent: BlockHash, tokens: &[TokenId]) -> BlockHash {
    BlockHash(BlockHash::of(parent, tokens).0 % 3)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn sequences_always_find_their_own_keys_and_values(
        num_blocks in 1usize..24, block_size in 1usize..5, collide: bool,
        ops in proptest::collection::vec(op(), 0..60),
    ) {
        let cache = match collide {
            true => PrefixCache::with_hash(weak),
            false => PrefixCache::default(),
        };
        let mut world = World::new(num_blocks, block_size, cache);
        for op in ops {
            world.run(op);
            world.check();
        }
        for (mut table, _) in std::mem::take(&mut world.seqs) {
            world.pool.free(&mut table);
        }
        world.check();
        prop_assert_eq!(world.pool.num_available(), num_blocks);
        world.pool.clear_cache();
        world.check();
        prop_assert_eq!(world.pool.usage().free_blocks, num_blocks);
    }
}

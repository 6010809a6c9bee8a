//! A paged pool: how many blocks a budget gives, and what they hold.
//!
//! Layers whose caches differ share one pool by the rule of vLLM's hybrid allocator: layers of a
//! kind form groups of equal size, a block is one page in every layer of a group, and a sequence
//! takes blocks for every group. Pages must be equally large, so a block of attention is made
//! long enough to be as large as a state.

use std::collections::BTreeMap;

use super::caches::RankCache;

/// What is asked of the pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolRules {
    /// Bytes it may take.
    pub available: u64,
    /// Tokens a block.
    pub block_size: u64,
    /// Longest sequence.
    pub max_model_len: u64,
    /// Tokens of one forward pass: a window's blocks are freed only after it.
    pub batched_tokens: u64,
    /// Ranks that a sequence's tokens are dealt to.
    pub dcp: u64,
    /// Windows and states get groups of their own; else windows are stored in full.
    pub hybrid: bool,
    /// Blocks that a sequence has for its state in each group of such layers.
    pub state_blocks: u64,
    /// Of several groups, the tokens of whole sequences are printed, not those of one group.
    pub prints_sequences: bool,
}

/// What there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pool {
    /// Blocks.
    pub blocks: u64,
    /// Tokens a block.
    pub block_size: u64,
    /// Tokens that engines print: of one group, over all `dcp` ranks.
    pub tokens: u64,
    /// Longest sequences that fit at once.
    pub concurrency: f64,
    /// Bytes taken a token in a long sequence.
    pub bytes_per_token: f64,
}

/// The pool with room for the fewest sequences: every rank gets as many blocks as this one.
///
/// # Panics
/// When there is none; a model always has a first stage.
pub(crate) fn smallest(pools: &[Pool]) -> Pool {
    *pools
        .iter()
        .min_by(|a, b| a.concurrency.total_cmp(&b.concurrency))
        .expect("a model has at least one stage")
}

/// Lays out a pool for the layers of a rank.
pub(crate) fn lay_out(layers: &[RankCache], rules: &PoolRules) -> Pool {
    let kinds = kinds(layers, rules.hybrid);
    match kinds.len() {
        0 => Pool {
            blocks: 0,
            block_size: rules.block_size,
            tokens: 0,
            concurrency: 0.0,
            bytes_per_token: 0.0,
        },
        1 => uniform(layers, rules),
        _ => grouped(&kinds, rules),
    }
}

/// Layers of each kind; kinds differ in what they keep, and windows in their length.
fn kinds(layers: &[RankCache], hybrid: bool) -> BTreeMap<RankCache, u64> {
    let mut kinds = BTreeMap::new();
    for layer in layers {
        let kind = match *layer {
            RankCache::Sliding { token, .. } if !hybrid => RankCache::Full { token },
            other => other,
        };
        *kinds.entry(kind).or_insert(0) += 1;
    }
    if !hybrid
        || kinds
            .keys()
            .all(|kind| matches!(kind, RankCache::Full { .. }))
    {
        let token = layers.iter().map(token_bytes).max().unwrap_or(0);
        if token > 0
            && kinds
                .keys()
                .all(|kind| matches!(kind, RankCache::Full { .. }))
        {
            return BTreeMap::from([(RankCache::Full { token }, layers.len() as u64)]);
        }
    }
    kinds
}

fn token_bytes(layer: &RankCache) -> u64 {
    match *layer {
        RankCache::Full { token } | RankCache::Sliding { token, .. } => token,
        RankCache::State { .. } => 0,
    }
}

/// Layers that all keep the same: a block is a page in each of them.
fn uniform(layers: &[RankCache], rules: &PoolRules) -> Pool {
    let states: u64 = layers
        .iter()
        .map(|layer| match layer {
            RankCache::State { sequence } => *sequence,
            _ => 0,
        })
        .sum();
    if let Some(sequences) = rules.available.checked_div(states) {
        return Pool {
            blocks: sequences,
            block_size: rules.max_model_len,
            tokens: sequences.saturating_mul(rules.max_model_len),
            concurrency: sequences as f64,
            bytes_per_token: 0.0,
        };
    }
    let token: u64 = layers.iter().map(token_bytes).sum();
    let page = token.saturating_mul(rules.block_size).max(1);
    let blocks = rules.available / page;
    let one = rules.blocks_of_longest(RankCache::Full { token });
    let window = layers
        .iter()
        .all(|l| matches!(l, RankCache::Sliding { .. }))
        && rules.hybrid;
    let one = match layers.first() {
        Some(first) if window => rules.blocks_of_longest(*first),
        _ => one,
    };
    Pool {
        blocks,
        block_size: rules.block_size,
        tokens: blocks
            .saturating_mul(rules.block_size)
            .saturating_mul(rules.dcp),
        concurrency: blocks as f64 / one as f64,
        bytes_per_token: token as f64 / rules.dcp as f64,
    }
}

/// Layers of several kinds, in groups.
fn grouped(kinds: &BTreeMap<RankCache, u64>, rules: &PoolRules) -> Pool {
    let token = kinds.keys().map(token_bytes).max().unwrap_or(0).max(1);
    let state = kinds
        .keys()
        .map(|kind| match kind {
            RankCache::State { sequence } => *sequence,
            _ => 0,
        })
        .max()
        .unwrap_or(0);
    let block_size = rules
        .block_size
        .max(state.div_ceil(token).next_multiple_of(16));
    let rules = PoolRules {
        block_size,
        ..*rules
    };
    let page = token.saturating_mul(block_size);
    let least = kinds.values().copied().min().unwrap_or(1);
    let most = kinds.values().copied().max().unwrap_or(1);
    // Nearly equal counts are padded rather than cut to the smallest.
    let size = if 4 * most < 5 * least { most } else { least };
    let groups = |layers: u64| layers.div_ceil(size);
    let blocks = rules.available / page.saturating_mul(size).max(1);
    let total_groups: u64 = kinds.values().map(|n| groups(*n)).sum();
    let one: u64 = kinds
        .iter()
        .map(|(kind, n)| groups(*n) * rules.blocks_of_longest(*kind))
        .sum();
    let full: u64 = kinds
        .iter()
        .filter(|(kind, _)| matches!(kind, RankCache::Full { .. }))
        .map(|(_, n)| groups(*n))
        .sum();
    let concurrency = blocks as f64 / one.max(1) as f64;
    let tokens = match rules.prints_sequences {
        true => (concurrency * rules.max_model_len as f64) as u64,
        false => (blocks / total_groups.max(1))
            .saturating_mul(block_size)
            .saturating_mul(rules.dcp),
    };
    Pool {
        blocks,
        block_size,
        tokens,
        concurrency,
        bytes_per_token: (full * size * token) as f64 / rules.dcp as f64,
    }
}

impl PoolRules {
    /// Blocks in one group of a sequence of the longest length.
    fn blocks_of_longest(&self, kind: RankCache) -> u64 {
        let length = self.max_model_len.div_ceil(self.dcp.max(1));
        match kind {
            RankCache::Full { .. } => length.div_ceil(self.block_size).max(1),
            RankCache::Sliding { window, .. } => {
                let kept = (window.saturating_sub(1)).saturating_add(self.batched_tokens);
                kept.min(length).div_ceil(self.block_size) + 1
            }
            RankCache::State { .. } => self.state_blocks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(available: u64) -> PoolRules {
        PoolRules {
            available,
            block_size: 16,
            max_model_len: 8192,
            batched_tokens: 8192,
            dcp: 1,
            hybrid: true,
            state_blocks: 1,
            prints_sequences: false,
        }
    }

    /// Gemma 2 27B: half of 46 layers have a window, and a log printed 7335 blocks, 58,672 tokens
    /// and 7.16 sequences of 8192.
    #[test]
    fn windows_and_full_layers_share_blocks() {
        let layers: Vec<RankCache> = (0..46)
            .map(|i| match i % 2 {
                0 => RankCache::Sliding {
                    token: 8192,
                    window: 4096,
                },
                _ => RankCache::Full { token: 8192 },
            })
            .collect();
        let pool = lay_out(&layers, &rules(7335 * 16 * 8192 * 23));
        assert_eq!((pool.blocks, pool.tokens), (7335, 58_672));
        assert!(
            (pool.concurrency - 7.16).abs() < 0.01,
            "{}",
            pool.concurrency
        );
    }

    /// Gemma 3 12B: 40 layers with a window and 8 without make six groups of eight.
    #[test]
    fn groups_are_as_large_as_the_rarest_kind() {
        let layers: Vec<RankCache> = (0..48)
            .map(|i| match i % 6 {
                5 => RankCache::Full { token: 8192 },
                _ => RankCache::Sliding {
                    token: 8192,
                    window: 1024,
                },
            })
            .collect();
        let pool = lay_out(&layers, &rules(48_867 * 16 * 8192 * 8));
        assert_eq!((pool.blocks, pool.tokens), (48_867, 130_304));
        assert!(
            (pool.concurrency - 15.88).abs() < 0.01,
            "{}",
            pool.concurrency
        );
    }

    /// Qwen3-Next: a block of attention is made as large as a state, 544 tokens.
    #[test]
    fn blocks_grow_to_the_size_of_a_state() {
        let state = 2 * 3 * 8192 + 2 * 32 * 128 * 128;
        let layers: Vec<RankCache> = (0..48)
            .map(|i| match i % 4 {
                3 => RankCache::Full {
                    token: 2 * 2 * 256 * 2,
                },
                _ => RankCache::State { sequence: state },
            })
            .collect();
        assert_eq!(lay_out(&layers, &rules(1 << 36)).block_size, 544);
    }

    /// Qwen3.6-35B-A3B with an FP8 cache under vLLM 0.24, which printed 5.98 GiB, 567,978 tokens
    /// and 4.33 sequences of 131,072 (club-3090#612).
    #[test]
    fn newer_releases_keep_two_states_and_print_whole_sequences() {
        let state = 2 * 3 * 8192 + 4 * 32 * 128 * 128;
        let layers: Vec<RankCache> = (0..40)
            .map(|i| match i % 4 {
                3 => RankCache::Full { token: 2 * 2 * 256 },
                _ => RankCache::State { sequence: state },
            })
            .collect();
        let rules = PoolRules {
            max_model_len: 131_072,
            state_blocks: 2,
            prints_sequences: true,
            ..rules((5.98 * (1u64 << 30) as f64) as u64)
        };
        let pool = lay_out(&layers, &rules);
        assert!(
            (pool.concurrency - 4.33).abs() < 0.01,
            "{}",
            pool.concurrency
        );
        assert!(
            (pool.tokens as f64 / 567_978.0 - 1.0).abs() < 0.002,
            "{}",
            pool.tokens
        );
    }

    #[test]
    fn an_empty_budget_holds_nothing() {
        let pool = lay_out(&[RankCache::Full { token: 4096 }], &rules(0));
        assert_eq!((pool.blocks, pool.tokens), (0, 0));
        assert_eq!(lay_out(&[], &rules(1 << 30)).tokens, 0);
    }

    #[test]
    fn context_parallel_ranks_share_a_sequence() {
        let one = lay_out(&[RankCache::Full { token: 1152 }; 61], &rules(1 << 33));
        let eight = lay_out(
            &[RankCache::Full { token: 1152 }; 61],
            &PoolRules {
                dcp: 8,
                ..rules(1 << 33)
            },
        );
        assert_eq!(eight.tokens, 8 * one.tokens);
        assert!((eight.concurrency / one.concurrency - 8.0).abs() < 1e-9);
    }
}

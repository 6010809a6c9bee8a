//! Which full blocks of tokens are in the pool, found by what stands before them.
//!
//! A block's hash covers its parent's hash and its own token ids, so equal hashes mean equal
//! prefixes; chains start at a root that covers the extra keys (a `cache_salt`, say), so that
//! users with different salts never share. The hash is XXH3 with 128 bits: fast, and the same on
//! every machine.
//!
//! A collision does no harm, and neither does somebody who crafts one. A hit counts only when the
//! stored token ids and the stored parent are equal to the ones asked for. The parent's entry was
//! checked the same way just before, and an entry is kept while it has children, so by induction
//! the whole prefix was compared. Of two blocks whose hashes collide the second is not cached.
//!
//! This module knows hashes and block ids; reference counts and eviction order are the pool's.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};

use xxhash_rust::xxh3::Xxh3Default;

use crate::{BlockId, TokenId};

/// Hash of a full block of tokens and of everything before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash(pub u128);

impl BlockHash {
    /// Where chains with these extra keys start.
    pub fn root(extra_keys: &[u8]) -> BlockHash {
        let mut hasher = Xxh3Default::new();
        hasher.update(b"root");
        hasher.update(extra_keys);
        BlockHash(hasher.digest128())
    }

    /// H(parent, token ids).
    pub fn of(parent: BlockHash, token_ids: &[TokenId]) -> BlockHash {
        let mut hasher = Xxh3Default::new();
        hasher.update(&parent.0.to_le_bytes());
        for token in token_ids {
            hasher.update(&token.to_le_bytes());
        }
        BlockHash(hasher.digest128())
    }
}

/// Function that makes a block's hash; tests replace it to force collisions.
type HashFn = fn(BlockHash, &[TokenId]) -> BlockHash;

/// The trie of cached blocks.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    entries: HashMap<BlockHash, Entry, BuildHasherDefault<DefaultHasher>>,
    hash: HashFn,
}

/// A block's worth of tokens after a certain prefix, or the root of a chain.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    /// `None` for a root.
    parent: Option<BlockHash>,
    /// Empty for a root.
    token_ids: Box<[TokenId]>,
    /// Extra keys of a root; empty elsewhere.
    extra_keys: Box<[u8]>,
    /// The block that holds these tokens. `None` for a root, and for a block that was evicted
    /// before its children were.
    block: Option<BlockId>,
    /// Entries whose parent this is.
    children: usize,
}

/// What became of a block that was offered to the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inserted {
    /// The cache now finds it under this hash.
    Fresh(BlockHash),
    /// This block already holds the same tokens after the same prefix.
    Duplicate(BlockHash, BlockId),
    /// Other tokens have its hash; it cannot be cached.
    Collision,
}

impl Default for PrefixCache {
    fn default() -> PrefixCache {
        PrefixCache {
            entries: HashMap::default(),
            hash: BlockHash::of,
        }
    }
}

impl PrefixCache {
    #[cfg(test)]
    pub(crate) fn with_hash(hash: HashFn) -> PrefixCache {
        PrefixCache {
            hash,
            ..PrefixCache::default()
        }
    }

    /// Blocks that hold the longest cached prefix of `token_ids`, at most `max_blocks` of them,
    /// each `block_size` tokens long.
    pub(crate) fn lookup(
        &self,
        token_ids: &[TokenId],
        extra_keys: &[u8],
        block_size: usize,
        max_blocks: usize,
    ) -> Vec<(BlockHash, BlockId)> {
        let mut found = Vec::new();
        let mut parent = BlockHash::root(extra_keys);
        if !self.is_root(parent, extra_keys) {
            return found;
        }
        for chunk in token_ids.chunks_exact(block_size).take(max_blocks) {
            let hash = (self.hash)(parent, chunk);
            match self.entries.get(&hash).filter(|e| e.is(parent, chunk)) {
                Some(Entry {
                    block: Some(block), ..
                }) => found.push((hash, *block)),
                _ => break,
            }
            parent = hash;
        }
        found
    }

    /// Offers `block`, which holds `token_ids` after `parent` (`None`: at the start of a chain
    /// with `extra_keys`).
    ///
    /// `parent` must have been returned by this function or by `lookup`, and its block must not
    /// have been evicted since: the table that offers a block holds the blocks before it.
    pub(crate) fn insert(
        &mut self,
        parent: Option<BlockHash>,
        extra_keys: &[u8],
        token_ids: &[TokenId],
        block: BlockId,
    ) -> Inserted {
        let parent = match parent {
            Some(parent) => parent,
            None => match self.ensure_root(extra_keys) {
                Some(root) => root,
                None => return Inserted::Collision,
            },
        };
        let hash = (self.hash)(parent, token_ids);
        let outcome = match self.entries.get_mut(&hash) {
            Some(entry) if !entry.is(parent, token_ids) => Inserted::Collision,
            Some(entry) => match entry.block {
                Some(held) => Inserted::Duplicate(hash, held),
                None => {
                    entry.block = Some(block);
                    Inserted::Fresh(hash)
                }
            },
            None => {
                self.insert_new(hash, parent, token_ids, block);
                Inserted::Fresh(hash)
            }
        };
        if outcome == Inserted::Collision {
            self.prune(parent);
        }
        outcome
    }

    /// Forgets the block under `hash`.
    pub(crate) fn evict(&mut self, hash: BlockHash) {
        if let Some(entry) = self.entries.get_mut(&hash) {
            entry.block = None;
        }
        self.prune(hash);
    }

    /// The hash before `hash` in its chain; `None` at the start of one.
    pub(crate) fn parent(&self, hash: BlockHash) -> Option<BlockHash> {
        let parent = self.entries.get(&hash)?.parent?;
        let is_block = self.entries.get(&parent)?.parent.is_some();
        is_block.then_some(parent)
    }

    /// The block cached under `hash`.
    pub(crate) fn block(&self, hash: BlockHash) -> Option<BlockId> {
        self.entries.get(&hash)?.block
    }

    /// Blocks that can be found.
    pub(crate) fn num_blocks(&self) -> usize {
        self.entries.values().filter(|e| e.block.is_some()).count()
    }

    fn is_root(&self, hash: BlockHash, extra_keys: &[u8]) -> bool {
        self.entries
            .get(&hash)
            .is_some_and(|e| e.parent.is_none() && *e.extra_keys == *extra_keys)
    }

    /// The root of chains with `extra_keys`, made if need be; `None` when its hash is taken.
    fn ensure_root(&mut self, extra_keys: &[u8]) -> Option<BlockHash> {
        let hash = BlockHash::root(extra_keys);
        let entry = self.entries.entry(hash).or_insert_with(|| Entry {
            parent: None,
            token_ids: Box::default(),
            extra_keys: extra_keys.into(),
            block: None,
            children: 0,
        });
        (entry.parent.is_none() && *entry.extra_keys == *extra_keys).then_some(hash)
    }

    fn insert_new(
        &mut self,
        hash: BlockHash,
        parent: BlockHash,
        token_ids: &[TokenId],
        block: BlockId,
    ) {
        if let Some(entry) = self.entries.get_mut(&parent) {
            entry.children += 1;
        }
        let entry = Entry {
            parent: Some(parent),
            token_ids: token_ids.into(),
            extra_keys: Box::default(),
            block: Some(block),
            children: 0,
        };
        self.entries.insert(hash, entry);
    }

    /// Removes `hash` if nothing needs it any more, then its parent likewise, and so on.
    fn prune(&mut self, hash: BlockHash) {
        let mut next = Some(hash);
        while let Some(hash) = next {
            match self.entries.get(&hash) {
                Some(entry) if entry.block.is_none() && entry.children == 0 => {
                    next = entry.parent;
                    self.entries.remove(&hash);
                }
                _ => return,
            }
            if let Some(parent) = next.and_then(|parent| self.entries.get_mut(&parent)) {
                parent.children -= 1;
            }
        }
    }

    /// Checks that parents exist, that children are counted, and that no entry is idle.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut children: HashMap<BlockHash, usize> = HashMap::new();
        for (hash, entry) in &self.entries {
            let Some(parent) = entry.parent else { continue };
            if !self.entries.contains_key(&parent) {
                return Err(format!("{hash:?} is cached but its parent is not"));
            }
            *children.entry(parent).or_default() += 1;
        }
        for (hash, entry) in &self.entries {
            let counted = children.get(hash).copied().unwrap_or(0);
            if counted != entry.children {
                return Err(format!(
                    "{hash:?} counts {} children and has {counted}",
                    entry.children
                ));
            }
            if entry.block.is_none() && counted == 0 {
                return Err(format!("{hash:?} has neither block nor children"));
            }
        }
        Ok(())
    }
}

impl Entry {
    fn is(&self, parent: BlockHash, token_ids: &[TokenId]) -> bool {
        self.parent == Some(parent) && *self.token_ids == *token_ids
    }
}

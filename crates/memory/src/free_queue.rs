//! Free blocks in the order in which they are taken, as lists threaded through the blocks.
//!
//! Removing a block from the middle (a prefix hit on a free block) costs as little as taking the
//! first one, and nothing is allocated.

use crate::{BlockHash, BlockId};

/// End of a list.
const NIL: BlockId = BlockId::MAX;

/// One physical block of the KV cache.
#[derive(Clone, Debug)]
pub struct KvCacheBlock {
    /// Its index in the pool.
    pub block_id: BlockId,
    /// Block tables that hold it.
    pub ref_cnt: u32,
    /// Hash of its tokens and of those before, once it is full and cached. A free block keeps its
    /// hash, and can be hit, until it is allocated anew.
    pub block_hash: Option<BlockHash>,
    /// Tokens computed in it; 0 for a free block that is not cached.
    pub num_tokens: u32,
    /// Whether it belongs to the thinking of a finished turn.
    pub thinking: bool,
    /// Whether it was ever handed out, so that its memory may have been written.
    pub touched: bool,
    prev: BlockId,
    next: BlockId,
}

impl KvCacheBlock {
    pub(crate) fn new(block_id: BlockId) -> KvCacheBlock {
        KvCacheBlock {
            block_id,
            ref_cnt: 0,
            block_hash: None,
            num_tokens: 0,
            thinking: false,
            touched: false,
            prev: NIL,
            next: NIL,
        }
    }
}

/// A doubly linked list of blocks, oldest first.
#[derive(Debug)]
pub(crate) struct FreeQueue {
    head: BlockId,
    tail: BlockId,
    len: usize,
}

impl FreeQueue {
    pub(crate) fn new() -> FreeQueue {
        FreeQueue {
            head: NIL,
            tail: NIL,
            len: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn head(&self) -> Option<BlockId> {
        (self.head != NIL).then_some(self.head)
    }

    pub(crate) fn push_back(&mut self, blocks: &mut [KvCacheBlock], id: BlockId) {
        self.link(blocks, self.tail, id, NIL);
    }

    pub(crate) fn push_front(&mut self, blocks: &mut [KvCacheBlock], id: BlockId) {
        self.link(blocks, NIL, id, self.head);
    }

    /// Takes out `id`, which must be in this list.
    pub(crate) fn remove(&mut self, blocks: &mut [KvCacheBlock], id: BlockId) {
        let KvCacheBlock { prev, next, .. } = blocks[id as usize];
        match prev {
            NIL => self.head = next,
            prev => blocks[prev as usize].next = next,
        }
        match next {
            NIL => self.tail = prev,
            next => blocks[next as usize].prev = prev,
        }
        self.len -= 1;
    }

    /// Blocks in order, first to be taken first; at most as many as there are blocks, so that a
    /// damaged list cannot loop for ever.
    pub(crate) fn iter<'a>(
        &self,
        blocks: &'a [KvCacheBlock],
    ) -> impl Iterator<Item = BlockId> + 'a {
        let mut next = self.head;
        (0..=blocks.len()).map_while(move |_| {
            let id = (next != NIL).then_some(next)?;
            next = blocks[id as usize].next;
            Some(id)
        })
    }

    fn link(&mut self, blocks: &mut [KvCacheBlock], prev: BlockId, id: BlockId, next: BlockId) {
        let block = &mut blocks[id as usize];
        (block.prev, block.next) = (prev, next);
        match prev {
            NIL => self.head = id,
            prev => blocks[prev as usize].next = id,
        }
        match next {
            NIL => self.tail = id,
            next => blocks[next as usize].prev = id,
        }
        self.len += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        /// Against a `VecDeque` that does the same.
        #[test]
        fn behaves_like_a_deque(ops in proptest::collection::vec((0u8..3, 0u32..8), 0..60)) {
            let mut blocks: Vec<_> = (0..8).map(KvCacheBlock::new).collect();
            let mut queue = FreeQueue::new();
            let mut model: VecDeque<BlockId> = VecDeque::new();
            for (op, id) in ops {
                let held = model.contains(&id);
                match op {
                    0 if !held => { queue.push_back(&mut blocks, id); model.push_back(id); }
                    1 if !held => { queue.push_front(&mut blocks, id); model.push_front(id); }
                    2 if held => { queue.remove(&mut blocks, id); model.retain(|&b| b != id); }
                    _ => {}
                }
                prop_assert_eq!(queue.iter(&blocks).collect::<Vec<_>>(), Vec::from(model.clone()));
                prop_assert_eq!(queue.len(), model.len());
                prop_assert_eq!(queue.head(), model.front().copied());
            }
        }
    }
}

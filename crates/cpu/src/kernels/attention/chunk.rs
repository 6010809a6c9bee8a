//! A chunk of positions: where its keys and values lie, copies of them as f32, and asking for the
//! next one ahead of time.

use super::{Attention, CHUNK, Upcoming, padded};
use crate::kernels::element::Element;
use crate::simd::{LANES, Simd};

/// Addresses of a chunk's keys and values. Positions past the chunk's repeat its first.
pub(super) struct Chunk<E> {
    /// Each position's key; positions side by side where `dim_step` is not 1.
    pub(super) keys: [*const E; CHUNK],
    /// From a dimension of a key to the next.
    pub(super) dim_step: usize,
    pub(super) values: [*const E; CHUNK],
}

impl<E: Element> Chunk<E> {
    fn empty(dim_step: usize) -> Chunk<E> {
        Chunk {
            keys: [std::ptr::null(); CHUNK],
            dim_step,
            values: [std::ptr::null(); CHUNK],
        }
    }

    fn repeat_first(&mut self, from: usize) {
        for t in from..CHUNK {
            (self.keys[t], self.values[t]) = (self.keys[0], self.values[0]);
        }
    }

    /// Positions `start .. start + count` of a context.
    ///
    /// # Safety
    /// `1 <= count <= 32` positions from `start` on are in the block table.
    #[inline(always)]
    pub(super) unsafe fn locate(a: &Attention, start: usize, count: usize) -> Chunk<E> {
        let kv = &a.kv;
        let mut chunk = Chunk::empty(kv.dim_step);
        let (mut entry, mut within) = (start / kv.block_size, start % kv.block_size);
        let mut t = 0;
        while t < count {
            let end = count.min(t + kv.block_size - within);
            // SAFETY: by contract; a block id in the table is one of the cache.
            unsafe {
                let block = *a.blocks.add(entry) as usize * kv.block_stride;
                let mut key = kv.keys.cast::<E>().add(block + within * kv.key_step);
                let mut value = kv.values.cast::<E>().add(block + within * kv.value_step);
                while t < end {
                    (chunk.keys[t], chunk.values[t]) = (key, value);
                    (key, value) = (
                        key.wrapping_add(kv.key_step),
                        value.wrapping_add(kv.value_step),
                    );
                    t += 1;
                }
            }
            (entry, within) = (entry + 1, 0);
        }
        chunk.repeat_first(count);
        chunk
    }

    /// The chunk as f32, positions along their dimensions, values being the front of keys.
    ///
    /// # Safety
    /// Keys are padded to whole lanes; `to` has room for 32.
    #[inline(always)]
    pub(super) unsafe fn widened<S: Simd>(
        &self,
        s: S,
        a: &Attention,
        count: usize,
        to: *mut f32,
    ) -> Chunk<f32> {
        let key = padded(a.key_dim);
        let mut wide = Chunk::empty(1);
        for t in 0..count {
            // SAFETY: by contract.
            unsafe {
                let to = to.add(t * key);
                copy(s, self.keys[t], to, key);
                (wide.keys[t], wide.values[t]) = (to.cast_const(), to.cast_const());
            }
        }
        wide.repeat_first(count);
        wide
    }

    /// The chunk as f32, the keys' positions side by side.
    ///
    /// # Safety
    /// Keys and values are padded to whole lanes, and `to` has room for 32 of each. Of keys that
    /// lie side by side, whole lanes are readable.
    #[inline(always)]
    pub(super) unsafe fn widened_across<S: Simd>(
        &self,
        s: S,
        a: &Attention,
        count: usize,
        to: *mut f32,
    ) -> Chunk<f32> {
        let (key, value) = (padded(a.key_dim), padded(a.value_dim));
        let mut wide = Chunk::empty(CHUNK);
        // SAFETY: by contract.
        unsafe {
            for t in (0..count).step_by(LANES) {
                self.turn(s, t, key, to.add(t));
            }
            let values = to.add(key * CHUNK);
            for t in 0..count {
                wide.keys[t] = to.add(t);
                wide.values[t] = if E::IS_F32 {
                    self.values[t].cast()
                } else {
                    copy(s, self.values[t], values.add(t * value), value);
                    values.add(t * value)
                };
            }
        }
        wide.repeat_first(count);
        wide
    }

    /// Keys of sixteen positions from `t` on, side by side, 32 from a dimension to the next.
    ///
    /// # Safety
    /// As for [`Chunk::widened_across`].
    #[inline(always)]
    unsafe fn turn<S: Simd>(&self, s: S, t: usize, key: usize, to: *mut f32) {
        // SAFETY: by contract.
        unsafe {
            if self.dim_step > 1 {
                for d in 0..key {
                    let v = E::load(s, self.keys[t].add(d * self.dim_step));
                    s.store(to.add(d * CHUNK), v);
                }
                return;
            }
            for first in (0..key).step_by(LANES) {
                let mut rows = [s.splat(0.0); LANES];
                for (row, key) in rows.iter_mut().zip(&self.keys[t..t + LANES]) {
                    *row = E::load(s, key.add(first));
                }
                for (d, column) in s.transpose(rows).into_iter().enumerate() {
                    s.store(to.add((first + d) * CHUNK), column);
                }
            }
        }
    }
}

/// `len` values, whole lanes, as f32.
///
/// # Safety
/// Both have them.
#[inline(always)]
unsafe fn copy<S: Simd, E: Element>(s: S, from: *const E, to: *mut f32, len: usize) {
    for d in (0..len).step_by(LANES) {
        // SAFETY: by contract.
        unsafe { s.store(to.add(d), E::load(s, from.add(d))) }
    }
}

/// Bytes of a chunk's keys up to which the next chunk is asked into the first cache.
const NEAR: usize = 8 << 10;

/// Asks for the chunk at `start`, or where the call ends there for the next call's first, to come
/// while the one before is at work: blocks lie far apart, and no machine guesses where the next
/// one is.
///
/// # Safety
/// The positions of the call and of the next one are in their block tables.
#[inline(always)]
pub(super) unsafe fn ask_ahead<S: Simd, E: Element>(s: S, a: &Attention, start: usize) {
    let here = Upcoming {
        from: start,
        ..a.upcoming()
    };
    let next = match (start < a.to, a.next) {
        (true, _) => Some(here),
        // As many chunks into the next call as this one's end lies behind.
        (false, Some(next)) => Some(Upcoming {
            from: next.from + (start - a.to) / CHUNK * CHUNK,
            ..next
        }),
        (false, None) => None,
    };
    if let Some(next) = next {
        // SAFETY: by contract.
        unsafe { ask::<S, E>(s, &next) }
    }
}

/// Asks for the first chunk of some positions.
///
/// # Safety
/// They are in the block table.
#[inline(always)]
unsafe fn ask<S: Simd, E: Element>(s: S, at: &Upcoming) {
    let kv = &at.kv;
    let near = CHUNK * padded(at.key_dim) * size_of::<E>() <= NEAR;
    let (mut t, end) = (at.from, (at.from + CHUNK).min(at.to));
    while t < end {
        let (entry, within) = (t / kv.block_size, t % kv.block_size);
        let count = (kv.block_size - within).min(end - t);
        // SAFETY: by contract.
        let block = unsafe { *at.blocks.add(entry) } as usize * kv.block_stride;
        let keys = kv.keys.cast::<E>().wrapping_add(block);
        match kv.dim_step {
            1 => {
                let from = keys.wrapping_add(within * kv.key_step);
                ask_lines::<S, E>(s, from, count * kv.key_step, near);
            }
            // The chunk is all of the block, or most of it.
            2..=CHUNK => ask_lines::<S, E>(s, keys, padded(at.key_dim) * kv.dim_step, near),
            _ => {
                for d in 0..padded(at.key_dim) {
                    let from = keys.wrapping_add(d * kv.dim_step + within);
                    ask_lines::<S, E>(s, from, count, near);
                }
            }
        }
        if !kv.inside() {
            let values = kv.values.cast::<E>();
            let values = values.wrapping_add(block + within * kv.value_step);
            ask_lines::<S, E>(s, values, count * kv.value_step, near);
        }
        t += count;
    }
}

#[inline(always)]
fn ask_lines<S: Simd, E>(s: S, from: *const E, len: usize, near: bool) {
    for line in (0..len * size_of::<E>()).step_by(64) {
        let line = from.cast::<u8>().wrapping_add(line);
        if near {
            s.prefetch(line);
        } else {
            s.prefetch_far(line);
        }
    }
}

//! A few queries over one chunk: scores, their softmax, and the weighted values.

use super::chunk::Chunk;
use super::state::soften;
use super::{Attention, CHUNK, STATE, padded};
use crate::kernels::element::Element;
use crate::simd::{LANES, Simd};

/// All queries over one chunk, a few at a time.
///
/// # Safety
/// As the kernel's operands say.
#[inline(always)]
pub(super) unsafe fn tiles<S: Simd, E: Element, const ACROSS: bool>(
    s: S,
    a: &Attention,
    start: usize,
    count: usize,
    chunk: &Chunk<E>,
    q: *const f32,
    states: *mut f32,
) {
    let n = a.rows * a.heads;
    let mut i = 0;
    while i < n {
        // SAFETY: queries `i ..` are among the `n`.
        i += unsafe {
            match n - i {
                4.. if S::MANY_REGISTERS => {
                    tile::<S, E, ACROSS, 4, 4>(s, a, start, count, chunk, q, states, i)
                }
                3 if S::MANY_REGISTERS => {
                    tile::<S, E, ACROSS, 3, 4>(s, a, start, count, chunk, q, states, i)
                }
                2.. => tile::<S, E, ACROSS, 2, 2>(s, a, start, count, chunk, q, states, i),
                _ => tile::<S, E, ACROSS, 1, 4>(s, a, start, count, chunk, q, states, i),
            }
        };
    }
}

/// `Q` queries from `first` on over one chunk, `T` positions at a time; returns `Q`.
///
/// # Safety
/// As the kernel's operands say.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // one inlined step of a loop nest
unsafe fn tile<S: Simd, E: Element, const ACROSS: bool, const Q: usize, const T: usize>(
    s: S,
    a: &Attention,
    start: usize,
    count: usize,
    chunk: &Chunk<E>,
    q: *const f32,
    states: *mut f32,
    first: usize,
) -> usize {
    let (key, state) = (padded(a.key_dim), padded(a.value_dim) + STATE);
    // Positions of the chunk that each query sees.
    let mut visible = [0; Q];
    let mut most = 0;
    for (i, visible) in visible.iter_mut().enumerate() {
        let position = a.position + (first + i) / a.heads;
        *visible = (position + 1).saturating_sub(start).min(count);
        most = most.max(*visible);
    }
    if most == 0 {
        return Q;
    }
    let mut p = [[f32::NEG_INFINITY; CHUNK]; Q];
    // SAFETY: queries `first .. first + Q` exist; chunk positions are addressed by `chunk`.
    unsafe {
        let q = q.add(first * key);
        if ACROSS {
            scores_across::<S, E, Q>(s, q, key, chunk, most, &mut p);
        } else {
            for t in (0..most).step_by(T) {
                scores_along::<S, E, Q, T>(s, q, key, chunk, t, &mut p);
            }
        }
        let mut keep = [s.splat(1.0); Q];
        for i in 0..Q {
            let state = states.add((first + i) * state);
            keep[i] = s.splat(soften(s, &mut p[i], visible[i], state));
        }
        let acc = states.add(first * state + STATE);
        let width = state - STATE;
        let mut d = 0;
        while d < width {
            if d + 4 * LANES <= width && (S::MANY_REGISTERS || Q == 1) {
                weigh::<S, E, Q, 4>(s, &p, &keep, chunk, most, acc.add(d), state, d);
                d += 4 * LANES;
            } else {
                weigh::<S, E, Q, 1>(s, &p, &keep, chunk, most, acc.add(d), state, d);
                d += LANES;
            }
        }
    }
    Q
}

/// Scores of `Q` queries against `count` positions of the chunk, or a few more: a lane is a
/// position, and dimensions are summed in order, even and odd ones apart.
///
/// # Safety
/// `q` holds `Q` queries of `key` values, whole lanes; of keys whole lanes are readable.
#[inline(always)]
unsafe fn scores_across<S: Simd, E: Element, const Q: usize>(
    s: S,
    q: *const f32,
    key: usize,
    chunk: &Chunk<E>,
    count: usize,
    out: &mut [[f32; CHUNK]; Q],
) {
    // SAFETY: by contract.
    unsafe {
        if S::MANY_REGISTERS && count > LANES {
            products::<S, E, Q, 2>(s, q, key, chunk, 0, out);
        } else {
            products::<S, E, Q, 1>(s, q, key, chunk, 0, out);
            if count > LANES {
                products::<S, E, Q, 1>(s, q, key, chunk, LANES, out);
            }
        }
    }
}

/// The same for `V` times sixteen positions from `t` on.
///
/// # Safety
/// As for [`scores_across`].
#[inline(always)]
unsafe fn products<S: Simd, E: Element, const Q: usize, const V: usize>(
    s: S,
    q: *const f32,
    key: usize,
    chunk: &Chunk<E>,
    t: usize,
    out: &mut [[f32; CHUNK]; Q],
) {
    let mut at: [*const E; V] = std::array::from_fn(|v| chunk.keys[t + v * LANES]);
    let mut sums = [[[s.splat(0.0); V]; Q]; 2];
    for d in (0..key).step_by(2) {
        for (half, sums) in sums.iter_mut().enumerate() {
            let mut k = [s.splat(0.0); V];
            for (k, at) in k.iter_mut().zip(&mut at) {
                // SAFETY: by contract; past the last dimension the address is not read.
                *k = unsafe { E::load(s, *at) };
                *at = at.wrapping_add(chunk.dim_step);
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                // SAFETY: by contract; `key` is even.
                let q = s.splat(unsafe { *q.add(i * key + d + half) });
                for (sum, &k) in sums.iter_mut().zip(&k) {
                    *sum = s.fma(q, k, *sum);
                }
            }
        }
    }
    for (i, out) in out.iter_mut().enumerate() {
        for v in 0..V {
            let sum = s.add(sums[0][i][v], sums[1][i][v]);
            // SAFETY: sixteen of the 32 scores.
            unsafe { s.store(out[t + v * LANES..][..LANES].as_mut_ptr(), sum) }
        }
    }
}

/// Scores of `Q` queries against positions `t .. t + T` of the chunk: lanes are dimensions.
///
/// # Safety
/// `q` holds `Q` queries of `key` values, whole lanes; `t + T <= 32`.
#[inline(always)]
unsafe fn scores_along<S: Simd, E: Element, const Q: usize, const T: usize>(
    s: S,
    q: *const f32,
    key: usize,
    chunk: &Chunk<E>,
    t: usize,
    out: &mut [[f32; CHUNK]; Q],
) {
    let mut sums = [[s.splat(0.0); T]; Q];
    for d in (0..key).step_by(LANES) {
        let mut k = [s.splat(0.0); T];
        for (j, k) in k.iter_mut().enumerate() {
            // SAFETY: by contract.
            *k = unsafe { E::load(s, chunk.keys[t + j].add(d)) };
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: by contract.
            let q = unsafe { s.load(q.add(i * key + d)) };
            for (sum, &k) in sums.iter_mut().zip(&k) {
                *sum = s.fma(q, k, *sum);
            }
        }
    }
    let mut each = [s.splat(0.0); LANES];
    for i in 0..Q {
        for j in 0..T {
            each[i * T + j] = sums[i][j];
        }
    }
    let mut lanes = [0.0f32; LANES];
    // SAFETY: sixteen lanes.
    unsafe { s.store(lanes.as_mut_ptr(), s.sum_each(each)) }
    for (i, out) in out.iter_mut().enumerate() {
        out[t..t + T].copy_from_slice(&lanes[i * T..(i + 1) * T]);
    }
}

/// `acc = acc · keep + Σ_t p[t] · value[t]` over `D` vectors of dimensions from `d` on.
///
/// # Safety
/// `acc` is the first query's, `state` values from one query's to the next.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // one inlined step of a loop nest
unsafe fn weigh<S: Simd, E: Element, const Q: usize, const D: usize>(
    s: S,
    p: &[[f32; CHUNK]; Q],
    keep: &[S::F; Q],
    chunk: &Chunk<E>,
    count: usize,
    acc: *mut f32,
    state: usize,
    d: usize,
) {
    let mut sums = [[s.splat(0.0); D]; Q];
    // SAFETY: by contract.
    unsafe {
        for i in 0..Q {
            for j in 0..D {
                sums[i][j] = s.mul(s.load(acc.add(i * state + j * LANES)), keep[i]);
            }
        }
        for t in 0..count {
            let mut v = [s.splat(0.0); D];
            for (j, v) in v.iter_mut().enumerate() {
                *v = E::load(s, chunk.values[t].add(d + j * LANES));
            }
            for i in 0..Q {
                let p = s.splat(p[i][t]);
                for j in 0..D {
                    sums[i][j] = s.fma(p, v[j], sums[i][j]);
                }
            }
        }
        for i in 0..Q {
            for j in 0..D {
                s.store(acc.add(i * state + j * LANES), sums[i][j]);
            }
        }
    }
}

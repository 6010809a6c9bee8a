//! Choosing among logits without sorting a vocabulary.

use std::cmp::Ordering;

use crate::params::SamplingParams;

/// A token with its logit, or with its weight `exp((logit − best) / temperature)`.
pub type Candidate = (f32, u32);

/// Best first; equal ones by id.
pub fn better(a: &Candidate, b: &Candidate) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Values that are compared side by side, and values whose greatest is kept.
const LANES: usize = 16;
const STRETCH: usize = 64 * LANES;

/// The best token, the lowest id among equals; `None` where there is no number.
///
/// One pass finds the greatest of every stretch, side by side, which compilers turn into vectors;
/// only the first stretch that has the greatest of all is looked through.
pub fn argmax(row: &[f32]) -> Option<u32> {
    let mut best = (f32::NEG_INFINITY, 0);
    for (i, stretch) in row.chunks(STRETCH).enumerate() {
        let top = greatest(stretch);
        if top > best.0 {
            best = (top, i);
        }
    }
    let first = best.1 * STRETCH;
    let within = row.get(first..)?.iter().position(|&x| x == best.0)?;
    Some((first + within) as u32)
}

/// The greatest value; −∞ of none. NaN is passed over.
fn greatest(values: &[f32]) -> f32 {
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = greater(*lane, x);
        }
    }
    lanes
        .into_iter()
        .chain(rest.iter().copied())
        .fold(f32::NEG_INFINITY, greater)
}

/// The first value that is infinite or no number.
pub fn first_not_finite(row: &[f32]) -> Option<usize> {
    let odd = |x: &f32| x.to_bits() & INFINITE == INFINITE;
    // Whole stretches first, without a way out of the loop, so that they become vectors.
    let stretch = row
        .chunks(STRETCH)
        .position(|s| s.iter().fold(false, |any, x| any | odd(x)))?;
    let first = stretch * STRETCH;
    row[first..].iter().position(odd).map(|i| first + i)
}

/// Exponent bits of what is not finite.
const INFINITE: u32 = 0x7f80_0000;

/// Moves the best `count` candidates to the front, in order; returns how many that are.
pub fn sort_best(candidates: &mut [Candidate], count: usize) -> usize {
    let count = count.min(candidates.len());
    if count < candidates.len() && count > 0 {
        candidates.select_nth_unstable_by(count - 1, better);
    }
    candidates[..count].sort_unstable_by(better);
    count
}

/// Draws a token with the uniform number `u` after temperature, min-p, top-k and top-p; `None`
/// when every logit is −∞.
pub fn draw(
    logits: &[f32],
    params: &SamplingParams,
    u: f64,
    candidates: &mut Vec<Candidate>,
) -> Option<u32> {
    let best = logits[argmax(logits)? as usize];
    if best == f32::NEG_INFINITY {
        return None;
    }
    weigh(logits, best, params, candidates);
    let top_k = params.top_k.map_or(usize::MAX, |k| k as usize);
    if top_k < candidates.len() {
        let kept = sort_best(candidates, top_k);
        candidates.truncate(kept);
    }
    if params.top_p < 1.0 {
        let kept = top_p_prefix(candidates, f64::from(params.top_p));
        candidates.truncate(kept);
    }
    let total: f64 = candidates.iter().map(|c| f64::from(c.0)).sum();
    let mut left = u * total;
    for &(weight, token) in candidates.iter() {
        left -= f64::from(weight);
        if left < 0.0 {
            return Some(token);
        }
    }
    // Rounding took the last sliver: `u` was next to 1.
    candidates.last().map(|c| c.1)
}

/// Eligible tokens, in the order of their ids, with weights relative to the best one's.
fn weigh(logits: &[f32], best: f32, params: &SamplingParams, out: &mut Vec<Candidate>) {
    out.clear();
    for (i, &x) in logits.iter().enumerate() {
        // A token whose weight underflows can never be drawn.
        let weight = ((x - best) / params.temperature).exp();
        if weight > 0.0 && weight >= params.min_p {
            out.push((weight, i as u32));
        }
    }
}

/// Sorts just enough of the front to find the shortest prefix whose share reaches `top_p`, and
/// returns its length.
fn top_p_prefix(candidates: &mut [Candidate], top_p: f64) -> usize {
    let total: f64 = candidates.iter().map(|c| f64::from(c.0)).sum();
    let wanted = top_p * total;
    let (mut reached, mut done, mut step) = (0.0, 0, 64);
    while done < candidates.len() {
        let end = done + sort_best(&mut candidates[done..], step);
        for (i, candidate) in candidates[done..end].iter().enumerate() {
            reached += f64::from(candidate.0);
            if reached >= wanted {
                return done + i + 1;
            }
        }
        done = end;
        step *= 4;
    }
    candidates.len()
}

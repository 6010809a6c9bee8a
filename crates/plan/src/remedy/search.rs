//! Ranking single remedies, and a small beam search over combinations of them.

use std::cmp::Ordering;

use serde::Serialize;

use super::change::{Change, Topic};
use super::{Evaluated, Remedy, candidates, evaluate, hardware};
use crate::{Error, ModelShape, Storage, WeightScheme};

/// Combinations that are carried on from one round to the next, and rounds.
const BEAM: usize = 6;
const ROUNDS: usize = 3;
/// Remedies of one kind that are worth listing.
const OF_A_TOPIC: usize = 3;
/// Remedies that are listed.
const LISTED: usize = 14;

/// What can be done about a verdict.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Advice {
    /// Single changes, best first.
    pub remedies: Vec<Remedy>,
    /// The best that meets the workload on these devices; `None` where it is met as it is, or
    /// where nothing meets it.
    pub combination: Option<Remedy>,
    /// Other devices that would meet it, least memory first; only where nothing else does.
    pub hardware: Vec<Remedy>,
}

/// Ranks what can be done.
///
/// # Errors
/// Never for a setup that was evaluated; changes that an engine refuses are left out.
pub fn advise(shape: &ModelShape, now: &Evaluated) -> Result<Advice, Error> {
    let mut singles: Vec<(f64, Remedy)> = Vec::new();
    let mut changes = candidates::settings(shape, now);
    changes.extend(candidates::concessions(now));
    for change in changes {
        let Ok(remedy) = Remedy::of(shape, now, &[change]) else {
            continue;
        };
        if is_a_gain(now, &remedy) {
            singles.push((score(now, &remedy), remedy));
        }
    }
    sort(&mut singles);
    let combination = if now.outcome.fits {
        None
    } else {
        combine(shape, now, &singles)
    };
    let mut hardware = Vec::new();
    if !now.outcome.fits && combination.as_ref().is_none_or(asks_for_less) {
        hardware = hardware::what_fits(shape, now);
    }
    Ok(Advice {
        remedies: list(singles),
        combination,
        hardware,
    })
}

fn asks_for_less(remedy: &Remedy) -> bool {
    remedy.changes.iter().any(Change::is_concession)
}

fn is_a_gain(now: &Evaluated, remedy: &Remedy) -> bool {
    let more_room = remedy.gains_tokens > 0 || remedy.gains_sequences > 0;
    if remedy.settles && !now.outcome.fits {
        return true;
    }
    if now.outcome.fits && !remedy.settles {
        return false;
    }
    let kv = now.outcome.kv_tokens as f64;
    let room = more_room && remedy.gains_tokens as f64 > kv * 0.005;
    room || remedy.decode_speedup > 1.02 || remedy.gains_sequences > 0
}

/// How much of the workload is met, a little for room to spare and for speed, less what it costs.
fn score(now: &Evaluated, remedy: &Remedy) -> f64 {
    let wanted = now.setup.workload.concurrency.max(1) as f64;
    let met = remedy.after.sequences / remedy.setup.workload.concurrency.max(1) as f64;
    let mut score = met.min(1.0);
    if remedy.settles {
        score += 0.5;
    }
    let spare = (remedy.after.sequences / wanted).max(1e-3).log2();
    score += 0.04 * spare.clamp(-5.0, 3.0);
    let speed = remedy.decode_speedup.max(1e-3).ln();
    score += 0.15 * speed.clamp(-4.0, 1.5);
    if remedy.after.sequences < 1.0 {
        // Nothing runs yet: what counts is how much less is missing.
        let saved = remedy.saves_bytes as f64 / now.outcome.demand_bytes.max(1) as f64;
        score += 0.2 * saved.clamp(-1.0, 1.0);
    }
    score
        - remedy
            .changes
            .iter()
            .map(|c| cost(c, remedy, now))
            .sum::<f64>()
}

/// What a change costs beside speed: quality, effort, and what is given up. Only for ranking.
fn cost(change: &Change, remedy: &Remedy, now: &Evaluated) -> f64 {
    let given_up = |new: u64, old: u64| 1.0 - new as f64 / old.max(1) as f64;
    let workload = &now.setup.workload;
    match change {
        Change::Weights(scheme) => match remedy.quality_retained {
            Some(retained) => 0.02 + 2.0 * (1.0 - retained),
            None => weight_risk(scheme),
        },
        Change::Kv(dtype) if dtype.row_bytes(512) < 512 => 0.1,
        Change::Kv(_) | Change::NoCudaGraphs => 0.03,
        Change::Split(_) => 0.005,
        Change::Memory(_) | Change::BatchedTokens(_) | Change::Sequences(_) => 0.01,
        Change::Offload(_) => 0.2,
        Change::PrefixCaching | Change::DropThinking => 0.0,
        Change::Context(n) => 0.3 + 0.5 * given_up(*n, workload.context),
        Change::Concurrency(n) => 0.3 + 0.5 * given_up(*n, workload.concurrency),
        Change::Devices(_) => 0.4,
    }
}

fn weight_risk(scheme: &WeightScheme) -> f64 {
    let storage = match scheme {
        WeightScheme::Linear(storage) => storage,
        WeightScheme::Experts(_) => return 0.06,
        WeightScheme::Gguf(mix) if mix.contains("Q8") => return 0.02,
        WeightScheme::Gguf(mix) if mix.contains("Q2") => return 0.4,
        WeightScheme::Gguf(mix) if mix.contains("Q6") || mix.contains("Q5") => return 0.04,
        WeightScheme::Gguf(_) => return 0.1,
        WeightScheme::Released => return 0.0,
    };
    match storage {
        Storage::IntGroups { bits, .. } if *bits <= 4 => 0.1,
        _ => 0.03,
    }
}

fn sort(remedies: &mut [(f64, Remedy)]) {
    remedies.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal));
}

/// The best of each kind, then the next of each, up to what fits a list.
fn list(singles: Vec<(f64, Remedy)>) -> Vec<Remedy> {
    let mut seen: Vec<(Topic, usize)> = Vec::new();
    let mut listed: Vec<Remedy> = Vec::new();
    for (_, remedy) in singles {
        let Some(topic) = remedy.changes.first().map(Change::topic) else {
            continue;
        };
        let at = match seen.iter().position(|(t, _)| *t == topic) {
            Some(at) => at,
            None => {
                seen.push((topic, 0));
                seen.len() - 1
            }
        };
        // Other names for the same effect are no news.
        if listed.iter().any(|known| alike(known, &remedy, topic)) {
            continue;
        }
        seen[at].1 += 1;
        if seen[at].1 <= OF_A_TOPIC && listed.len() < LISTED {
            listed.push(remedy);
        }
    }
    listed
}

/// Whether two changes of the same thing come to the same.
fn alike(a: &Remedy, b: &Remedy, topic: Topic) -> bool {
    let near = |a: f64, b: f64| (a - b).abs() <= 0.01 * a.abs();
    a.changes.first().map(Change::topic) == Some(topic)
        && near(a.after.sequences, b.after.sequences)
        && near(a.after.tokens_per_s, b.after.tokens_per_s)
        && a.quality == b.quality
}

/// The best combination that meets the workload: one of what is there where that is enough, else
/// one that asks for less.
fn combine(shape: &ModelShape, now: &Evaluated, singles: &[(f64, Remedy)]) -> Option<Remedy> {
    let same = singles.iter().filter(|(_, r)| !asks_for_less(r)).cloned();
    beam(shape, now, same.collect(), false).or_else(|| beam(shape, now, singles.to_vec(), true))
}

/// Carries the best few on, a change at a time, until one meets the workload.
fn beam(
    shape: &ModelShape,
    now: &Evaluated,
    singles: Vec<(f64, Remedy)>,
    less: bool,
) -> Option<Remedy> {
    let mut open = singles;
    for round in 0..ROUNDS {
        sort(&mut open);
        // A combination of more parts is only worth it where fewer do not do.
        if let Some((_, best)) = open.iter().find(|(_, remedy)| remedy.settles) {
            return Some(best.clone());
        }
        if round + 1 == ROUNDS {
            break;
        }
        open.truncate(BEAM);
        let mut next: Vec<(f64, Remedy)> = Vec::new();
        for (_, remedy) in &open {
            for changes in steps(shape, remedy, less) {
                if next.iter().any(|(_, known)| known.changes == changes) {
                    continue;
                }
                if let Ok(combined) = Remedy::of(shape, now, &changes) {
                    next.push((score(now, &combined), combined));
                }
            }
        }
        open = next;
    }
    None
}

/// Every change that can be made after those of a remedy.
fn steps(shape: &ModelShape, remedy: &Remedy, less: bool) -> Vec<Vec<Change>> {
    let Ok(from) = evaluate(shape, &remedy.setup) else {
        return Vec::new();
    };
    let mut moves = candidates::settings(shape, &from);
    if less {
        moves.extend(candidates::concessions(&from));
    }
    let free = |change: &Change| remedy.changes.iter().all(|c| c.topic() != change.topic());
    let with = |change: Change| {
        let mut changes = remedy.changes.clone();
        changes.push(change);
        changes.sort_by_key(Change::topic);
        changes
    };
    moves.into_iter().filter(free).map(with).collect()
}

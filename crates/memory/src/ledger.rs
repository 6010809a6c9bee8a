//! One byte budget for the whole process, and who holds what of it.
//!
//! Whoever is about to allocate something large takes a [`Reservation`] first and keeps it beside
//! the allocation; dropping it gives the bytes back. What does not fit is refused with numbers.
//! The ledger allocates nothing itself and asks the machine nothing: the budget comes in as a
//! value.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use crate::bytes::HumanBytes;

/// What memory is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Category {
    /// Model weights.
    Weights,
    /// Keys and values, or latents, of tokens.
    KvCache,
    /// Scratch of a forward pass, logits included.
    Activations,
    /// Buffers that data passes through on its way between tiers.
    Staging,
    /// The rest: tokenizer, tables, request queues.
    Other,
}

impl Category {
    /// Every category, in the order reports list them.
    pub const ALL: [Category; 5] = [
        Category::Weights,
        Category::KvCache,
        Category::Activations,
        Category::Staging,
        Category::Other,
    ];

    /// The name in reports and metrics, such as `kv_cache`.
    pub const fn name(self) -> &'static str {
        match self {
            Category::Weights => "weights",
            Category::KvCache => "kv_cache",
            Category::Activations => "activations",
            Category::Staging => "staging",
            Category::Other => "other",
        }
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The budget, shared by everyone who clones it.
#[derive(Clone, Debug)]
pub struct MemoryLedger {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    budget: usize,
    used: usize,
    peak: usize,
    by_category: [Usage; Category::ALL.len()],
    holders: BTreeMap<(Category, Arc<str>), usize>,
}

/// Bytes now and at most so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes reserved now.
    pub used: usize,
    /// Most bytes that were reserved at one time.
    pub peak: usize,
}

impl Usage {
    fn add(&mut self, bytes: usize) {
        self.used += bytes;
        self.peak = self.peak.max(self.used);
    }
}

/// One name under which bytes are held: all reservations of one category made for one purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// What the bytes are used for.
    pub category: Category,
    /// Whose they are, as given to [`MemoryLedger::reserve`].
    pub what: Arc<str>,
    /// Bytes held.
    pub bytes: usize,
}

/// State of the ledger at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerSnapshot {
    /// Bytes that may be reserved in all.
    pub budget: usize,
    /// Over all categories. The peak is that of the sum, not the sum of peaks.
    pub total: Usage,
    /// Per category, in the order of [`Category::ALL`].
    pub by_category: [(Category, Usage); Category::ALL.len()],
    /// Who holds bytes, largest first.
    pub holders: Vec<Holder>,
}

impl LedgerSnapshot {
    /// Bytes that may still be reserved.
    pub fn free(&self) -> usize {
        self.budget - self.total.used
    }

    /// Usage of one category.
    pub fn category(&self, category: Category) -> Usage {
        self.by_category[category as usize].1
    }
}

/// A reservation that does not fit.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "cannot reserve {} of {category} for {what}: {} of the {} budget is free{}",
    HumanBytes(*asked), HumanBytes(*free), HumanBytes(*budget), list_holders(biggest)
)]
pub struct OverBudget {
    /// Bytes asked for.
    pub asked: usize,
    /// What they would have been used for.
    pub category: Category,
    /// Who asked.
    pub what: Arc<str>,
    /// Bytes that may still be reserved.
    pub free: usize,
    /// Bytes that may be reserved in all.
    pub budget: usize,
    /// Up to three largest holders, largest first.
    pub biggest: Vec<Holder>,
}

fn list_holders(holders: &[Holder]) -> String {
    let list: Vec<String> = holders
        .iter()
        .map(|h| format!("{} {} ({})", h.what, HumanBytes(h.bytes), h.category))
        .collect();
    match list.is_empty() {
        true => String::new(),
        false => format!("; held by {}", list.join(", ")),
    }
}

/// More bytes taken from a reservation than it has.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("cannot take {} out of the {} reserved for {what}", HumanBytes(*asked), HumanBytes(*held))]
pub struct NotHeld {
    /// Bytes asked for.
    pub asked: usize,
    /// Bytes the reservation has.
    pub held: usize,
    /// Whose it is.
    pub what: Arc<str>,
}

impl MemoryLedger {
    /// A ledger over `budget` bytes, all free.
    pub fn new(budget: usize) -> MemoryLedger {
        let state = State {
            budget,
            used: 0,
            peak: 0,
            by_category: Default::default(),
            holders: BTreeMap::new(),
        };
        MemoryLedger {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Takes `bytes` out of the budget, for `what`, until the reservation is dropped.
    /// Zero bytes always fit.
    ///
    /// # Errors
    /// When fewer bytes are free; nothing is taken then.
    pub fn reserve(
        &self,
        category: Category,
        bytes: usize,
        what: impl Into<Arc<str>>,
    ) -> Result<Reservation, OverBudget> {
        let what = what.into();
        self.lock().take(category, bytes, &what)?;
        Ok(Reservation {
            ledger: self.clone(),
            category,
            what,
            bytes,
        })
    }

    /// Bytes that may be reserved in all.
    pub fn budget(&self) -> usize {
        self.lock().budget
    }

    /// Bytes that may still be reserved.
    pub fn free(&self) -> usize {
        let state = self.lock();
        state.budget - state.used
    }

    /// Everything the ledger knows, taken at one moment.
    pub fn snapshot(&self) -> LedgerSnapshot {
        let state = self.lock();
        LedgerSnapshot {
            budget: state.budget,
            total: Usage {
                used: state.used,
                peak: state.peak,
            },
            by_category: Category::ALL.map(|c| (c, state.by_category[c as usize])),
            holders: state.biggest(usize::MAX),
        }
    }

    /// No operation leaves the state half changed, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(
        &mut self,
        category: Category,
        bytes: usize,
        what: &Arc<str>,
    ) -> Result<(), OverBudget> {
        let free = self.budget - self.used;
        if bytes > free {
            return Err(OverBudget {
                asked: bytes,
                category,
                what: what.clone(),
                free,
                budget: self.budget,
                biggest: self.biggest(3),
            });
        }
        self.used += bytes;
        self.peak = self.peak.max(self.used);
        self.by_category[category as usize].add(bytes);
        if bytes > 0 {
            *self.holders.entry((category, what.clone())).or_default() += bytes;
        }
        Ok(())
    }

    fn give_back(&mut self, category: Category, bytes: usize, what: &Arc<str>) {
        self.used -= bytes;
        self.by_category[category as usize].used -= bytes;
        let key = (category, what.clone());
        if let Some(held) = self.holders.get_mut(&key) {
            *held -= bytes;
            if *held == 0 {
                self.holders.remove(&key);
            }
        }
    }

    /// Up to `count` holders, largest first, equal ones in the order of their names.
    fn biggest(&self, count: usize) -> Vec<Holder> {
        let mut holders: Vec<Holder> = self
            .holders
            .iter()
            .map(|((category, what), &bytes)| Holder {
                category: *category,
                what: what.clone(),
                bytes,
            })
            .collect();
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.bytes));
        holders.truncate(count);
        holders
    }
}

/// Bytes taken out of a [`MemoryLedger`]; they go back when it is dropped.
#[derive(Debug)]
#[must_use = "a reservation that is dropped gives its bytes back at once"]
pub struct Reservation {
    ledger: MemoryLedger,
    category: Category,
    what: Arc<str>,
    bytes: usize,
}

impl Reservation {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What they are used for.
    pub fn category(&self) -> Category {
        self.category
    }

    /// Whose they are.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Moves `bytes` of this reservation into one of its own. The total stays the same.
    ///
    /// # Errors
    /// When this one holds fewer bytes.
    pub fn split(&mut self, bytes: usize) -> Result<Reservation, NotHeld> {
        self.check(bytes)?;
        self.bytes -= bytes;
        Ok(Reservation {
            ledger: self.ledger.clone(),
            category: self.category,
            what: self.what.clone(),
            bytes,
        })
    }

    /// Gives `bytes` of it back to the ledger.
    ///
    /// # Errors
    /// When it holds fewer bytes.
    pub fn shrink(&mut self, bytes: usize) -> Result<(), NotHeld> {
        self.check(bytes)?;
        self.bytes -= bytes;
        self.ledger
            .lock()
            .give_back(self.category, bytes, &self.what);
        Ok(())
    }

    /// Takes `bytes` more from the ledger.
    ///
    /// # Errors
    /// When fewer bytes are free; the reservation stays as it was.
    pub fn grow(&mut self, bytes: usize) -> Result<(), OverBudget> {
        self.ledger.lock().take(self.category, bytes, &self.what)?;
        self.bytes += bytes;
        Ok(())
    }

    fn check(&self, bytes: usize) -> Result<(), NotHeld> {
        match bytes <= self.bytes {
            true => Ok(()),
            false => Err(NotHeld {
                asked: bytes,
                held: self.bytes,
                what: self.what.clone(),
            }),
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.ledger
            .lock()
            .give_back(self.category, self.bytes, &self.what);
    }
}

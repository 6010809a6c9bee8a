//! Where a step's time and bytes go, for whoever asked to know.
//!
//! The decoder marks the boundaries between its operations; a mark gives the time since the last
//! one to a part. Without a recorder a mark is one comparison, and no clock is read. Nothing here
//! decides anything: a step computes the same with and without.
//!
//! Operations of a backend are taken to be over when they return, as they are on a CPU.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// What a stretch of a step was spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Storing keys and values, and attention over them.
    Attention,
    /// Projections: of attention, of dense feed-forwards, the head.
    Linear,
    /// Routing, and the experts it chose.
    Experts,
    /// From logits to a token.
    Sampling,
    /// Embedding, norms, rotations, and what lies between the operations.
    Other,
}

impl Part {
    /// Every part, in the order reports list them.
    pub const ALL: [Part; 5] = [
        Part::Attention,
        Part::Linear,
        Part::Experts,
        Part::Sampling,
        Part::Other,
    ];

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Attention => "attention",
            Part::Linear => "linear",
            Part::Experts => "experts",
            Part::Sampling => "sampling",
            Part::Other => "other",
        }
    }
}

/// What one step took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepCosts {
    /// Time, in the order of [`Part::ALL`].
    pub time: [Duration; Part::ALL.len()],
    /// Bytes of weights that were read: every matrix that was used once, of the experts those
    /// that were chosen, of the embedding the rows that were looked up.
    pub weight_bytes: usize,
    /// Bytes of keys and values that were read: every sequence's context once.
    pub kv_bytes: usize,
}

/// Bytes of a model's weights by how a step reads them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WeightTraffic {
    /// Read by every step.
    pub always: usize,
    /// Read where logits are wanted.
    pub head: usize,
    /// One row of the embedding.
    pub row: usize,
    /// One expert of one layer.
    pub expert: usize,
}

/// Adds up a step's costs.
#[derive(Debug)]
pub(crate) struct Recorder {
    traffic: WeightTraffic,
    last: Cell<Instant>,
    costs: Cell<StepCosts>,
}

impl Recorder {
    pub fn new(traffic: WeightTraffic) -> Recorder {
        Recorder {
            traffic,
            last: Cell::new(Instant::now()),
            costs: Cell::default(),
        }
    }

    /// A step of `rows` tokens begins; `with_head` when some of them have logits.
    pub fn begin(&self, rows: usize, with_head: bool) {
        let WeightTraffic {
            always, head, row, ..
        } = self.traffic;
        let head = if with_head { head } else { 0 };
        self.costs.set(StepCosts {
            weight_bytes: always + head + rows * row,
            ..StepCosts::default()
        });
        self.last.set(Instant::now());
    }

    /// The time since the last mark was spent on `part`.
    pub fn mark(&self, part: Part) {
        let now = Instant::now();
        let mut costs = self.costs.get();
        costs.time[part as usize] += now - self.last.replace(now);
        self.costs.set(costs);
    }

    /// A layer's experts were chosen: each different one is read once.
    pub fn experts(&self, chosen: &[u32]) {
        let mut different = chosen.to_vec();
        different.sort_unstable();
        different.dedup();
        let mut costs = self.costs.get();
        costs.weight_bytes += different.len() * self.traffic.expert;
        self.costs.set(costs);
    }

    /// Bytes of cache that the step read.
    pub fn kv(&self, bytes: usize) {
        let mut costs = self.costs.get();
        costs.kv_bytes += bytes;
        self.costs.set(costs);
    }

    /// What the step took.
    pub fn costs(&self) -> StepCosts {
        self.costs.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_to_parts_and_bytes_to_what_was_read() {
        let recorder = Recorder::new(WeightTraffic {
            always: 1000,
            head: 100,
            row: 10,
            expert: 1,
        });
        recorder.begin(3, true);
        std::thread::sleep(Duration::from_millis(2));
        recorder.mark(Part::Linear);
        recorder.experts(&[4, 2, 4, 4]);
        recorder.mark(Part::Experts);
        recorder.kv(7);
        let costs = recorder.costs();
        assert_eq!((costs.weight_bytes, costs.kv_bytes), (1132, 7));
        assert!(costs.time[Part::Linear as usize] >= Duration::from_millis(2));
        assert_eq!(costs.time[Part::Sampling as usize], Duration::ZERO);
        recorder.begin(1, false);
        assert_eq!(recorder.costs().weight_bytes, 1010);
    }
}

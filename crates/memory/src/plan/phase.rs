//! A plan as a timeline: what is held while opening, while loading, and while serving.

use super::MemoryPlan;

/// A stretch of a process's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Files are opened, the configuration and the tokenizer are read.
    Opening,
    /// Weights go from the checkpoint to where they are kept.
    Loading,
    /// Requests run.
    Serving,
}

impl Phase {
    /// The name in reports, such as `loading`.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Opening => "opening",
            Phase::Loading => "loading",
            Phase::Serving => "serving",
        }
    }
}

/// Bytes held at the worst moment of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhaseBytes {
    /// When.
    pub phase: Phase,
    /// Weights. While loading, with the stored form of what is being loaded: the two are at
    /// their most together, and neither alone.
    pub weights: usize,
    /// Blocks of the cache that were written.
    pub kv_cache: usize,
    /// Scratch of a forward pass.
    pub activations: usize,
    /// The rest.
    pub other: usize,
}

impl PhaseBytes {
    /// All of them.
    pub fn total(&self) -> usize {
        self.weights + self.kv_cache + self.activations + self.other
    }
}

impl MemoryPlan {
    /// What is held when, once `blocks` different blocks of the cache have been written.
    pub fn phases(&self, blocks: usize) -> [PhaseBytes; 3] {
        let empty = |phase, other| PhaseBytes {
            phase,
            weights: 0,
            kv_cache: 0,
            activations: 0,
            other,
        };
        [
            empty(Phase::Opening, self.opening_bytes),
            PhaseBytes {
                weights: self.loading_bytes,
                ..empty(Phase::Loading, self.other_bytes)
            },
            PhaseBytes {
                weights: self.weights_bytes(),
                kv_cache: self.kv_resident_bytes(blocks.min(self.num_blocks)),
                activations: self.activations_bytes,
                ..empty(Phase::Serving, self.other_bytes)
            },
        ]
    }
}

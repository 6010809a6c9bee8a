//! What each step of the model computes, for whom, and with which blocks of the KV cache.
//!
//! Pure bookkeeping, like the memory crate it stands on: no IO, no threads, no clock, no
//! randomness. The engine, the property tests and a simulated fleet run the very same code.
//!
//! ```text
//! add ──▶ waiting ──▶ running ──▶ finished
//!            ▲           │  ▲
//!            └─ preempted┘  └─ forked (n > 1), once the first one's prompt is computed
//!
//! loop { output = schedule(); …the model…; complete(); update(…) for each sampled token }
//! ```
//!
//! - [`Scheduler`] owns the sequences and the pool; [`SchedulerOutput`] is one step.
//! - [`LengthEstimator`] says how long an answer will get, which is what admission goes by.

mod error;
mod estimator;
mod integrity;
mod output;
mod scheduler;
mod sequence;
mod step;

pub use error::{AddError, ConfigError};
pub use estimator::{EstimatorConfig, LengthEstimator};
pub use output::{ScheduledSeq, SchedulerOutput};
pub use scheduler::{Scheduler, SchedulerConfig, SchedulerStats};
pub use sequence::{
    FinishReason, Finished, NewSequence, SeqId, Sequence, SequenceStats, SequenceStatus,
};

//! What a model can still do: reasoning measured on chains of every length.
//!
//! Problems are generated, not downloaded, and their answers are computed, not judged.

pub mod problems;

mod chart;
mod reasoning;
mod score;

pub use chart::accuracy_svg;
pub use reasoning::{Examiner, ReasoningTask, TaskError};
pub use score::{FamilyReport, LengthReport, Outcome, Report};

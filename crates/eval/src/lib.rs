//! What a model can still do: reasoning on chains of every length, and a text token by token.
//!
//! Problems are generated, not downloaded, and their answers are computed, not judged.

pub mod problems;

mod chart;
mod divergence;
mod reasoning;
mod runner;
mod score;
mod text;
mod text_report;

pub use chart::accuracy_svg;
pub use divergence::Divergence;
pub use reasoning::{Answered, Examiner, ReasoningTask, TaskError};
pub use score::{FamilyReport, LengthReport, Outcome, Report};
pub use text::{Document, Scorer, TextError, TextTask};
pub use text_report::{TextReport, TokenScore};

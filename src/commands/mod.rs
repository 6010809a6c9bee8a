//! One module a command.

pub mod bench;
pub mod eval;
pub mod run;
pub mod serve;

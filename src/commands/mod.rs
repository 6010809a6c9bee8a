//! One module a command.

pub mod bench;
pub mod compare;
pub mod eval;
pub mod plan;
pub mod profile;
pub mod quantize;
pub mod run;
pub mod serve;

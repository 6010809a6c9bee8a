//! The server over real sockets, in front of a scripted engine: no model is needed.

// A failed unwrap is a failed test, in helpers too.
#![allow(clippy::unwrap_used)]

mod chat;
mod client;
mod completions;
mod fake;
mod hostile;
mod lifecycle;
mod mutations;
mod small;

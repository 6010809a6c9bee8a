//! The CPU behind [`scrimp_backend::Backend`]: SIMD kernels, their threads and their layouts.
//!
//! ```text
//! backend    the trait, operation by operation
//! ops        how an operation is checked and shared out over threads
//! kernels    what one thread computes, generic over vectors and formats
//! formats    resident weights: panels of sixteen rows
//! simd       vectors of sixteen lanes, one implementation per instruction set
//! pool       the threads
//! bandwidth  how fast they can read memory
//! ```
//!
//! Unsafe code of the computing side lives here and nowhere else. Every result depends on its own
//! row alone, whatever the batch, the blocks or the threads: see [`scrimp_backend`].

#![allow(unsafe_code)]

mod backend;
pub mod bandwidth;
mod cache;
mod formats;
mod kernels;
mod level;
mod matrix;
mod memory;
mod ops;
mod pool;
mod simd;
mod workspace;

pub use backend::{CpuBackend, CpuBuffer};
pub use cache::CpuKvCache;
pub use level::{CpuLevel, CpuOptions, Precision, UnknownLevel};
pub use matrix::CpuMatrix;

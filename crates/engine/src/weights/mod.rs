//! A model's weights: what they are called, whether they are all there, and where they live.
//!
//! One list ([`spec`]) is walked three times: to check a checkpoint, to plan its bytes, to load
//! it. So the plan is exact before a byte is read. A matrix is handed to the device in the form in
//! which it is stored; nothing here computes on weights. Layouts of packed ones are named in
//! `packed` and nowhere else.

pub mod inventory;
pub mod names;
mod packed;
pub mod spec;
mod store;
pub mod tree;

use std::sync::Arc;

use scrimp_backend::BackendError;
use scrimp_memory::OverBudget;
use scrimp_tensor::TensorError;

pub use inventory::{Inventory, Misfit, Problem, TensorSource};
pub use names::{Component, Scheme, Slot};
pub use store::{LoadProgress, WeightStore};

/// Why weights could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    /// The checkpoint does not fit the model.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// The budget does not hold them.
    #[error(transparent)]
    OverBudget(#[from] OverBudget),
    /// The device refused one.
    #[error("loading {tensor}: {source}")]
    Backend {
        /// Name of the tensor.
        tensor: Arc<str>,
        /// What the device said.
        source: BackendError,
    },
    /// Bytes that do not fit their type and shape.
    #[error("reading {tensor}: {source}")]
    Tensor {
        /// Name of the tensor.
        tensor: Arc<str>,
        /// What is wrong.
        source: TensorError,
    },
    /// Values that no weight has.
    #[error("{tensor} is damaged: {why}; take it again from where it came from")]
    Damaged {
        /// Name of the tensor.
        tensor: Arc<str>,
        /// What is wrong.
        why: &'static str,
    },
    /// A tensor that was there when it was checked is gone.
    #[error("{tensor} is no longer in the checkpoint")]
    Vanished {
        /// Name of the tensor.
        tensor: Arc<str>,
    },
    /// A weight that the inventory did not have: a bug.
    #[error("weight {slot:?} of layer {layer}, expert {expert}, was never loaded")]
    NotLoaded {
        /// Its role.
        slot: Slot,
        /// Its layer.
        layer: usize,
        /// Its expert.
        expert: usize,
    },
}

#[cfg(test)]
mod tests;

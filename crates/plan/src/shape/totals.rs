//! Sums over the inventory: parameters, active parameters, bytes.

use std::collections::BTreeMap;

use super::{Component, ModelShape, Storage, TensorGroup};
use crate::weights::stored_bytes;

impl TensorGroup {
    /// Scale values that a release stores in tensors of their own and that hubs count as
    /// parameters; packed 4-bit formats are counted by their logical values alone.
    pub fn scale_values(&self) -> u64 {
        match self.storage {
            Storage::Fp8Tiles(rows, columns) => {
                self.count
                    * self.rows.div_ceil(u64::from(rows))
                    * self.columns.div_ceil(u64::from(columns))
            }
            Storage::Fp8Rows | Storage::Int8Rows => self.count * self.rows,
            _ => 0,
        }
    }

    /// Bytes as released, scales included.
    pub fn bytes(&self) -> u64 {
        stored_bytes(self, self.storage).total()
    }
}

impl ModelShape {
    /// Values of every tensor of the release, as the hub's safetensors API counts them: scales of
    /// FP8 tiles and prediction layers included, a shared head once.
    pub fn total_params(&self) -> u64 {
        self.tensors
            .iter()
            .map(|t| t.values() + t.scale_values())
            .sum()
    }

    /// Parameters without scales and prediction layers, as model cards and GGUF headers count.
    pub fn model_params(&self) -> u64 {
        self.tensors
            .iter()
            .filter(|t| t.component != Component::Mtp)
            .map(TensorGroup::values)
            .sum()
    }

    /// [`total_params`](Self::total_params) by the name of the type that stores them.
    pub fn params_by_dtype(&self) -> BTreeMap<&'static str, u64> {
        let mut sums = BTreeMap::new();
        let mut add = |name, values| {
            if values > 0 {
                *sums.entry(name).or_insert(0) += values;
            }
        };
        for tensor in &self.tensors {
            add(dtype_name(tensor.storage), tensor.values());
            let scales = match tensor.storage {
                Storage::Fp8Tiles(..) => "F32",
                _ => "BF16",
            };
            add(scales, tensor.scale_values());
        }
        sums
    }

    /// Parameters that one token uses: everything but prediction layers, and of the routed experts
    /// the chosen ones.
    pub fn active_params(&self) -> u64 {
        self.tensors
            .iter()
            .map(|t| t.active * t.rows * t.columns)
            .sum()
    }

    /// Bytes of all tensors as released, without file headers.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(TensorGroup::bytes).sum()
    }

    /// Parameters (without scales) and released bytes (with them) by component.
    pub fn by_component(&self) -> BTreeMap<Component, (u64, u64)> {
        let mut sums = BTreeMap::new();
        for tensor in &self.tensors {
            let (values, bytes) = sums.entry(tensor.component).or_insert((0, 0));
            *values += tensor.values();
            *bytes += tensor.bytes();
        }
        sums
    }
}

/// The name of a safetensors dtype, or of the packed format.
fn dtype_name(storage: Storage) -> &'static str {
    match storage {
        Storage::F32 => "F32",
        Storage::F16 => "F16",
        Storage::Bf16 => "BF16",
        Storage::Fp8 | Storage::Fp8Tiles(..) | Storage::Fp8Rows => "F8_E4M3",
        Storage::Int8Rows => "I8",
        Storage::IntGroups { .. } => "I32",
        Storage::Mxfp4 => "MXFP4",
        Storage::Nvfp4 => "NVFP4",
        Storage::Ggml(ggml) => ggml.name(),
    }
}

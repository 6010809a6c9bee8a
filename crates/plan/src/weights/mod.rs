//! Bytes of weights under a scheme: as released, another format for all, or a GGUF mix.

mod files;
mod ggml;
mod gguf_mix;
mod scheme;

pub use ggml::GgmlType;

use crate::{Component, ModelShape, Role, Storage, TensorGroup, WeightScheme};

/// Bytes of a tensor group: its values, and what is stored beside them to scale them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoredBytes {
    /// Values; for llama.cpp's blocks everything.
    pub values: u64,
    /// Scales and zero points in tensors of their own.
    pub scales: u64,
}

impl StoredBytes {
    /// Both.
    pub fn total(&self) -> u64 {
        self.values + self.scales
    }
}

/// Bytes of a group in a storage: exact, from its shape.
pub fn stored_bytes(group: &TensorGroup, storage: Storage) -> StoredBytes {
    let values = group.values();
    let (bytes, scales) = match storage {
        Storage::F32 => (4 * values, 0),
        Storage::F16 | Storage::Bf16 => (2 * values, 0),
        Storage::Fp8 => (values, 0),
        Storage::Fp8Tiles(rows, columns) => {
            let rows = group.rows.div_ceil(u64::from(rows.max(1)));
            let columns = group.columns.div_ceil(u64::from(columns.max(1)));
            (values, 4 * group.count * rows * columns)
        }
        Storage::Fp8Rows | Storage::Int8Rows => (values, 2 * group.count * group.rows),
        Storage::IntGroups {
            bits,
            group: size,
            symmetric,
        } => {
            let bits = u64::from(bits);
            let groups = match size {
                0 => 1,
                size => group.columns.div_ceil(u64::from(size)),
            };
            let scales = group.count * group.rows * groups;
            let zeros = if symmetric {
                0
            } else {
                (scales * bits).div_ceil(8)
            };
            ((values * bits).div_ceil(8), 2 * scales + zeros)
        }
        Storage::Mxfp4 => {
            let rows = group.count * group.rows;
            (
                rows * group.columns.div_ceil(2),
                rows * group.columns.div_ceil(32),
            )
        }
        Storage::Nvfp4 => {
            let rows = group.count * group.rows;
            let scales = rows * group.columns.div_ceil(16) + 8 * group.count;
            (rows * group.columns.div_ceil(2), scales)
        }
        Storage::Ggml(ggml) => {
            let rows = group.count * group.rows;
            (rows * ggml.row_bytes(group.columns), 0)
        }
    };
    StoredBytes {
        values: bytes,
        scales,
    }
}

impl ModelShape {
    /// How each group of `tensors` is stored under a scheme, in their order. `None` stands for a
    /// group that the scheme's files do not hold (prediction layers and vision towers in a GGUF).
    pub fn storages(&self, scheme: &WeightScheme) -> Vec<Option<Storage>> {
        match scheme {
            WeightScheme::Gguf(mix) => gguf_mix::storages(self, mix),
            _ => self
                .tensors
                .iter()
                .map(|group| Some(self.storage_of(group, scheme)))
                .collect(),
        }
    }

    /// Bytes of one group under a scheme. For many groups of a GGUF mix, ask
    /// [`storages`](Self::storages) once.
    pub fn bytes_of(&self, group: &TensorGroup, scheme: &WeightScheme) -> StoredBytes {
        let storage = match scheme {
            WeightScheme::Gguf(mix) => {
                let at = self.tensors.iter().position(|t| t == group);
                at.and_then(|at| gguf_mix::storages(self, mix)[at])
            }
            _ => Some(self.storage_of(group, scheme)),
        };
        storage.map_or_else(StoredBytes::default, |s| stored_bytes(group, s))
    }

    /// Bytes of every group under a scheme, in the order of `tensors`.
    pub fn bytes_under(&self, scheme: &WeightScheme) -> Vec<StoredBytes> {
        let storages = self.storages(scheme);
        self.tensors
            .iter()
            .zip(storages)
            .map(|(group, storage)| match storage {
                Some(storage) => stored_bytes(group, storage),
                None => StoredBytes::default(),
            })
            .collect()
    }

    fn storage_of(&self, group: &TensorGroup, scheme: &WeightScheme) -> Storage {
        let quantizable = group.role == Role::Linear
            && !matches!(group.component, Component::Head | Component::Vision);
        match scheme {
            WeightScheme::Linear(storage) if quantizable => *storage,
            // A head or tower that the release quantized stays so only in the release.
            WeightScheme::Linear(_) if group.role == Role::Linear => self.dtype,
            WeightScheme::Experts(storage)
                if quantizable && group.component == Component::RoutedExperts =>
            {
                *storage
            }
            _ => group.storage,
        }
    }
}

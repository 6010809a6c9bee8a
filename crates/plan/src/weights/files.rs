//! Sizes of files on disk: tensors and what stands before them.

use crate::{ModelShape, Storage, TensorGroup, WeightScheme};

/// Bytes of one tensor's entry in a safetensors header: name, type, shape, offsets, as JSON.
const SAFETENSORS_ENTRY: u64 = 120;
/// Bytes of one tensor's entry in a GGUF header with its name, and half of the 32-byte alignment.
const GGUF_ENTRY: u64 = 80;
/// Bytes of a vocabulary entry in a GGUF: the token with its length, its type, and a merge or score.
const GGUF_TOKEN: u64 = 40;

impl ModelShape {
    /// Bytes of the files of a checkpoint in this scheme: exact for tensors, an estimate (under
    /// 0.1 % of any model over a billion parameters) for headers and a GGUF's tokenizer.
    pub fn file_bytes(&self, scheme: &WeightScheme) -> u64 {
        let storages = self.storages(scheme);
        let mut bytes = 0;
        for (group, storage) in self.tensors.iter().zip(storages) {
            let Some(storage) = storage else { continue };
            let stored = super::stored_bytes(group, storage);
            bytes += stored.total();
            bytes += match scheme {
                // Experts of a layer are stacked into one tensor.
                WeightScheme::Gguf(_) => GGUF_ENTRY,
                _ => entries(group, storage) * SAFETENSORS_ENTRY,
            };
        }
        match scheme {
            WeightScheme::Gguf(_) => bytes + GGUF_TOKEN * self.vocab_size,
            _ => bytes,
        }
    }
}

/// Tensors that a safetensors file holds for a group.
fn entries(group: &TensorGroup, storage: Storage) -> u64 {
    let parts = match storage {
        Storage::F32 | Storage::F16 | Storage::Bf16 | Storage::Ggml(_) => 1,
        Storage::IntGroups { .. } | Storage::Nvfp4 => 3,
        _ => 2,
    };
    match storage {
        // Released MXFP4 stacks the experts of a layer.
        Storage::Mxfp4 => parts,
        _ => group.count * parts,
    }
}

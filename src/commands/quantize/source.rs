//! A checkpoint as quantization reads it: Hugging Face's names and orders, whatever the files have.

use std::collections::BTreeMap;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use scrimp_checkpoint::{Checkpoint, Format};
use scrimp_engine::weights::inventory::Entry;
use scrimp_engine::weights::spec::Kind;
use scrimp_engine::weights::{Inventory, Scheme, Slot};
use scrimp_model::{Architecture, AttentionConfig, ModelConfig};
use scrimp_quant::{Role, Source, SourceError, SourceTensor};
use scrimp_tensor::{DType, MatrixView, TensorView, decode};

use super::layers::role_of;

/// Rows and columns that share a scale where an FP8 checkpoint does not say.
const FP8_TILE: (usize, usize) = (128, 128);

/// Where a weight's values come from.
enum Origin {
    /// Rows of one stored tensor.
    Stored { tensor: String, first_row: usize },
    /// The same, a head's rows being interleaved for another form of rotation.
    Interleaved { tensor: String, head_dim: usize },
    /// A tensor for keys, each head transposed, and one for values.
    Halves {
        keys: String,
        values: String,
        nope: usize,
        value: usize,
        latent: usize,
    },
}

/// An opened checkpoint's weights.
pub struct CheckpointSource<'a> {
    checkpoint: &'a Checkpoint,
    tile: (usize, usize),
    tensors: Vec<SourceTensor>,
    origins: Vec<Origin>,
    float: DType,
    /// The head of a GGUF's key half that was decoded last: `(tensor, head, values)`.
    last_keys: Mutex<(usize, usize, Vec<f32>)>,
}

impl<'a> CheckpointSource<'a> {
    /// Lists a checkpoint's weights under their names in the output.
    pub fn new(checkpoint: &'a Checkpoint, config: &ModelConfig) -> Result<CheckpointSource<'a>> {
        ensure!(
            config.quantization.is_none(),
            "the model is quantized already, and rounding it again would only add error: give the \
             checkpoint that it was made from"
        );
        let inventory = Inventory::new(config, checkpoint)?;
        let float = float_type(checkpoint, &inventory);
        let mut source = CheckpointSource {
            checkpoint,
            tile: config.fp8_tile.unwrap_or(FP8_TILE),
            tensors: Vec::new(),
            origins: Vec::new(),
            float,
            last_keys: Mutex::new((usize::MAX, 0, Vec::new())),
        };
        let mut order: BTreeMap<(Option<usize>, Role, usize), (SourceTensor, Origin)> =
            BTreeMap::new();
        for entry in &inventory.entries {
            if let Some((tensor, origin)) = source.describe(entry, config)? {
                let key = (tensor.layer, tensor.role, tensor.expert.unwrap_or(0));
                order.insert(key, (tensor, origin));
            }
        }
        for (tensor, origin) in order.into_values() {
            source.tensors.push(tensor);
            source.origins.push(origin);
        }
        Ok(source)
    }

    /// Keeps weights as GGUF's readers ask for them: vectors and routers in F32, the rest as they
    /// are.
    pub fn kept_as_gguf(mut self) -> Self {
        for tensor in &mut self.tensors {
            if tensor.shape.len() == 1 || tensor.role == Role::Router {
                tensor.dtype = DType::F32;
            }
        }
        self
    }

    fn describe(
        &self,
        entry: &Entry,
        config: &ModelConfig,
    ) -> Result<Option<(SourceTensor, Origin)>> {
        let spec = &entry.spec;
        let id = spec.id;
        let slot = match id.slot {
            Slot::VB => return Ok(None), // with its other half
            Slot::KB => Slot::KvB,
            slot => slot,
        };
        let role = role_of(slot).context("a weight without a role")?;
        let name = Scheme::HuggingFace.name(slot, id.layer, id.expert);
        let name = name.context("a weight without a name")?;
        let (shape, origin) = match (id.slot, &config.attention) {
            (Slot::KB, AttentionConfig::Mla(mla)) => {
                let (nope, value) = (mla.qk_nope_head_dim, mla.v_head_dim);
                let values = Scheme::Gguf.name(Slot::VB, id.layer, 0);
                let origin = Origin::Halves {
                    keys: spec.tensor.clone(),
                    values: values.context("a key half without a value half")?,
                    nope,
                    value,
                    latent: mla.kv_lora_rank,
                };
                (
                    vec![mla.num_heads * (nope + value), mla.kv_lora_rank],
                    origin,
                )
            }
            _ => {
                let shape = match spec.kind {
                    Kind::Matrix { rows, cols } | Kind::FloatMatrix { rows, cols } => {
                        vec![rows, cols]
                    }
                    Kind::Vector { len } => vec![len],
                };
                (shape, self.origin(entry, config))
            }
        };
        let outside = matches!(slot, Slot::Embedding | Slot::FinalNorm | Slot::Head);
        let tensor = SourceTensor {
            name,
            role,
            layer: (!outside).then_some(id.layer),
            expert: role.is_routed_expert().then_some(id.expert),
            shape,
            dtype: self.kept_type(&spec.tensor, role),
        };
        ensure!(!tensor.is_empty(), "{} has no values", tensor.name);
        Ok(Some((tensor, origin)))
    }

    fn origin(&self, entry: &Entry, config: &ModelConfig) -> Origin {
        let spec = &entry.spec;
        let rotated = matches!(spec.id.slot, Slot::Q | Slot::K | Slot::QBias | Slot::KBias);
        let llama = config.architecture == Architecture::Llama;
        match &config.attention {
            AttentionConfig::Gqa(gqa)
                if rotated && llama && self.checkpoint.format() == Format::Gguf =>
            {
                Origin::Interleaved {
                    tensor: spec.tensor.clone(),
                    head_dim: gqa.head_dim,
                }
            }
            _ => Origin::Stored {
                tensor: spec.tensor.clone(),
                first_row: spec.first_row,
            },
        }
    }

    /// What a weight that stays is written as: as it was, where that is a plain float.
    fn kept_type(&self, tensor: &str, role: Role) -> DType {
        let stored = self.checkpoint.get(tensor).map(|t| t.dtype);
        match (stored, self.checkpoint.format()) {
            _ if role == Role::CorrectionBias => DType::F32,
            (Some(dtype), Format::Safetensors) if is_plain(dtype) => dtype,
            _ => self.float,
        }
    }

    fn view(&self, tensor: &str) -> Result<TensorView<'_>, String> {
        self.checkpoint
            .get(tensor)
            .ok_or_else(|| format!("{tensor} is gone"))
    }

    fn read_stored(
        &self,
        tensor: &str,
        row: usize,
        cols: usize,
        out: &mut [f32],
    ) -> Result<(), String> {
        let view = self.view(tensor)?;
        let rows = view.shape.iter().product::<usize>() / cols.max(1);
        if view.dtype == DType::F8E4M3 {
            let (tile_rows, tile_cols) = self.tile;
            let scales = self.view(&format!("{tensor}_scale_inv"))?;
            let scales = scales.to_f32().map_err(|e| e.to_string())?;
            let tiled =
                MatrixView::from_fp8_tiles(rows, cols, view.bytes, &scales, (tile_rows, tile_cols));
            let tiled = tiled.map_err(|e| e.to_string())?;
            for (i, out) in out.chunks_exact_mut(cols).enumerate() {
                tiled.decode_row(row + i, out).map_err(|e| e.to_string())?;
            }
            return Ok(());
        }
        let row_bytes = view.dtype.row_bytes(cols).map_err(|e| e.to_string())?;
        let range = row * row_bytes..(row + out.len() / cols.max(1)) * row_bytes;
        let bytes = view.bytes.get(range).ok_or("rows past the end")?;
        decode(view.dtype, bytes, out).map_err(|e| e.to_string())
    }

    /// Rows of `kv_b`: a head's keys, transposed back, and its values.
    #[allow(clippy::too_many_arguments)] // two tensors and the extents that tell them apart
    fn read_halves(
        &self,
        index: usize,
        (keys, values): (&str, &str),
        (nope, value, latent): (usize, usize, usize),
        first: usize,
        out: &mut [f32],
    ) -> Result<(), String> {
        for (i, out) in out.chunks_exact_mut(latent).enumerate() {
            let row = first + i;
            let (head, row) = (row / (nope + value), row % (nope + value));
            if row >= nope {
                self.read_stored(values, head * value + row - nope, latent, out)?;
                continue;
            }
            let mut last = self
                .last_keys
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            if (last.0, last.1) != (index, head) {
                let mut decoded = vec![0.0; latent * nope];
                self.read_stored(keys, head * latent, nope, &mut decoded)?;
                *last = (index, head, decoded);
            }
            for (l, out) in out.iter_mut().enumerate() {
                *out = last.2[l * nope + row];
            }
        }
        Ok(())
    }
}

/// Type of the output's floats: the embedding's, where it is a plain float.
fn float_type(checkpoint: &Checkpoint, inventory: &Inventory) -> DType {
    let embedding = inventory
        .entries
        .iter()
        .find(|e| e.spec.id.slot == Slot::Embedding);
    let dtype = embedding
        .and_then(|e| checkpoint.get(&e.spec.tensor))
        .map(|t| t.dtype);
    dtype.filter(|d| is_plain(*d)).unwrap_or(DType::BF16)
}

fn is_plain(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// The stored row of row `row` where GGUF's Llamas have pairs side by side.
fn interleaved(row: usize, head_dim: usize) -> usize {
    let (head, row, half) = (row / head_dim, row % head_dim, head_dim / 2);
    head * head_dim + row % half * 2 + row / half
}

impl Source for CheckpointSource<'_> {
    fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    fn read_rows(&self, index: usize, first: usize, out: &mut [f32]) -> Result<(), SourceError> {
        let tensor = &self.tensors[index];
        let cols = tensor.cols();
        let read = match &self.origins[index] {
            Origin::Stored { tensor, first_row } => {
                self.read_stored(tensor, first_row + first, cols, out)
            }
            Origin::Interleaved {
                tensor: name,
                head_dim,
            } if tensor.shape.len() == 1 => {
                let mut stored = vec![0.0; cols];
                self.read_stored(name, 0, cols, &mut stored).map(|()| {
                    for (row, out) in out.iter_mut().enumerate() {
                        *out = stored[interleaved(row, *head_dim)];
                    }
                })
            }
            Origin::Interleaved { tensor, head_dim } => {
                let mut rows = out.chunks_exact_mut(cols).enumerate();
                rows.try_for_each(|(i, out)| {
                    self.read_stored(tensor, interleaved(first + i, *head_dim), cols, out)
                })
            }
            Origin::Halves {
                keys,
                values,
                nope,
                value,
                latent,
            } => self.read_halves(index, (keys, values), (*nope, *value, *latent), first, out),
        };
        read.map_err(|why| SourceError {
            tensor: tensor.name.clone(),
            why,
        })
    }

    fn release(&self, index: usize) {
        match &self.origins[index] {
            Origin::Stored { tensor, .. } | Origin::Interleaved { tensor, .. } => {
                self.checkpoint.release(tensor);
            }
            Origin::Halves { keys, values, .. } => {
                self.checkpoint.release(keys);
                self.checkpoint.release(values);
            }
        }
    }

    fn will_need(&self, index: usize, first: usize, rows: usize) {
        if let Origin::Stored { tensor, first_row } = &self.origins[index]
            && let Some(view) = self.checkpoint.get(tensor)
            && let Ok(row) = view.dtype.row_bytes(self.tensors[index].cols())
        {
            let first = first_row + first;
            self.checkpoint
                .will_need_part(tensor, first * row..(first + rows) * row);
        }
    }

    fn float_type(&self) -> DType {
        self.float
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_side_by_side_are_two_halves_again() {
        // A head of 6: stored 0 3 1 4 2 5.
        let stored: Vec<usize> = (0..12).map(|row| interleaved(row, 6)).collect();
        assert_eq!(stored, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }
}

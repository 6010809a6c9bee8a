//! Loading: one weight at a time from the checkpoint to the device, within the ledger.

use scrimp_backend::{Backend, BackendError, MatrixStorage};
use scrimp_memory::{Category, MemoryLedger, Reservation};
use scrimp_model::ModelConfig;
use scrimp_tensor::{DType, MatrixView, TensorError, TensorView, decode};

use crate::weights::WeightError;
use crate::weights::inventory::{Entry, Inventory, TensorSource, scales_name};
use crate::weights::names::Component;
use crate::weights::packed;
use crate::weights::spec::Kind;
use crate::weights::tree::{LayerWeights, Loaded, ModelWeights, Parts};

/// How far loading is.
#[derive(Clone, Copy, Debug)]
pub struct LoadProgress<'a> {
    /// Bytes of the checkpoint read so far, this tensor's included.
    pub done: usize,
    /// Bytes of the checkpoint to read.
    pub total: usize,
    /// The tensor just loaded.
    pub tensor: &'a str,
}

/// A model's weights on a device, and the bytes they hold.
///
/// Every weight is resident on the device. Those of a layer are reached through
/// [`WeightStore::layer`] alone, so that layers may come to live elsewhere and be fetched there.
pub struct WeightStore<B: Backend> {
    model: ModelWeights<B>,
    layers: Vec<LayerWeights<B>>,
    reservations: Vec<Reservation>,
}

impl<B: Backend> WeightStore<B> {
    /// Loads everything that the inventory lists, each weight reserved beforehand.
    ///
    /// Besides the resident bytes, no more than one matrix's stored bytes are held at a time, and
    /// reserved as staging.
    ///
    /// # Errors
    /// When the budget or the device has no room, or a tensor cannot be read.
    pub fn load(
        config: &ModelConfig,
        inventory: &Inventory,
        source: &impl TensorSource,
        backend: &mut B,
        ledger: &MemoryLedger,
        progress: &mut dyn FnMut(LoadProgress<'_>),
    ) -> Result<Self, WeightError> {
        let mut reservations = Component::ALL
            .map(|component| ledger.reserve(Category::Weights, 0, component.name()))
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?;
        let mut staging = ledger.reserve(Category::Staging, 0, "the tensor being loaded")?;
        let total = inventory.stored_bytes();
        let mut done = 0;
        let mut parts = Parts::new();
        for entry in &inventory.entries {
            let tensor = entry.spec.tensor.as_str();
            let bytes = entry.resident_bytes(backend);
            reservations[entry.spec.component() as usize].grow(bytes)?;
            staging.grow(entry.staging_bytes())?;
            let loaded = load_entry(entry, source, backend).map_err(|e| e.of(tensor))?;
            parts.insert(entry.spec.id, loaded);
            done += entry.stored_bytes;
            progress(LoadProgress {
                done,
                total,
                tensor,
            });
            release(entry, source);
            staging = ledger.reserve(Category::Staging, 0, "the tensor being loaded")?;
        }
        // Reading a tensor maps pages of its neighbours too, some of them released before.
        for entry in &inventory.entries {
            release(entry, source);
        }
        let (model, layers) = parts.assemble(config)?;
        Ok(WeightStore {
            model,
            layers,
            reservations,
        })
    }

    /// Weights outside of layers.
    pub fn model(&self) -> &ModelWeights<B> {
        &self.model
    }

    /// Weights of layer `index`, counted from 0.
    pub fn layer(&self, index: usize) -> &LayerWeights<B> {
        &self.layers[index]
    }

    /// Bytes reserved for one component.
    pub fn component_bytes(&self, component: Component) -> usize {
        self.reservations[component as usize].bytes()
    }

    /// Bytes reserved for all of them.
    pub fn bytes(&self) -> usize {
        self.reservations.iter().map(Reservation::bytes).sum()
    }
}

/// What is wrong with an entry, before it is said which.
pub(super) enum EntryError {
    Backend(BackendError),
    Tensor(TensorError),
    Damaged(&'static str),
    Vanished,
}

impl From<BackendError> for EntryError {
    fn from(error: BackendError) -> Self {
        EntryError::Backend(error)
    }
}

impl From<TensorError> for EntryError {
    fn from(error: TensorError) -> Self {
        EntryError::Tensor(error)
    }
}

impl EntryError {
    fn of(self, tensor: &str) -> WeightError {
        let tensor = tensor.into();
        match self {
            EntryError::Backend(source) => WeightError::Backend { tensor, source },
            EntryError::Tensor(source) => WeightError::Tensor { tensor, source },
            EntryError::Damaged(why) => WeightError::Damaged { tensor, why },
            EntryError::Vanished => WeightError::Vanished { tensor },
        }
    }
}

/// Lets go of the pages that a weight was read through.
fn release(entry: &Entry, source: &impl TensorSource) {
    match entry.packed {
        Some(packed) => packed::release(&entry.spec.tensor, packed, source),
        None => source.release(&entry.spec.tensor),
    }
}

/// Puts one weight on the device.
fn load_entry<B: Backend>(
    entry: &Entry,
    source: &impl TensorSource,
    backend: &mut B,
) -> Result<Loaded<B>, EntryError> {
    let spec = &entry.spec;
    if let (Some(packed), Kind::Matrix { rows, cols }) = (entry.packed, spec.kind) {
        let matrix = packed::load(&spec.tensor, (rows, cols), packed, source, backend)?;
        return Ok(Loaded::Matrix(matrix));
    }
    let view = source.tensor(&spec.tensor).ok_or(EntryError::Vanished)?;
    let matrix = match (spec.kind, entry.storage) {
        (Kind::Vector { len }, _) => {
            let mut buffer = backend.alloc(len)?;
            backend.write(&mut buffer, &floats(&view, len)?);
            return Ok(Loaded::Vector(buffer));
        }
        (Kind::FloatMatrix { rows, cols }, _) => {
            let values = floats(&view, rows * cols)?;
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            backend.load_matrix(&MatrixView::from_blocks(DType::F32, rows, cols, &bytes)?)?
        }
        (Kind::Matrix { rows, cols }, Some(MatrixStorage::Fp8Tiles(tile_rows, tile_cols))) => {
            let scales_name = scales_name(&spec.tensor);
            let stored = source.tensor(&scales_name).ok_or(EntryError::Vanished)?;
            let tiles = rows.div_ceil(tile_rows) * cols.div_ceil(tile_cols);
            let scales = floats(&stored, tiles)?;
            source.release(&scales_name);
            let tile = (tile_rows, tile_cols);
            let tiled = MatrixView::from_fp8_tiles(rows, cols, view.bytes, &scales, tile)?;
            backend.load_matrix(&tiled)?
        }
        (Kind::Matrix { rows, cols }, _) => {
            let all_rows = spec.shape.iter().product::<usize>() / cols;
            let all = MatrixView::from_blocks(view.dtype, all_rows, cols, view.bytes)?;
            backend.load_matrix(&all.slice_rows(spec.first_row, rows)?)?
        }
    };
    Ok(Loaded::Matrix(matrix))
}

/// A small tensor's values.
fn floats(view: &TensorView<'_>, len: usize) -> Result<Vec<f32>, TensorError> {
    let mut values = vec![0.0; len];
    decode(view.dtype, view.bytes, &mut values)?;
    Ok(values)
}

//! A checkpoint's tensors held against what the model needs, before anything is loaded.

use std::collections::HashSet;
use std::fmt;

use scrimp_backend::{Backend, MatrixStorage};
use scrimp_checkpoint::{Checkpoint, Format};
use scrimp_model::ModelConfig;
use scrimp_tensor::{DType, TensorView};

use crate::weights::names::{Component, IGNORED_SUFFIXES, Scheme};
use crate::weights::packed::{self, Packed};
use crate::weights::spec::{Kind, WeightSpec, weight_specs};

/// Rows and columns that share a scale where an FP8 checkpoint's config does not say.
const DEFAULT_FP8_TILE: (usize, usize) = (128, 128);

/// Named tensors to load from.
pub trait TensorSource {
    /// How they are named.
    fn scheme(&self) -> Scheme;

    /// All names.
    fn names(&self) -> Vec<&str>;

    /// A tensor's type, shape and bytes.
    fn tensor(&self, name: &str) -> Option<TensorView<'_>>;

    /// Says that a tensor was read, so that the pages that were touched can go.
    fn release(&self, name: &str);
}

impl TensorSource for Checkpoint {
    fn scheme(&self) -> Scheme {
        match self.format() {
            Format::Safetensors => Scheme::HuggingFace,
            Format::Gguf => Scheme::Gguf,
        }
    }

    fn names(&self) -> Vec<&str> {
        self.infos().map(|(_, info)| info.name.as_str()).collect()
    }

    fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.get(name)
    }

    fn release(&self, name: &str) {
        Checkpoint::release(self, name);
    }
}

/// Why a checkpoint does not fit a model: everything at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Misfit {
    /// What is wrong, missing tensors first.
    pub problems: Vec<Problem>,
}

/// One thing that does not fit.
#[derive(Clone, Debug, PartialEq, PartialOrd, thiserror::Error)]
pub enum Problem {
    /// A tensor that the model needs.
    #[error("{name} is missing")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A tensor of other extents than the config says.
    #[error("{name} has shape {found:?}, but the config asks for {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// From the config.
        expected: Vec<usize>,
        /// In the file.
        found: Vec<usize>,
    },
    /// A stored form that cannot be a weight.
    #[error("{name} is stored as {dtype}, {why}")]
    Storage {
        /// Its name.
        name: String,
        /// Its type.
        dtype: DType,
        /// What is wrong with that.
        why: String,
    },
    /// A packed weight whose parts do not fit.
    #[error("{name} {why}")]
    Packing {
        /// Name of the part.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A tensor that the model has no use for.
    #[error("{name} belongs to nothing that the config describes")]
    Surplus {
        /// Its name.
        name: String,
    },
}

/// Most problems that a message lists.
const MAX_LISTED: usize = 40;

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        write!(
            f,
            "the checkpoint does not fit its config ({count} problems)"
        )?;
        for problem in self.problems.iter().take(MAX_LISTED) {
            write!(f, "\n  {problem}")?;
        }
        if count > MAX_LISTED {
            write!(f, "\n  and {} more", count - MAX_LISTED)?;
        }
        Ok(())
    }
}

impl std::error::Error for Misfit {}

/// A weight that is there, in a form that can be loaded.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The weight.
    pub spec: WeightSpec,
    /// How the device will be given it; `None` for vectors.
    pub storage: Option<MatrixStorage>,
    /// Bytes it takes in the file, scales included.
    pub stored_bytes: usize,
    /// How its tensors are put together, where it is packed.
    pub(super) packed: Option<Packed>,
}

/// Every weight of a model, checked against a checkpoint.
#[derive(Clone, Debug)]
pub struct Inventory {
    /// In the order of loading.
    pub entries: Vec<Entry>,
}

impl Inventory {
    /// Holds a checkpoint against a config.
    ///
    /// # Errors
    /// Lists every missing, surplus, misshapen or oddly stored tensor by name.
    pub fn new(config: &ModelConfig, source: &impl TensorSource) -> Result<Inventory, Misfit> {
        let scheme = source.scheme();
        let names: HashSet<&str> = source.names().into_iter().collect();
        let specs = weight_specs(config, scheme, &|name| names.contains(name));
        let mut used = HashSet::new();
        let mut problems = Vec::new();
        let mut entries = Vec::with_capacity(specs.len());
        let mut reported = HashSet::new();
        for spec in specs {
            match check(&spec, source, config, &mut used) {
                Ok(stored) => entries.push(Entry {
                    spec,
                    storage: stored.storage,
                    stored_bytes: stored.bytes,
                    packed: stored.packed,
                }),
                // A stack of experts is asked for once per expert, and reported once.
                Err(problem) => {
                    if reported.insert(spec.tensor) {
                        problems.push(problem);
                    }
                }
            }
        }
        let surplus = names
            .iter()
            .filter(|name| !used.contains(**name) && !reported.contains(**name))
            .filter(|name| !is_ignorable(name, scheme, config))
            .filter(|name| !is_empty_bias(name, source));
        problems.extend(surplus.map(|name| Problem::Surplus {
            name: (*name).into(),
        }));
        if problems.is_empty() {
            // Largest first: what a large one is read through is then gone before much is there.
            entries.sort_by_key(|entry: &Entry| std::cmp::Reverse(entry.stored_bytes));
            return Ok(Inventory { entries });
        }
        problems.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        Err(Misfit { problems })
    }

    /// Bytes that each component will take on `backend`, exactly; components in order, those
    /// without weights left out.
    pub fn weight_plan<B: Backend>(&self, backend: &B) -> Vec<(Component, usize)> {
        let mut totals = [0usize; Component::ALL.len()];
        for entry in &self.entries {
            totals[entry.spec.component() as usize] += entry.resident_bytes(backend);
        }
        let planned = Component::ALL.into_iter().zip(totals);
        planned.filter(|(_, bytes)| *bytes > 0).collect()
    }

    /// Most bytes that loading a weight holds besides the resident ones.
    pub fn staging_bytes(&self) -> usize {
        let staging = self.entries.iter().map(Entry::staging_bytes);
        staging.max().unwrap_or(0)
    }

    /// Most bytes that loading holds at one time: the weights that are there, and the stored form
    /// of the one that comes.
    pub fn loading_bytes<B: Backend>(&self, backend: &B) -> usize {
        let mut resident = 0;
        let held = self.entries.iter().map(|entry| {
            resident += entry.resident_bytes(backend);
            resident + entry.staging_bytes()
        });
        held.max().unwrap_or(0)
    }

    /// Bytes that will be read.
    pub fn stored_bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.stored_bytes).sum()
    }
}

impl Entry {
    /// Bytes held while it is loaded, besides its resident ones: the pages of the file it is in,
    /// and its values where they are decoded first.
    pub fn staging_bytes(&self) -> usize {
        let decoded = match self.spec.kind {
            Kind::Vector { len } => 4 * len,
            Kind::FloatMatrix { rows, cols } => 8 * rows * cols,
            Kind::Matrix { rows, cols } => {
                let packed = self.packed.map(|packed| packed.staging_bytes(rows, cols));
                packed.unwrap_or(0)
            }
        };
        self.stored_bytes + decoded
    }

    /// Bytes it will take on `backend`.
    pub fn resident_bytes<B: Backend>(&self, backend: &B) -> usize {
        match (self.spec.kind, self.storage) {
            (Kind::Matrix { rows, cols } | Kind::FloatMatrix { rows, cols }, Some(storage)) => {
                backend.matrix_bytes(rows, cols, storage)
            }
            (Kind::Matrix { rows, cols } | Kind::FloatMatrix { rows, cols }, None) => {
                backend.buffer_bytes(rows * cols)
            }
            (Kind::Vector { len }, _) => backend.buffer_bytes(len),
        }
    }
}

/// The name of the scales of an FP8 tensor.
pub(super) fn scales_name(tensor: &str) -> String {
    format!("{tensor}_scale_inv")
}

/// A weight as it is found in the file.
struct Stored {
    storage: Option<MatrixStorage>,
    bytes: usize,
    packed: Option<Packed>,
}

impl Stored {
    fn plain(storage: Option<MatrixStorage>, bytes: usize) -> Stored {
        Stored {
            storage,
            bytes,
            packed: None,
        }
    }
}

/// The storage a weight will be loaded from, or what is wrong with it.
fn check<'s>(
    spec: &WeightSpec,
    source: &'s impl TensorSource,
    config: &ModelConfig,
    used: &mut HashSet<String>,
) -> Result<Stored, Problem> {
    let name = &spec.tensor;
    let missing = |name: &str| Problem::Missing { name: name.into() };
    if let Some(layout) = packed::find(name, source, config.quantization)? {
        let Kind::Matrix { rows, cols } = spec.kind else {
            let why = "is not there unpacked, but this weight is never quantized".to_owned();
            let name = name.clone();
            return Err(Problem::Packing { name, why });
        };
        let quantization = config.quantization;
        let (packed, bytes) =
            packed::check(spec, (rows, cols), layout, source, quantization, used)?;
        return Ok(Stored {
            storage: Some(MatrixStorage::Grouped(packed.form)),
            bytes,
            packed: Some(packed),
        });
    }
    let view: TensorView<'s> = source.tensor(name).ok_or_else(|| missing(name))?;
    used.insert(name.clone());
    expect_shape(name, &view, &spec.shape)?;
    let odd = |why: &str| Problem::Storage {
        name: name.clone(),
        dtype: view.dtype,
        why: why.into(),
    };
    if !view.dtype.is_float() {
        return Err(odd("which is no floating-point type"));
    }
    let stored = view.bytes.len() / (spec.shape.iter().product::<usize>() / spec.kind.len()).max(1);
    let tiled = view.dtype == DType::F8E4M3;
    match spec.kind {
        Kind::Vector { .. } | Kind::FloatMatrix { .. } if tiled => {
            Err(odd("but this weight is never quantized"))
        }
        Kind::Vector { .. } => Ok(Stored::plain(None, stored)),
        Kind::FloatMatrix { .. } => {
            let storage = MatrixStorage::Blocks(DType::F32);
            Ok(Stored::plain(Some(storage), stored))
        }
        Kind::Matrix { rows, cols } if tiled => {
            let scales = scales_name(name);
            let view = source.tensor(&scales).ok_or_else(|| missing(&scales))?;
            used.insert(scales.clone());
            let tile = config.fp8_tile.unwrap_or(DEFAULT_FP8_TILE);
            let expected = [rows.div_ceil(tile.0), cols.div_ceil(tile.1)];
            expect_shape(&scales, &view, &expected)?;
            let storage = MatrixStorage::Fp8Tiles(tile.0, tile.1);
            Ok(Stored::plain(Some(storage), stored + view.bytes.len()))
        }
        Kind::Matrix { cols, .. } => match view.dtype.row_bytes(cols) {
            Ok(_) => Ok(Stored::plain(
                Some(MatrixStorage::Blocks(view.dtype)),
                stored,
            )),
            Err(error) => Err(odd(&format!("but {error}"))),
        },
    }
}

fn expect_shape(name: &str, view: &TensorView<'_>, expected: &[usize]) -> Result<(), Problem> {
    if view.shape == expected {
        return Ok(());
    }
    Err(Problem::Shape {
        name: name.into(),
        expected: expected.to_vec(),
        found: view.shape.clone(),
    })
}

/// Tensors that files carry and the decoder does not read: layers of multi-token prediction, a
/// tied head stored again, tables that follow from the config.
fn is_ignorable(name: &str, scheme: Scheme, config: &ModelConfig) -> bool {
    let layers = config.num_layers..config.num_layers + config.num_nextn_predict_layers;
    let tied_head = config.tie_word_embeddings && name == "lm_head.weight";
    let next = scheme.layer_of(name).is_some_and(|l| layers.contains(&l));
    tied_head || next || IGNORED_SUFFIXES.iter().any(|(end, _)| name.ends_with(end))
}

/// A bias of zeros beside a packed weight: GPTQ's first writers gave every layer one.
fn is_empty_bias(name: &str, source: &impl TensorSource) -> bool {
    let beside = name
        .strip_suffix("bias")
        .map(|base| format!("{base}qweight"));
    let zeros = |view: TensorView<'_>| view.bytes.iter().all(|&byte| byte == 0);
    beside.is_some_and(|weight| source.tensor(&weight).is_some())
        && source.tensor(name).is_some_and(zeros)
}

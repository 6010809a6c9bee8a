//! The checkpoint that is read: named weights with roles, whatever the files call them.

use scrimp_tensor::DType;

/// What a weight is to the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the names are the literature's
pub enum Role {
    Embedding,
    FinalNorm,
    Head,
    AttentionNorm,
    Q,
    QBias,
    QNorm,
    K,
    KBias,
    KNorm,
    V,
    VBias,
    O,
    OBias,
    /// MLA's query bottleneck.
    QA,
    QABias,
    QANorm,
    QB,
    /// MLA's latent and the shared rotary key.
    KvA,
    KvABias,
    KvANorm,
    /// From the latent to each head's key part and value.
    KvB,
    MlpNorm,
    Gate,
    Up,
    Down,
    Router,
    CorrectionBias,
    ExpertGate,
    ExpertUp,
    ExpertDown,
    SharedGate,
    SharedUp,
    SharedDown,
}

/// One weight as the output names it (Hugging Face's names) and as the source stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTensor {
    /// Name in the output.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Its layer; `None` outside of layers.
    pub layer: Option<usize>,
    /// Its expert, for experts' weights.
    pub expert: Option<usize>,
    /// Extents, outermost first: `[out, in]` or `[len]`.
    pub shape: Vec<usize>,
    /// How its values are stored.
    pub dtype: DType,
}

impl SourceTensor {
    /// The module it belongs to: its name without `.weight`.
    pub fn module(&self) -> &str {
        self.name.strip_suffix(".weight").unwrap_or(&self.name)
    }

    /// Outputs; 1 for a vector.
    pub fn rows(&self) -> usize {
        match self.shape.as_slice() {
            [_] | [] => 1,
            [rows, ..] => *rows,
        }
    }

    /// Inputs; the length of a vector.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }

    /// Values in it.
    pub fn len(&self) -> usize {
        self.rows() * self.cols()
    }

    /// Whether it has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A weight that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("reading {tensor}: {why}")]
pub struct SourceError {
    /// Name of the weight.
    pub tensor: String,
    /// What went wrong.
    pub why: String,
}

/// Weights to read, in any order and from several threads.
pub trait Source: Sync {
    /// Every weight the output will hold: those outside of layers, then layer by layer.
    fn tensors(&self) -> &[SourceTensor];

    /// Decodes the rows of tensor `index` from `first_row` on into `out`, which is a whole number
    /// of rows.
    ///
    /// # Errors
    /// When they are not there or cannot be decoded.
    fn read_rows(&self, index: usize, first_row: usize, out: &mut [f32])
    -> Result<(), SourceError>;

    /// Says that a tensor is not needed soon, so that its pages can go.
    fn release(&self, index: usize);

    /// Asks for the rows of tensor `index` from `first` on ahead of their reading. What cannot be
    /// had so is passed over.
    fn will_need(&self, index: usize, first: usize, rows: usize);

    /// Type of the floats of the output: of kept weights, and of scales.
    fn float_type(&self) -> DType;
}

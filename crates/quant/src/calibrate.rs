//! A decoder layer's activations, stage by stage: what calibration asks of whoever can compute a
//! layer.
//!
//! A layer is not run at once: its parts are, one after another, so that what was just quantized is
//! what the next part is calibrated on, and so that the weights of one part need not be in memory
//! with those of another.

use crate::source::Role;

/// Token sequences to calibrate on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CalibrationSet {
    /// Each from its beginning: position 0.
    pub sequences: Vec<Vec<u32>>,
}

impl CalibrationSet {
    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(Vec::len).sum()
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        self.sequences.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// The first row and the number of rows of every sequence, all rows lying one after another.
    pub fn ranges(&self) -> Vec<(usize, usize)> {
        let mut first = 0;
        let range = |sequence: &Vec<u32>| {
            let range = (first, sequence.len());
            first += sequence.len();
            range
        };
        self.sequences.iter().map(range).collect()
    }
}

/// A gated feed-forward of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tower {
    /// The layer's own.
    Dense,
    /// All shared experts as one.
    Shared,
    /// A routed expert: the one whose weights were set last.
    Expert,
}

/// Where tokens were sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routed {
    /// Experts a token.
    pub top_k: usize,
    /// `[rows, top_k]`.
    pub experts: Vec<u32>,
    /// `[rows, top_k]`.
    pub weights: Vec<f32>,
}

/// What went wrong in computing a layer.
#[derive(Debug, thiserror::Error)]
#[error("calibrating: {0}")]
pub struct CalibrateError(pub String);

/// Computes parts of one decoder layer at a time, in floats.
///
/// Rows are tokens. `hidden` is the residual stream, `[rows, hidden_size]`. A call's rows are one
/// sequence from position 0 on for [`Calibrator::attend`], and any rows for the others.
pub trait Calibrator: Send {
    /// Bytes held beside weights, for calls of at most `rows` rows.
    fn scratch_bytes(&self, rows: usize) -> usize;

    /// Bytes held for a matrix.
    fn matrix_bytes(&self, rows: usize, cols: usize) -> usize;

    /// Prepares for calls of at most `rows` rows.
    ///
    /// # Errors
    /// When there is no room.
    fn reserve(&mut self, rows: usize) -> Result<(), CalibrateError>;

    /// Forgets all weights and turns to a layer.
    ///
    /// # Errors
    /// When there is no room.
    fn begin_layer(&mut self, layer: usize) -> Result<(), CalibrateError>;

    /// Sets a norm, a bias or a correction of the layer.
    ///
    /// # Errors
    /// When there is no room, or the layer has no such weight.
    fn set_vector(&mut self, role: Role, values: &[f32]) -> Result<(), CalibrateError>;

    /// Sets a matrix `[rows, cols]` of the layer; an expert's replaces the last expert's.
    ///
    /// # Errors
    /// When there is no room, or the layer has no such weight.
    fn set_matrix(
        &mut self,
        role: Role,
        shape: (usize, usize),
        values: &[f32],
    ) -> Result<(), CalibrateError>;

    /// Forgets a matrix that is not needed any more in this layer.
    ///
    /// # Errors
    /// When the layer has no such weight.
    fn drop_matrix(&mut self, role: Role) -> Result<(), CalibrateError>;

    /// What q, k and v (or MLA's first projections) read: `[rows, hidden_size]`.
    fn attention_input(&mut self, hidden: &[f32], rows: usize, out: &mut [f32]);

    /// What MLA's `q_b` reads: `[rows, q_lora_rank]`.
    fn query_input(&mut self, hidden: &[f32], rows: usize, out: &mut [f32]);

    /// What the output projection reads: `[rows, num_heads · value width]`.
    fn attend(&mut self, hidden: &[f32], rows: usize, out: &mut [f32]);

    /// Adds the output projection of `attended` to `hidden`.
    fn add_attention(&mut self, attended: &[f32], rows: usize, hidden: &mut [f32]);

    /// What gates, ups and the router read: `[rows, hidden_size]`.
    fn mlp_input(&mut self, hidden: &[f32], rows: usize, out: &mut [f32]);

    /// What a down projection reads: `[rows, width]`, from rows of [`Calibrator::mlp_input`].
    fn gated(&mut self, tower: Tower, input: &[f32], rows: usize, out: &mut [f32]);

    /// The down projection of rows of [`Calibrator::gated`]: `[rows, hidden_size]`.
    fn down(&mut self, tower: Tower, gated: &[f32], rows: usize, out: &mut [f32]);

    /// Experts of rows of [`Calibrator::mlp_input`].
    fn route(&mut self, input: &[f32], rows: usize, routed: &mut Routed);
}

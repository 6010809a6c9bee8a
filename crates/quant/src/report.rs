//! What was done to every tensor.

use serde::{Deserialize, Serialize};

/// One tensor's fate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorReport {
    /// Its module in the output.
    pub name: String,
    /// Scheme it was quantized by, which is not the recipe's after a fallback; or the type it
    /// was kept in.
    pub scheme: String,
    /// Relative error: of the outputs on the calibration, or of the weights without one; 0 for
    /// kept tensors.
    pub error: f64,
    /// Calibration tokens that reached it.
    pub tokens: usize,
    /// What was out of the ordinary, and why.
    pub note: Option<String>,
}

/// What came out of a quantization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The scheme asked for.
    pub scheme: String,
    /// The format written.
    pub format: String,
    /// Bits of a quantized weight with its share of scales and zero points.
    pub bits_per_weight: f64,
    /// Bytes of the tensors read.
    pub bytes_in: usize,
    /// Bytes of the shards written.
    pub bytes_out: usize,
    /// Tensors that are matrices, in the order of the output.
    pub tensors: Vec<TensorReport>,
}

impl Report {
    /// The mean error of quantized tensors.
    pub fn mean_error(&self) -> f64 {
        let errors = || self.tensors.iter().map(|t| t.error).filter(|e| *e > 0.0);
        errors().sum::<f64>() / errors().count().max(1) as f64
    }
}

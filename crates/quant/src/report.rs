//! What was done to every tensor.

use serde::{Deserialize, Serialize, Serializer};

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
    #[serde(serialize_with = "seven_digits")]
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

/// Writes what is read back as the same text: a JSON reader may be off by a last bit, which a resumed
/// run would otherwise put into its report.
fn seven_digits<S: Serializer>(error: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(format!("{error:.6e}").parse().unwrap_or(*error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_read_back_a_bit_off_is_written_the_same() {
        for i in 1..2000u64 {
            let error = 1.0 / (i as f64 * 7.3);
            let written = |error: f64| {
                let tensor = TensorReport {
                    name: String::new(),
                    scheme: String::new(),
                    error,
                    tokens: 0,
                    note: None,
                };
                serde_json::to_string(&tensor).unwrap()
            };
            let read: TensorReport = serde_json::from_str(&written(error)).unwrap();
            assert_eq!(written(read.error), written(error));
            let off = f64::from_bits(read.error.to_bits() + 1);
            assert_eq!(written(off), written(error));
        }
    }
}

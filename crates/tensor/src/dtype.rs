//! Element encodings: plain scalars and the block formats of GGUF, as one table of facts.

use crate::TensorError;

/// How the values of a tensor are stored.
///
/// A *plain* type stores one value per element. A *block* type stores `block_len` consecutive
/// values of a row in `block_bytes` bytes, so a row's length must be a multiple of `block_len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the names are the formats' own
pub enum DType {
    F32,
    F16,
    BF16,
    /// OCP E4M3 ("fn": finite, no infinities), one byte a value; scales are kept apart.
    F8E4M3,
    I8,
    U8,
    I32,
    I64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    IQ4NL,
    MXFP4,
}

/// One row of the table behind [`DType`].
struct Facts {
    dtype: DType,
    name: &'static str,
    block_len: usize,
    block_bytes: usize,
}

const fn facts(dtype: DType, name: &'static str, block_len: usize, block_bytes: usize) -> Facts {
    Facts {
        dtype,
        name,
        block_len,
        block_bytes,
    }
}

/// In the order of the enum's declaration: `FACTS[d as usize].dtype == d`.
const FACTS: [Facts; 20] = [
    facts(DType::F32, "F32", 1, 4),
    facts(DType::F16, "F16", 1, 2),
    facts(DType::BF16, "BF16", 1, 2),
    facts(DType::F8E4M3, "F8_E4M3", 1, 1),
    facts(DType::I8, "I8", 1, 1),
    facts(DType::U8, "U8", 1, 1),
    facts(DType::I32, "I32", 1, 4),
    facts(DType::I64, "I64", 1, 8),
    facts(DType::Q4_0, "Q4_0", 32, 18),
    facts(DType::Q4_1, "Q4_1", 32, 20),
    facts(DType::Q5_0, "Q5_0", 32, 22),
    facts(DType::Q5_1, "Q5_1", 32, 24),
    facts(DType::Q8_0, "Q8_0", 32, 34),
    facts(DType::Q2K, "Q2_K", 256, 84),
    facts(DType::Q3K, "Q3_K", 256, 110),
    facts(DType::Q4K, "Q4_K", 256, 144),
    facts(DType::Q5K, "Q5_K", 256, 176),
    facts(DType::Q6K, "Q6_K", 256, 210),
    facts(DType::IQ4NL, "IQ4_NL", 32, 18),
    facts(DType::MXFP4, "MXFP4", 32, 17),
];

impl DType {
    /// Every type, in declaration order.
    pub fn all() -> impl Iterator<Item = DType> {
        FACTS.iter().map(|f| f.dtype)
    }

    const fn facts(self) -> &'static Facts {
        &FACTS[self as usize]
    }

    /// The name used in files and reports, such as `BF16` or `Q4_K`.
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// Values per block; 1 for plain types.
    pub const fn block_len(self) -> usize {
        self.facts().block_len
    }

    /// Bytes per block; the element size for plain types.
    pub const fn block_bytes(self) -> usize {
        self.facts().block_bytes
    }

    /// Whether values are stored in blocks with shared scales.
    pub fn is_block(self) -> bool {
        self.block_len() > 1
    }

    /// Whether the values are floating point once decoded (block formats are).
    pub fn is_float(self) -> bool {
        !matches!(self, DType::I8 | DType::U8 | DType::I32 | DType::I64)
    }

    /// Average bits a value takes, scales included: 4.5 for `Q4_0`.
    pub fn bits_per_value(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_len() as f64
    }

    /// Bytes of a row of `cols` values.
    ///
    /// # Errors
    /// When `cols` is no multiple of the block length, or the size does not fit in memory.
    pub fn row_bytes(self, cols: usize) -> Result<usize, TensorError> {
        if !cols.is_multiple_of(self.block_len()) {
            return Err(TensorError::RowLength {
                dtype: self,
                cols,
                block_len: self.block_len(),
            });
        }
        (cols / self.block_len())
            .checked_mul(self.block_bytes())
            .ok_or(TensorError::TooLarge {
                what: "a row",
                elements: cols as u128,
            })
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_declaration_order() {
        for (i, f) in FACTS.iter().enumerate() {
            assert_eq!(f.dtype as usize, i, "{}", f.name);
        }
    }

    #[test]
    fn rows_must_hold_whole_blocks() {
        assert_eq!(DType::Q4_0.row_bytes(576).unwrap(), 324);
        assert!(DType::Q4K.row_bytes(576).is_err());
    }
}

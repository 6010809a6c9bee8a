//! Block formats of llama.cpp: values a block and bytes a block, from its `ggml-common.h`.

/// A block format of llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, non_camel_case_types)] // the names are llama.cpp's
pub enum GgmlType {
    F32,
    F16,
    Bf16,
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
    Iq1S,
    Iq1M,
    Iq2Xxs,
    Iq2Xs,
    Iq2S,
    Iq3Xxs,
    Iq3S,
    Iq4Nl,
    Iq4Xs,
    Tq1_0,
    Tq2_0,
    Mxfp4,
    I8,
}

/// Type, llama.cpp's name, values a block, bytes a block.
const TYPES: [(GgmlType, &str, u64, u64); 26] = [
    (GgmlType::F32, "F32", 1, 4),
    (GgmlType::F16, "F16", 1, 2),
    (GgmlType::Bf16, "BF16", 1, 2),
    (GgmlType::Q4_0, "Q4_0", 32, 18),
    (GgmlType::Q4_1, "Q4_1", 32, 20),
    (GgmlType::Q5_0, "Q5_0", 32, 22),
    (GgmlType::Q5_1, "Q5_1", 32, 24),
    (GgmlType::Q8_0, "Q8_0", 32, 34),
    (GgmlType::Q2K, "Q2_K", 256, 84),
    (GgmlType::Q3K, "Q3_K", 256, 110),
    (GgmlType::Q4K, "Q4_K", 256, 144),
    (GgmlType::Q5K, "Q5_K", 256, 176),
    (GgmlType::Q6K, "Q6_K", 256, 210),
    (GgmlType::Iq1S, "IQ1_S", 256, 50),
    (GgmlType::Iq1M, "IQ1_M", 256, 56),
    (GgmlType::Iq2Xxs, "IQ2_XXS", 256, 66),
    (GgmlType::Iq2Xs, "IQ2_XS", 256, 74),
    (GgmlType::Iq2S, "IQ2_S", 256, 82),
    (GgmlType::Iq3Xxs, "IQ3_XXS", 256, 98),
    (GgmlType::Iq3S, "IQ3_S", 256, 110),
    (GgmlType::Iq4Nl, "IQ4_NL", 32, 18),
    (GgmlType::Iq4Xs, "IQ4_XS", 256, 136),
    (GgmlType::Tq1_0, "TQ1_0", 256, 54),
    (GgmlType::Tq2_0, "TQ2_0", 256, 66),
    (GgmlType::Mxfp4, "MXFP4", 32, 17),
    (GgmlType::I8, "I8", 1, 1),
];

impl GgmlType {
    fn row(self) -> (GgmlType, &'static str, u64, u64) {
        TYPES[self as usize]
    }

    /// As `gguf-dump` prints it: `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Values in a block.
    pub fn block(self) -> u64 {
        self.row().2
    }

    /// Bytes of a row of `columns` values, in whole blocks.
    pub fn row_bytes(self, columns: u64) -> u64 {
        let (_, _, block, bytes) = self.row();
        columns.div_ceil(block) * bytes
    }

    /// Bits a value.
    pub fn bits(self) -> f64 {
        let (_, _, block, bytes) = self.row();
        bytes as f64 * 8.0 / block as f64
    }

    /// The type of this name, in either case.
    pub fn parse(name: &str) -> Option<GgmlType> {
        TYPES
            .iter()
            .find(|row| row.1.eq_ignore_ascii_case(name))
            .map(|row| row.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (at, row) in TYPES.iter().enumerate() {
            assert_eq!(row.0 as usize, at, "{}", row.1);
            assert_eq!(GgmlType::parse(&row.1.to_lowercase()), Some(row.0));
        }
        assert_eq!(GgmlType::Q6K.bits(), 6.5625);
        assert_eq!(GgmlType::Q4_0.row_bytes(64), 36);
    }
}

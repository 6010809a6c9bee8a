//! GGML's tensor types by number.

use scrimp_tensor::DType;

/// A number in a GGUF file's tensor list.
struct GgmlType {
    number: u32,
    name: &'static str,
    dtype: Option<DType>,
}

const fn reads(number: u32, dtype: DType) -> GgmlType {
    GgmlType {
        number,
        name: dtype.name(),
        dtype: Some(dtype),
    }
}

const fn known(number: u32, name: &'static str) -> GgmlType {
    GgmlType {
        number,
        name,
        dtype: None,
    }
}

const TYPES: [GgmlType; 42] = [
    reads(0, DType::F32),
    reads(1, DType::F16),
    reads(2, DType::Q4_0),
    reads(3, DType::Q4_1),
    known(4, "Q4_2 (removed from the format)"),
    known(5, "Q4_3 (removed from the format)"),
    reads(6, DType::Q5_0),
    reads(7, DType::Q5_1),
    reads(8, DType::Q8_0),
    known(9, "Q8_1"),
    reads(10, DType::Q2K),
    reads(11, DType::Q3K),
    reads(12, DType::Q4K),
    reads(13, DType::Q5K),
    reads(14, DType::Q6K),
    known(15, "Q8_K"),
    known(16, "IQ2_XXS"),
    known(17, "IQ2_XS"),
    known(18, "IQ3_XXS"),
    known(19, "IQ1_S"),
    reads(20, DType::IQ4NL),
    known(21, "IQ3_S"),
    known(22, "IQ2_S"),
    known(23, "IQ4_XS"),
    reads(24, DType::I8),
    known(25, "I16"),
    reads(26, DType::I32),
    reads(27, DType::I64),
    known(28, "F64"),
    known(29, "IQ1_M"),
    reads(30, DType::BF16),
    known(31, "Q4_0_4_4 (removed from the format)"),
    known(32, "Q4_0_4_8 (removed from the format)"),
    known(33, "Q4_0_8_8 (removed from the format)"),
    known(34, "TQ1_0"),
    known(35, "TQ2_0"),
    known(36, "IQ4_NL_4_4 (removed from the format)"),
    known(37, "IQ4_NL_4_8 (removed from the format)"),
    known(38, "IQ4_NL_8_8 (removed from the format)"),
    reads(39, DType::MXFP4),
    known(40, "NVFP4"),
    known(41, "Q1_0"),
];

/// The type that a number stands for, or the name of one that is not read.
pub(super) fn tensor_type(number: u32) -> Result<DType, &'static str> {
    match TYPES.iter().find(|t| t.number == number) {
        Some(found) => found.dtype.ok_or(found.name),
        None => Err("of no known name"),
    }
}

/// The number of a type; `None` for one that GGUF does not have.
pub(super) fn type_number(dtype: DType) -> Option<u32> {
    let found = TYPES.iter().find(|t| t.dtype == Some(dtype));
    found.map(|t| t.number)
}

/// The names of the types that are read.
pub(super) fn readable() -> String {
    let names: Vec<&str> = TYPES
        .iter()
        .filter(|t| t.dtype.is_some())
        .map(|t| t.name)
        .collect();
    names.join(", ")
}

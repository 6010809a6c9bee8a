//! The header of a GGUF file that is going to be written: version 3, little-endian.
//!
//! Only what stands before the data is made here, and where in it each tensor goes; the tensors'
//! bytes are written by whoever has them. What the reader merges (number types of several widths)
//! gets the narrowest type that readers ask for: 32 bits where a value fits into them, else 64.

use scrimp_model::{MetaArray, MetaValue, Metadata};
use scrimp_tensor::{DType, Shape, TensorError};

use super::{DEFAULT_ALIGNMENT, types};

const VERSION: u32 = 3;

/// A tensor of a file to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// How its values are stored.
    pub dtype: DType,
    /// Extents, outermost first.
    pub shape: Shape,
}

/// A file's first bytes, and the places of what follows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufPrefix {
    /// Everything before the data, padding included.
    pub bytes: Vec<u8>,
    /// Where each tensor begins, in the order in which they were given, from the file's start.
    pub offsets: Vec<usize>,
    /// Bytes of the whole file.
    pub file_bytes: usize,
}

/// A file that the format has no way to write.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum GgufWriteError {
    #[error("tensor {tensor:?} is {dtype}, which GGUF has no type for")]
    TensorType { tensor: String, dtype: DType },
    #[error("tensor {tensor:?}: {source}")]
    Shape { tensor: String, source: TensorError },
    #[error("tensor {tensor:?} of shape {shape:?} makes the file larger than can be addressed")]
    TooLarge { tensor: String, shape: Shape },
}

/// Encodes the header of a file with these key-values and tensors, at the format's own alignment:
/// `general.alignment` is not to be among the keys.
///
/// # Errors
/// When a tensor's type has no number in GGUF, its rows are not of whole blocks, or sizes overflow.
pub fn encode_gguf_header(
    metadata: &Metadata,
    tensors: &[GgufTensor],
) -> Result<GgufPrefix, GgufWriteError> {
    let mut out = Vec::new();
    out.extend_from_slice(b"GGUF");
    out.extend_from_slice(&VERSION.to_le_bytes());
    put_count(&mut out, tensors.len());
    put_count(&mut out, metadata.len());
    for (key, value) in metadata.iter() {
        put_text(&mut out, key);
        put_value(&mut out, value);
    }
    let alignment = DEFAULT_ALIGNMENT as usize;
    let mut offset = 0usize;
    let mut offsets = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let number =
            types::type_number(tensor.dtype).ok_or_else(|| GgufWriteError::TensorType {
                tensor: tensor.name.clone(),
                dtype: tensor.dtype,
            })?;
        put_text(&mut out, &tensor.name);
        out.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
        for &extent in tensor.shape.iter().rev() {
            put_count(&mut out, extent);
        }
        out.extend_from_slice(&number.to_le_bytes());
        put_count(&mut out, offset);
        offsets.push(offset);
        let end = bytes_of(tensor)?
            .checked_add(offset)
            .and_then(|end| end.checked_next_multiple_of(alignment));
        offset = end.ok_or_else(|| too_large(tensor))?;
    }
    out.resize(out.len().next_multiple_of(alignment), 0);
    let start = out.len();
    offsets.iter_mut().for_each(|at| *at += start);
    Ok(GgufPrefix {
        file_bytes: start + offset,
        bytes: out,
        offsets,
    })
}

fn too_large(tensor: &GgufTensor) -> GgufWriteError {
    GgufWriteError::TooLarge {
        tensor: tensor.name.clone(),
        shape: tensor.shape.clone(),
    }
}

fn bytes_of(tensor: &GgufTensor) -> Result<usize, GgufWriteError> {
    let (&cols, outer) = tensor.shape.split_last().ok_or_else(|| too_large(tensor))?;
    let row = tensor.dtype.row_bytes(cols);
    let row = row.map_err(|source| GgufWriteError::Shape {
        tensor: tensor.name.clone(),
        source,
    })?;
    let bytes = outer.iter().try_fold(row, |n, &e| n.checked_mul(e));
    bytes.ok_or_else(|| too_large(tensor))
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&(count as u64).to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_count(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

/// Numbers of value types, as `values` reads them.
mod number {
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const TEXT: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

fn put_value(out: &mut Vec<u8>, value: &MetaValue) {
    match value {
        MetaValue::Array(array) => {
            out.extend_from_slice(&number::ARRAY.to_le_bytes());
            put_array(out, array);
        }
        MetaValue::Text(text) => {
            out.extend_from_slice(&number::TEXT.to_le_bytes());
            put_text(out, text);
        }
        MetaValue::Bool(flag) => {
            out.extend_from_slice(&number::BOOL.to_le_bytes());
            out.push(u8::from(*flag));
        }
        MetaValue::Unsigned(n) => put_numbers::<Unsigned>(out, &[*n], |_, _| {}),
        MetaValue::Signed(n) => put_numbers::<Signed>(out, &[*n], |_, _| {}),
        MetaValue::Float(x) => put_numbers::<Float>(out, &[*x], |_, _| {}),
    }
}

fn put_array(out: &mut Vec<u8>, array: &MetaArray) {
    match array {
        MetaArray::Unsigned(values) => put_numbers::<Unsigned>(out, values, put_count),
        MetaArray::Signed(values) => put_numbers::<Signed>(out, values, put_count),
        MetaArray::Float(values) => put_numbers::<Float>(out, values, put_count),
        MetaArray::Bool(values) => {
            out.extend_from_slice(&number::BOOL.to_le_bytes());
            put_count(out, values.len());
            out.extend(values.iter().map(|flag| u8::from(*flag)));
        }
        MetaArray::Text(values) => {
            out.extend_from_slice(&number::TEXT.to_le_bytes());
            put_count(out, values.len());
            values.iter().for_each(|text| put_text(out, text));
        }
    }
}

/// A kind of number in its two widths.
trait Width {
    type Value: Copy;
    const NUMBERS: [u32; 2];
    fn narrow(value: Self::Value) -> Option<[u8; 4]>;
    fn wide(value: Self::Value) -> [u8; 8];
}

struct Unsigned;
struct Signed;
struct Float;

impl Width for Unsigned {
    type Value = u64;
    const NUMBERS: [u32; 2] = [number::U32, number::U64];
    fn narrow(value: u64) -> Option<[u8; 4]> {
        u32::try_from(value).ok().map(u32::to_le_bytes)
    }
    fn wide(value: u64) -> [u8; 8] {
        value.to_le_bytes()
    }
}

impl Width for Signed {
    type Value = i64;
    const NUMBERS: [u32; 2] = [number::I32, number::I64];
    fn narrow(value: i64) -> Option<[u8; 4]> {
        i32::try_from(value).ok().map(i32::to_le_bytes)
    }
    fn wide(value: i64) -> [u8; 8] {
        value.to_le_bytes()
    }
}

impl Width for Float {
    type Value = f64;
    const NUMBERS: [u32; 2] = [number::F32, number::F64];
    fn narrow(value: f64) -> Option<[u8; 4]> {
        let single = value as f32;
        let exact = f64::from(single) == value || value.is_nan();
        exact.then(|| single.to_le_bytes())
    }
    fn wide(value: f64) -> [u8; 8] {
        value.to_le_bytes()
    }
}

/// The type's number, the count where there is one, and the values: narrow if all of them are.
fn put_numbers<W: Width>(
    out: &mut Vec<u8>,
    values: &[W::Value],
    count: impl Fn(&mut Vec<u8>, usize),
) {
    let narrow: Option<Vec<[u8; 4]>> = values.iter().map(|v| W::narrow(*v)).collect();
    let [narrow_number, wide_number] = W::NUMBERS;
    match narrow {
        Some(values) => {
            out.extend_from_slice(&narrow_number.to_le_bytes());
            count(out, values.len());
            values.iter().for_each(|bytes| out.extend_from_slice(bytes));
        }
        None => {
            out.extend_from_slice(&wide_number.to_le_bytes());
            count(out, values.len());
            values
                .iter()
                .for_each(|v| out.extend_from_slice(&W::wide(*v)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse_gguf_header;

    fn tensor(name: &str, dtype: DType, shape: &[usize]) -> GgufTensor {
        GgufTensor {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut metadata = Metadata::default();
        for (key, value) in [
            ("a.text", MetaValue::Text("Ġa\n".into())),
            ("b.small", MetaValue::Unsigned(7)),
            ("c.large", MetaValue::Unsigned(1 << 40)),
            ("d.negative", MetaValue::Signed(-3)),
            ("e.single", MetaValue::Float(f64::from(1e-6f32))),
            ("f.double", MetaValue::Float(0.1)),
            ("g.flag", MetaValue::Bool(true)),
            (
                "h.texts",
                MetaValue::Array(MetaArray::Text(vec!["".into(), "x y".into()])),
            ),
            ("i.types", MetaValue::Array(MetaArray::Signed(vec![1, -4]))),
            (
                "j.wide",
                MetaValue::Array(MetaArray::Unsigned(vec![1, 1 << 33])),
            ),
            (
                "k.flags",
                MetaValue::Array(MetaArray::Bool(vec![true, false])),
            ),
            (
                "l.scores",
                MetaValue::Array(MetaArray::Float(vec![-1.5, 0.0])),
            ),
        ] {
            metadata.insert(key, value);
        }
        let tensors = [
            tensor("odd", DType::F32, &[3]),
            tensor("stack", DType::Q4_0, &[2, 3, 64]),
            tensor("halves", DType::BF16, &[5, 7]),
        ];
        let prefix = encode_gguf_header(&metadata, &tensors).unwrap();
        let mut file = prefix.bytes.clone();
        file.resize(prefix.file_bytes, 0);
        let header = parse_gguf_header(&file).unwrap();
        assert_eq!(header.metadata, metadata);
        assert_eq!(header.tensors.len(), 3);
        for (i, tensor) in tensors.iter().enumerate() {
            let read = &header.tensors[i];
            assert_eq!(
                (&read.name, read.dtype, &read.shape),
                (&tensor.name, tensor.dtype, &tensor.shape)
            );
            assert_eq!(read.range.start, prefix.offsets[i]);
            assert_eq!(read.range.start % 32, 0);
        }
        assert_eq!(header.tensors[1].range.len(), 2 * 3 * 2 * 18);
    }

    #[test]
    fn what_the_format_cannot_hold_is_refused() {
        let none = Metadata::default();
        let refused = |t| encode_gguf_header(&none, &[t]).unwrap_err().to_string();
        assert!(refused(tensor("a", DType::F8E4M3, &[4])).contains("F8_E4M3"));
        assert!(refused(tensor("a", DType::Q8_0, &[4, 33])).contains("33"));
        assert!(refused(tensor("a", DType::F32, &[usize::MAX, 4])).contains("larger"));
    }
}

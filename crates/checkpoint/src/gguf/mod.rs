//! The GGUF header, versions 2 and 3, little-endian: key-values, then the tensor list, then data
//! at an alignment.
//!
//! Every count is checked against the bytes that are left before anything is allocated for it.

mod cursor;
mod types;
mod values;
mod write;

use std::collections::HashSet;

use scrimp_model::Metadata;
use scrimp_tensor::{DType, TensorError};

use crate::TensorInfo;
use cursor::Cursor;
pub use write::{GgufPrefix, GgufTensor, GgufWriteError, encode_gguf_header};

/// Items that all arrays of a file may hold together: several large vocabularies.
const MAX_ARRAY_ITEMS: usize = 1 << 25;
/// Longest key, from the format's specification.
const MAX_KEY: usize = 65_535;
/// Longest tensor name; the specification says 64.
const MAX_NAME: usize = 1024;
/// Most extents of a tensor, from the specification.
const MAX_DIMS: u32 = 4;
/// Alignment of files that do not give one.
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 24;

/// What a GGUF file says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufHeader {
    /// 2 or 3.
    pub version: u32,
    /// Its key-values.
    pub metadata: Metadata,
    /// Its tensors, in the order of their bytes.
    pub tensors: Vec<TensorInfo>,
}

/// A GGUF file that is damaged.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum GgufError {
    #[error("the file does not begin with \"GGUF\": it is no GGUF file")]
    Magic,
    #[error(
        "this is GGUF version {version}; versions 2 and 3 are read. Convert the model anew with a current converter"
    )]
    Version { version: u32 },
    #[error("this GGUF file is big-endian; only little-endian ones are read")]
    BigEndian,
    #[error(
        "the file ends inside {what}: {wanted} bytes were to follow byte {position}, and {left} do. The download is probably incomplete"
    )]
    Truncated {
        what: String,
        wanted: u64,
        position: usize,
        left: usize,
    },
    #[error("{what} are said to be {claimed}, but at most {most} are possible here")]
    Count {
        what: String,
        claimed: u64,
        most: usize,
    },
    #[error("{what} at byte {position} is not UTF-8 text")]
    NotText { what: String, position: usize },
    #[error("key {key:?} has value type {number}; types 0 to 12 are known")]
    ValueType { key: String, number: u32 },
    #[error("key {key:?} is a boolean of value {byte}; 0 and 1 are possible")]
    Bool { key: String, byte: u8 },
    #[error("key {key:?} is an array of arrays, which no known model has")]
    NestedArray { key: String },
    #[error("key {key:?} is there twice")]
    DuplicateKey { key: String },
    #[error("general.alignment is {value}; it has to be a power of two up to {MAX_ALIGNMENT}")]
    Alignment { value: String },
    #[error("tensor {tensor:?} is there twice")]
    DuplicateTensor { tensor: String },
    #[error("tensor {tensor:?} has {dims} extents; 1 to {MAX_DIMS} are possible")]
    Dims { tensor: String, dims: u32 },
    #[error(
        "tensor {tensor:?} has type {number}, {name}, which is not read; readable are {}",
        types::readable()
    )]
    TensorType {
        tensor: String,
        number: u32,
        name: &'static str,
    },
    #[error("tensor {tensor:?} has extents {extents:?} (innermost first), which no file can hold")]
    Extents { tensor: String, extents: Vec<u64> },
    #[error("tensor {tensor:?}: {source}")]
    Shape { tensor: String, source: TensorError },
    #[error(
        "tensor {tensor:?} is at offset {offset}, which is no multiple of the alignment, {alignment}"
    )]
    Offset {
        tensor: String,
        offset: u64,
        alignment: u64,
    },
    #[error(
        "tensor {tensor:?} takes {bytes} bytes from byte {begin}, but the file has {size}: the download is probably incomplete"
    )]
    OutOfFile {
        tensor: String,
        begin: u64,
        bytes: u64,
        size: usize,
    },
    #[error("tensor {second:?} begins inside {first:?}")]
    Overlap { first: String, second: String },
}

/// Reads the header of a whole file, and checks every offset against the file's size.
///
/// # Errors
/// When the file is truncated, of another version, or says anything of itself that cannot be.
pub fn parse_gguf_header(file: &[u8]) -> Result<GgufHeader, GgufError> {
    let mut cursor = Cursor::new(file);
    if file.first_chunk() != Some(b"GGUF") {
        return Err(GgufError::Magic);
    }
    cursor.u32("the magic")?;
    let version = match cursor.u32("the version")? {
        version @ (2 | 3) => version,
        swapped if matches!(swapped.swap_bytes(), 1..=3) => return Err(GgufError::BigEndian),
        version => return Err(GgufError::Version { version }),
    };
    // A tensor takes a name's length, a rank, one extent, a type and an offset; a key-value takes a
    // key's length, a type and a byte.
    let tensor_count = cursor.count(8 + 4 + 8 + 4 + 8, "the tensors")?;
    let key_count = cursor.count(8 + 4 + 1, "the key-values")?;
    let metadata = metadata(&mut cursor, key_count)?;
    let alignment = alignment(&metadata)?;

    let mut names = HashSet::new();
    let mut entries = Vec::new();
    for _ in 0..tensor_count {
        let entry = tensor_entry(&mut cursor)?;
        if !names.insert(entry.name) {
            return Err(GgufError::DuplicateTensor {
                tensor: entry.name.to_owned(),
            });
        }
        entries.push(entry);
    }
    let data_start = (cursor.position() as u64).next_multiple_of(alignment);
    let place = |entry: Entry| place(entry, data_start, alignment, file.len());
    let mut tensors = entries
        .into_iter()
        .map(place)
        .collect::<Result<Vec<_>, _>>()?;
    tensors.sort_by_key(|t| (t.range.start, t.range.end));
    check_overlap(&tensors)?;
    Ok(GgufHeader {
        version,
        metadata,
        tensors,
    })
}

fn metadata(cursor: &mut Cursor, count: usize) -> Result<Metadata, GgufError> {
    let mut metadata = Metadata::default();
    let mut budget = MAX_ARRAY_ITEMS;
    for _ in 0..count {
        let key = cursor.text(MAX_KEY, "a key")?;
        let number = cursor.u32(key)?;
        let value = values::value(cursor, number, key, &mut budget)?;
        if metadata.insert(key, value).is_some() {
            return Err(GgufError::DuplicateKey {
                key: key.to_owned(),
            });
        }
    }
    Ok(metadata)
}

fn alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    const KEY: &str = "general.alignment";
    if metadata.get(KEY).is_none() {
        return Ok(DEFAULT_ALIGNMENT);
    }
    match metadata.unsigned(KEY) {
        Some(alignment) if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT => {
            Ok(alignment)
        }
        Some(alignment) => Err(GgufError::Alignment {
            value: alignment.to_string(),
        }),
        None => Err(GgufError::Alignment {
            value: "no whole number".to_owned(),
        }),
    }
}

/// A line of the tensor list.
struct Entry<'a> {
    name: &'a str,
    dtype: DType,
    /// Innermost first, as in the file.
    extents: Vec<u64>,
    offset: u64,
}

fn tensor_entry<'a>(cursor: &mut Cursor<'a>) -> Result<Entry<'a>, GgufError> {
    let name = cursor.text(MAX_NAME, "a tensor's name")?;
    let dims = cursor.u32(name)?;
    if !(1..=MAX_DIMS).contains(&dims) {
        return Err(GgufError::Dims {
            tensor: name.to_owned(),
            dims,
        });
    }
    let extents = (0..dims)
        .map(|_| cursor.u64(name))
        .collect::<Result<Vec<_>, _>>()?;
    let number = cursor.u32(name)?;
    let dtype = types::tensor_type(number).map_err(|known| GgufError::TensorType {
        tensor: name.to_owned(),
        number,
        name: known,
    })?;
    let offset = cursor.u64(name)?;
    Ok(Entry {
        name,
        dtype,
        extents,
        offset,
    })
}

/// Works out where a tensor's bytes are, and that the file has them.
fn place(
    entry: Entry,
    data_start: u64,
    alignment: u64,
    size: usize,
) -> Result<TensorInfo, GgufError> {
    let tensor = || entry.name.to_owned();
    let extents = || GgufError::Extents {
        tensor: tensor(),
        extents: entry.extents.clone(),
    };
    let positive = |&e: &u64| usize::try_from(e).ok().filter(|&e| e > 0);
    let mut shape = entry
        .extents
        .iter()
        .map(positive)
        .collect::<Option<Vec<_>>>()
        .ok_or_else(extents)?;
    shape.reverse();
    let (&cols, outer) = shape.split_last().ok_or_else(extents)?;
    let row = entry
        .dtype
        .row_bytes(cols)
        .map_err(|source| GgufError::Shape {
            tensor: tensor(),
            source,
        })?;
    let bytes = outer
        .iter()
        .try_fold(row, |n, &e| n.checked_mul(e))
        .ok_or_else(extents)?;
    if !entry.offset.is_multiple_of(alignment) {
        return Err(GgufError::Offset {
            tensor: tensor(),
            offset: entry.offset,
            alignment,
        });
    }
    let begin = data_start.checked_add(entry.offset);
    let end = begin.and_then(|begin| begin.checked_add(bytes as u64));
    match (begin, end) {
        (Some(begin), Some(end)) if end <= size as u64 => Ok(TensorInfo {
            name: tensor(),
            dtype: entry.dtype,
            shape,
            range: begin as usize..end as usize,
        }),
        _ => Err(GgufError::OutOfFile {
            tensor: tensor(),
            begin: begin.unwrap_or(u64::MAX),
            bytes: bytes as u64,
            size,
        }),
    }
}

fn check_overlap(tensors: &[TensorInfo]) -> Result<(), GgufError> {
    for pair in tensors.windows(2) {
        if pair[1].range.start < pair[0].range.end {
            return Err(GgufError::Overlap {
                first: pair[0].name.clone(),
                second: pair[1].name.clone(),
            });
        }
    }
    Ok(())
}

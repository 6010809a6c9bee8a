//! The safetensors header: a length, a JSON object of names, types, shapes and offsets, then the
//! data without gaps.
//!
//! The `safetensors` crate's own parser keeps the last of two equal names without a word, so the
//! header is parsed here, strictly.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use scrimp_tensor::DType;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::TensorInfo;

/// The format's own limit on the header.
const MAX_HEADER: usize = 100_000_000;
/// More extents than any tensor has.
const MAX_DIMS: usize = 8;

/// What a safetensors file says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SafetensorsHeader {
    /// Its tensors, in the order of their bytes.
    pub tensors: Vec<TensorInfo>,
    /// Free text under `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

/// A safetensors file that is damaged.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum SafetensorsError {
    #[error("the file has {size} bytes, too few for a safetensors header")]
    TooShort { size: usize },
    #[error(
        "the header claims {claimed} bytes, but {available} follow (and {MAX_HEADER} is the limit): the file is truncated, or no safetensors file"
    )]
    HeaderLength { claimed: u64, available: usize },
    #[error("the header is not the JSON of a safetensors file: {0}")]
    Json(#[from] serde_json::Error),
    #[error(
        "tensor {tensor:?} has type {dtype:?}; readable are F32, F16, BF16, F8_E4M3, I8, U8, I32, I64"
    )]
    DType { tensor: String, dtype: String },
    #[error("tensor {tensor:?} has {dims} extents; at most {MAX_DIMS} are read")]
    TooManyDims { tensor: String, dims: usize },
    #[error(
        "tensor {tensor:?} of type {dtype} and shape {shape:?} does not take the {bytes} bytes of its offsets {begin}..{end}"
    )]
    Size {
        tensor: String,
        dtype: DType,
        shape: Vec<u64>,
        bytes: i128,
        begin: u64,
        end: u64,
    },
    #[error(
        "tensor {tensor:?} ends at byte {end} of the data, but there are {available}: the file is truncated"
    )]
    OutOfFile {
        tensor: String,
        end: u64,
        available: usize,
    },
    #[error("tensor {second:?} begins at byte {begin} of the data, inside {first:?}")]
    Overlap {
        first: String,
        second: String,
        begin: usize,
    },
    #[error("bytes {begin}..{end} of the data belong to no tensor")]
    Gap { begin: usize, end: usize },
}

/// Reads the header of a whole file, and checks every offset against the file's size.
///
/// # Errors
/// When the file is truncated, or its header is not valid, names a tensor twice, or does not cover
/// the data exactly.
pub fn parse_safetensors_header(file: &[u8]) -> Result<SafetensorsHeader, SafetensorsError> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(SafetensorsError::TooShort { size: file.len() });
    };
    let claimed = u64::from_le_bytes(*length);
    let header = usize::try_from(claimed)
        .ok()
        .filter(|&n| n <= MAX_HEADER)
        .and_then(|n| rest.split_at_checked(n));
    let Some((header, data)) = header else {
        return Err(SafetensorsError::HeaderLength {
            claimed,
            available: rest.len(),
        });
    };
    let raw: RawHeader = serde_json::from_slice(header)?;
    let data_start = file.len() - data.len();
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (name, entry) in raw.tensors {
        tensors.push(check_entry(name, entry, data_start, data.len())?);
    }
    tensors.sort_by_key(|t| (t.range.start, t.range.end));
    check_cover(&tensors, data_start, file.len())?;
    Ok(SafetensorsHeader {
        tensors,
        metadata: raw.metadata,
    })
}

fn check_entry(
    tensor: String,
    entry: RawTensor,
    data_start: usize,
    data_len: usize,
) -> Result<TensorInfo, SafetensorsError> {
    let Some(dtype) = dtype(&entry.dtype) else {
        return Err(SafetensorsError::DType {
            tensor,
            dtype: entry.dtype,
        });
    };
    if entry.shape.len() > MAX_DIMS {
        return Err(SafetensorsError::TooManyDims {
            tensor,
            dims: entry.shape.len(),
        });
    }
    let (begin, end) = entry.data_offsets;
    let extents = entry.shape.iter().map(|&e| usize::try_from(e).ok());
    let shape: Option<Vec<usize>> = extents.collect();
    let bytes = shape.as_ref().and_then(|shape| {
        let product = shape.iter().try_fold(1usize, |n, &e| n.checked_mul(e))?;
        product.checked_mul(dtype.block_bytes())
    });
    let shape = match (shape, bytes) {
        (Some(shape), Some(bytes)) if begin.checked_add(bytes as u64) == Some(end) => shape,
        _ => {
            let bytes = i128::from(end) - i128::from(begin);
            let shape = entry.shape;
            return Err(SafetensorsError::Size {
                tensor,
                dtype,
                shape,
                bytes,
                begin,
                end,
            });
        }
    };
    // `end` is at least `begin` now; both are small once `end` is inside the file.
    if end > data_len as u64 {
        return Err(SafetensorsError::OutOfFile {
            tensor,
            end,
            available: data_len,
        });
    }
    Ok(TensorInfo {
        name: tensor,
        dtype,
        shape,
        range: data_start + begin as usize..data_start + end as usize,
    })
}

/// Tensors in order must follow each other from the first byte of the data to the last.
fn check_cover(tensors: &[TensorInfo], start: usize, end: usize) -> Result<(), SafetensorsError> {
    let mut covered = start;
    let mut last = "the header";
    for tensor in tensors {
        let begin = tensor.range.start;
        if begin < covered {
            return Err(SafetensorsError::Overlap {
                first: last.to_owned(),
                second: tensor.name.clone(),
                begin: begin - start,
            });
        }
        if begin > covered {
            return Err(SafetensorsError::Gap {
                begin: covered - start,
                end: begin - start,
            });
        }
        covered = tensor.range.end;
        last = &tensor.name;
    }
    if covered < end {
        return Err(SafetensorsError::Gap {
            begin: covered - start,
            end: end - start,
        });
    }
    Ok(())
}

fn dtype(name: &str) -> Option<DType> {
    DType::all().find(|d| !d.is_block() && d.name() == name)
}

/// The header's JSON, with every name once.
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut header = RawHeader {
            tensors: Vec::new(),
            metadata: BTreeMap::new(),
        };
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!(
                    "the name {name:?} is there twice"
                )));
            }
            if name == "__metadata__" {
                header.metadata = map.next_value()?;
            } else {
                header.tensors.push((name, map.next_value()?));
            }
        }
        Ok(header)
    }
}

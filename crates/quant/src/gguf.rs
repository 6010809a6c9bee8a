//! A GGUF file as output: blocks of codes, and where in the file each of the source's weights goes.
//!
//! A GGUF orders some weights in its own way: experts are stacked, rows of Llama's queries and keys
//! are permuted, MLA's `kv_b_proj` is cut in two. Which tensor is which, and what the header says
//! beside its tensors, comes from the caller; nothing here knows a name.
//!
//! Blocks hold exactly what was minimised, with one exception: Q4_1 stores `−zero · scale` rounded
//! to F16. That moves a group by at most `15 · 2⁻¹² · scale`, 1/270 of a step, where rounding to
//! codes errs by up to half of one.

use std::collections::{HashMap, HashSet};

use half::f16;
use scrimp_tensor::DType;

use crate::pack::{self, OutTensor};
use crate::quantized::Quantized;
use crate::recipe::{GGUF_GROUP, RecipeError};
use crate::shards::{Layout, ShardWriter, WriteError};

/// What stands before a file's data, and where its tensors begin.
pub struct Prefix {
    /// Bytes of the header, padding included.
    pub header: Vec<u8>,
    /// From the file's start, in the order of the tensors.
    pub offsets: Vec<usize>,
    /// Bytes of the whole file.
    pub file_bytes: usize,
}

/// Encodes a header of some tensors; an error says why the format cannot have them.
pub type HeaderOf = dyn Fn(&[OutTensor]) -> Result<Prefix, String> + Send + Sync;

/// The one file that a quantization to GGUF writes.
pub struct GgufFile {
    /// Its name.
    pub name: String,
    /// Whether the folder that it is written to is anybody's: what else a run keeps there is then
    /// named after the file.
    pub in_shared_folder: bool,
    /// Where each of the source's tensors goes, in their order.
    pub places: Vec<GgufPlace>,
    /// F32 vectors that no weight of the source becomes: names and values.
    pub vectors: Vec<(String, Vec<f32>)>,
    /// Its header, given its tensors.
    pub header: Box<HeaderOf>,
}

/// A tensor of the file, and the part of it that is one weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufPlace {
    /// The tensor's name.
    pub tensor: String,
    /// Its extents, outermost first.
    pub shape: Vec<usize>,
    /// Which of its rows are the weight's.
    pub arrangement: Arrangement,
}

/// How a weight's rows lie in its tensor. Values of a vector count as rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrangement {
    /// In order, from a row on.
    Rows {
        /// The first.
        first: usize,
    },
    /// The two halves of each head taken in turns, for a rotation of neighbours.
    Interleaved {
        /// Rows of a head.
        head_dim: usize,
    },
    /// Each head's first rows transposed in this tensor, the others as they are in another.
    Halves {
        /// The other tensor.
        values: String,
        /// Heads.
        heads: usize,
        /// First rows of a head.
        nope: usize,
        /// Its other rows.
        value: usize,
        /// Values of a row.
        latent: usize,
    },
}

impl GgufFile {
    /// Holds that every tensor becomes codes or stays as a whole.
    ///
    /// # Errors
    /// When a part of a stack of experts is `chosen` and another is not.
    pub fn check_stacks(&self, chosen: &[bool]) -> Result<(), RecipeError> {
        let mut stacks: HashMap<&str, bool> = HashMap::new();
        for (place, &chosen) in self.places.iter().zip(chosen) {
            if *stacks.entry(&place.tensor).or_insert(chosen) != chosen {
                let stack = place.tensor.clone();
                return Err(RecipeError::MixedStack { stack });
            }
        }
        Ok(())
    }

    /// The file's tensors and where they go, each of the source's stored as one of `types`.
    pub(crate) fn layout(&self, types: &[DType]) -> Result<Layout, RecipeError> {
        let mut out: Vec<OutTensor> = Vec::new();
        let mut seen: HashSet<&str> = HashSet::new();
        for (place, dtype) in self.places.iter().zip(types) {
            if seen.insert(&place.tensor) {
                out.extend(place.tensors(*dtype));
            }
        }
        for (name, values) in &self.vectors {
            out.push(OutTensor {
                name: name.clone(),
                dtype: DType::F32,
                shape: vec![values.len()],
            });
        }
        let Prefix {
            header,
            offsets,
            file_bytes,
        } = (self.header)(&out).map_err(|why| RecipeError::Gguf { why })?;
        Ok(Layout::single(
            &self.name, &out, header, &offsets, file_bytes,
        ))
    }

    /// Writes the vectors that are no weight's.
    pub(crate) fn write_vectors(&self, writer: &ShardWriter) -> Result<(), WriteError> {
        for (name, values) in &self.vectors {
            writer.write(name, &pack::floats(DType::F32, values))?;
        }
        Ok(())
    }
}

impl GgufPlace {
    /// The tensors that it speaks of.
    fn tensors(&self, dtype: DType) -> Vec<OutTensor> {
        let own = OutTensor {
            name: self.tensor.clone(),
            dtype,
            shape: self.shape.clone(),
        };
        match &self.arrangement {
            Arrangement::Halves {
                values,
                heads,
                value,
                latent,
                ..
            } => {
                let other = OutTensor {
                    name: values.clone(),
                    dtype,
                    shape: vec![*heads, *value, *latent],
                };
                vec![own, other]
            }
            _ => vec![own],
        }
    }

    /// Rows that [`GgufPlace::write`] takes together: its input is a whole number of them.
    pub(crate) fn unit(&self) -> usize {
        match self.arrangement {
            Arrangement::Halves { nope, value, .. } => nope + value,
            _ => 1,
        }
    }

    /// Writes a weight's rows from `first` on, each of `row_bytes`.
    pub(crate) fn write(
        &self,
        writer: &ShardWriter,
        first: usize,
        bytes: &[u8],
        row_bytes: usize,
    ) -> Result<(), WriteError> {
        let rows = match self.shape.as_slice() {
            [len] => *len,
            [outer @ .., _] => outer.iter().product(),
            [] => 0,
        };
        let total = rows * row_bytes;
        match &self.arrangement {
            Arrangement::Rows { first: begin } => {
                writer.write_part(&self.tensor, (begin + first) * row_bytes, bytes, total)
            }
            // A vector comes whole: its values are not worth a call each.
            Arrangement::Interleaved { head_dim } if self.shape.len() == 1 => {
                let mut moved = vec![0; total];
                for (row, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
                    let at = interleaved(row, *head_dim) * row_bytes;
                    moved[at..at + row_bytes].copy_from_slice(bytes);
                }
                writer.write(&self.tensor, &moved)
            }
            Arrangement::Interleaved { head_dim } => {
                let mut rows = bytes.chunks_exact(row_bytes).enumerate();
                rows.try_for_each(|(i, bytes)| {
                    let at = interleaved(first + i, *head_dim) * row_bytes;
                    writer.write_part(&self.tensor, at, bytes, total)
                })
            }
            Arrangement::Halves {
                values,
                heads,
                nope,
                value,
                latent,
            } => {
                let element = row_bytes / latent;
                let [keys_bytes, values_bytes] = [nope * row_bytes, value * row_bytes];
                let unit = self.unit();
                for (i, head) in bytes.chunks_exact(unit * row_bytes).enumerate() {
                    let at = first / unit + i;
                    let (keys, rest) = head.split_at(keys_bytes);
                    let keys = transposed(keys, *nope, *latent, element);
                    let [all_keys, all_values] = [heads * keys_bytes, heads * values_bytes];
                    writer.write_part(&self.tensor, at * keys_bytes, &keys, all_keys)?;
                    writer.write_part(values, at * values_bytes, rest, all_values)?;
                }
                Ok(())
            }
        }
    }
}

/// Where a row of a head's two halves is once they are taken in turns.
fn interleaved(row: usize, head_dim: usize) -> usize {
    let (head, row, half) = (row / head_dim, row % head_dim, head_dim / 2);
    head * head_dim + row % half * 2 + row / half
}

/// `[rows, cols]` elements of some bytes as `[cols, rows]`.
fn transposed(bytes: &[u8], rows: usize, cols: usize, element: usize) -> Vec<u8> {
    let mut out = vec![0; bytes.len()];
    for (at, value) in bytes.chunks_exact(element.max(1)).enumerate() {
        let to = (at % cols * rows + at / cols) * element;
        out[to..to + element].copy_from_slice(value);
    }
    out
}

/// A matrix in blocks of 32 codes, row after row.
pub(crate) fn blocks(dtype: DType, q: &Quantized) -> Vec<u8> {
    let count = q.codes.len() / GGUF_GROUP;
    let mut out = Vec::with_capacity(count * dtype.block_bytes());
    let grids = q.scales.iter().zip(&q.zeros);
    for (codes, (&scale, &zero)) in q.codes.chunks_exact(GGUF_GROUP).zip(grids) {
        out.extend_from_slice(&f16::from_f32(scale).to_le_bytes());
        match dtype {
            DType::Q8_0 => out.extend(codes.iter().map(|code| code ^ 0x80)),
            DType::Q4_1 => {
                out.extend_from_slice(&least(scale, zero).to_le_bytes());
                out.extend(nibbles(codes));
            }
            _ => out.extend(nibbles(codes)),
        }
    }
    out
}

/// What code 0 stands for, as F16 has it: a finite number.
fn least(scale: f32, zero: u8) -> f16 {
    f16::from_f32((-f32::from(zero) * scale).max(-65504.0))
}

/// Value `i` in byte `i`'s low half, value `i + 16` in its high one.
fn nibbles(codes: &[u8]) -> impl Iterator<Item = u8> {
    let (low, high) = codes.split_at(codes.len() / 2);
    low.iter().zip(high).map(|(l, h)| l & 15 | h << 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::GridSpec;
    use crate::rtn::{self, RangeSearch};

    fn noise(n: usize) -> Vec<f32> {
        let mut state = 2_463_534_242u32;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 - 0.4
        };
        (0..n).map(|_| next() * next()).collect()
    }

    #[test]
    fn blocks_are_decoded_to_what_was_minimised() {
        let (rows, cols) = (7, 96);
        for (dtype, bits, symmetric) in [
            (DType::Q4_0, 4, true),
            (DType::Q4_1, 4, false),
            (DType::Q8_0, 8, true),
        ] {
            let spec = GridSpec {
                bits,
                symmetric,
                signed: symmetric && bits == 4,
                zero_min: 0,
                scale: DType::F16,
            };
            let w = noise(rows * cols);
            let search = RangeSearch::FAST;
            let q = rtn::quantize(spec, search, GGUF_GROUP, (rows, cols), &w, None);
            let bytes = blocks(dtype, &q);
            assert_eq!(bytes.len(), rows * dtype.row_bytes(cols).unwrap());
            let mut stored = vec![0.0; w.len()];
            scrimp_tensor::decode(dtype, &bytes, &mut stored).unwrap();
            let mut wanted = vec![0.0; w.len()];
            q.dequantize_into(None, &mut wanted);
            for (i, (a, b)) in stored.iter().zip(&wanted).enumerate() {
                let slack = if symmetric { 0.0 } else { 15.0 / 4096.0 };
                let scale = q.scales[i / GGUF_GROUP];
                assert!((a - b).abs() <= slack * scale * 1.001, "{dtype} {i}");
            }
        }
    }

    #[test]
    fn a_minimum_beyond_f16_stays_finite() {
        assert_eq!(least(60_000.0, 15).to_f32(), -65504.0);
        assert_eq!(least(0.5, 8).to_f32(), -4.0);
    }

    fn place(shape: &[usize], arrangement: Arrangement) -> GgufPlace {
        GgufPlace {
            tensor: "t".into(),
            shape: shape.to_vec(),
            arrangement,
        }
    }

    /// What places write, read back: tensors of bytes.
    fn written(out: &[OutTensor], write: impl Fn(&ShardWriter)) -> Vec<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let mut offsets = Vec::new();
        let mut end = 0;
        for tensor in out {
            offsets.push(end);
            end += tensor.bytes();
        }
        let layout = Layout::single("f", out, Vec::new(), &offsets, end);
        let writer = ShardWriter::open(folder.path(), layout).unwrap();
        write(&writer);
        writer.finish().unwrap();
        let bytes = std::fs::read(folder.path().join("f")).unwrap();
        let part = |(at, t): (&usize, &OutTensor)| bytes[*at..at + t.bytes()].to_vec();
        offsets.iter().zip(out).map(part).collect()
    }

    #[test]
    fn rows_are_where_the_format_has_them() {
        let bytes: Vec<u8> = (0..12).collect();
        // Two heads of six values; a stack of two; in parts and at once.
        let pairs = place(&[12, 1], Arrangement::Interleaved { head_dim: 6 });
        let parts = written(&pairs.tensors(DType::I8), |writer| {
            for first in [0, 5] {
                let to = if first == 0 { 5 } else { 12 };
                pairs.write(writer, first, &bytes[first..to], 1).unwrap();
            }
        });
        assert_eq!(parts[0], [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        let vector = place(&[12], Arrangement::Interleaved { head_dim: 6 });
        let whole = written(&vector.tensors(DType::I8), |writer| {
            vector.write(writer, 0, &bytes, 1).unwrap();
        });
        assert_eq!(whole, parts);
        let stack = |first| place(&[2, 3, 2], Arrangement::Rows { first });
        let stacked = written(&stack(0).tensors(DType::I8), |writer| {
            stack(3).write(writer, 0, &bytes[..6], 2).unwrap();
            stack(0).write(writer, 0, &bytes[6..], 2).unwrap();
        });
        assert_eq!(stacked[0], [6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn heads_are_cut_into_transposed_keys_and_values() {
        // Two heads of two key rows and one value row, three values each.
        let halves = Arrangement::Halves {
            values: "v".into(),
            heads: 2,
            nope: 2,
            value: 1,
            latent: 3,
        };
        let place = place(&[2, 3, 2], halves);
        let bytes: Vec<u8> = (0..18).collect();
        let out = written(&place.tensors(DType::I8), |writer| {
            place.write(writer, 3, &bytes[9..], 3).unwrap();
            place.write(writer, 0, &bytes[..9], 3).unwrap();
        });
        assert_eq!(out[0], [0, 3, 1, 4, 2, 5, 9, 12, 10, 13, 11, 14]);
        assert_eq!(out[1], [6, 7, 8, 15, 16, 17]);
    }
}

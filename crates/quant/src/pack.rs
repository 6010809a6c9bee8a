//! Bytes of each format: which tensors a quantized matrix becomes, and what is in them.

use half::{bf16, f16};
use scrimp_tensor::DType;
use serde_json::{Value, json};

use crate::gguf;
use crate::quantized::Quantized;
use crate::recipe::{Format, Recipe, Scheme};

/// A tensor of the output: what a safetensors header says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutTensor {
    /// Its name.
    pub name: String,
    /// Type, as safetensors names it.
    pub dtype: DType,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
}

impl OutTensor {
    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() / self.dtype.block_len() * self.dtype.block_bytes()
    }
}

/// How a matrix of a recipe is written.
#[derive(Clone, Copy, Debug)]
pub struct Packer {
    format: Format,
    scheme: Scheme,
    asymmetric: bool,
    bits: usize,
    float: DType,
}

/// Where nibble `i` of AWQ's words holds output column `8c + AWQ_ORDER[i]`.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

impl Packer {
    /// For `recipe`, on a model whose floats are `float`.
    pub fn new(recipe: &Recipe, float: DType) -> Packer {
        Packer {
            format: recipe.format,
            scheme: recipe.scheme,
            asymmetric: recipe.asymmetric,
            bits: recipe.scheme.bits() as usize,
            float,
        }
    }

    /// The tensors that module `module` of `[rows, cols]` in groups of `group` becomes.
    pub fn tensors(&self, module: &str, rows: usize, cols: usize, group: usize) -> Vec<OutTensor> {
        let tensor = |name: &str, dtype, shape: &[usize]| OutTensor {
            name: format!("{module}.{name}"),
            dtype,
            shape: shape.to_vec(),
        };
        let (groups, bits) = (cols / group, self.bits);
        match self.format {
            Format::CompressedTensors if self.scheme == Scheme::Int8A8 => vec![
                tensor("weight", DType::I8, &[rows, cols]),
                tensor("weight_scale", self.float, &[rows, groups]),
            ],
            Format::CompressedTensors => {
                let words = (cols * bits).div_ceil(32);
                let mut all = vec![
                    tensor("weight_packed", DType::I32, &[rows, words]),
                    tensor("weight_scale", self.float, &[rows, groups]),
                    tensor("weight_shape", DType::I64, &[2]),
                ];
                if self.asymmetric {
                    let words = (rows * bits).div_ceil(32);
                    all.push(tensor("weight_zero_point", DType::I32, &[words, groups]));
                }
                all
            }
            Format::Awq => vec![
                tensor("qweight", DType::I32, &[cols, rows / 8]),
                tensor("qzeros", DType::I32, &[groups, rows / 8]),
                tensor("scales", DType::F16, &[groups, rows]),
            ],
            Format::Gptq => vec![
                tensor("qweight", DType::I32, &[cols / 8, rows]),
                tensor("qzeros", DType::I32, &[groups, rows / 8]),
                tensor("scales", DType::F16, &[groups, rows]),
                tensor("g_idx", DType::I32, &[cols]),
            ],
            Format::Gguf => vec![tensor("weight", self.block_type(), &[rows, cols])],
        }
    }

    /// The bytes of those tensors, in that order.
    pub fn pack(&self, q: &Quantized) -> Vec<Vec<u8>> {
        match self.format {
            Format::CompressedTensors if self.scheme == Scheme::Int8A8 => vec![
                q.codes.iter().map(|code| code ^ 0x80).collect(),
                floats(self.float, &q.scales),
            ],
            Format::CompressedTensors => self.compressed_tensors(q),
            Format::Awq => awq(q),
            Format::Gptq => gptq(q),
            Format::Gguf => vec![gguf::blocks(self.block_type(), q)],
        }
    }

    /// Whether a few rows of a matrix are a few ranges of its tensors.
    pub fn keeps_rows_apart(&self) -> bool {
        matches!(self.format, Format::CompressedTensors | Format::Gguf)
    }

    /// The bytes of some rows of a matrix of `rows`, from `first` on, and where they begin in each
    /// of its tensors. Where rows are apart, `first` being a multiple of 32.
    pub fn pack_rows(&self, part: &Quantized, first: usize, rows: usize) -> Vec<(usize, Vec<u8>)> {
        let packed = self.pack(part).into_iter().enumerate();
        let places = packed.map(|(i, bytes)| match (self.format, i) {
            (Format::CompressedTensors, SHAPE) => (0, shape_bytes(rows, part.cols)),
            (Format::CompressedTensors, ZEROS) => (first * self.bits / 8 * part.groups(), bytes),
            _ => (first * (bytes.len() / part.rows.max(1)), bytes),
        });
        places.collect()
    }

    /// GGUF's type for these codes.
    fn block_type(&self) -> DType {
        match (self.bits, self.asymmetric) {
            (8, _) => DType::Q8_0,
            (_, false) => DType::Q4_0,
            (_, true) => DType::Q4_1,
        }
    }

    fn compressed_tensors(&self, q: &Quantized) -> Vec<Vec<u8>> {
        let bits = self.bits;
        let mut packed = Vec::with_capacity(q.rows * (q.cols * bits).div_ceil(32) * 4);
        for row in q.codes.chunks_exact(q.cols) {
            words(row, bits, &mut packed);
        }
        let mut all = vec![
            packed,
            floats(self.float, &q.scales),
            shape_bytes(q.rows, q.cols),
        ];
        if self.asymmetric {
            let (groups, per_word) = (q.groups(), 32 / bits);
            let mut zeros = Vec::with_capacity(q.rows.div_ceil(per_word) * groups * 4);
            for first in (0..q.rows).step_by(per_word) {
                for g in 0..groups {
                    let rows = first..q.rows.min(first + per_word);
                    let codes: Vec<u8> = rows.map(|r| q.zeros[r * groups + g]).collect();
                    words(&codes, bits, &mut zeros);
                }
            }
            all.push(zeros);
        }
        all
    }

    /// `quantization_config` of `config.json`; `ignore` names the linear modules that stay.
    pub fn config(&self, recipe: &Recipe, group: Option<usize>, ignore: &[String]) -> Value {
        let group_or_row = group.map_or(-1, |g| g as i64);
        match self.format {
            Format::CompressedTensors => self.compressed_tensors_config(group, ignore),
            Format::Awq => json!({
                "quant_method": "awq",
                "bits": self.bits,
                "group_size": group_or_row,
                "zero_point": true,
                "version": "gemm",
                "modules_to_not_convert": ignore,
            }),
            Format::Gptq => json!({
                "quant_method": "gptq",
                "bits": self.bits,
                "group_size": group_or_row,
                "desc_act": false,
                "sym": !recipe.asymmetric,
                "checkpoint_format": "gptq",
                "damp_percent": 0.01,
                "lm_head": false,
                "modules_to_not_convert": ignore,
            }),
            // Its header says each tensor's type.
            Format::Gguf => Value::Null,
        }
    }

    fn compressed_tensors_config(&self, group: Option<usize>, ignore: &[String]) -> Value {
        let by_token = json!({
            "num_bits": 8, "type": "int", "symmetric": true, "strategy": "token",
            "group_size": null, "dynamic": true, "actorder": null, "block_structure": null,
            "observer": null, "observer_kwargs": {},
        });
        let (format, inputs) = match self.scheme {
            Scheme::Int8A8 => ("int-quantized", by_token),
            _ => ("pack-quantized", Value::Null),
        };
        json!({
            "quant_method": "compressed-tensors",
            "format": format,
            "quantization_status": "compressed",
            "global_compression_ratio": null,
            "kv_cache_scheme": null,
            "ignore": ignore,
            "config_groups": {"group_0": {
                "targets": ["Linear"],
                "input_activations": inputs,
                "output_activations": null,
                "weights": {
                    "num_bits": self.bits,
                    "type": "int",
                    "symmetric": !self.asymmetric,
                    "strategy": if group.is_some() { "group" } else { "channel" },
                    "group_size": group,
                    "dynamic": false,
                    "actorder": null,
                    "block_structure": null,
                    "observer": "minmax",
                    "observer_kwargs": {},
                },
            }},
        })
    }
}

/// Where compressed-tensors' list has the shape.
const SHAPE: usize = 2;
/// Where it has the zero points, which eight (or four) rows share a word of.
const ZEROS: usize = 3;

fn shape_bytes(rows: usize, cols: usize) -> Vec<u8> {
    let shape = [rows as i64, cols as i64];
    shape.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// Codes one after another in little-endian words, the last one filled up with zeros.
fn words(codes: &[u8], bits: usize, out: &mut Vec<u8>) {
    let mut rest = codes;
    if let (4, (eights, last)) = (bits, codes.as_chunks::<8>()) {
        let at = out.len();
        out.resize(at + eights.len() * 4, 0);
        let places = out[at..].as_chunks_mut::<4>().0.iter_mut();
        places
            .zip(eights)
            .for_each(|(out, eight)| *out = eight_nibbles(*eight));
        rest = last;
    }
    for codes in rest.chunks(32 / bits) {
        let word = codes.iter().rev();
        let word = word.fold(0u32, |word, code| word << bits | u32::from(*code));
        out.extend_from_slice(&word.to_le_bytes());
    }
}

/// Eight codes below 16, the first one lowest.
fn eight_nibbles(codes: [u8; 8]) -> [u8; 4] {
    let pairs = u64::from_le_bytes(codes);
    let bytes = (pairs | pairs >> 4) & 0x00ff_00ff_00ff_00ff;
    let halves = (bytes | bytes >> 8) & 0x0000_ffff_0000_ffff;
    ((halves | halves >> 16) as u32).to_le_bytes()
}

/// Floats as `dtype` stores them.
pub(crate) fn floats(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F16 => each(values, |v| f16::from_f32(v).to_le_bytes()),
        DType::BF16 => each(values, |v| bf16::from_f32(v).to_le_bytes()),
        _ => each(values, f32::to_le_bytes),
    }
}

fn each<const N: usize>(values: &[f32], bytes: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
    let mut out = vec![0; values.len() * N];
    let places = out.as_chunks_mut::<N>().0.iter_mut();
    places.zip(values).for_each(|(out, v)| *out = bytes(*v));
    out
}

/// `[groups, rows]` of a `[rows, groups]` list.
fn by_group<T: Copy>(q: &Quantized, values: &[T]) -> Vec<T> {
    let groups = q.groups();
    let at = |g| (0..q.rows).map(move |r| values[r * groups + g]);
    (0..groups).flat_map(at).collect()
}

/// Eight codes in a word, nibble `i` holding code `order[i]`.
fn nibbles(codes: &[u8], order: [usize; 8]) -> u32 {
    let nibble = |(i, from): (usize, usize)| u32::from(codes[from] & 15) << (4 * i);
    order
        .into_iter()
        .enumerate()
        .map(nibble)
        .fold(0, |a, b| a | b)
}

fn awq(q: &Quantized) -> Vec<Vec<u8>> {
    let mut weights = vec![0u8; q.rows * q.cols / 2];
    let words = q.rows / 8;
    for (word, rows) in q.codes.chunks_exact(8 * q.cols).enumerate() {
        for c in 0..q.cols {
            let codes: [u8; 8] = std::array::from_fn(|r| rows[r * q.cols + c]);
            let at = (c * words + word) * 4;
            weights[at..at + 4].copy_from_slice(&nibbles(&codes, AWQ_ORDER).to_le_bytes());
        }
    }
    let zeros = by_group(q, &q.zeros);
    let zeros = zeros
        .chunks_exact(8)
        .flat_map(|z| nibbles(z, AWQ_ORDER).to_le_bytes());
    let scales = by_group(q, &q.scales);
    vec![weights, zeros.collect(), floats(DType::F16, &scales)]
}

fn gptq(q: &Quantized) -> Vec<Vec<u8>> {
    const ORDER: [usize; 8] = [0, 1, 2, 3, 4, 5, 6, 7];
    let mut weights = vec![0u8; q.rows * q.cols / 2];
    for (r, row) in q.codes.chunks_exact(q.cols).enumerate() {
        for (word, codes) in row.chunks_exact(8).enumerate() {
            let at = (word * q.rows + r) * 4;
            weights[at..at + 4].copy_from_slice(&nibbles(codes, ORDER).to_le_bytes());
        }
    }
    let zeros: Vec<u8> = by_group(q, &q.zeros);
    let less_one: Vec<u8> = zeros.iter().map(|z| z.wrapping_sub(1) & 15).collect();
    let zeros = less_one
        .chunks_exact(8)
        .flat_map(|z| nibbles(z, ORDER).to_le_bytes());
    let scales = by_group(q, &q.scales);
    let groups = (0..q.cols).flat_map(|c| ((c / q.group) as i32).to_le_bytes());
    vec![
        weights,
        zeros.collect(),
        floats(DType::F16, &scales),
        groups.collect(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four rows of eight codes would do for most; sixteen by twelve shows every order.
    fn sample(rows: usize, cols: usize, group: usize, bits: u32) -> Quantized {
        let mut q = Quantized::empty(rows, cols, group, bits);
        let mask = ((1u32 << bits) - 1) as usize;
        for (i, code) in q.codes.iter_mut().enumerate() {
            *code = ((i * 7 + i / cols * 3) & mask) as u8;
        }
        for (i, (s, z)) in q.scales.iter_mut().zip(&mut q.zeros).enumerate() {
            *s = 0.25 + i as f32 * 0.5;
            *z = ((i * 5) & mask) as u8;
        }
        q
    }

    fn word(bytes: &[u8], i: usize) -> u32 {
        u32::from_le_bytes(bytes[4 * i..][..4].try_into().unwrap())
    }

    fn packer(format: Format, scheme: Scheme, asymmetric: bool) -> Packer {
        let mut recipe = Recipe::new(scheme);
        (recipe.format, recipe.asymmetric) = (format, asymmetric);
        Packer::new(&recipe, DType::BF16)
    }

    #[test]
    fn sizes_are_what_headers_promise() {
        for (format, scheme) in [
            (Format::CompressedTensors, Scheme::Int4Rtn),
            (Format::CompressedTensors, Scheme::Int8),
            (Format::CompressedTensors, Scheme::Int8A8),
            (Format::Awq, Scheme::Int4Awq),
            (Format::Gptq, Scheme::Int4Gptq),
        ] {
            for asymmetric in [false, true] {
                let packer = packer(format, scheme, asymmetric);
                let cols = if format == Format::CompressedTensors {
                    12
                } else {
                    24
                };
                let q = sample(16, cols, 4, scheme.bits());
                let tensors = packer.tensors("m", 16, cols, 4);
                let packed = packer.pack(&q);
                assert_eq!(tensors.len(), packed.len());
                for (tensor, bytes) in tensors.iter().zip(&packed) {
                    assert_eq!(tensor.bytes(), bytes.len(), "{}", tensor.name);
                }
            }
        }
    }

    #[test]
    fn rows_packed_apart_are_the_whole_matrix() {
        for (format, scheme, (rows, cols, group)) in [
            (Format::CompressedTensors, Scheme::Int4Rtn, (77, 12, 4)),
            (Format::CompressedTensors, Scheme::Int8, (45, 9, 3)),
            (Format::CompressedTensors, Scheme::Int8A8, (33, 6, 6)),
            (Format::Gguf, Scheme::Int4Rtn, (70, 64, 32)),
            (Format::Gguf, Scheme::Int8, (70, 64, 32)),
        ] {
            for asymmetric in [false, true] {
                let packer = packer(format, scheme, asymmetric);
                assert!(packer.keeps_rows_apart());
                let q = sample(rows, cols, group, scheme.bits());
                let whole = packer.pack(&q);
                let mut parts: Vec<Vec<u8>> = whole.iter().map(|b| vec![0xee; b.len()]).collect();
                for first in (0..rows).step_by(32) {
                    let (end, groups) = (rows.min(first + 32), q.groups());
                    let part = Quantized {
                        rows: end - first,
                        codes: q.codes[first * cols..end * cols].to_vec(),
                        scales: q.scales[first * groups..end * groups].to_vec(),
                        zeros: q.zeros[first * groups..end * groups].to_vec(),
                        ..q
                    };
                    let packed = packer.pack_rows(&part, first, rows);
                    for ((at, bytes), out) in packed.into_iter().zip(&mut parts) {
                        out[at..at + bytes.len()].copy_from_slice(&bytes);
                    }
                }
                assert_eq!(parts, whole);
            }
        }
        for format in [Format::Awq, Format::Gptq] {
            assert!(!packer(format, Scheme::Int4Rtn, true).keeps_rows_apart());
        }
    }

    #[test]
    fn every_code_is_where_the_layout_has_it() {
        let q = sample(16, 24, 4, 4);
        let code = |r: usize, c: usize| u32::from(q.codes[r * 24 + c]);
        let zero = |r: usize, g: usize| u32::from(q.zeros[r * 6 + g]);
        let packed = packer(Format::CompressedTensors, Scheme::Int4Rtn, true).pack(&q);
        let (awq, gptq) = (awq(&q), gptq(&q));
        for r in 0..16 {
            for c in 0..24 {
                assert_eq!(
                    word(&packed[0], r * 3 + c / 8) >> (c % 8 * 4) & 15,
                    code(r, c)
                );
                let nibble = AWQ_ORDER.iter().position(|o| *o == r % 8).unwrap();
                assert_eq!(
                    word(&awq[0], c * 2 + r / 8) >> (4 * nibble) & 15,
                    code(r, c)
                );
                assert_eq!(
                    word(&gptq[0], c / 8 * 16 + r) >> (c % 8 * 4) & 15,
                    code(r, c)
                );
            }
            for g in 0..6 {
                assert_eq!(
                    word(&packed[3], r / 8 * 6 + g) >> (r % 8 * 4) & 15,
                    zero(r, g)
                );
                let nibble = AWQ_ORDER.iter().position(|o| *o == r % 8).unwrap();
                assert_eq!(
                    word(&awq[1], g * 2 + r / 8) >> (4 * nibble) & 15,
                    zero(r, g)
                );
                let stored = word(&gptq[1], g * 2 + r / 8) >> (r % 8 * 4) & 15;
                assert_eq!((stored + 1) & 15, zero(r, g));
                let scale =
                    f16::from_le_bytes(gptq[2][(g * 16 + r) * 2..][..2].try_into().unwrap());
                assert_eq!(scale.to_f32(), q.scales[r * 6 + g]);
            }
        }
        assert_eq!(word(&gptq[3], 23), 5);
    }

    #[test]
    fn rows_that_fill_no_word_are_filled_up() {
        let q = sample(3, 12, 12, 4);
        let packed = packer(Format::CompressedTensors, Scheme::Int4Rtn, true).pack(&q);
        assert_eq!(packed[0].len(), 3 * 2 * 4);
        assert_eq!(word(&packed[0], 1) >> 16, 0);
        let q = sample(3, 5, 5, 8);
        let packed = packer(Format::CompressedTensors, Scheme::Int8, false).pack(&q);
        assert_eq!(word(&packed[0], 3), u32::from(q.codes[9]));
        let signed = packer(Format::CompressedTensors, Scheme::Int8A8, false).pack(&q);
        assert_eq!(signed[0][4] as i8, (i32::from(q.codes[4]) - 128) as i8);
    }
}

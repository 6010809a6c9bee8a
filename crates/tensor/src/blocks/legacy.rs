//! The formats of 32 values under one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
//!
//! In the 4- and 5-bit ones, byte `j` of `qs` holds value `j` in its low nibble and value `j + 16`
//! in its high one; bit `i` of `qh` is the fifth bit of value `i`.

use bytemuck::{Pod, Zeroable};

use super::{Block, EncodeBlock, assert_layout, half, to_half};
use crate::DType;

/// 32 values `d · (q - 8)`, q in 0..16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_0 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Nibbles.
    pub qs: [u8; 16],
}

/// 32 values `d · q + m`, q in 0..16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_1 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Minimum, f16.
    pub m: [u8; 2],
    /// Nibbles.
    pub qs: [u8; 16],
}

/// 32 values `d · (q - 16)`, q in 0..32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_0 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Fifth bits, u32.
    pub qh: [u8; 4],
    /// Low nibbles.
    pub qs: [u8; 16],
}

/// 32 values `d · q + m`, q in 0..32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_1 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Minimum, f16.
    pub m: [u8; 2],
    /// Fifth bits, u32.
    pub qh: [u8; 4],
    /// Low nibbles.
    pub qs: [u8; 16],
}

/// 32 values `d · q`, q in -128..128.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Values.
    pub qs: [i8; 32],
}

assert_layout!(BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0);

/// The 32 nibbles in value order.
fn nibbles(qs: &[u8; 16]) -> [u8; 32] {
    std::array::from_fn(|i| if i < 16 { qs[i] & 15 } else { qs[i - 16] >> 4 })
}

/// Nibbles in value order, with their fifth bits.
fn five_bits(qs: &[u8; 16], qh: [u8; 4]) -> [u8; 32] {
    let high = u32::from_le_bytes(qh);
    let low = nibbles(qs);
    std::array::from_fn(|i| low[i] | ((high >> i & 1) as u8) << 4)
}

/// The reverse of [`five_bits`]; four-bit codes leave the fifth bits zero.
fn pack(codes: &[u8; 32]) -> ([u8; 16], [u8; 4]) {
    let low = std::array::from_fn(|j| (codes[j] & 15) | (codes[j + 16] & 15) << 4);
    let high = (0..32).fold(0u32, |bits, i| bits | u32::from(codes[i] >> 4 & 1) << i);
    (low, high.to_le_bytes())
}

/// The value of greatest magnitude, the first of equals.
fn peak(values: &[f32]) -> f32 {
    values.iter().fold(
        0.0,
        |best: f32, &v| {
            if best.abs() < v.abs() { v } else { best }
        },
    )
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Codes of a format symmetric about `levels / 2`: the peak gets code 0, whatever its sign.
fn symmetric(values: &[f32], levels: u8) -> (f32, [u8; 32]) {
    let half_range = f32::from(levels / 2);
    let d = peak(values) / -half_range;
    let id = inverse(d);
    let codes =
        std::array::from_fn(|i| ((values[i] * id + half_range + 0.5) as u8).min(levels - 1));
    (d, codes)
}

/// Codes of a format that spreads `levels` steps from the least value to the greatest.
fn ranged(values: &[f32], levels: u8) -> (f32, f32, [u8; 32]) {
    let min = values.iter().copied().fold(f32::MAX, f32::min);
    let max = values.iter().copied().fold(f32::MIN, f32::max);
    let d = (max - min) / f32::from(levels - 1);
    let id = inverse(d);
    let codes = std::array::from_fn(|i| (((values[i] - min) * id + 0.5) as u8).min(levels - 1));
    (d, min, codes)
}

impl Block for BlockQ4_0 {
    const DTYPE: DType = DType::Q4_0;

    fn decode(&self, out: &mut [f32]) {
        let d = half(self.d);
        for (out, q) in out.iter_mut().zip(nibbles(&self.qs)) {
            *out = d * (f32::from(q) - 8.0);
        }
    }
}

impl EncodeBlock for BlockQ4_0 {
    fn encode(values: &[f32]) -> Self {
        let (d, codes) = symmetric(values, 16);
        BlockQ4_0 {
            d: to_half(d),
            qs: pack(&codes).0,
        }
    }
}

impl Block for BlockQ4_1 {
    const DTYPE: DType = DType::Q4_1;

    fn decode(&self, out: &mut [f32]) {
        let (d, m) = (half(self.d), half(self.m));
        for (out, q) in out.iter_mut().zip(nibbles(&self.qs)) {
            *out = d * f32::from(q) + m;
        }
    }
}

impl EncodeBlock for BlockQ4_1 {
    fn encode(values: &[f32]) -> Self {
        let (d, m, codes) = ranged(values, 16);
        BlockQ4_1 {
            d: to_half(d),
            m: to_half(m),
            qs: pack(&codes).0,
        }
    }
}

impl Block for BlockQ5_0 {
    const DTYPE: DType = DType::Q5_0;

    fn decode(&self, out: &mut [f32]) {
        let d = half(self.d);
        for (out, q) in out.iter_mut().zip(five_bits(&self.qs, self.qh)) {
            *out = d * (f32::from(q) - 16.0);
        }
    }
}

impl EncodeBlock for BlockQ5_0 {
    fn encode(values: &[f32]) -> Self {
        let (d, codes) = symmetric(values, 32);
        let (qs, qh) = pack(&codes);
        BlockQ5_0 {
            d: to_half(d),
            qh,
            qs,
        }
    }
}

impl Block for BlockQ5_1 {
    const DTYPE: DType = DType::Q5_1;

    fn decode(&self, out: &mut [f32]) {
        let (d, m) = (half(self.d), half(self.m));
        for (out, q) in out.iter_mut().zip(five_bits(&self.qs, self.qh)) {
            *out = d * f32::from(q) + m;
        }
    }
}

impl EncodeBlock for BlockQ5_1 {
    fn encode(values: &[f32]) -> Self {
        let (d, m, codes) = ranged(values, 32);
        let (qs, qh) = pack(&codes);
        BlockQ5_1 {
            d: to_half(d),
            m: to_half(m),
            qh,
            qs,
        }
    }
}

impl Block for BlockQ8_0 {
    const DTYPE: DType = DType::Q8_0;

    fn decode(&self, out: &mut [f32]) {
        let d = half(self.d);
        for (out, &q) in out.iter_mut().zip(&self.qs) {
            *out = f32::from(q) * d;
        }
    }
}

impl EncodeBlock for BlockQ8_0 {
    fn encode(values: &[f32]) -> Self {
        let d = peak(values).abs() / 127.0;
        let id = inverse(d);
        BlockQ8_0 {
            d: to_half(d),
            qs: std::array::from_fn(|i| (values[i] * id).round() as i8),
        }
    }
}

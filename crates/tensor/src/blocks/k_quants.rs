//! The K formats: 256 values in 8 or 16 groups, each group's scale itself quantized.
//!
//! Value `i` of the formats with 2-bit planes (Q2_K, Q3_K, high bits of Q6_K) lies in half
//! `h = i / 128`, plane `p = i / 32 % 4`, column `l = i % 32`: bits `2p, 2p + 1` of byte
//! `32 h + l`.

use bytemuck::{Pod, Zeroable};

use super::{Block, assert_layout, half};
use crate::DType;

/// 256 values `d · (scale & 15) · q - dmin · (scale >> 4)`, q in 0..4, 16 groups of 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ2K {
    /// Per group: scale in the low nibble, minimum in the high one.
    pub scales: [u8; 16],
    /// Four 2-bit planes of two halves.
    pub qs: [u8; 64],
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// Scale of the minima, f16.
    pub dmin: [u8; 2],
}

/// 256 values `d · scale · q`, q in -4..4, 16 groups of 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ3K {
    /// Third bits: bit `i / 32` of byte `i % 32`; *clear* takes 4 off.
    pub hmask: [u8; 32],
    /// Low two bits: four planes of two halves.
    pub qs: [u8; 64],
    /// 16 scales of 6 bits; see [`q3k_scales`].
    pub scales: [u8; 12],
    /// Scale of the scales, f16.
    pub d: [u8; 2],
}

/// 256 values `d · scale · q - dmin · min`, q in 0..16, 8 groups of 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4K {
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// Scale of the minima, f16.
    pub dmin: [u8; 2],
    /// 8 scales and 8 minima of 6 bits; see [`q4k_scales`].
    pub scales: [u8; 12],
    /// Byte `32 j + l`: value `64 j + l` low, value `64 j + 32 + l` high.
    pub qs: [u8; 128],
}

/// 256 values `d · scale · q - dmin · min`, q in 0..32, 8 groups of 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5K {
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// Scale of the minima, f16.
    pub dmin: [u8; 2],
    /// 8 scales and 8 minima of 6 bits; see [`q4k_scales`].
    pub scales: [u8; 12],
    /// Fifth bits: bit `i / 32` of byte `i % 32`.
    pub qh: [u8; 32],
    /// Low nibbles, as in [`BlockQ4K`].
    pub qs: [u8; 128],
}

/// 256 values `d · scale · (q - 32)`, q in 0..64, 16 groups of 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ6K {
    /// Low nibbles: byte `64 h + l` (l in 0..64) of half `h`: value `128 h + l` low, value
    /// `128 h + 64 + l` high.
    pub ql: [u8; 128],
    /// High two bits: four planes of two halves.
    pub qh: [u8; 64],
    /// Scales of the groups.
    pub scales: [i8; 16],
    /// Scale of the scales, f16.
    pub d: [u8; 2],
}

assert_layout!(BlockQ2K, BlockQ3K, BlockQ4K, BlockQ5K, BlockQ6K);

/// The 8 scales and 8 minima of Q4_K and Q5_K, in group order, each in 0..64.
///
/// The first four of each lie in the low six bits of bytes 0..4 and 4..8; of the last four, the
/// low nibbles are in bytes 8..12 and the top two bits in the spare bits of bytes 0..8.
#[inline(always)]
pub fn q4k_scales(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let mut scales = [0; 8];
    let mut mins = [0; 8];
    for j in 0..4 {
        scales[j] = packed[j] & 63;
        mins[j] = packed[j + 4] & 63;
        scales[j + 4] = (packed[j + 8] & 15) | (packed[j] >> 6) << 4;
        mins[j + 4] = (packed[j + 8] >> 4) | (packed[j + 4] >> 6) << 4;
    }
    (scales, mins)
}

/// The 16 scales of Q3_K, in group order, each in -32..32.
///
/// Low nibbles: groups 0..8 in the low halves of bytes 0..8, groups 8..16 in the high halves. Top
/// two bits: group `g` in bits `2 (g / 4)` of byte `8 + g % 4`.
#[inline(always)]
pub fn q3k_scales(packed: &[u8; 12]) -> [i8; 16] {
    std::array::from_fn(|g| {
        let low = packed[g % 8] >> (4 * (g / 8)) & 15;
        let high = packed[8 + g % 4] >> (2 * (g / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// Two bits of value `i`, from four planes of two halves.
#[inline(always)]
fn plane(planes: &[u8; 64], i: usize) -> u8 {
    planes[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3
}

/// Nibble of value `i` in the order of Q4_K and Q5_K.
#[inline(always)]
fn nibble(qs: &[u8; 128], i: usize) -> u8 {
    qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15
}

impl Block for BlockQ2K {
    const DTYPE: DType = DType::Q2K;

    fn decode(&self, out: &mut [f32]) {
        let (d, dmin) = (half(self.d), half(self.dmin));
        for (i, out) in out.iter_mut().enumerate() {
            let group = self.scales[i / 16];
            let (scale, min) = (d * f32::from(group & 15), dmin * f32::from(group >> 4));
            *out = scale * f32::from(plane(&self.qs, i)) - min;
        }
    }
}

impl Block for BlockQ3K {
    const DTYPE: DType = DType::Q3K;

    fn decode(&self, out: &mut [f32]) {
        let d = half(self.d);
        let scales = q3k_scales(&self.scales);
        for (i, out) in out.iter_mut().enumerate() {
            let high = self.hmask[i % 32] >> (i / 32) & 1;
            let q = plane(&self.qs, i) as i8 - if high == 1 { 0 } else { 4 };
            *out = d * f32::from(scales[i / 16]) * f32::from(q);
        }
    }
}

impl Block for BlockQ4K {
    const DTYPE: DType = DType::Q4K;

    fn decode(&self, out: &mut [f32]) {
        let (d, dmin) = (half(self.d), half(self.dmin));
        let (scales, mins) = q4k_scales(&self.scales);
        for (i, out) in out.iter_mut().enumerate() {
            let scale = d * f32::from(scales[i / 32]);
            let min = dmin * f32::from(mins[i / 32]);
            *out = scale * f32::from(nibble(&self.qs, i)) - min;
        }
    }
}

impl Block for BlockQ5K {
    const DTYPE: DType = DType::Q5K;

    fn decode(&self, out: &mut [f32]) {
        let (d, dmin) = (half(self.d), half(self.dmin));
        let (scales, mins) = q4k_scales(&self.scales);
        for (i, out) in out.iter_mut().enumerate() {
            let scale = d * f32::from(scales[i / 32]);
            let min = dmin * f32::from(mins[i / 32]);
            let high = self.qh[i % 32] >> (i / 32) & 1;
            *out = scale * f32::from(nibble(&self.qs, i) | high << 4) - min;
        }
    }
}

impl Block for BlockQ6K {
    const DTYPE: DType = DType::Q6K;

    fn decode(&self, out: &mut [f32]) {
        let d = half(self.d);
        for (i, out) in out.iter_mut().enumerate() {
            let low = self.ql[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;
            let q = (low | plane(&self.qh, i) << 4) as i8 - 32;
            *out = d * f32::from(self.scales[i / 16]) * f32::from(q);
        }
    }
}

//! The formats whose 4-bit codes index a table: IQ4_NL and MXFP4.
//!
//! Nibbles lie as in the legacy formats: byte `j` holds value `j` low and value `j + 16` high.

use bytemuck::{Pod, Zeroable};

use super::{Block, assert_layout, half};
use crate::DType;

/// Values of IQ4_NL's codes, in units of the scale.
pub const IQ4NL_VALUES: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// Twice the values of the E2M1 codes (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives); the
/// other half of the product is in [`e8m0_half`]. Code 8, minus zero, counts as zero.
pub const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// 32 values `d · IQ4NL_VALUES[q]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ4NL {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Nibbles.
    pub qs: [u8; 16],
}

/// 32 values `2^(e - 128) · E2M1_DOUBLED[q]` (OCP microscaling).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockMXFP4 {
    /// Exponent, E8M0.
    pub e: u8,
    /// Nibbles.
    pub qs: [u8; 16],
}

assert_layout!(BlockIQ4NL, BlockMXFP4);

/// `2^(e - 128)`: half of an E8M0 scale, exact down to the subnormals.
#[inline(always)]
pub const fn e8m0_half(e: u8) -> f32 {
    f32::from_bits(if e < 2 {
        0x0020_0000 << e
    } else {
        (e as u32 - 1) << 23
    })
}

fn look_up(qs: &[u8; 16], table: &[i8; 16], scale: f32, out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        let code = qs[i % 16] >> (i / 16 * 4) & 15;
        *out = scale * f32::from(table[usize::from(code)]);
    }
}

impl Block for BlockIQ4NL {
    const DTYPE: DType = DType::IQ4NL;

    fn decode(&self, out: &mut [f32]) {
        look_up(&self.qs, &IQ4NL_VALUES, half(self.d), out);
    }
}

impl Block for BlockMXFP4 {
    const DTYPE: DType = DType::MXFP4;

    fn decode(&self, out: &mut [f32]) {
        look_up(&self.qs, &E2M1_DOUBLED, e8m0_half(self.e), out);
    }
}

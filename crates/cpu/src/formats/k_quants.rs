//! GGUF's K-quants: super-blocks of 256 values whose blocks have small integer scales.
//!
//! A unit is the rows' `d` (and `dmin`), then eight blocks of 32 columns, each its scale bytes
//! followed by its code planes.

use super::QuantFormat;
use super::planes::{get, plane_bytes, put};
use crate::simd::{LANES, Simd};

/// Bytes of sixteen half-precision values.
const HALVES: usize = 2 * LANES;

fn put_half(source: &[u8], from: usize, unit: &mut [u8], at: usize, row: usize) {
    unit[at + 2 * row..][..2].copy_from_slice(&source[from..from + 2]);
}

/// Scale and min of sub-block `j` of Q4_K and Q5_K: six bits each in twelve bytes.
fn six_bit_pair(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (
            (packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4),
            (packed[j + 4] >> 4) | (packed[j] >> 6 << 4),
        )
    }
}

/// Scale of sub-block `j` of Q3_K, counted from 32: six bits in twelve bytes.
fn six_bit_scale(packed: &[u8], j: usize) -> i8 {
    let low = if j < 8 {
        packed[j] & 15
    } else {
        packed[j - 8] >> 4
    };
    let high = (packed[8 + j % 4] >> (2 * (j / 4))) & 3;
    (low | high << 4) as i8 - 32
}

/// Two bits of value `i` of Q2_K and Q3_K.
fn two_bits(quants: &[u8], i: usize) -> u8 {
    (quants[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3
}

/// Four bits of value `i` of Q4_K and Q5_K.
fn four_bits(quants: &[u8], i: usize) -> u8 {
    (quants[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4)) & 15
}

/// The vector of sixteen half-precision `d`, times a vector of integers.
///
/// # Safety
/// `halves` is readable for 32 bytes.
#[inline(always)]
unsafe fn times_half<S: Simd>(s: S, halves: *const u8, factor: S::I) -> S::F {
    // SAFETY: by contract.
    let d = unsafe { s.load_f16(halves.cast()) };
    s.mul(d, s.to_float(factor))
}

/// Q4_K and Q5_K: `d · sc · q - dmin · mn`, scales and minima in bytes.
macro_rules! with_minima {
    (
        $(#[$doc:meta])* $name:ident, source: $source:literal, bits: 4 + $high:literal,
        code: |$src:ident, $i:ident| $code:expr
    ) => {
        $(#[$doc])*
        pub(crate) enum $name {}

        impl $name {
            const BLOCK_BYTES: usize = 2 * LANES + plane_bytes(4, $high);
        }

        impl QuantFormat for $name {
            const SOURCE_BYTES: usize = $source;
            const BLOCKS: usize = 8;
            const UNIT_BYTES: usize = 2 * HALVES + 8 * Self::BLOCK_BYTES;
            const SUBS: usize = 1;
            const OFFSET_LOG2: Option<u32> = None;
            const WIDE: bool = false;
            const HAS_MIN: bool = true;

            #[inline(always)]
            fn pack($src: &[u8], row: usize, unit: &mut [u8]) {
                put_half($src, 0, unit, 0, row);
                put_half($src, 2, unit, HALVES, row);
                for (b, block) in unit[2 * HALVES..].chunks_exact_mut(Self::BLOCK_BYTES).enumerate() {
                    (block[row], block[LANES + row]) = six_bit_pair(&$src[4..16], b);
                    for i in 0..32 {
                        let $i = 32 * b + i;
                        put::<4, $high>(&mut block[2 * LANES..], row, i, $code);
                    }
                }
            }
            #[inline(always)]
            unsafe fn scale<S: Simd>(s: S, unit: *const u8, block: usize, _sub: usize) -> S::F {
                // SAFETY: `block < 8` lies within the unit.
                unsafe {
                    let sc = s.load_u8(unit.add(2 * HALVES + block * Self::BLOCK_BYTES));
                    times_half(s, unit, sc)
                }
            }
            #[inline(always)]
            unsafe fn min<S: Simd>(s: S, unit: *const u8, block: usize, _sub: usize) -> S::F {
                // SAFETY: `block < 8` lies within the unit.
                unsafe {
                    let at = 2 * HALVES + block * Self::BLOCK_BYTES + LANES;
                    let mn = s.load_u8(unit.add(at));
                    s.sub(s.splat(0.0), times_half(s, unit.add(HALVES), mn))
                }
            }
            #[inline(always)]
            unsafe fn codes<S: Simd, const GROUP: usize>(
                s: S,
                unit: *const u8,
                block: usize,
            ) -> S::I {
                // SAFETY: `block < 8` lies within the unit.
                unsafe {
                    let at = 2 * HALVES + block * Self::BLOCK_BYTES + 2 * LANES;
                    get::<S, 4, $high, GROUP>(s, unit.add(at))
                }
            }
        }
    };
}

with_minima! {
    /// `d · sc · q - dmin · mn`, four bits.
    Q4K, source: 144, bits: 4 + 0, code: |src, i| four_bits(&src[16..], i)
}
with_minima! {
    /// `d · sc · q - dmin · mn`, five bits.
    Q5K, source: 176, bits: 4 + 1,
    code: |src, i| four_bits(&src[48..], i) | ((src[16 + i % 32] >> (i / 32)) & 1) << 4
}

/// Q3_K and Q6_K: `d · sc · (q - offset)`, a signed scale byte for each sixteen values.
macro_rules! with_signed_scales {
    (
        $(#[$doc:meta])* $name:ident, source: $source:literal,
        bits: $low:literal + $high:literal, offset: $offset:literal, d_at: $d_at:literal,
        scale: |$ssrc:ident, $j:ident| $scale:expr, code: |$src:ident, $i:ident| $code:expr
    ) => {
        $(#[$doc])*
        pub(crate) enum $name {}

        impl $name {
            const BLOCK_BYTES: usize = 2 * LANES + plane_bytes($low, $high);
        }

        impl QuantFormat for $name {
            const SOURCE_BYTES: usize = $source;
            const BLOCKS: usize = 8;
            const UNIT_BYTES: usize = HALVES + 8 * Self::BLOCK_BYTES;
            const SUBS: usize = 2;
            const OFFSET_LOG2: Option<u32> = Some($offset);
            const WIDE: bool = false;
            const HAS_MIN: bool = false;

            #[inline(always)]
            fn pack($src: &[u8], row: usize, unit: &mut [u8]) {
                put_half($src, $d_at, unit, 0, row);
                for (b, block) in unit[HALVES..].chunks_exact_mut(Self::BLOCK_BYTES).enumerate() {
                    for sub in 0..2 {
                        let ($ssrc, $j) = ($src, 2 * b + sub);
                        let scale: i8 = $scale;
                        block[sub * LANES + row] = scale as u8;
                    }
                    for i in 0..32 {
                        let $i = 32 * b + i;
                        put::<$low, $high>(&mut block[2 * LANES..], row, i, $code);
                    }
                }
            }
            #[inline(always)]
            unsafe fn scale<S: Simd>(s: S, unit: *const u8, block: usize, sub: usize) -> S::F {
                // SAFETY: `block < 8` and `sub < 2` lie within the unit.
                unsafe {
                    let at = HALVES + block * Self::BLOCK_BYTES + sub * LANES;
                    times_half(s, unit, s.load_i8(unit.add(at).cast()))
                }
            }
            #[inline(always)]
            unsafe fn min<S: Simd>(s: S, _unit: *const u8, _block: usize, _sub: usize) -> S::F {
                s.splat(0.0)
            }
            #[inline(always)]
            unsafe fn codes<S: Simd, const GROUP: usize>(
                s: S,
                unit: *const u8,
                block: usize,
            ) -> S::I {
                // SAFETY: `block < 8` lies within the unit.
                unsafe {
                    let at = HALVES + block * Self::BLOCK_BYTES + 2 * LANES;
                    get::<S, $low, $high, GROUP>(s, unit.add(at))
                }
            }
        }
    };
}

with_signed_scales! {
    /// `d · (sc - 32) · (q - 4)`, three bits.
    Q3K, source: 110, bits: 2 + 1, offset: 2, d_at: 108,
    scale: |src, j| six_bit_scale(&src[96..108], j),
    code: |src, i| two_bits(&src[32..96], i) | ((src[i % 32] >> (i / 32)) & 1) << 2
}

/// The six bits of value `i` of Q6_K: four in `ql`, two in `qh`.
fn six_bits(src: &[u8], i: usize) -> u8 {
    let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
    let low = src[64 * half + 32 * (quarter % 2) + l] >> (4 * (quarter / 2));
    let high = src[128 + 32 * half + l] >> (2 * quarter);
    (low & 15) | (high & 3) << 4
}

with_signed_scales! {
    /// `d · sc · (q - 32)`, six bits.
    Q6K, source: 210, bits: 4 + 2, offset: 5, d_at: 208,
    scale: |src, j| src[192 + j] as i8, code: |src, i| six_bits(src, i)
}

/// `d · sc · q - dmin · mn`, two bits; scale and min are the halves of a byte for each sixteen
/// values.
pub(crate) enum Q2K {}

impl Q2K {
    const BLOCK_BYTES: usize = 2 * LANES + plane_bytes(2, 0);
}

impl QuantFormat for Q2K {
    const SOURCE_BYTES: usize = 84;
    const BLOCKS: usize = 8;
    const UNIT_BYTES: usize = 2 * HALVES + 8 * Self::BLOCK_BYTES;
    const SUBS: usize = 2;
    const OFFSET_LOG2: Option<u32> = None;
    const WIDE: bool = false;
    const HAS_MIN: bool = true;

    #[inline(always)]
    fn pack(src: &[u8], row: usize, unit: &mut [u8]) {
        put_half(src, 80, unit, 0, row);
        put_half(src, 82, unit, HALVES, row);
        for (b, block) in unit[2 * HALVES..]
            .chunks_exact_mut(Self::BLOCK_BYTES)
            .enumerate()
        {
            block[row] = src[2 * b];
            block[LANES + row] = src[2 * b + 1];
            for i in 0..32 {
                let code = two_bits(&src[16..80], 32 * b + i);
                put::<2, 0>(&mut block[2 * LANES..], row, i, code);
            }
        }
    }
    #[inline(always)]
    unsafe fn scale<S: Simd>(s: S, unit: *const u8, block: usize, sub: usize) -> S::F {
        // SAFETY: `block < 8` and `sub < 2` lie within the unit.
        unsafe {
            let at = 2 * HALVES + block * Self::BLOCK_BYTES + sub * LANES;
            let sc = s.and(s.load_u8(unit.add(at)), s.splat_int(15));
            times_half(s, unit, sc)
        }
    }
    #[inline(always)]
    unsafe fn min<S: Simd>(s: S, unit: *const u8, block: usize, sub: usize) -> S::F {
        // SAFETY: `block < 8` and `sub < 2` lie within the unit.
        unsafe {
            let at = 2 * HALVES + block * Self::BLOCK_BYTES + sub * LANES;
            let mn = s.shr(s.load_u8(unit.add(at)), 4);
            s.sub(s.splat(0.0), times_half(s, unit.add(HALVES), mn))
        }
    }
    #[inline(always)]
    unsafe fn codes<S: Simd, const GROUP: usize>(s: S, unit: *const u8, block: usize) -> S::I {
        // SAFETY: `block < 8` lies within the unit.
        unsafe {
            let at = 2 * HALVES + block * Self::BLOCK_BYTES + 2 * LANES;
            get::<S, 2, 0, GROUP>(s, unit.add(at))
        }
    }
}

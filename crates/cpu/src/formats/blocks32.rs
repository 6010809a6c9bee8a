//! GGUF's formats of 32-value blocks: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4.
//!
//! A unit is the rows' scales, their minima where there are any, then the code planes.

use super::QuantFormat;
use super::planes::{get, plane_bytes, put};
use crate::simd::{LANES, Simd};

/// Bytes of sixteen half-precision scales.
const HALVES: usize = 2 * LANES;

/// Copies a row's half from a source block into the unit's vector of halves at `at`.
fn put_half(source: &[u8], from: usize, unit: &mut [u8], at: usize, row: usize) {
    unit[at + 2 * row..][..2].copy_from_slice(&source[from..from + 2]);
}

/// The 32 nibbles of a GGUF block in the order of their values: low ones, then high ones.
fn nibble(quants: &[u8], i: usize) -> u8 {
    (quants[i % 16] >> (i / 16 * 4)) & 15
}

/// Bit `i` of a block's 32 fifth bits.
fn fifth_bit(bits: &[u8], i: usize) -> u8 {
    (bits[i / 8] >> (i % 8)) & 1
}

/// Emits a format: constants, how a source block is taken apart, and where vectors lie.
macro_rules! block_format {
    (
        $(#[$doc:meta])* $name:ident,
        source: $source:literal, bits: $low:literal + $high:literal, offset: $offset:expr,
        wide: $wide:literal, has_min: $has_min:literal,
        header: $header:expr, scale: $scale:expr, lookup: $lookup:expr,
        pack: |$src:ident, $row:ident, $unit:ident, $i:ident| $pack_header:block, $code:expr
    ) => {
        $(#[$doc])*
        pub(crate) enum $name {}

        impl QuantFormat for $name {
            const SOURCE_BYTES: usize = $source;
            const BLOCKS: usize = 1;
            const UNIT_BYTES: usize = $header + plane_bytes($low, $high);
            const SUBS: usize = 1;
            const OFFSET_LOG2: Option<u32> = $offset;
            const WIDE: bool = $wide;
            const HAS_MIN: bool = $has_min;

            #[inline(always)]
            fn pack($src: &[u8], $row: usize, $unit: &mut [u8]) {
                $pack_header
                for $i in 0..32 {
                    put::<$low, $high>(&mut $unit[$header..], $row, $i, $code);
                }
            }
            #[inline(always)]
            unsafe fn scale<S: Simd>(s: S, unit: *const u8, _block: usize, _sub: usize) -> S::F {
                let scale: unsafe fn(S, *const u8) -> S::F = $scale;
                // SAFETY: every unit begins with its scales.
                unsafe { scale(s, unit) }
            }
            #[inline(always)]
            unsafe fn min<S: Simd>(s: S, unit: *const u8, _block: usize, _sub: usize) -> S::F {
                if !$has_min {
                    return s.splat(0.0);
                }
                // SAFETY: the minima follow the scales.
                unsafe { s.load_f16(unit.add(HALVES).cast()) }
            }
            #[inline(always)]
            unsafe fn codes<S: Simd, const GROUP: usize>(
                s: S,
                unit: *const u8,
                _block: usize,
            ) -> S::I {
                // SAFETY: the planes follow the header.
                let codes = unsafe { get::<S, $low, $high, GROUP>(s, unit.add($header)) };
                let table: Option<&[u8; 16]> = $lookup;
                match table {
                    Some(table) => s.lookup(table, codes),
                    None => codes,
                }
            }
        }
    };
}

/// # Safety
/// `unit` is readable for 32 bytes.
#[inline(always)]
unsafe fn half_scales<S: Simd>(s: S, unit: *const u8) -> S::F {
    // SAFETY: by contract.
    unsafe { s.load_f16(unit.cast()) }
}

/// Half of `2^(e - 127)`, for codes that count halves; `e` below 2 gives subnormals.
///
/// # Safety
/// `unit` is readable for 16 bytes.
#[inline(always)]
unsafe fn half_powers<S: Simd>(s: S, unit: *const u8) -> S::F {
    // SAFETY: by contract.
    let e = unsafe { s.load_u8(unit) };
    // 2^(e - 128) as a product of two powers that are both normal, so that it rounds to the
    // right subnormal where it is one.
    let sum = s.add_int(e, s.splat_int(126));
    let half = s.shr(sum, 1);
    let up = s.bits_to_float(s.shl(half, 23));
    let down = s.bits_to_float(s.shl(s.sub_int(sum, half), 23));
    s.mul(up, down)
}

block_format! {
    /// `d · (q - 8)`.
    Q4_0,
    source: 18, bits: 4 + 0, offset: Some(3), wide: false, has_min: false,
    header: HALVES, scale: half_scales, lookup: None,
    pack: |src, row, unit, i| { put_half(src, 0, unit, 0, row); }, nibble(&src[2..], i)
}
block_format! {
    /// `d · q + m`.
    Q4_1,
    source: 20, bits: 4 + 0, offset: None, wide: false, has_min: true,
    header: 2 * HALVES, scale: half_scales, lookup: None,
    pack: |src, row, unit, i| {
        put_half(src, 0, unit, 0, row);
        put_half(src, 2, unit, HALVES, row);
    }, nibble(&src[4..], i)
}
block_format! {
    /// `d · (q - 16)`.
    Q5_0,
    source: 22, bits: 4 + 1, offset: Some(4), wide: false, has_min: false,
    header: HALVES, scale: half_scales, lookup: None,
    pack: |src, row, unit, i| { put_half(src, 0, unit, 0, row); },
    nibble(&src[6..], i) | fifth_bit(&src[2..], i) << 4
}
block_format! {
    /// `d · q + m`.
    Q5_1,
    source: 24, bits: 4 + 1, offset: None, wide: false, has_min: true,
    header: 2 * HALVES, scale: half_scales, lookup: None,
    pack: |src, row, unit, i| {
        put_half(src, 0, unit, 0, row);
        put_half(src, 2, unit, HALVES, row);
    }, nibble(&src[8..], i) | fifth_bit(&src[4..], i) << 4
}
block_format! {
    /// `d · q`, resident as `d · (q' - 128)`.
    Q8_0,
    source: 34, bits: 8 + 0, offset: Some(7), wide: true, has_min: false,
    header: HALVES, scale: half_scales, lookup: None,
    pack: |src, row, unit, i| { put_half(src, 0, unit, 0, row); }, src[2 + i] ^ 0x80
}

/// IQ4_NL's sixteen levels, counted from -128.
const IQ4_NL_LEVELS: [u8; 16] = {
    let levels: [i16; 16] = [
        -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
    ];
    let mut out = [0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = (levels[i] + 128) as u8;
        i += 1;
    }
    out
};

block_format! {
    /// `d · level[q]`.
    Iq4Nl,
    source: 18, bits: 4 + 0, offset: Some(7), wide: true, has_min: false,
    header: HALVES, scale: half_scales, lookup: Some(&IQ4_NL_LEVELS),
    pack: |src, row, unit, i| { put_half(src, 0, unit, 0, row); }, nibble(&src[2..], i)
}

/// Twice the sixteen E2M1 values, counted from -16.
const E2M1_DOUBLES: [u8; 16] = [16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4];

block_format! {
    /// `2^(e - 127) · e2m1[q]`, as halves times doubles.
    Mxfp4,
    source: 17, bits: 4 + 0, offset: Some(4), wide: false, has_min: false,
    header: LANES, scale: half_powers, lookup: Some(&E2M1_DOUBLES),
    pack: |src, row, unit, i| { unit[row] = src[0]; }, nibble(&src[1..], i)
}

//! Codes of two to eight bits in planes: how 32 columns of sixteen rows share bytes.
//!
//! The codes of a block are eight groups of 64 bytes, one byte a code. Narrow codes are split into
//! a low plane of `LOW` bits and a high plane of `HIGH`, and groups share the planes' vectors:
//!
//! ```text
//! 8 bits: vector g          holds group g
//! 4 bits: vector g % 4      holds group g in bits 4·(g / 4) of each byte
//! 2 bits: vector g % 2      holds group g in bits 2·(g / 2)
//! 1 bit : the one vector    holds group g in bit g
//! ```
//!
//! so that a group comes out by one shift and one mask.

use crate::simd::{LANES, Simd};

/// Codes in a block: 32 columns of sixteen rows.
const CODES: usize = 512;
/// Bytes of a group.
const GROUP_BYTES: usize = 4 * LANES;

/// Bytes of a block's codes.
pub(crate) const fn plane_bytes(low: usize, high: usize) -> usize {
    CODES * (low + high) / 8
}

/// Which vector of a plane of `bits` holds a group, and from which bit.
const fn place(bits: usize, group: usize) -> (usize, usize) {
    let vectors = bits; // 8 groups of 8 bits in `bits` vectors
    (group % vectors, group / vectors * bits)
}

/// Puts one code of `LOW + HIGH` bits into zeroed planes.
#[inline(always)]
pub(crate) fn put<const LOW: usize, const HIGH: usize>(
    planes: &mut [u8],
    row: usize,
    col: usize,
    code: u8,
) {
    let within = 4 * row + col % 4;
    let (vector, shift) = place(LOW, col / 4);
    let low = (u32::from(code) & ((1 << LOW) - 1)) as u8;
    planes[vector * GROUP_BYTES + within] |= low << shift;
    if HIGH > 0 {
        let (vector, shift) = place(HIGH, col / 4);
        let at = plane_bytes(LOW, 0) + vector * GROUP_BYTES + within;
        planes[at] |= (code >> LOW) << shift;
    }
}

/// The codes of a group.
///
/// # Safety
/// `planes` is readable for `plane_bytes(LOW, HIGH)`.
#[inline(always)]
pub(crate) unsafe fn get<S: Simd, const LOW: usize, const HIGH: usize, const GROUP: usize>(
    s: S,
    planes: *const u8,
) -> S::I {
    // SAFETY: `place` stays within the planes.
    unsafe {
        let low = field::<S, LOW>(s, planes, GROUP);
        if HIGH == 0 {
            return low;
        }
        let high = field::<S, HIGH>(s, planes.add(plane_bytes(LOW, 0)), GROUP);
        s.or(low, s.shl(high, LOW as u32))
    }
}

/// # Safety
/// As for [`get`].
#[inline(always)]
unsafe fn field<S: Simd, const BITS: usize>(s: S, plane: *const u8, group: usize) -> S::I {
    let (vector, shift) = place(BITS, group);
    // SAFETY: a plane of `BITS` bits has `BITS` vectors.
    let bytes = unsafe { s.load_bytes(plane.add(vector * GROUP_BYTES)) };
    if BITS == 8 {
        return bytes;
    }
    let mask = ((1u32 << BITS) - 1) * 0x0101_0101;
    s.and(s.shr(bytes, shift as u32), s.splat_int(mask as i32))
}

//! Plain float weights: F32, F16, BF16 and FP8 E4M3 panels, column by column.

use super::{Decode, Panel};
use crate::simd::{LANES, Simd};

/// `[cols][16]` f32.
pub(crate) enum F32 {}
/// `[cols][16]` halves.
pub(crate) enum F16 {}
/// `[ceil(cols / 2)][16][2]`: pairs of columns, as BF16 dot products read them.
pub(crate) enum Bf16 {}
/// `[cols][16]` E4M3 codes, with scale vectors beside them.
pub(crate) enum F8E4M3 {}

impl Decode for F32 {
    const IS_F32: bool = true;
    const COLUMNS: bool = true;

    #[inline(always)]
    unsafe fn column<S: Simd>(s: S, panel: Panel, k: usize) -> S::F {
        // SAFETY: a column below `cols` lies within the panel.
        unsafe { s.load(panel.bytes.cast::<f32>().add(k * LANES)) }
    }

    #[inline(always)]
    unsafe fn decode<S: Simd>(s: S, panel: Panel, from: usize, to: usize, out: *mut f32) {
        for k in from..to {
            // SAFETY: columns below `cols` lie within the panel; `out` has room for each.
            unsafe {
                let v = s.load(panel.bytes.cast::<f32>().add(k * LANES));
                s.store(out.add((k - from) * LANES), v);
            }
        }
    }
}

impl Decode for F16 {
    const COLUMNS: bool = true;

    #[inline(always)]
    unsafe fn column<S: Simd>(s: S, panel: Panel, k: usize) -> S::F {
        // SAFETY: a column below `cols` lies within the panel.
        unsafe { s.load_f16(panel.bytes.cast::<u16>().add(k * LANES)) }
    }

    #[inline(always)]
    unsafe fn decode<S: Simd>(s: S, panel: Panel, from: usize, to: usize, out: *mut f32) {
        for k in from..to {
            // SAFETY: as above.
            unsafe {
                let v = s.load_f16(panel.bytes.cast::<u16>().add(k * LANES));
                s.store(out.add((k - from) * LANES), v);
            }
        }
    }
}

impl Decode for Bf16 {
    const COLUMNS: bool = true;

    #[inline(always)]
    unsafe fn column<S: Simd>(s: S, panel: Panel, k: usize) -> S::F {
        // SAFETY: a column below `cols` lies within the panel, and so does its pair.
        let pair = unsafe { s.load_bytes(panel.bytes.add(k / 2 * LANES * 4)) };
        s.bits_to_float(if k.is_multiple_of(2) {
            s.shl(pair, 16)
        } else {
            s.and(pair, s.splat_int(!0xffff))
        })
    }

    #[inline(always)]
    unsafe fn decode<S: Simd>(s: S, panel: Panel, from: usize, to: usize, out: *mut f32) {
        let high = s.splat_int(!0xffff);
        for k in (from..to).step_by(2) {
            // SAFETY: `from` is even and a pair is always whole in the panel; the odd last
            // column's partner is not written.
            unsafe {
                let pair = s.load_bytes(panel.bytes.add(k * LANES * 2));
                let out = out.add((k - from) * LANES);
                s.store(out, s.bits_to_float(s.shl(pair, 16)));
                if k + 1 < to {
                    s.store(out.add(LANES), s.bits_to_float(s.and(pair, high)));
                }
            }
        }
    }
}

impl Decode for F8E4M3 {
    const COLUMNS: bool = true;

    #[inline(always)]
    unsafe fn column<S: Simd>(s: S, panel: Panel, k: usize) -> S::F {
        // SAFETY: a column below `cols` lies within the panel.
        unsafe { e4m3_to_f32(s, panel.bytes.add(k * LANES)) }
    }

    #[inline(always)]
    unsafe fn column_scale<S: Simd>(s: S, panel: Panel, k: usize) -> (Option<S::F>, usize) {
        let tile = k / panel.tile_cols;
        // SAFETY: the panel has a vector of scales for each tile of columns.
        let scale = unsafe { s.load(panel.scales.add(tile * LANES)) };
        (Some(scale), ((tile + 1) * panel.tile_cols).min(panel.cols))
    }

    #[inline(always)]
    unsafe fn decode<S: Simd>(s: S, panel: Panel, from: usize, to: usize, out: *mut f32) {
        let mut k = from;
        while k < to {
            let tile = k / panel.tile_cols;
            let tile_end = ((tile + 1) * panel.tile_cols).min(to);
            // SAFETY: the panel has a vector of scales for each tile of columns.
            let scale = unsafe { s.load(panel.scales.add(tile * LANES)) };
            while k < tile_end {
                // SAFETY: as above.
                unsafe {
                    let v = s.mul(e4m3_to_f32(s, panel.bytes.add(k * LANES)), scale);
                    s.store(out.add((k - from) * LANES), v);
                }
                k += 1;
            }
        }
    }
}

/// Sixteen E4M3 codes to their values; NaN is refused when a matrix is loaded.
///
/// Shifted into place, sign, exponent and mantissa make an f32 whose exponent is 120 too small:
/// a product with 2¹²⁰ puts that right, subnormals included.
///
/// # Safety
/// `codes` is readable for 16 bytes.
#[inline(always)]
unsafe fn e4m3_to_f32<S: Simd>(s: S, codes: *const u8) -> S::F {
    // SAFETY: by contract.
    let codes = unsafe { s.load_i8(codes.cast()) };
    let placed = s.and(s.shl(codes, 20), s.splat_int(0x87f0_0000_u32 as i32));
    s.mul(
        s.bits_to_float(placed),
        s.splat(f32::from_bits((127 + 120) << 23)),
    )
}

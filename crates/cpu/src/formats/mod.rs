//! Resident forms of weights: panels of sixteen output rows, interleaved for the tiles that read
//! them.
//!
//! A *panel* holds sixteen rows (the last one padded with zeros); lane `r` of every vector belongs
//! to row `r`. Within a panel, columns follow one another:
//!
//! - float formats ([`float`]) keep the sixteen values of a column side by side (BF16: of a pair
//!   of columns, as BF16 dot products want them);
//! - block formats ([`blocks32`], [`k_quants`]) keep *units* of one source block per row. A unit
//!   has the rows' scales side by side, then the codes of four columns at a time: byte `4r + j`
//!   of group `g` belongs to row `r` and column `4g + j`, which is what VNNI dot products want.
//!   Codes narrower than a byte share bytes in planes: see [`planes`];
//! - group-quantized formats ([`grouped`]) keep the scales and zero points of all groups, then
//!   codes in the same planes.
//!
//! The bytes are those of the file, reordered: only the K-quants' packed scales are widened to a
//! byte each, and FP8's scales are repeated for each row.

pub(crate) mod blocks32;
pub(crate) mod float;
pub(crate) mod grouped;
pub(crate) mod k_quants;
pub(crate) mod planes;

use crate::simd::{LANES, Simd};
use grouped::GroupLayout;

/// Columns of a *block*: what one activation scale covers.
pub(crate) const BLOCK: usize = 32;

/// A block format in its resident form.
///
/// A value is `scale · (code - 2^OFFSET_LOG2) + min`, the offset being there only when
/// `OFFSET_LOG2` is; scale and min are shared by `BLOCK / SUBS` columns of a row.
pub(crate) trait QuantFormat: 'static {
    /// Bytes of a source block of one row.
    const SOURCE_BYTES: usize;
    /// Blocks of 32 columns in a unit: 1, or 8 for super-blocks.
    const BLOCKS: usize;
    /// Bytes of a unit: sixteen source blocks, reordered.
    const UNIT_BYTES: usize;
    /// Scales per block of 32.
    const SUBS: usize;
    /// What codes are counted from, as a power of two.
    const OFFSET_LOG2: Option<u32>;
    /// Whether codes may be 128 or more (they then count from 128).
    const WIDE: bool;
    /// Whether there is a min.
    const HAS_MIN: bool;

    /// Writes one row's source block into lane `row` of a zeroed unit.
    fn pack(source: &[u8], row: usize, unit: &mut [u8]);

    /// Scales of the rows in block `block` of the unit, columns `sub · 32 / SUBS ..`.
    ///
    /// # Safety
    /// `unit` is readable for `UNIT_BYTES`, `block < BLOCKS`, `sub < SUBS`; so for all three.
    unsafe fn scale<S: Simd>(s: S, unit: *const u8, block: usize, sub: usize) -> S::F;

    /// Minima of the rows, likewise.
    ///
    /// # Safety
    /// As for `scale`.
    unsafe fn min<S: Simd>(s: S, unit: *const u8, block: usize, sub: usize) -> S::F;

    /// Codes of columns `4·GROUP .. 4·GROUP + 4` of the block.
    ///
    /// # Safety
    /// As for `scale`.
    unsafe fn codes<S: Simd, const GROUP: usize>(s: S, unit: *const u8, block: usize) -> S::I;
}

/// How a panel's values become f32: what exact tiles, embeddings and transposed products read.
pub(crate) trait Decode: 'static {
    /// Whether panels are `[cols][16]` f32 already, to be read where they are.
    const IS_F32: bool = false;

    /// Whether single columns come cheap, so that few rows are better off without a decoded
    /// stretch.
    const COLUMNS: bool = false;

    /// Column `k` of a panel, where [`Decode::COLUMNS`]; times [`Decode::column_scale`], the same
    /// bits as `decode` writes.
    ///
    /// # Safety
    /// `panel` is a whole panel, `k < cols`; so for both.
    #[inline(always)]
    unsafe fn column<S: Simd>(s: S, _panel: Panel, _k: usize) -> S::F {
        s.splat(0.0)
    }

    /// Scale of column `k`, where there is one, and the end of the columns that share it.
    ///
    /// # Safety
    /// As for `column`.
    #[inline(always)]
    unsafe fn column_scale<S: Simd>(_s: S, panel: Panel, _k: usize) -> (Option<S::F>, usize) {
        (None, panel.cols)
    }

    /// Writes columns `from .. to` of a panel as `[to - from][16]` f32.
    ///
    /// `from` is a multiple of 32, `to` another one or `cols`.
    ///
    /// # Safety
    /// `panel` is a whole panel of `cols` columns; `out` is writable for what is asked.
    unsafe fn decode<S: Simd>(s: S, panel: Panel, from: usize, to: usize, out: *mut f32);
}

/// One panel of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Panel {
    /// Its first byte.
    pub(crate) bytes: *const u8,
    /// Columns of the matrix.
    pub(crate) cols: usize,
    /// Its row of scale vectors, `[ceil(cols / tile_cols)][16]` (FP8 alone).
    pub(crate) scales: *const f32,
    /// Columns that share a scale (FP8 and grouped formats).
    pub(crate) tile_cols: usize,
    /// Where its parts lie (grouped formats alone).
    pub(crate) layout: GroupLayout,
}

/// All panels of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Panels {
    /// The first one.
    pub(crate) first: Panel,
    /// Bytes from a panel to the next.
    pub(crate) stride: usize,
}

impl Panels {
    /// Panel `p`.
    ///
    /// # Safety
    /// The matrix has it.
    #[inline(always)]
    pub(crate) unsafe fn at(&self, p: usize) -> Panel {
        let scales = self.first.cols.div_ceil(self.first.tile_cols) * LANES;
        Panel {
            // SAFETY: by contract.
            bytes: unsafe { self.first.bytes.add(p * self.stride) },
            // Only FP8 has scales and reads them.
            scales: self.first.scales.wrapping_add(p * scales),
            ..self.first
        }
    }
}

/// Calls a macro's body with `GROUP` as each of the eight groups of a block, unrolled.
macro_rules! each_group {
    ($first:literal .. $last:literal, |$group:ident| $body:block) => {
        each_group!(@ $group $body; 0 1 2 3 4 5 6 7; $first $last)
    };
    (@ $group:ident $body:block; $($g:literal)*; $first:literal $last:literal) => {
        $(if $first <= $g && $g < $last {
            const $group: usize = $g;
            $body
        })*
    };
}
pub(crate) use each_group;

/// Decoding of every block format: `scale · (code - offset) + min`, rounded after each step as
/// the scalar definition does.
impl<Q: QuantFormat> Decode for Q {
    #[inline(always)]
    unsafe fn decode<S: Simd>(s: S, panel: Panel, from: usize, to: usize, out: *mut f32) {
        for block in from / BLOCK..to / BLOCK {
            // SAFETY: blocks up to `cols / 32` lie within the panel by contract.
            unsafe {
                let unit = panel.bytes.add(block / Q::BLOCKS * Q::UNIT_BYTES);
                let out = out.add((block * BLOCK - from) * LANES);
                decode_block::<S, Q>(s, unit, block % Q::BLOCKS, out);
            }
        }
    }
}

/// # Safety
/// As for `scale`; `out` is writable for `32 · 16` values.
#[inline(always)]
unsafe fn decode_block<S: Simd, Q: QuantFormat>(
    s: S,
    unit: *const u8,
    block: usize,
    out: *mut f32,
) {
    let offset = s.splat_int(Q::OFFSET_LOG2.map_or(0, |log2| 1 << log2));
    let byte = s.splat_int(0xff);
    each_group!(0..8, |GROUP| {
        // SAFETY: passed on.
        unsafe {
            let sub = GROUP * Q::SUBS / 8;
            let scale = Q::scale(s, unit, block, sub);
            let codes = Q::codes::<S, GROUP>(s, unit, block);
            for j in 0..4 {
                let code = s.and(s.shr(codes, 8 * j as u32), byte);
                let mut v = s.mul(scale, s.to_float(s.sub_int(code, offset)));
                if Q::HAS_MIN {
                    v = s.add(v, Q::min(s, unit, block, sub));
                }
                s.store(out.add((4 * GROUP + j) * LANES), v);
            }
        }
    });
}

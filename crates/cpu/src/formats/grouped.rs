//! Group-quantized weights: four- or eight-bit codes, scales and zero points of groups of columns.
//!
//! A panel is its groups' scales (sixteen side by side, in the type they are stored in), their
//! zero points where they have some (a byte each), and from the next cache line on the codes:
//! blocks of 32 columns in planes, as the block formats have them. The last block may be cut; its
//! missing codes are zeros that nothing reads or multiplies by anything but zero.

use half::{bf16, f16};
use scrimp_tensor::{DType, Grouped, GroupedForm};

use super::planes::{get, plane_bytes};
use super::{BLOCK, Decode, Panel, each_group};
use crate::simd::{LANES, Simd};

/// Codes of `BITS` bits.
pub(crate) enum Group<const BITS: usize> {}

/// Types that scales are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ScaleType {
    F16,
    Bf16,
    #[default]
    F32,
}

impl ScaleType {
    /// The resident type of stored scales, where they may be such.
    pub(crate) fn of(dtype: DType) -> Option<ScaleType> {
        match dtype {
            DType::F16 => Some(ScaleType::F16),
            DType::BF16 => Some(ScaleType::Bf16),
            DType::F32 => Some(ScaleType::F32),
            _ => None,
        }
    }

    const fn bytes(self) -> usize {
        match self {
            ScaleType::F16 | ScaleType::Bf16 => 2,
            ScaleType::F32 => 4,
        }
    }
}

/// Where the parts of a panel lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupLayout {
    scale: ScaleType,
    /// Bytes from the panel's start to its zero points; 0 for none.
    zeros: usize,
    /// Bytes to its codes.
    codes: usize,
    /// Bytes of a panel.
    pub(crate) bytes: usize,
    /// `[cols]`: group of each column; null where columns follow one another in groups.
    index: *const u32,
}

// SAFETY: the index is read alone, and lives as long as the matrix that the layout is of.
unsafe impl Send for GroupLayout {}
// SAFETY: likewise.
unsafe impl Sync for GroupLayout {}

impl GroupLayout {
    /// The layout of rows of `cols` columns; `None` where it has no bits or scales of these types.
    pub(crate) fn of(form: &GroupedForm, cols: usize) -> Option<GroupLayout> {
        let scale = ScaleType::of(form.scale)?;
        if !matches!(form.bits, 4 | 8) || form.group_size == 0 {
            return None;
        }
        let groups = form.groups(cols);
        let zeros = groups * LANES * scale.bytes();
        let end = zeros + if form.zeros { groups * LANES } else { 0 };
        let codes = end.next_multiple_of(64);
        Some(GroupLayout {
            scale,
            zeros: if form.zeros { zeros } else { 0 },
            codes,
            bytes: codes + cols.div_ceil(BLOCK) * plane_bytes(form.bits, 0),
            index: std::ptr::null(),
        })
    }

    /// The same with columns that name their groups.
    pub(crate) fn indexed(self, index: &[u32]) -> GroupLayout {
        let index = if index.is_empty() {
            std::ptr::null()
        } else {
            index.as_ptr()
        };
        GroupLayout { index, ..self }
    }

    /// What the panels of other formats have in its place.
    pub(crate) const NONE: GroupLayout = GroupLayout {
        scale: ScaleType::F32,
        zeros: 0,
        codes: 0,
        bytes: 0,
        index: std::ptr::null(),
    };
}

/// Columns whose codes are unpacked at a time.
const TILE_COLS: usize = 256;
/// Panels that are packed together, so that words of eight rows' codes are read once.
pub(crate) const PACK_PANELS: usize = 8;

/// Fills zeroed panels `first ..` of a matrix of `rows × cols` that hold nothing but its rows.
pub(crate) fn pack_panels(
    view: &Grouped<'_>,
    layout: &GroupLayout,
    (rows, cols): (usize, usize),
    first: usize,
    out: &mut [u8],
) {
    let mut tile = [0u8; PACK_PANELS * LANES * TILE_COLS];
    let row = first * LANES;
    let end = rows.min(row + out.len() / layout.bytes.max(1) * LANES);
    for from in (0..cols).step_by(TILE_COLS) {
        let to = cols.min(from + TILE_COLS);
        if to - from < TILE_COLS {
            tile.fill(0);
        }
        view.unpack(row..end, from..to, &mut tile, TILE_COLS);
        for (p, panel) in out.chunks_exact_mut(layout.bytes).enumerate() {
            let held = LANES.min(end - row - p * LANES);
            let size = plane_bytes(view.form.bits, 0);
            let blocks = panel[layout.codes..].chunks_exact_mut(size);
            let blocks = blocks.skip(from / BLOCK).take((to - from).div_ceil(BLOCK));
            for (b, block) in blocks.enumerate() {
                for r in 0..held {
                    let at = (p * LANES + r) * TILE_COLS + b * BLOCK;
                    pack_row(&tile[at..at + BLOCK], r, block);
                }
            }
        }
    }
    for (p, panel) in out.chunks_exact_mut(layout.bytes).enumerate() {
        let first = row + p * LANES;
        for r in first..end.min(first + LANES) {
            pack_scales(view, layout, r, r - first, panel);
        }
    }
}

/// Puts 32 codes of a row into a block's planes.
fn pack_row(codes: &[u8], row: usize, block: &mut [u8]) {
    let vectors = block.len() / (4 * LANES);
    for vector in 0..vectors {
        for j in 0..4 {
            let mut byte = codes[4 * vector + j];
            if vectors == 4 {
                byte |= codes[16 + 4 * vector + j] << 4;
            }
            block[(vector * LANES + row) * 4 + j] = byte;
        }
    }
}

/// Puts the scales and zero points of matrix row `row` into lane `lane`.
fn pack_scales(
    view: &Grouped<'_>,
    layout: &GroupLayout,
    row: usize,
    lane: usize,
    panel: &mut [u8],
) {
    for group in 0..view.groups {
        let (i, place) = (row * view.groups + group, group * LANES + lane);
        let scale = view.scales[i];
        let size = layout.scale.bytes();
        let to = &mut panel[place * size..][..size];
        match layout.scale {
            ScaleType::F16 => to.copy_from_slice(&f16::from_f32(scale).to_le_bytes()),
            ScaleType::Bf16 => to.copy_from_slice(&bf16::from_f32(scale).to_le_bytes()),
            ScaleType::F32 => to.copy_from_slice(&scale.to_le_bytes()),
        }
        if view.form.zeros {
            panel[layout.zeros + place] = view.zeros[i];
        }
    }
}

/// Scales of the rows in group `group`.
///
/// # Safety
/// `panel` is a whole panel of a grouped format that has this group; so for all of these.
#[inline(always)]
pub(crate) unsafe fn scale<S: Simd>(s: S, panel: &Panel, group: usize) -> S::F {
    let size = panel.layout.scale.bytes();
    // SAFETY: a panel begins with its groups' scales.
    unsafe {
        let at = panel.bytes.add(group * LANES * size);
        match panel.layout.scale {
            ScaleType::F16 => s.load_f16(at.cast()),
            ScaleType::Bf16 => s.load_bf16(at.cast()),
            ScaleType::F32 => s.load(at.cast()),
        }
    }
}

/// Zero points of the rows in group `group`, where there are any.
///
/// # Safety
/// As for [`scale`].
#[inline(always)]
pub(crate) unsafe fn zeros<S: Simd>(s: S, panel: &Panel, group: usize) -> Option<S::I> {
    if panel.layout.zeros == 0 {
        return None;
    }
    // SAFETY: zero points follow the scales.
    Some(unsafe { s.load_u8(panel.bytes.add(panel.layout.zeros + group * LANES)) })
}

/// The codes of block `block`.
///
/// # Safety
/// The panel has this block.
#[inline(always)]
pub(crate) unsafe fn block_codes<const BITS: usize>(panel: &Panel, block: usize) -> *const u8 {
    // SAFETY: codes follow scales and zero points.
    unsafe {
        panel
            .bytes
            .add(panel.layout.codes + block * plane_bytes(BITS, 0))
    }
}

impl<const BITS: usize> Decode for Group<BITS> {
    #[inline(always)]
    unsafe fn decode<S: Simd>(s: S, panel: Panel, from: usize, to: usize, out: *mut f32) {
        let group_of = |k: usize| {
            if panel.layout.index.is_null() {
                k / panel.tile_cols
            } else {
                // SAFETY: the index has an entry for each column, each below the groups.
                unsafe { *panel.layout.index.add(k) as usize }
            }
        };
        let middle = s.splat_int(1 << (BITS - 1));
        let byte = s.splat_int(0xff);
        for block in from / BLOCK..to.div_ceil(BLOCK) {
            let (start, end) = (block * BLOCK, to.min((block + 1) * BLOCK));
            let whole = panel.layout.index.is_null() && group_of(start) == group_of(end - 1);
            // SAFETY: columns below `cols` lie within the panel, and so do their groups; `out`
            // has room for columns `from .. to`.
            unsafe {
                let codes = block_codes::<BITS>(&panel, block);
                let mut factor = scale(s, &panel, group_of(start));
                let mut zero = zeros(s, &panel, group_of(start)).unwrap_or(middle);
                each_group!(0..8, |GROUP| {
                    let codes = get::<S, BITS, 0, GROUP>(s, codes);
                    for j in 0..4 {
                        let k = start + 4 * GROUP + j;
                        if k < end {
                            if !whole {
                                factor = scale(s, &panel, group_of(k));
                                zero = zeros(s, &panel, group_of(k)).unwrap_or(middle);
                            }
                            let code = s.and(s.shr(codes, 8 * j as u32), byte);
                            let v = s.mul(factor, s.to_float(s.sub_int(code, zero)));
                            s.store(out.add((k - from) * LANES), v);
                        }
                    }
                });
            }
        }
    }
}

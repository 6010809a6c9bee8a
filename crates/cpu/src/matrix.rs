//! A weight matrix in its resident form, and how a stored one gets there.

use scrimp_backend::{BackendError, MatrixStorage};
use scrimp_tensor::{DType, Encoding, Grouped, GroupedForm, MatrixView};

use crate::formats::blocks32::{Iq4Nl, Mxfp4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use crate::formats::grouped::{GroupLayout, PACK_PANELS, pack_panels};
use crate::formats::k_quants::{Q2K, Q3K, Q4K, Q5K, Q6K};
use crate::formats::{BLOCK, Panel, Panels, QuantFormat};
use crate::memory::{Aligned, Shared};
use crate::pool::Pool;
use crate::simd::LANES;

/// Resident formats, in the order of the kernel table's columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the formats' own
pub(crate) enum Format {
    F32,
    F16,
    Bf16,
    F8E4M3,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Iq4Nl,
    Mxfp4,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Group4,
    Group8,
}

/// Number of [`Format`]s.
pub(crate) const FORMATS: usize = 18;

/// When activations are rounded to int8 for a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Int8 {
    /// Never.
    Never,
    /// Where speed is asked for: in blocks of 32.
    WhenFast,
    /// Always, with one step for each token: the model was made so.
    PerToken,
}

/// What loading and sizing need to know of a block format.
#[derive(Clone, Copy)]
struct Blocks {
    source_bytes: usize,
    unit_bytes: usize,
    unit_cols: usize,
    pack: fn(&[u8], usize, &mut [u8]),
}

fn blocks_of<Q: QuantFormat>() -> Blocks {
    Blocks {
        source_bytes: Q::SOURCE_BYTES,
        unit_bytes: Q::UNIT_BYTES,
        unit_cols: 32 * Q::BLOCKS,
        pack: Q::pack,
    }
}

impl Format {
    /// The resident form of a stored type, where kernels compute on it.
    pub(crate) fn of(dtype: DType) -> Option<Format> {
        Some(match dtype {
            DType::F32 => Format::F32,
            DType::F16 => Format::F16,
            DType::BF16 => Format::Bf16,
            DType::F8E4M3 => Format::F8E4M3,
            DType::Q4_0 => Format::Q4_0,
            DType::Q4_1 => Format::Q4_1,
            DType::Q5_0 => Format::Q5_0,
            DType::Q5_1 => Format::Q5_1,
            DType::Q8_0 => Format::Q8_0,
            DType::IQ4NL => Format::Iq4Nl,
            DType::MXFP4 => Format::Mxfp4,
            DType::Q2K => Format::Q2K,
            DType::Q3K => Format::Q3K,
            DType::Q4K => Format::Q4K,
            DType::Q5K => Format::Q5K,
            DType::Q6K => Format::Q6K,
            DType::I8 | DType::U8 | DType::I32 | DType::I64 => return None,
        })
    }

    /// Its facts, where it is a block format.
    fn blocks(self) -> Option<Blocks> {
        Some(match self {
            Format::F32 | Format::F16 | Format::Bf16 | Format::F8E4M3 => return None,
            Format::Group4 | Format::Group8 => return None,
            Format::Q4_0 => blocks_of::<Q4_0>(),
            Format::Q4_1 => blocks_of::<Q4_1>(),
            Format::Q5_0 => blocks_of::<Q5_0>(),
            Format::Q5_1 => blocks_of::<Q5_1>(),
            Format::Q8_0 => blocks_of::<Q8_0>(),
            Format::Iq4Nl => blocks_of::<Iq4Nl>(),
            Format::Mxfp4 => blocks_of::<Mxfp4>(),
            Format::Q2K => blocks_of::<Q2K>(),
            Format::Q3K => blocks_of::<Q3K>(),
            Format::Q4K => blocks_of::<Q4K>(),
            Format::Q5K => blocks_of::<Q5K>(),
            Format::Q6K => blocks_of::<Q6K>(),
        })
    }

    /// Bytes of a panel of sixteen rows, without FP8's scales; not for grouped formats.
    fn panel_bytes(self, cols: usize) -> usize {
        match self.blocks() {
            Some(b) => cols / b.unit_cols * b.unit_bytes,
            None => match self {
                Format::F32 => cols * LANES * 4,
                Format::F16 => cols * LANES * 2,
                Format::Bf16 => cols.next_multiple_of(2) * LANES * 2,
                _ => cols * LANES,
            },
        }
    }
}

/// Scale vectors of a panel: one for each tile of columns, FP8 alone.
fn scales_per_panel(format: Format, cols: usize, tile_cols: usize) -> usize {
    if format == Format::F8E4M3 {
        cols.div_ceil(tile_cols) * LANES
    } else {
        0
    }
}

/// Format and tile columns of a stored form.
fn resident(storage: MatrixStorage, cols: usize) -> Option<(Format, usize)> {
    match storage {
        MatrixStorage::Blocks(dtype) => Some((Format::of(dtype)?, cols.max(1))),
        MatrixStorage::Fp8Tiles(_, tile_cols) => Some((Format::F8E4M3, tile_cols.max(1))),
        MatrixStorage::Grouped(form) => match form.bits {
            4 => Some((Format::Group4, form.group_size)),
            8 => Some((Format::Group8, form.group_size)),
            _ => None,
        },
    }
}

/// Bytes that [`CpuMatrix::load`] keeps; 0 for what it refuses.
pub(crate) fn matrix_bytes(rows: usize, cols: usize, storage: MatrixStorage) -> usize {
    let panels = rows.div_ceil(LANES);
    if let MatrixStorage::Grouped(form) = storage {
        let index = if form.indexed { 4 * cols } else { 0 };
        return GroupLayout::of(&form, cols).map_or(0, |layout| panels * layout.bytes + index);
    }
    let Some((format, tile_cols)) = resident(storage, cols) else {
        return 0;
    };
    panels * (format.panel_bytes(cols) + 4 * scales_per_panel(format, cols, tile_cols))
}

/// A weight matrix in panels of sixteen rows.
#[derive(Debug)]
pub struct CpuMatrix {
    pub(crate) format: Format,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    panel_bytes: usize,
    panels: Aligned<u8>,
    /// FP8: `[panels][column tiles][16]`.
    scales: Aligned<f32>,
    tile_cols: usize,
    /// Grouped: where the parts of a panel lie, without the index.
    layout: GroupLayout,
    /// Grouped: group of each column, where columns name theirs.
    index: Aligned<u32>,
    pub(crate) int8: Int8,
}

impl CpuMatrix {
    /// Repacks a stored matrix, panels in parallel.
    pub(crate) fn load(view: &MatrixView<'_>, pool: &mut Pool) -> Result<CpuMatrix, BackendError> {
        let (storage, dtype, bytes) = match &view.encoding {
            Encoding::Blocks { dtype, bytes } => (MatrixStorage::Blocks(*dtype), *dtype, *bytes),
            Encoding::Fp8Tiles { tile, codes, .. } => {
                let storage = MatrixStorage::Fp8Tiles(tile.0, tile.1);
                (storage, DType::F8E4M3, *codes)
            }
            Encoding::Grouped(grouped) => {
                return CpuMatrix::load_grouped(grouped, (view.rows, view.cols), pool);
            }
        };
        let (rows, cols) = (view.rows, view.cols);
        let (format, tile_cols) =
            resident(storage, cols).ok_or_else(|| BackendError::Unsupported {
                what: format!("weights stored as {dtype}").into(),
            })?;
        if dtype.row_bytes(cols).is_err() {
            return Err(BackendError::Unsupported {
                what: format!("{dtype} rows of {cols} values").into(),
            });
        }
        if format == Format::F8E4M3 && bytes.iter().any(|&code| code & 0x7f == 0x7f) {
            return Err(BackendError::Unsupported {
                what: "FP8 weights that are not numbers (NaN)".into(),
            });
        }
        let (panels, panel_bytes) = (rows.div_ceil(LANES), format.panel_bytes(cols));
        let per_panel = scales_per_panel(format, cols, tile_cols);
        let mut matrix = CpuMatrix {
            format,
            rows,
            cols,
            panel_bytes,
            panels: Aligned::zeroed(panels * panel_bytes, "weights")?,
            scales: Aligned::zeroed(panels * per_panel, "weight scales")?,
            tile_cols,
            layout: GroupLayout::NONE,
            index: Aligned::zeroed(0, "weights")?,
            int8: match format.blocks() {
                Some(_) => Int8::WhenFast,
                None => Int8::Never,
            },
        };
        matrix.panels.advise_huge();
        fill_scales(view, tile_cols, per_panel, matrix.scales.as_mut_slice());
        let row_bytes = bytes.len() / rows.max(1);
        let out = Shared::new(matrix.panels.as_mut_slice());
        pool.run(panels, &|p, _| {
            // SAFETY: each panel is one chunk's alone.
            let panel = unsafe { out.slice(p * panel_bytes, panel_bytes) };
            for row in 0..LANES.min(rows - p * LANES) {
                let source = &bytes[(p * LANES + row) * row_bytes..][..row_bytes];
                pack_row(format, source, row, panel);
            }
        });
        Ok(matrix)
    }

    /// Repacks a group-quantized matrix, some panels at a time in parallel.
    fn load_grouped(
        view: &Grouped<'_>,
        (rows, cols): (usize, usize),
        pool: &mut Pool,
    ) -> Result<CpuMatrix, BackendError> {
        let form = view.form;
        let unsupported = |what: String| BackendError::Unsupported { what: what.into() };
        let (format, tile_cols) = resident(MatrixStorage::Grouped(form), cols)
            .ok_or_else(|| unsupported(format!("codes of {} bits", form.bits)))?;
        let layout = GroupLayout::of(&form, cols)
            .ok_or_else(|| unsupported(format!("group scales stored as {}", form.scale)))?;
        let int8 = int8_use(&form, cols).ok_or_else(|| {
            let size = form.group_size;
            unsupported(format!(
                "int8 activations with weights in groups of {size} of {cols} columns: groups have \
                 to be multiples of {BLOCK}"
            ))
        })?;
        let panels = rows.div_ceil(LANES);
        let mut matrix = CpuMatrix {
            format,
            rows,
            cols,
            panel_bytes: layout.bytes,
            panels: Aligned::zeroed(panels * layout.bytes, "weights")?,
            scales: Aligned::zeroed(0, "weight scales")?,
            tile_cols,
            layout,
            index: Aligned::zeroed(view.index.len(), "group indices")?,
            int8,
        };
        matrix.index.as_mut_slice().copy_from_slice(view.index);
        matrix.panels.advise_huge();
        let out = Shared::new(matrix.panels.as_mut_slice());
        pool.run(panels.div_ceil(PACK_PANELS), &|chunk, _| {
            let first = chunk * PACK_PANELS;
            let count = PACK_PANELS.min(panels - first);
            // SAFETY: each run of panels is one chunk's alone.
            let panels = unsafe { out.slice(first * layout.bytes, count * layout.bytes) };
            pack_panels(view, &layout, (rows, cols), first, panels);
        });
        Ok(matrix)
    }

    /// Its panels, as kernels take them.
    pub(crate) fn packed(&self) -> Panels {
        Panels {
            first: Panel {
                bytes: self.panels.as_slice().as_ptr(),
                cols: self.cols,
                scales: self.scales.as_slice().as_ptr(),
                tile_cols: self.tile_cols,
                layout: self.layout.indexed(self.index.as_slice()),
            },
            stride: self.panel_bytes,
        }
    }

    /// Its resident codes.
    pub(crate) fn memory(&self) -> &[u8] {
        self.panels.as_slice()
    }

    /// Bytes it keeps.
    pub fn bytes(&self) -> usize {
        let floats = self.scales.as_slice().len() + self.index.as_slice().len();
        self.panels.as_slice().len() + 4 * floats
    }
}

/// When activations are rounded for a group-quantized matrix; `None` where it asks for rounding
/// that its groups rule out.
fn int8_use(form: &GroupedForm, cols: usize) -> Option<Int8> {
    let whole_blocks = form.group_size.is_multiple_of(BLOCK) || form.group_size >= cols;
    match (form.int8_tokens, whole_blocks && !form.indexed) {
        (true, true) => Some(Int8::PerToken),
        (true, false) => None,
        (false, true) => Some(Int8::WhenFast),
        (false, false) => Some(Int8::Never),
    }
}

/// Writes one row of a panel.
fn pack_row(format: Format, source: &[u8], row: usize, panel: &mut [u8]) {
    if let Some(blocks) = format.blocks() {
        let units = panel.chunks_exact_mut(blocks.unit_bytes);
        for (block, unit) in source.chunks_exact(blocks.source_bytes).zip(units) {
            (blocks.pack)(block, row, unit);
        }
        return;
    }
    let size = match format {
        Format::F32 => 4,
        Format::F16 | Format::Bf16 => 2,
        _ => 1,
    };
    for (k, value) in source.chunks_exact(size).enumerate() {
        let at = match format {
            // Pairs of columns side by side.
            Format::Bf16 => (k / 2 * LANES + row) * 4 + k % 2 * 2,
            _ => (k * LANES + row) * size,
        };
        panel[at..at + size].copy_from_slice(value);
    }
}

/// Spreads FP8's tile scales to a vector for each panel and tile of columns.
fn fill_scales(view: &MatrixView<'_>, tile_cols: usize, per_panel: usize, out: &mut [f32]) {
    if per_panel == 0 {
        return;
    }
    let tiles = view.cols.div_ceil(tile_cols);
    for (p, panel) in out.chunks_exact_mut(per_panel).enumerate() {
        for (tile, vector) in panel.chunks_exact_mut(LANES).enumerate() {
            for (lane, scale) in vector.iter_mut().enumerate() {
                let row = p * LANES + lane;
                if row >= view.rows {
                    break;
                }
                *scale = match &view.encoding {
                    Encoding::Blocks { .. } | Encoding::Grouped(_) => 1.0,
                    Encoding::Fp8Tiles {
                        scales,
                        tile: (tile_rows, _),
                        ..
                    } => scales[row / (*tile_rows).max(1) * tiles + tile],
                };
            }
        }
    }
}

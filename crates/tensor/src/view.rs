//! Borrowed views of stored tensors: what a checkpoint hands out and a backend takes in.

use crate::{DType, Grouped, TensorError};

/// A tensor's extents, outermost first (row-major; the last one is contiguous).
pub type Shape = Vec<usize>;

/// A named tensor's bytes as they lie in a file, with their type and shape.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    /// How the values are stored.
    pub dtype: DType,
    /// Extents, outermost first.
    pub shape: Shape,
    /// The stored bytes, exactly as many as type and shape ask for.
    pub bytes: &'a [u8],
}

/// A matrix to compute with: `rows` outputs by `cols` inputs, in whatever form it is stored.
///
/// This is the only thing that names a weight's storage on its way from a checkpoint to a
/// backend. Layers above hold the backend's own resident form of it.
#[derive(Clone, Debug)]
pub struct MatrixView<'a> {
    /// Output features.
    pub rows: usize,
    /// Input features; a row's values are contiguous.
    pub cols: usize,
    /// The stored form.
    pub encoding: Encoding<'a>,
}

/// The stored forms of a [`MatrixView`].
#[derive(Clone, Debug)]
pub enum Encoding<'a> {
    /// Rows of plain or block values of one [`DType`], scales (if any) inside the blocks.
    Blocks {
        /// Type of the values.
        dtype: DType,
        /// `rows × row_bytes(cols)` bytes.
        bytes: &'a [u8],
    },
    /// E4M3 values with one f32 scale for each tile of `tile.0 × tile.1` values
    /// (DeepSeek-V3's release: 128×128): `w = f8 · scale`.
    Fp8Tiles {
        /// `rows × cols` E4M3 codes.
        codes: &'a [u8],
        /// `ceil(rows / tile.0) × ceil(cols / tile.1)` scales, row-major.
        scales: &'a [f32],
        /// Rows and columns that share a scale.
        tile: (usize, usize),
    },
    /// Integer codes with scales, and perhaps zero points, for groups of columns.
    Grouped(Grouped<'a>),
}

impl<'a> MatrixView<'a> {
    /// A view of `rows × cols` values of one type.
    ///
    /// # Errors
    /// When `bytes` is not exactly as long as type and shape ask for.
    pub fn from_blocks(
        dtype: DType,
        rows: usize,
        cols: usize,
        bytes: &'a [u8],
    ) -> Result<Self, TensorError> {
        let wanted = dtype
            .row_bytes(cols)?
            .checked_mul(rows)
            .ok_or(TensorError::TooLarge {
                what: "a matrix",
                elements: cols as u128 * rows as u128,
            })?;
        if bytes.len() != wanted {
            return Err(TensorError::Size {
                dtype,
                wanted,
                found: bytes.len(),
            });
        }
        Ok(MatrixView {
            rows,
            cols,
            encoding: Encoding::Blocks { dtype, bytes },
        })
    }

    /// A view of `rows × cols` E4M3 codes with one scale per tile.
    ///
    /// # Errors
    /// When codes or scales are not exactly as many as the shape asks for, or a tile is empty.
    pub fn from_fp8_tiles(
        rows: usize,
        cols: usize,
        codes: &'a [u8],
        scales: &'a [f32],
        tile: (usize, usize),
    ) -> Result<Self, TensorError> {
        let fits = tile.0 > 0
            && tile.1 > 0
            && rows.checked_mul(cols) == Some(codes.len())
            && rows.div_ceil(tile.0).checked_mul(cols.div_ceil(tile.1)) == Some(scales.len());
        if !fits {
            return Err(TensorError::Tiles {
                rows,
                cols,
                tile,
                codes: codes.len(),
                scales: scales.len(),
            });
        }
        Ok(MatrixView {
            rows,
            cols,
            encoding: Encoding::Fp8Tiles {
                codes,
                scales,
                tile,
            },
        })
    }

    /// A view of a group-quantized matrix of `rows × cols`.
    ///
    /// # Errors
    /// When its parts are not as many as the shape asks for, or an index names no group.
    pub fn from_grouped(
        rows: usize,
        cols: usize,
        grouped: Grouped<'a>,
    ) -> Result<Self, TensorError> {
        grouped.check(rows, cols)?;
        Ok(MatrixView {
            rows,
            cols,
            encoding: Encoding::Grouped(grouped),
        })
    }

    /// The rows `start .. start + count`, without copying.
    ///
    /// # Errors
    /// When the range leaves the matrix, or cuts through a tile of shared scales.
    pub fn slice_rows(&self, start: usize, count: usize) -> Result<MatrixView<'a>, TensorError> {
        let end = start.checked_add(count).filter(|&end| end <= self.rows);
        let Some(end) = end else {
            return Err(TensorError::Range {
                start,
                count,
                rows: self.rows,
            });
        };
        let encoding = match &self.encoding {
            Encoding::Blocks { dtype, bytes } => {
                let row = dtype.row_bytes(self.cols)?;
                Encoding::Blocks {
                    dtype: *dtype,
                    bytes: &bytes[start * row..end * row],
                }
            }
            Encoding::Fp8Tiles {
                codes,
                scales,
                tile,
            } => {
                if !start.is_multiple_of(tile.0) {
                    return Err(TensorError::TileSplit {
                        start,
                        tile: tile.0,
                    });
                }
                let per_row = self.cols.div_ceil(tile.1);
                Encoding::Fp8Tiles {
                    codes: &codes[start * self.cols..end * self.cols],
                    scales: &scales[start / tile.0 * per_row..end.div_ceil(tile.0) * per_row],
                    tile: *tile,
                }
            }
            Encoding::Grouped(all) => {
                let of_rows = start * all.groups..end * all.groups;
                Encoding::Grouped(Grouped {
                    first_row: all.first_row + start,
                    scales: &all.scales[of_rows.clone()],
                    zeros: if all.form.zeros {
                        &all.zeros[of_rows]
                    } else {
                        &[]
                    },
                    ..all.clone()
                })
            }
        };
        Ok(MatrixView {
            rows: count,
            cols: self.cols,
            encoding,
        })
    }
}

//! Stored numbers: types, block formats, views, and their scalar encoding and decoding.
//!
//! Everything here is plain data and scalar arithmetic, with no IO and no SIMD: the slow, obvious
//! definition that fast kernels are tested against. It depends on no other crate of scrimp.

mod dtype;
mod view;

pub use dtype::DType;
pub use view::{Encoding, MatrixView, Shape, TensorView};

/// A tensor whose bytes, type and shape do not agree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// A row that is no whole number of blocks.
    #[error("a row of {cols} values cannot be {dtype}: its blocks hold {block_len} values each")]
    RowLength {
        /// The block format.
        dtype: DType,
        /// Values in the row.
        cols: usize,
        /// Values in a block.
        block_len: usize,
    },
    /// A size that overflows the address space.
    #[error("{what} of {elements} values does not fit in memory")]
    TooLarge {
        /// What was being sized.
        what: &'static str,
        /// How many values it would have.
        elements: u128,
    },
    /// Fewer or more bytes than type and shape ask for.
    #[error("{dtype} data of this shape takes {wanted} bytes, but there are {found}")]
    Size {
        /// The type.
        dtype: DType,
        /// Bytes that type and shape ask for.
        wanted: usize,
        /// Bytes there are.
        found: usize,
    },
    /// A row range outside the matrix.
    #[error("rows {start}..{start}+{count} are outside a matrix of {rows} rows")]
    Range {
        /// First row.
        start: usize,
        /// Number of rows.
        count: usize,
        /// Rows of the matrix.
        rows: usize,
    },
    /// A row range that begins inside a tile of shared scales.
    #[error("row {start} lies inside a tile of {tile} rows that share scales")]
    TileSplit {
        /// First row.
        start: usize,
        /// Rows in a tile.
        tile: usize,
    },
}

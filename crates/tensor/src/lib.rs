//! Stored numbers: types, block formats, views, and their scalar encoding and decoding.
//!
//! Everything here is plain data and scalar arithmetic, with no IO and no SIMD: the slow, obvious
//! definition that fast kernels are tested against. It depends on no other crate of scrimp.

pub mod blocks;
mod codec;
mod dtype;
mod grouped;
mod packed;
mod plain;
mod view;

pub use codec::{decode, encode, encode_vec};
pub use dtype::DType;
pub use grouped::{Grouped, GroupedForm};
pub use packed::{PackedInts, Packing};
pub use plain::{F8E4M3_MAX, F8E4M3_VALUES, f8e4m3_from_f32};
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
    /// A row decoded into a place of another length.
    #[error("a row of {cols} values was to be decoded into {found} places")]
    RowOut {
        /// Values in the row.
        cols: usize,
        /// Places offered.
        found: usize,
    },
    /// A type that can be read but not written.
    #[error(
        "{dtype} can be read but not written; writable types are F32, F16, BF16, F8_E4M3, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0"
    )]
    NoEncoder {
        /// The type.
        dtype: DType,
    },
    /// Tiles of shared scales that do not fit the matrix.
    #[error("a {rows}x{cols} matrix in tiles of {}x{} does not have {codes} codes and {scales} scales", tile.0, tile.1)]
    Tiles {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// Rows and columns that share a scale.
        tile: (usize, usize),
        /// Codes there are.
        codes: usize,
        /// Scales there are.
        scales: usize,
    },
    /// Packed integers that are not as many as their extents say.
    #[error(
        "{rows}x{cols} integers of {bits} bits are not packed in {found} bytes; widths of 4 and 8 bits are read"
    )]
    Packed {
        /// Rows of values.
        rows: usize,
        /// Columns of values.
        cols: usize,
        /// Bits of a value.
        bits: usize,
        /// Bytes there are.
        found: usize,
    },
    /// Parts of a group-quantized matrix that do not fit each other.
    #[error("a group-quantized matrix has {found} {what}, not {wanted}")]
    Grouped {
        /// The part.
        what: &'static str,
        /// What the matrix' shape asks for.
        wanted: usize,
        /// What there is.
        found: usize,
    },
}

//! Layouts of the block formats, as they lie in a file, and what each block's values are.
//!
//! Every layout has alignment 1 (half-precision scales are kept as their two bytes), so that a
//! slice of blocks can be seen in any mapped file without a copy. Multi-byte fields are
//! little-endian. Kernels unpack these same structs; [`Block::decode`] says what they must get.

mod k_quants;
mod legacy;
mod tables;

pub use k_quants::{BlockQ2K, BlockQ3K, BlockQ4K, BlockQ5K, BlockQ6K, q3k_scales, q4k_scales};
pub use legacy::{BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0};
pub use tables::{BlockIQ4NL, BlockMXFP4, E2M1_DOUBLED, IQ4NL_VALUES, e8m0_half};

use bytemuck::Pod;
use half::f16;

use crate::{DType, TensorError};

/// One block of a format: `LEN` values in `size_of::<Self>()` bytes.
pub trait Block: Pod {
    /// The format.
    const DTYPE: DType;
    /// Values in a block.
    const LEN: usize = Self::DTYPE.block_len();

    /// Writes the block's values; `out` has [`Self::LEN`] places.
    fn decode(&self, out: &mut [f32]);

    /// The blocks in `bytes`, without copying.
    ///
    /// # Errors
    /// When `bytes` is no whole number of blocks.
    fn slice(bytes: &[u8]) -> Result<&[Self], TensorError> {
        bytemuck::try_cast_slice(bytes).map_err(|_| TensorError::Size {
            dtype: Self::DTYPE,
            wanted: bytes.len().next_multiple_of(size_of::<Self>()),
            found: bytes.len(),
        })
    }
}

/// A block format that can also be written.
pub trait EncodeBlock: Block {
    /// The block whose values come nearest to `values` ([`Block::LEN`] of them, finite) by the
    /// rule of ggml's reference quantizer.
    fn encode(values: &[f32]) -> Self;
}

/// The value of a half-precision scale.
#[inline(always)]
pub fn half(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

/// A scale rounded to half precision.
#[inline(always)]
pub fn to_half(value: f32) -> [u8; 2] {
    f16::from_f32(value).to_le_bytes()
}

/// Decodes a whole slice; sizes were checked by the caller against [`DType::row_bytes`].
pub(crate) fn decode_all<B: Block>(bytes: &[u8], out: &mut [f32]) -> Result<(), TensorError> {
    for (block, out) in B::slice(bytes)?.iter().zip(out.chunks_exact_mut(B::LEN)) {
        block.decode(out);
    }
    Ok(())
}

/// Encodes a whole slice; sizes were checked by the caller against [`DType::row_bytes`].
pub(crate) fn encode_all<B: EncodeBlock>(values: &[f32], out: &mut [u8]) {
    let chunks = out.chunks_exact_mut(size_of::<B>());
    for (values, out) in values.chunks_exact(B::LEN).zip(chunks) {
        out.copy_from_slice(bytemuck::bytes_of(&B::encode(values)));
    }
}

/// Asserts at compile time that a layout has the size the format table names, and no padding
/// or alignment of its own.
macro_rules! assert_layout {
    ($($block:ty),+ $(,)?) => {$(
        const _: () = assert!(
            size_of::<$block>() == <$block as crate::blocks::Block>::DTYPE.block_bytes()
                && align_of::<$block>() == 1
        );
    )+};
}
pub(crate) use assert_layout;

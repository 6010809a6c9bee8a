//! Decoding and encoding by [`DType`]: one `match` each, over the formats' own definitions.

use crate::blocks::{self, decode_all, encode_all};
use crate::plain::{self, decode_each, encode_each};
use crate::{DType, Encoding, MatrixView, TensorError, TensorView};

fn check(dtype: DType, values: usize, bytes: usize) -> Result<(), TensorError> {
    let wanted = dtype.row_bytes(values)?;
    if wanted == bytes {
        return Ok(());
    }
    Err(TensorError::Size {
        dtype,
        wanted,
        found: bytes,
    })
}

/// Decodes `out.len()` values of type `dtype`. Integers become the nearest float.
///
/// # Errors
/// When `bytes` is not exactly as long as `out.len()` values take, or these are no whole number
/// of blocks.
pub fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), TensorError> {
    check(dtype, out.len(), bytes.len())?;
    match dtype {
        DType::F32 => decode_each(bytes, out, f32::from_le_bytes),
        DType::F16 => decode_each(bytes, out, plain::f16_value),
        DType::BF16 => decode_each(bytes, out, plain::bf16_value),
        DType::F8E4M3 => decode_each(bytes, out, |[code]| plain::F8E4M3_VALUES[code as usize]),
        DType::I8 => decode_each(bytes, out, |[v]| f32::from(v as i8)),
        DType::U8 => decode_each(bytes, out, |[v]| f32::from(v)),
        DType::I32 => decode_each(bytes, out, |v| i32::from_le_bytes(v) as f32),
        DType::I64 => decode_each(bytes, out, |v| i64::from_le_bytes(v) as f32),
        DType::Q4_0 => decode_all::<blocks::BlockQ4_0>(bytes, out)?,
        DType::Q4_1 => decode_all::<blocks::BlockQ4_1>(bytes, out)?,
        DType::Q5_0 => decode_all::<blocks::BlockQ5_0>(bytes, out)?,
        DType::Q5_1 => decode_all::<blocks::BlockQ5_1>(bytes, out)?,
        DType::Q8_0 => decode_all::<blocks::BlockQ8_0>(bytes, out)?,
        DType::Q2K => decode_all::<blocks::BlockQ2K>(bytes, out)?,
        DType::Q3K => decode_all::<blocks::BlockQ3K>(bytes, out)?,
        DType::Q4K => decode_all::<blocks::BlockQ4K>(bytes, out)?,
        DType::Q5K => decode_all::<blocks::BlockQ5K>(bytes, out)?,
        DType::Q6K => decode_all::<blocks::BlockQ6K>(bytes, out)?,
        DType::IQ4NL => decode_all::<blocks::BlockIQ4NL>(bytes, out)?,
        DType::MXFP4 => decode_all::<blocks::BlockMXFP4>(bytes, out)?,
    }
    Ok(())
}

/// Encodes `values` as type `dtype` into `out`, rounding as ggml's reference quantizers do (plain
/// floats: to nearest, ties to even; E4M3 saturates). Values are to be finite.
///
/// # Errors
/// When `out` is not exactly as long as the values take, these are no whole number of blocks, or
/// the type has no encoder here.
pub fn encode(dtype: DType, values: &[f32], out: &mut [u8]) -> Result<(), TensorError> {
    check(dtype, values.len(), out.len())?;
    match dtype {
        DType::F32 => encode_each(values, out, f32::to_le_bytes),
        DType::F16 => encode_each(values, out, plain::f16_bytes),
        DType::BF16 => encode_each(values, out, plain::bf16_bytes),
        DType::F8E4M3 => encode_each(values, out, |v| [plain::f8e4m3_from_f32(v)]),
        DType::Q4_0 => encode_all::<blocks::BlockQ4_0>(values, out),
        DType::Q4_1 => encode_all::<blocks::BlockQ4_1>(values, out),
        DType::Q5_0 => encode_all::<blocks::BlockQ5_0>(values, out),
        DType::Q5_1 => encode_all::<blocks::BlockQ5_1>(values, out),
        DType::Q8_0 => encode_all::<blocks::BlockQ8_0>(values, out),
        _ => return Err(TensorError::NoEncoder { dtype }),
    }
    Ok(())
}

/// [`encode`] into a new vector.
///
/// # Errors
/// As [`encode`].
pub fn encode_vec(dtype: DType, values: &[f32]) -> Result<Vec<u8>, TensorError> {
    let mut out = vec![0; dtype.row_bytes(values.len())?];
    encode(dtype, values, &mut out)?;
    Ok(out)
}

impl TensorView<'_> {
    /// How many values the tensor has.
    ///
    /// # Errors
    /// When the product of the extents overflows.
    pub fn elements(&self) -> Result<usize, TensorError> {
        let count = self.shape.iter().try_fold(1usize, |n, &e| n.checked_mul(e));
        count.ok_or_else(|| TensorError::TooLarge {
            what: "a tensor",
            elements: self
                .shape
                .iter()
                .fold(1u128, |n, &e| n.saturating_mul(e as u128)),
        })
    }

    /// Every value as f32, row-major. For small tensors (norms, biases, scales): this allocates
    /// four bytes a value.
    ///
    /// # Errors
    /// When bytes and shape do not agree.
    pub fn to_f32(&self) -> Result<Vec<f32>, TensorError> {
        let elements = self.elements()?;
        check(self.dtype, elements, self.bytes.len())?;
        let mut out = vec![0.0; elements];
        decode(self.dtype, self.bytes, &mut out)?;
        Ok(out)
    }
}

impl MatrixView<'_> {
    /// Decodes row `row` into `out`, `cols` values.
    ///
    /// # Errors
    /// When the matrix has no such row, or `out` is not `cols` long.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) -> Result<(), TensorError> {
        if out.len() != self.cols {
            return Err(TensorError::RowOut {
                cols: self.cols,
                found: out.len(),
            });
        }
        if row >= self.rows {
            return Err(TensorError::Range {
                start: row,
                count: 1,
                rows: self.rows,
            });
        }
        match &self.encoding {
            Encoding::Blocks { dtype, bytes } => {
                let row_bytes = dtype.row_bytes(self.cols)?;
                decode(*dtype, &bytes[row * row_bytes..(row + 1) * row_bytes], out)
            }
            Encoding::Fp8Tiles {
                codes,
                scales,
                tile,
            } => {
                let per_row = self.cols.div_ceil(tile.1);
                let codes = &codes[row * self.cols..(row + 1) * self.cols];
                let scales = &scales[row / tile.0 * per_row..][..per_row];
                decode(DType::F8E4M3, codes, out)?;
                for (out, scale) in out.chunks_mut(tile.1).zip(scales) {
                    out.iter_mut().for_each(|v| *v *= scale);
                }
                Ok(())
            }
            Encoding::Grouped(grouped) => {
                grouped.decode_row(row, out);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked_before_anything_is_read() {
        let mut out = [0.0; 32];
        assert!(decode(DType::Q4_0, &[0; 17], &mut out).is_err());
        assert!(decode(DType::Q4_0, &[0; 18], &mut out[..31]).is_err());
        assert!(decode(DType::Q4_0, &[0; 18], &mut out).is_ok());
        assert_eq!(
            encode(DType::Q4K, &[0.0; 256], &mut [0; 144]),
            Err(TensorError::NoEncoder { dtype: DType::Q4K })
        );
    }

    #[test]
    fn integers_decode_by_value() {
        let mut out = [0.0; 2];
        decode(DType::I8, &[0xff, 5], &mut out).unwrap();
        assert_eq!(out, [-1.0, 5.0]);
        decode(
            DType::I64,
            &[[0xff; 8], [7, 0, 0, 0, 0, 0, 0, 0]].concat(),
            &mut out,
        )
        .unwrap();
        assert_eq!(out, [-1.0, 7.0]);
    }

    #[test]
    fn rows_of_tiles_meet_their_own_scales() {
        // 5×7 in tiles of 2×3: the last tile of each direction is cut.
        let codes: Vec<u8> = (0..35).map(|i| 0x30 + i).collect();
        let scales: Vec<f32> = (0..9).map(|i| 0.5 + i as f32).collect();
        let matrix = MatrixView::from_fp8_tiles(5, 7, &codes, &scales, (2, 3)).unwrap();
        let sliced = matrix.slice_rows(2, 3).unwrap();
        let mut out = [0.0; 7];
        for row in 0..5 {
            let (view, r) = if row < 2 {
                (&matrix, row)
            } else {
                (&sliced, row - 2)
            };
            view.decode_row(r, &mut out).unwrap();
            for (col, &v) in out.iter().enumerate() {
                let code = plain::F8E4M3_VALUES[usize::from(codes[row * 7 + col])];
                assert_eq!(
                    v,
                    code * scales[row / 2 * 3 + col / 3],
                    "row {row} column {col}"
                );
            }
        }
        assert!(matrix.decode_row(5, &mut out).is_err());
        assert!(matrix.decode_row(0, &mut out[..6]).is_err());
        assert!(matrix.slice_rows(1, 2).is_err());
        assert!(MatrixView::from_fp8_tiles(5, 7, &codes, &scales[1..], (2, 3)).is_err());
        assert!(MatrixView::from_fp8_tiles(5, 7, &codes, &scales, (0, 3)).is_err());
    }

    #[test]
    fn rows_of_blocks_decode_alone() {
        let values: Vec<f32> = (0..3 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
        let bytes = encode_vec(DType::Q8_0, &values).unwrap();
        let matrix = MatrixView::from_blocks(DType::Q8_0, 3, 64, &bytes).unwrap();
        let (mut whole, mut row) = (vec![0.0; 192], vec![0.0; 64]);
        decode(DType::Q8_0, &bytes, &mut whole).unwrap();
        for r in 0..3 {
            matrix.decode_row(r, &mut row).unwrap();
            assert_eq!(row, whole[r * 64..(r + 1) * 64]);
        }
    }
}

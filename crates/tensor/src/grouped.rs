//! Group-quantized matrices: integer codes whose value depends on a scale, and perhaps a zero
//! point, that a group of a row's columns shares.
//!
//! ```text
//! w[r][k] = (code[r][k] - zero[r][g]) · scale[r][g]      g: the group of column k
//! ```
//!
//! One canonical form for what compressed-tensors, AWQ and GPTQ write: they differ in how codes
//! lie ([`Packing`]), not in what these mean.

use std::ops::Range;

#[cfg(doc)]
use crate::Packing;
use crate::{DType, PackedInts, TensorError};

/// What of a group-quantized matrix decides the size of its resident form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupedForm {
    /// Bits of a code: 4 or 8.
    pub bits: usize,
    /// Consecutive columns that share a scale; the last group may be shorter.
    pub group_size: usize,
    /// Type the scales are stored in: F16, BF16 or F32.
    pub scale: DType,
    /// Whether groups have zero points of their own; else codes count from `2^(bits - 1)`.
    pub zeros: bool,
    /// Whether columns name their groups instead of following one another in them; there are as
    /// many groups either way.
    pub indexed: bool,
    /// Whether the model was made for activations that are rounded to eight bits, with one step
    /// for each token: a part of what the matrix computes, not a choice of whoever runs it.
    pub int8_tokens: bool,
}

impl GroupedForm {
    /// Groups of a row of `cols` columns.
    pub fn groups(&self, cols: usize) -> usize {
        cols.div_ceil(self.group_size.max(1))
    }

    /// The code that stands for zero where groups have no zero points.
    pub fn middle(&self) -> u8 {
        1 << (self.bits - 1)
    }
}

/// A group-quantized matrix.
#[derive(Clone, Debug)]
pub struct Grouped<'a> {
    /// Its kind.
    pub form: GroupedForm,
    /// Codes: `[rows, cols]`, or `[cols, rows]` where `transposed`.
    pub codes: PackedInts<'a>,
    /// Whether codes are stored input by input.
    pub transposed: bool,
    /// The matrix' first row among those of `codes`.
    pub first_row: usize,
    /// `[rows, groups]`, row-major.
    pub scales: &'a [f32],
    /// `[rows, groups]`: the codes that stand for zero. As many as scales, or none.
    pub zeros: &'a [u8],
    /// `[cols]`: group of each column where the form is `indexed`; else empty.
    pub index: &'a [u32],
    /// Groups of a row.
    pub groups: usize,
}

impl Grouped<'_> {
    /// Whether all parts are as many as a matrix of `rows × cols` has, and indices within.
    ///
    /// # Errors
    /// Says which part is not.
    pub(crate) fn check(&self, rows: usize, cols: usize) -> Result<(), TensorError> {
        let odd = |what, wanted: usize, found: usize| {
            Err(TensorError::Grouped {
                what,
                wanted,
                found,
            })
        };
        let (stored_rows, stored_cols) = match (self.codes.extents(), self.transposed) {
            (extents, false) => extents,
            ((ins, outs), true) => (outs, ins),
        };
        if stored_cols != cols {
            return odd("columns of codes", cols, stored_cols);
        }
        if self
            .first_row
            .checked_add(rows)
            .is_none_or(|end| end > stored_rows)
        {
            return odd("rows of codes", rows, stored_rows);
        }
        if self.form.bits != self.codes.bits() || self.form.group_size == 0 {
            return odd("bits of a code", self.form.bits, self.codes.bits());
        }
        if self.groups != self.form.groups(cols) {
            return odd("groups", self.form.groups(cols), self.groups);
        }
        let each = rows.checked_mul(self.groups);
        if each != Some(self.scales.len()) {
            return odd(
                "scales",
                rows.saturating_mul(self.groups),
                self.scales.len(),
            );
        }
        if self.form.zeros && each != Some(self.zeros.len()) {
            return odd("zero points", self.scales.len(), self.zeros.len());
        }
        let indexed = if self.form.indexed { cols } else { 0 };
        if self.index.len() != indexed {
            return odd("group indices", indexed, self.index.len());
        }
        match self.index.iter().find(|&&g| g as usize >= self.groups) {
            Some(&g) => odd(
                "the groups that an index below them names",
                self.groups,
                g as usize,
            ),
            None => Ok(()),
        }
    }

    /// The group of column `col`.
    #[inline]
    pub fn group_of(&self, col: usize) -> usize {
        match self.form.indexed {
            true => self.index[col] as usize,
            false => col / self.form.group_size,
        }
    }

    /// The code that stands for zero in row `row` and group `group`.
    #[inline]
    pub fn zero(&self, row: usize, group: usize) -> u8 {
        match self.form.zeros {
            true => self.zeros[row * self.groups + group],
            false => self.form.middle(),
        }
    }

    /// Writes the codes of these rows and columns to `out`, row by row, `stride` apart.
    ///
    /// # Panics
    /// When a range leaves the matrix, or `out` is too short.
    pub fn unpack(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [u8], stride: usize) {
        let (first_row, first_col) = (self.first_row + rows.start, cols.start);
        let rows = first_row..self.first_row + rows.end;
        if self.transposed {
            self.codes.each(cols, rows, |col, row, code| {
                out[(row - first_row) * stride + col - first_col] = code;
            });
        } else {
            self.codes.each(rows, cols, |row, col, code| {
                out[(row - first_row) * stride + col - first_col] = code;
            });
        }
    }

    /// Decodes one row; `out` has as many places as the matrix has columns.
    pub(crate) fn decode_row(&self, row: usize, out: &mut [f32]) {
        let stored = self.first_row + row;
        for (col, out) in out.iter_mut().enumerate() {
            let code = match self.transposed {
                true => self.codes.get(col, stored),
                false => self.codes.get(stored, col),
            };
            let group = self.group_of(col);
            let steps = i32::from(code) - i32::from(self.zero(row, group));
            *out = steps as f32 * self.scales[row * self.groups + group];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Encoding, MatrixView, Packing};

    const FORM: GroupedForm = GroupedForm {
        bits: 4,
        group_size: 3,
        scale: DType::F32,
        zeros: true,
        indexed: false,
        int8_tokens: false,
    };

    /// 8 rows of 7 columns in groups of 3, stored both ways round: word (row, 0) holds the row's
    /// codes, and so does word (0, row) of the transposed one.
    fn parts() -> (Vec<u8>, Vec<f32>, Vec<u8>) {
        let words = (0..8u32).map(|r| 0x0765_4321 ^ (r * 0x0111_1111));
        let bytes = words.flat_map(|w| w.to_le_bytes()).collect();
        let scales = (0..24).map(|i| 0.25 + i as f32).collect();
        let zeros = (0..24).map(|i| (i * 5 % 16) as u8).collect();
        (bytes, scales, zeros)
    }

    fn grouped<'a>(parts: &'a (Vec<u8>, Vec<f32>, Vec<u8>), transposed: bool) -> Grouped<'a> {
        let (extents, packing) = match transposed {
            true => ((7, 8), Packing::Columns),
            false => ((8, 7), Packing::Rows),
        };
        Grouped {
            form: FORM,
            codes: PackedInts::new(&parts.0, extents, 4, packing).unwrap(),
            transposed,
            first_row: 0,
            scales: &parts.1,
            zeros: &parts.2,
            index: &[],
            groups: 3,
        }
    }

    #[test]
    fn values_follow_from_codes_zeros_and_scales() {
        let parts = parts();
        for transposed in [false, true] {
            let all = MatrixView::from_grouped(8, 7, grouped(&parts, transposed)).unwrap();
            let some = all.slice_rows(2, 5).unwrap();
            let (mut row, mut codes) = ([0.0; 7], [0u8; 20]);
            for r in 0..8 {
                all.decode_row(r, &mut row).unwrap();
                for (k, &value) in row.iter().enumerate() {
                    let code = (k as i32 + 1) ^ r as i32;
                    let at = r * 3 + k / 3;
                    let want = (code - i32::from(parts.2[at])) as f32 * parts.1[at];
                    assert_eq!(value, want, "row {r}, column {k}");
                }
                if (2..7).contains(&r) {
                    let mut sliced = [0.0; 7];
                    some.decode_row(r - 2, &mut sliced).unwrap();
                    assert_eq!(sliced, row);
                }
            }
            let Encoding::Grouped(some) = &some.encoding else {
                panic!("another encoding");
            };
            some.unpack(1..3, 2..7, &mut codes, 10);
            assert_eq!(codes[..5], [3 ^ 3, 4 ^ 3, 5 ^ 3, 6 ^ 3, 7 ^ 3]);
            assert_eq!(codes[10..15], [3 ^ 4, 4 ^ 4, 5 ^ 4, 6 ^ 4, 7 ^ 4]);
        }
    }

    #[test]
    fn columns_may_name_their_groups() {
        let parts = parts();
        let index = [2, 0, 1, 1, 0, 2, 2];
        let form = GroupedForm {
            indexed: true,
            zeros: false,
            ..FORM
        };
        let view = Grouped {
            form,
            index: &index,
            zeros: &[],
            ..grouped(&parts, false)
        };
        let view = MatrixView::from_grouped(8, 7, view).unwrap();
        let mut row = [0.0; 7];
        view.decode_row(1, &mut row).unwrap();
        for (k, &value) in row.iter().enumerate() {
            let code = ((k as i32 + 1) ^ 1) - 8;
            assert_eq!(value, code as f32 * parts.1[3 + index[k] as usize]);
        }
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let parts = parts();
        let whole = grouped(&parts, false);
        assert!(MatrixView::from_grouped(9, 7, whole.clone()).is_err());
        assert!(MatrixView::from_grouped(8, 8, whole.clone()).is_err());
        let indexed = GroupedForm {
            indexed: true,
            ..FORM
        };
        let odd = [
            Grouped {
                scales: &parts.1[1..],
                ..whole.clone()
            },
            Grouped {
                zeros: &parts.2[1..],
                ..whole.clone()
            },
            Grouped {
                groups: 2,
                ..whole.clone()
            },
            Grouped {
                first_row: usize::MAX,
                ..whole.clone()
            },
            Grouped {
                form: indexed,
                ..whole.clone()
            },
            Grouped {
                form: indexed,
                index: &[0, 1, 2, 3, 0, 1, 2],
                ..whole
            },
        ];
        for odd in odd {
            assert!(MatrixView::from_grouped(8, 7, odd).is_err());
        }
    }
}

//! Matrices of four- or eight-bit integers packed in 32-bit words: the layouts of quantized
//! checkpoints, and how a value is found in each.
//!
//! Words are little-endian. Values are unsigned codes; what a code is worth is the business of
//! scales and zero points ([`crate::Grouped`]).

use std::ops::Range;

use crate::TensorError;

/// How values share words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// Consecutive values of a row share a word, the first in its lowest bits
    /// (compressed-tensors' weights, GPTQ's zero points).
    Rows,
    /// Consecutive values of a column share a word, likewise (GPTQ's weights,
    /// compressed-tensors' zero points).
    Columns,
    /// Eight nibbles of a row share a word in the order 0, 2, 4, 6, 1, 3, 5, 7 (AWQ's gemm).
    Interleaved,
    /// A signed byte each; its code counts from -128 (compressed-tensors' `int-quantized`).
    SignedBytes,
}

/// AWQ: which value of a word's eight each nibble holds, lowest nibble first.
const INTERLEAVED: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// The nibble of each value: the inverse of [`INTERLEAVED`].
const NIBBLE_OF: [usize; 8] = {
    let mut nibble = [0; 8];
    let mut i = 0;
    while i < 8 {
        nibble[INTERLEAVED[i]] = i;
        i += 1;
    }
    nibble
};

/// Bytes of a word.
const WORD: usize = 4;

/// A packed matrix of codes, as it lies in a file.
#[derive(Clone, Copy, Debug)]
pub struct PackedInts<'a> {
    bytes: &'a [u8],
    /// Rows and columns of values.
    extents: (usize, usize),
    /// Bits of a code.
    bits: usize,
    packing: Packing,
}

impl Packing {
    /// Rows and columns of words (of bytes, where values are bytes) that `extents` values of
    /// `bits` bits take; `None` where this packing does not hold such values.
    pub fn stored_extents(self, extents: (usize, usize), bits: usize) -> Option<(usize, usize)> {
        let per_word = match bits {
            4 | 8 => 32 / bits,
            _ => return None,
        };
        match self {
            Packing::Rows => Some((extents.0, extents.1.div_ceil(per_word))),
            Packing::Columns => Some((extents.0.div_ceil(per_word), extents.1)),
            Packing::Interleaved if bits == 4 => Some((extents.0, extents.1.div_ceil(8))),
            Packing::SignedBytes if bits == 8 => Some(extents),
            Packing::Interleaved | Packing::SignedBytes => None,
        }
    }
}

impl<'a> PackedInts<'a> {
    /// A view of `extents` values of `bits` bits.
    ///
    /// # Errors
    /// When the packing has no such values, or `bytes` is not exactly as long as they take.
    pub fn new(
        bytes: &'a [u8],
        extents: (usize, usize),
        bits: usize,
        packing: Packing,
    ) -> Result<Self, TensorError> {
        let size = if packing == Packing::SignedBytes {
            1
        } else {
            WORD
        };
        let stored = packing.stored_extents(extents, bits);
        let wanted = stored.and_then(|(rows, cols)| rows.checked_mul(cols)?.checked_mul(size));
        if wanted != Some(bytes.len()) {
            return Err(TensorError::Packed {
                rows: extents.0,
                cols: extents.1,
                bits,
                found: bytes.len(),
            });
        }
        Ok(PackedInts {
            bytes,
            extents,
            bits,
            packing,
        })
    }

    /// Rows and columns of values.
    pub fn extents(&self) -> (usize, usize) {
        self.extents
    }

    /// Bits of a code.
    pub fn bits(&self) -> usize {
        self.bits
    }

    /// The code in row `row`, column `col`.
    ///
    /// # Panics
    /// When it is outside of the matrix.
    #[inline]
    pub fn get(&self, row: usize, col: usize) -> u8 {
        assert!(row < self.extents.0 && col < self.extents.1, "{row}, {col}");
        let per_word = 32 / self.bits;
        let (word, place) = match self.packing {
            Packing::SignedBytes => return self.bytes[row * self.extents.1 + col] ^ 0x80,
            Packing::Rows => (
                row * self.extents.1.div_ceil(per_word) + col / per_word,
                col % per_word,
            ),
            Packing::Columns => (row / per_word * self.extents.1 + col, row % per_word),
            Packing::Interleaved => (
                row * self.extents.1.div_ceil(8) + col / 8,
                NIBBLE_OF[col % 8],
            ),
        };
        self.code(self.word(word), place)
    }

    fn word(&self, index: usize) -> u32 {
        let at = WORD * index;
        let bytes = &self.bytes[at..at + WORD];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// Code `place` of a word.
    #[inline]
    fn code(&self, word: u32, place: usize) -> u8 {
        let mask = (1u32 << self.bits) - 1;
        ((word >> (place * self.bits)) & mask) as u8
    }

    /// Calls `put(row, col, code)` for the codes of these rows and columns, each word read once.
    ///
    /// # Panics
    /// When a range leaves the matrix.
    #[inline(always)]
    pub fn each(
        &self,
        rows: Range<usize>,
        cols: Range<usize>,
        mut put: impl FnMut(usize, usize, u8),
    ) {
        assert!(rows.end <= self.extents.0 && cols.end <= self.extents.1);
        let per_word = 32 / self.bits;
        match self.packing {
            Packing::SignedBytes => {
                for row in rows {
                    let row_bytes = &self.bytes[row * self.extents.1..][..self.extents.1];
                    for col in cols.clone() {
                        put(row, col, row_bytes[col] ^ 0x80);
                    }
                }
            }
            Packing::Columns => {
                for words in rows.start / per_word..rows.end.div_ceil(per_word) {
                    let first = words * per_word;
                    let held = rows.start.max(first)..rows.end.min(first + per_word);
                    for col in cols.clone() {
                        let word = self.word(words * self.extents.1 + col);
                        for row in held.clone() {
                            put(row, col, self.code(word, row - first));
                        }
                    }
                }
            }
            Packing::Rows | Packing::Interleaved => {
                let interleaved = self.packing == Packing::Interleaved;
                let stride = self.extents.1.div_ceil(per_word);
                for row in rows {
                    for words in cols.start / per_word..cols.end.div_ceil(per_word) {
                        let first = words * per_word;
                        let held = cols.start.max(first)..cols.end.min(first + per_word);
                        let word = self.word(row * stride + words);
                        for col in held {
                            let place = if interleaved {
                                NIBBLE_OF[(col - first) % 8]
                            } else {
                                col - first
                            };
                            put(row, col, self.code(word, place));
                        }
                    }
                }
            }
        }
    }

    /// All codes, row by row, or column by column where `transposed`. For zero points: this
    /// allocates a byte a value.
    pub fn to_codes(&self, transposed: bool) -> Vec<u8> {
        let (rows, cols) = self.extents;
        let mut codes = vec![0; rows * cols];
        self.each(0..rows, 0..cols, |row, col, code| {
            let at = if transposed {
                col * rows + row
            } else {
                row * cols + col
            };
            codes[at] = code;
        });
        codes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The other direction, written from the layouts' descriptions alone.
    fn pack(codes: &[u8], (rows, cols): (usize, usize), bits: usize, packing: Packing) -> Vec<u8> {
        let (stored_rows, stored_cols) = packing.stored_extents((rows, cols), bits).unwrap();
        if packing == Packing::SignedBytes {
            return codes.iter().map(|c| (i16::from(*c) - 128) as u8).collect();
        }
        let mut words = vec![0u32; stored_rows * stored_cols];
        for (i, &code) in codes.iter().enumerate() {
            let (row, col) = (i / cols, i % cols);
            let (word, bit) = match packing {
                Packing::Rows => (row * stored_cols + col * bits / 32, col * bits % 32),
                Packing::Columns => (row * bits / 32 * stored_cols + col, row * bits % 32),
                _ => {
                    // Even columns of a word's eight come first.
                    let nibble = if col % 2 == 0 {
                        col % 8 / 2
                    } else {
                        4 + col % 8 / 2
                    };
                    (row * stored_cols + col / 8, 4 * nibble)
                }
            };
            words[word] |= u32::from(code) << bit;
        }
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    #[test]
    fn unpacking_undoes_packing() {
        let mut state = 1u32;
        for (rows, cols) in [(1, 1), (3, 8), (7, 13), (16, 33), (37, 40)] {
            for (packing, widths) in [
                (Packing::Rows, &[4, 8][..]),
                (Packing::Columns, &[4, 8]),
                (Packing::Interleaved, &[4]),
                (Packing::SignedBytes, &[8]),
            ] {
                for &bits in widths {
                    let codes: Vec<u8> = (0..rows * cols)
                        .map(|_| {
                            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                            ((state >> 24) & ((1 << bits) - 1)) as u8
                        })
                        .collect();
                    let bytes = pack(&codes, (rows, cols), bits, packing);
                    let view = PackedInts::new(&bytes, (rows, cols), bits, packing).unwrap();
                    assert_eq!(
                        view.to_codes(false),
                        codes,
                        "{packing:?} {bits} {rows}x{cols}"
                    );
                    let turned = view.to_codes(true);
                    for (i, &code) in codes.iter().enumerate() {
                        let (row, col) = (i / cols, i % cols);
                        assert_eq!(view.get(row, col), code);
                        assert_eq!(turned[col * rows + row], code);
                    }
                    let (from, to) = (rows / 3, cols - cols / 3);
                    let mut seen = 0;
                    view.each(from..rows, 0..to, |row, col, code| {
                        assert_eq!(code, codes[row * cols + col]);
                        seen += 1;
                    });
                    assert_eq!(seen, (rows - from) * to);
                }
            }
        }
    }

    #[test]
    fn sizes_and_widths_are_checked() {
        let bytes = [0; 64];
        assert!(PackedInts::new(&bytes, (4, 32), 4, Packing::Rows).is_ok());
        assert!(PackedInts::new(&bytes, (4, 33), 4, Packing::Rows).is_err());
        assert!(PackedInts::new(&bytes, (4, 32), 3, Packing::Rows).is_err());
        assert!(PackedInts::new(&bytes, (4, 16), 8, Packing::Interleaved).is_err());
        assert!(PackedInts::new(&bytes, (usize::MAX, 2), 8, Packing::SignedBytes).is_err());
    }
}

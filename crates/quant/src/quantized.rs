//! A matrix of codes with the grids they are on.

use rayon::prelude::*;

use crate::grid::{Grid, GridSpec};

/// A quantized matrix, before it is packed.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Inputs that share a grid; divides `cols`.
    pub group: usize,
    /// Bits of a code.
    pub bits: u32,
    /// `[rows, cols]`, unsigned.
    pub codes: Vec<u8>,
    /// `[rows, cols / group]`, as stored.
    pub scales: Vec<f32>,
    /// `[rows, cols / group]`: codes of 0.
    pub zeros: Vec<u8>,
}

impl Quantized {
    /// Room for a matrix; every code is 0 on a grid of 0.
    pub fn empty(rows: usize, cols: usize, group: usize, bits: u32) -> Quantized {
        let groups = cols / group;
        Quantized {
            rows,
            cols,
            group,
            bits,
            codes: vec![0; rows * cols],
            scales: vec![1.0; rows * groups],
            zeros: vec![0; rows * groups],
        }
    }

    /// Grids of a row.
    pub fn groups(&self) -> usize {
        self.cols / self.group
    }

    /// Bytes of one of this size.
    pub fn bytes(rows: usize, cols: usize, group: usize) -> usize {
        rows * cols + rows * (cols / group) * 5
    }

    /// A group's grid.
    pub fn grid(&self, row: usize, group: usize) -> Grid {
        let at = row * self.groups() + group;
        Grid {
            scale: self.scales[at],
            zero: f32::from(self.zeros[at]),
        }
    }

    /// What row `row` stands for.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let codes = &self.codes[row * self.cols..(row + 1) * self.cols];
        let groups = codes
            .chunks_exact(self.group)
            .zip(out.chunks_exact_mut(self.group));
        for (g, (codes, out)) in groups.enumerate() {
            let grid = self.grid(row, g);
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = grid.value(f32::from(code));
            }
        }
    }

    /// What it stands for, `[rows, cols]`, with column `c` divided by `channel_scales[c]` where
    /// channels were scaled.
    pub fn dequantize_into(&self, channel_scales: Option<&[f32]>, out: &mut [f32]) {
        let rows = out.par_chunks_exact_mut(self.cols.max(1));
        rows.enumerate().for_each(|(row, out)| {
            self.dequantize_row(row, out);
            if let Some(scales) = channel_scales {
                out.iter_mut().zip(scales).for_each(|(w, s)| *w /= s);
            }
        });
    }

    /// Divides row `r` by `by[r]`: its scales, rounded to what can be stored.
    pub fn divide_rows(&mut self, spec: &GridSpec, by: &[f32]) {
        let groups = self.groups();
        for (scales, by) in self.scales.chunks_exact_mut(groups).zip(by) {
            for scale in scales {
                *scale = spec.stored_scale(*scale / by);
            }
        }
    }
}

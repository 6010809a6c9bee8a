//! Group-quantized weights in every layout, at every level, against decoded weights.

#![allow(clippy::unwrap_used)] // helpers outside of test functions

mod common;

use common::{
    Random, assert_bits, assert_close, backend, buffer, decoded, levels, product, values,
};
use half::{bf16, f16};
use scrimp_backend::{Backend, HeadRows, Input, MatrixStorage, Projection, Segments};
use scrimp_cpu::{CpuBackend, CpuBuffer, CpuMatrix, Precision};
use scrimp_tensor::{DType, Grouped, GroupedForm, MatrixView, PackedInts, Packing};

/// A stored matrix, whole.
struct Stored {
    form: GroupedForm,
    packing: Packing,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<u8>,
    index: Vec<u32>,
}

impl Stored {
    fn random(
        random: &mut Random,
        (rows, cols): (usize, usize),
        packing: Packing,
        form: GroupedForm,
    ) -> Stored {
        let transposed = matches!(packing, Packing::Columns | Packing::Interleaved);
        let extents = if transposed {
            (cols, rows)
        } else {
            (rows, cols)
        };
        let (r, c) = packing.stored_extents(extents, form.bits).unwrap();
        let size = if packing == Packing::SignedBytes {
            1
        } else {
            4
        };
        let groups = form.groups(cols);
        let mut scale = || {
            let scale = random.value() * 0.05;
            match form.scale {
                DType::F16 => f16::from_f32(scale).to_f32(),
                DType::BF16 => bf16::from_f32(scale).to_f32(),
                _ => scale,
            }
        };
        let scales = (0..rows * groups).map(|_| scale()).collect();
        let bytes = (0..r * c * size).map(|_| random.bits() as u8).collect();
        let zeros = if form.zeros { rows * groups } else { 0 };
        let mut zero = |i: usize| match i % 5 {
            0 => 0,
            _ => (random.bits() & ((1 << form.bits) - 1)) as u8,
        };
        let zeros = (0..zeros).map(&mut zero).collect();
        let indexed = if form.indexed { cols } else { 0 };
        let index = (0..indexed).map(|_| random.below(groups) as u32).collect();
        Stored {
            form,
            packing,
            rows,
            cols,
            bytes,
            scales,
            zeros,
            index,
        }
    }

    fn view(&self) -> MatrixView<'_> {
        let transposed = matches!(self.packing, Packing::Columns | Packing::Interleaved);
        let (rows, cols) = (self.rows, self.cols);
        let extents = if transposed {
            (cols, rows)
        } else {
            (rows, cols)
        };
        let grouped = Grouped {
            form: self.form,
            codes: PackedInts::new(&self.bytes, extents, self.form.bits, self.packing).unwrap(),
            transposed,
            first_row: 0,
            scales: &self.scales,
            zeros: &self.zeros,
            index: &self.index,
            groups: self.form.groups(cols),
        };
        MatrixView::from_grouped(rows, cols, grouped).unwrap()
    }

    fn what(&self) -> String {
        let (rows, cols) = (self.rows, self.cols);
        format!("{rows}x{cols} {:?} {:?}", self.packing, self.form)
    }
}

const FORM: GroupedForm = GroupedForm {
    bits: 4,
    group_size: 32,
    scale: DType::F32,
    zeros: false,
    indexed: false,
    int8_tokens: false,
};

/// Matrices of every layout, width, type of scales, with zero points and without, in groups that
/// are blocks, odd, cut, or the whole row.
fn cases(random: &mut Random) -> Vec<Stored> {
    let mut cases = Vec::new();
    let scales = [DType::F16, DType::BF16, DType::F32];
    let layouts = [
        (Packing::Rows, 4),
        (Packing::Rows, 8),
        (Packing::Columns, 4),
        (Packing::Columns, 8),
        (Packing::Interleaved, 4),
        (Packing::SignedBytes, 8),
    ];
    let shapes = [
        (1, 32, 32),
        (16, 128, 64),
        (37, 96, 96),
        (70, 288, 32),
        (150, 320, 128), // the last group is cut
        (33, 100, 100),  // per channel, and no whole blocks
        (37, 72, 24),
        (130, 600, 16),
    ];
    for (i, (packing, bits)) in layouts.into_iter().enumerate() {
        for (j, (rows, cols, group_size)) in shapes.into_iter().enumerate() {
            for zeros in [false, true] {
                let form = GroupedForm {
                    bits,
                    group_size,
                    scale: scales[(i + j) % 3],
                    zeros,
                    indexed: false,
                    int8_tokens: false,
                };
                cases.push(Stored::random(random, (rows, cols), packing, form));
            }
        }
        let form = GroupedForm {
            bits,
            indexed: true,
            zeros: i % 2 == 0,
            ..FORM
        };
        cases.push(Stored::random(random, (37, 160), packing, form));
    }
    cases
}

/// Activations in int8 steps: of each block of 32, or of each row.
fn rounded(x: &[f32], cols: usize, per_token: bool) -> Vec<f32> {
    let mut out = Vec::new();
    for row in x.chunks_exact(cols) {
        for block in row.chunks(if per_token { cols } else { 32 }) {
            let d = block.iter().fold(0.0f32, |a, v| a.max(v.abs())) / 127.0;
            let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
            out.extend(block.iter().map(|v| (v * inverse).round_ties_even() * d));
        }
    }
    out
}

fn linear(b: &mut CpuBackend, x: &CpuBuffer, rows: usize, w: &CpuMatrix, n: usize) -> Vec<f32> {
    let mut out = b.alloc(rows * n).unwrap();
    let projection = Projection {
        weight: w,
        bias: None,
        out: &mut out,
        accumulate: false,
    };
    let input = Input {
        x,
        rows,
        norm: None,
        fine: false,
    };
    b.linear(input, &mut [projection]);
    values(b, &out, rows * n)
}

#[test]
fn products_are_right_and_rows_do_not_touch_each_other() {
    let mut random = Random::new(11);
    for stored in cases(&mut random) {
        let (n, cols) = (stored.rows, stored.cols);
        let view = stored.view();
        let weights = decoded(&view);
        let fast = !stored.form.indexed
            && (stored.form.group_size % 32 == 0 || stored.form.group_size >= cols);
        for rows in [1, 3, 14] {
            let x = random.values(rows * cols);
            for level in levels() {
                for precision in [Precision::Exact, Precision::Fast] {
                    let what = format!("{}, {rows} rows, {level} {precision:?}", stored.what());
                    let mut b = backend(level, precision, 2);
                    let w = b.load_matrix(&view).unwrap();
                    let planned = b.matrix_bytes(n, cols, MatrixStorage::Grouped(stored.form));
                    assert_eq!(w.bytes(), planned, "{what}");
                    let input = buffer(&mut b, &x);
                    let got = linear(&mut b, &input, rows, &w, n);
                    let seen = match precision {
                        Precision::Fast if fast => rounded(&x, cols, false),
                        _ => x.clone(),
                    };
                    assert_close(&got, &product(&seen, &weights, cols), &what);
                    let last = buffer(&mut b, &x[(rows - 1) * cols..]);
                    let alone = linear(&mut b, &last, 1, &w, n);
                    assert_bits(&alone, &got[(rows - 1) * n..], &what);
                }
            }
        }
    }
}

#[test]
fn activations_of_w8a8_are_rounded_by_token_at_any_precision() {
    let mut random = Random::new(12);
    for (n, cols) in [(1, 32), (37, 100), (70, 320)] {
        let form = GroupedForm {
            bits: 8,
            group_size: cols,
            scale: DType::BF16,
            int8_tokens: true,
            ..FORM
        };
        let stored = Stored::random(&mut random, (n, cols), Packing::SignedBytes, form);
        let view = stored.view();
        let weights = decoded(&view);
        let x = random.values(5 * cols);
        for level in levels() {
            for precision in [Precision::Exact, Precision::Fast] {
                let mut b = backend(level, precision, 2);
                let w = b.load_matrix(&view).unwrap();
                let input = buffer(&mut b, &x);
                let got = linear(&mut b, &input, 5, &w, n);
                let what = format!("{} {level} {precision:?}", stored.what());
                let seen = rounded(&x, cols, true);
                assert_close(&got, &product(&seen, &weights, cols), &what);
            }
        }
    }
    let form = GroupedForm {
        group_size: 24,
        int8_tokens: true,
        ..FORM
    };
    let stored = Stored::random(&mut random, (4, 48), Packing::Rows, form);
    let mut b = backend(levels()[0], Precision::Exact, 1);
    let error = b.load_matrix(&stored.view()).unwrap_err().to_string();
    assert!(error.contains("groups of 24"), "{error}");
}

#[test]
fn embeddings_and_heads_read_decoded_values() {
    let mut random = Random::new(13);
    for stored in cases(&mut random) {
        let (n, cols) = (stored.rows, stored.cols);
        let view = stored.view();
        let weights = decoded(&view);
        let ids: Vec<u32> = (0..5).map(|_| random.below(n) as u32).collect();
        for level in levels() {
            let mut b = backend(level, Precision::Fast, 2);
            let w = b.load_matrix(&view).unwrap();
            let mut out = b.alloc(ids.len() * cols).unwrap();
            b.embed(&w, &ids, &mut out);
            let got = values(&mut b, &out, ids.len() * cols);
            for (i, (row, &id)) in got.chunks_exact(cols).zip(&ids).enumerate() {
                let want = &weights[id as usize * cols..][..cols];
                assert!(row == want, "{} {level}: row {i}", stored.what());
            }
            // One head of all rows, transposed: out = Wᵀ · x.
            let x = random.values(n);
            let input = buffer(&mut b, &x);
            let mut turned = b.alloc(cols).unwrap();
            let heads = HeadRows {
                offset: 0,
                stride: n,
                count: n,
                transposed: true,
            };
            let (from, to) = (Segments::dense(1, n), Segments::dense(1, cols));
            b.head_linear(&input, 1, from, &w, heads, &mut turned, to);
            let got = values(&mut b, &turned, cols);
            let by_col: Vec<f32> = (0..cols)
                .flat_map(|k| (0..n).map(move |r| (r, k)))
                .map(|(r, k)| weights[r * cols + k])
                .collect();
            assert_close(&got, &product(&x, &by_col, n), &stored.what());
        }
    }
}

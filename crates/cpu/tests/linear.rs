//! Projections of every format at every level, against decoded weights and against themselves.

#![allow(clippy::unwrap_used)] // helpers outside of test functions

mod common;

use common::{
    Random, TREATMENTS, WEIGHTS, assert_bits, assert_close, backend, buffer, decoded, levels,
    product, rounded, values, weight_bytes,
};
use scrimp_backend::{Backend, Input, Norm, Projection};
use scrimp_cpu::{CpuBackend, CpuBuffer, CpuMatrix, Precision};
use scrimp_tensor::{DType, MatrixView};

/// One projection of `rows` rows.
fn linear(b: &mut CpuBackend, x: &CpuBuffer, rows: usize, w: &CpuMatrix, n: usize) -> Vec<f32> {
    project(b, x, rows, w, n, false)
}

/// The same, coarsely or finely rounded.
fn project(
    b: &mut CpuBackend,
    x: &CpuBuffer,
    rows: usize,
    w: &CpuMatrix,
    n: usize,
    fine: bool,
) -> Vec<f32> {
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
        fine,
    };
    b.linear(input, &mut [projection]);
    values(b, &out, rows * n)
}

/// Weight rows and columns to try: multiples of blocks, not of tiles.
fn shapes(dtype: DType) -> Vec<(usize, usize)> {
    match dtype.block_len() {
        1 => vec![(1, 1), (5, 7), (16, 16), (37, 65), (70, 300)],
        32 => vec![(1, 32), (16, 64), (37, 96), (70, 288)],
        _ => vec![(3, 256), (37, 512)],
    }
}

#[test]
fn products_are_right_and_rows_do_not_touch_each_other() {
    let mut random = Random::new(1);
    for dtype in WEIGHTS {
        for (n, cols) in shapes(dtype) {
            let bytes = weight_bytes(&mut random, dtype, n, cols);
            let view = MatrixView::from_blocks(dtype, n, cols, &bytes).unwrap();
            let weights = decoded(&view);
            for rows in [1, 2, 7, 70] {
                let x = random.values(rows * cols);
                for level in levels() {
                    for (precision, fine) in TREATMENTS {
                        let what = format!(
                            "{dtype} {n}x{cols}, {rows} rows, {level} {precision:?} fine {fine}"
                        );
                        let mut b = backend(level, precision, 2);
                        let w = b.load_matrix(&view).unwrap();
                        let input = buffer(&mut b, &x);
                        let got = project(&mut b, &input, rows, &w, n, fine);
                        let seen = rounded(&x, cols, dtype, level, (precision, fine));
                        assert_close(&got, &product(&seen, &weights, cols), &what);
                        for r in [0, rows / 2, rows - 1] {
                            let one = buffer(&mut b, &x[r * cols..(r + 1) * cols]);
                            let alone = project(&mut b, &one, 1, &w, n, fine);
                            assert_bits(&alone, &got[r * n..(r + 1) * n], &what);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn embeddings_are_the_decoded_rows() {
    let mut random = Random::new(2);
    for dtype in WEIGHTS {
        for (n, cols) in shapes(dtype) {
            let bytes = weight_bytes(&mut random, dtype, n, cols);
            let view = MatrixView::from_blocks(dtype, n, cols, &bytes).unwrap();
            let weights = decoded(&view);
            let ids: Vec<u32> = (0..9).map(|_| random.below(n) as u32).collect();
            let want: Vec<f32> = ids
                .iter()
                .flat_map(|&id| weights[id as usize * cols..][..cols].to_vec())
                .collect();
            for level in levels() {
                let mut b = backend(level, Precision::Fast, 2);
                let w = b.load_matrix(&view).unwrap();
                let mut out = b.alloc(ids.len() * cols).unwrap();
                b.embed(&w, &ids, &mut out);
                let got = values(&mut b, &out, ids.len() * cols);
                for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                    assert!(
                        g == w,
                        "{dtype} {n}x{cols} {level}: value {i} is {g}, not {w}"
                    );
                }
            }
        }
    }
}

#[test]
fn planned_bytes_are_kept_bytes() {
    use scrimp_backend::MatrixStorage;
    let mut random = Random::new(3);
    let mut b = backend(scrimp_cpu::CpuLevel::Portable, Precision::Fast, 1);
    for dtype in WEIGHTS {
        for (n, cols) in shapes(dtype) {
            let bytes = weight_bytes(&mut random, dtype, n, cols);
            let view = MatrixView::from_blocks(dtype, n, cols, &bytes).unwrap();
            let w = b.load_matrix(&view).unwrap();
            let planned = b.matrix_bytes(n, cols, MatrixStorage::Blocks(dtype));
            assert_eq!(w.bytes(), planned, "{dtype} {n}x{cols}");
        }
    }
}

#[test]
fn fp8_tiles_scale_their_own_values() {
    let mut random = Random::new(4);
    for (n, cols, tile) in [(40, 70, (16, 32)), (37, 300, (128, 128)), (20, 33, (7, 5))] {
        let codes = weight_bytes(&mut random, DType::F8E4M3, n, cols);
        let tiles: usize = n.div_ceil(tile.0) * cols.div_ceil(tile.1);
        let scales: Vec<f32> = (0..tiles).map(|_| random.value().abs() + 0.01).collect();
        let view = MatrixView::from_fp8_tiles(n, cols, &codes, &scales, tile).unwrap();
        let weights = decoded(&view);
        let x = random.values(3 * cols);
        for level in levels() {
            let mut b = backend(level, Precision::Fast, 2);
            let w = b.load_matrix(&view).unwrap();
            let planned = scrimp_backend::MatrixStorage::Fp8Tiles(tile.0, tile.1);
            assert_eq!(w.bytes(), b.matrix_bytes(n, cols, planned));
            let input = buffer(&mut b, &x);
            let got = linear(&mut b, &input, 3, &w, n);
            assert_close(&got, &product(&x, &weights, cols), &format!("fp8 {level}"));
        }
    }
}

#[test]
fn projections_share_a_norm_and_take_biases_and_residuals() {
    let mut random = Random::new(5);
    let (cols, rows) = (96, 5);
    let types = [DType::Q8_0, DType::BF16, DType::F32, DType::Q4_1];
    let sizes = [37, 16, 5, 64];
    let stored: Vec<Vec<u8>> = types
        .iter()
        .zip(sizes)
        .map(|(&dtype, n)| weight_bytes(&mut random, dtype, n, cols))
        .collect();
    let x = random.values(rows * cols);
    let factors = random.values(cols);
    let old = random.values(rows * 64);
    for level in levels() {
        let mut b = backend(level, Precision::Exact, 3);
        let (input, weight) = (buffer(&mut b, &x), buffer(&mut b, &factors));
        let norm = Norm {
            weight: &weight,
            dim: cols,
            eps: 1e-5,
        };
        let mut normed = b.alloc(rows * cols).unwrap();
        b.rms_norm(&input, rows, norm, &mut normed);
        let seen = values(&mut b, &normed, rows * cols);
        for (row, seen) in x.chunks_exact(cols).zip(seen.chunks_exact(cols)) {
            let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / cols as f64;
            for ((v, w), seen) in row.iter().zip(&factors).zip(seen) {
                let want = f64::from(*v) / (mean + 1e-5).sqrt() * f64::from(*w);
                assert!(
                    (want - f64::from(*seen)).abs() < 1e-5,
                    "{level}: {seen} not {want}"
                );
            }
        }
        for i in 0..types.len() {
            let (n, bias) = (sizes[i], random.values(sizes[i]));
            let view = MatrixView::from_blocks(types[i], n, cols, &stored[i]).unwrap();
            let w = b.load_matrix(&view).unwrap();
            let bias_buffer = buffer(&mut b, &bias);
            let mut out = buffer(&mut b, &old);
            let mut plain = b.alloc(rows * n).unwrap();
            let mut both = [
                Projection {
                    weight: &w,
                    bias: Some(&bias_buffer),
                    out: &mut out,
                    accumulate: true,
                },
                Projection {
                    weight: &w,
                    bias: None,
                    out: &mut plain,
                    accumulate: false,
                },
            ];
            let input = Input {
                x: &input,
                rows,
                norm: Some(norm),
                fine: false,
            };
            b.linear(input, &mut both);
            let (out, plain) = (
                values(&mut b, &out, rows * n),
                values(&mut b, &plain, rows * n),
            );
            for j in 0..rows * n {
                let want = old[j] + (plain[j] + bias[j % n]);
                assert_eq!(out[j].to_bits(), want.to_bits(), "{level} {}", types[i]);
            }
            assert_close(&plain, &product(&seen, &decoded(&view), cols), "normed");
        }
    }
}

#[test]
fn gates_are_silu_times_up() {
    let mut random = Random::new(6);
    for (dtype, n, cols) in [
        (DType::F32, 37, 40),
        (DType::Q8_0, 150, 64),
        (DType::Q4K, 64, 256),
    ] {
        let gate = weight_bytes(&mut random, dtype, n, cols);
        let up = weight_bytes(&mut random, dtype, n, cols);
        let gate = MatrixView::from_blocks(dtype, n, cols, &gate).unwrap();
        let up = MatrixView::from_blocks(dtype, n, cols, &up).unwrap();
        for rows in [0, 1, 3, 70] {
            let x = random.values(rows * cols);
            for level in levels() {
                let mut b = backend(level, Precision::Fast, 2);
                let (g, u) = (b.load_matrix(&gate).unwrap(), b.load_matrix(&up).unwrap());
                let x = buffer(&mut b, &x);
                let mut out = b.alloc(rows * n).unwrap();
                let input = Input {
                    x: &x,
                    rows,
                    norm: None,
                    fine: false,
                };
                b.gate_up_silu(input, &g, &u, &mut out);
                let got = values(&mut b, &out, rows * n);
                let gs = linear(&mut b, &x, rows, &g, n);
                let us = linear(&mut b, &x, rows, &u, n);
                for i in 0..rows * n {
                    let (g, u) = (f64::from(gs[i]), f64::from(us[i]));
                    let want = g / (1.0 + (-g).exp()) * u;
                    let error = (f64::from(got[i]) - want).abs();
                    assert!(error <= 1e-6 * want.abs() + 1e-30, "{dtype} {level}: {i}");
                }
            }
        }
    }
}

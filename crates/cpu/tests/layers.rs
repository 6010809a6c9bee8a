//! Experts, per-head products, rotations and copies, against their definitions.

#![allow(clippy::unwrap_used)] // helpers outside of test functions

mod common;

use common::{
    Random, WEIGHTS, assert_bits, assert_close, backend, buffer, decoded, levels, product, values,
    weight_bytes,
};
use scrimp_backend::{Backend, Expert, HeadRows, Input, Norm, Projection, Routing, Segments};
use scrimp_cpu::{CpuBackend, CpuBuffer, CpuLevel, CpuMatrix, Precision};
use scrimp_tensor::{DType, MatrixView};

fn matrix(b: &mut CpuBackend, random: &mut Random, dtype: DType, n: usize, k: usize) -> CpuMatrix {
    let bytes = weight_bytes(random, dtype, n, k);
    b.load_matrix(&MatrixView::from_blocks(dtype, n, k, &bytes).unwrap())
        .unwrap()
}

fn linear(
    b: &mut CpuBackend,
    x: &CpuBuffer,
    rows: usize,
    weight: &CpuMatrix,
    n: usize,
) -> Vec<f32> {
    let mut out = b.alloc(rows * n).unwrap();
    let projection = Projection {
        weight,
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
fn each_head_has_its_own_matrix_plain_and_transposed() {
    let mut random = Random::new(1);
    let (heads, count, gap, offset, rows) = (3, 21, 5, 3, 6);
    for dtype in WEIGHTS {
        let cols = if dtype.block_len() == 256 { 512 } else { 288 };
        let n = offset + heads * (count + gap);
        let bytes = weight_bytes(&mut random, dtype, n, cols);
        let view = MatrixView::from_blocks(dtype, n, cols, &bytes).unwrap();
        let weights = decoded(&view);
        for transposed in [false, true] {
            let (inputs, outputs) = if transposed {
                (count, cols)
            } else {
                (cols, count)
            };
            let from = Segments {
                row_stride: heads * (inputs + 2) + 1,
                offset: 1,
                count: heads,
                stride: inputs + 2,
                dim: inputs,
            };
            let to = Segments::dense(heads, outputs + 3).part(2, outputs);
            let x = random.values(rows * from.row_stride);
            let head_rows = HeadRows {
                offset,
                stride: count + gap,
                count,
                transposed,
            };
            for level in levels() {
                let what = format!("{dtype} {level} transposed: {transposed}");
                let mut b = backend(level, Precision::Fast, 2);
                let w = b.load_matrix(&view).unwrap();
                let (input, untouched) = (buffer(&mut b, &x), random.values(rows * to.row_stride));
                let mut out = buffer(&mut b, &untouched);
                b.head_linear(&input, rows, from, &w, head_rows, &mut out, to);
                let got = values(&mut b, &out, untouched.len());
                let mut want = untouched.clone();
                for r in 0..rows {
                    for h in 0..heads {
                        let x = &x[from.start(r, h)..][..inputs];
                        let first = offset + h * (count + gap);
                        let w = &weights[first * cols..(first + count) * cols];
                        let expected = if transposed {
                            let turned: Vec<f32> = (0..cols * count)
                                .map(|i| w[i % count * cols + i / count])
                                .collect();
                            product(x, &turned, count)
                        } else {
                            product(x, w, cols)
                        };
                        let at = to.start(r, h);
                        assert_close(&got[at..at + outputs], &expected, &what);
                        want[at..at + outputs].copy_from_slice(&got[at..at + outputs]);
                    }
                }
                assert_bits(&got, &want, "values between the segments");
                let one = buffer(&mut b, &x[4 * from.row_stride..5 * from.row_stride]);
                let mut out = b.alloc(to.row_stride).unwrap();
                b.head_linear(&one, 1, from, &w, head_rows, &mut out, to);
                let alone = values(&mut b, &out, to.row_stride);
                for h in 0..heads {
                    let (a, b) = (to.start(0, h), to.start(4, h));
                    assert_bits(&alone[a..a + outputs], &got[b..b + outputs], &what);
                }
            }
        }
    }
}

#[test]
fn experts_add_up_in_the_order_of_choice_and_rows_do_not_touch_each_other() {
    let mut random = Random::new(2);
    let (hidden, width, num_experts, top_k) = (96, 64, 7, 3);
    for dtype in [DType::F32, DType::BF16, DType::Q8_0, DType::Q4_1] {
        for level in levels() {
            for precision in [Precision::Exact, Precision::Fast] {
                let mut b = backend(level, precision, 3);
                let experts: Vec<Expert<CpuBackend>> = (0..num_experts)
                    .map(|_| Expert {
                        gate: matrix(&mut b, &mut random, dtype, width, hidden),
                        up: matrix(&mut b, &mut random, dtype, width, hidden),
                        down: matrix(&mut b, &mut random, DType::Q8_0, hidden, width),
                    })
                    .collect();
                let rows = 70;
                let (x, old) = (random.values(rows * hidden), random.values(rows * hidden));
                let mut routing = Routing {
                    top_k,
                    ..Routing::default()
                };
                for _ in 0..rows {
                    let first = random.below(num_experts - 1);
                    routing
                        .experts
                        .extend([first, (first + 1) % 6, (first + 3) % 6].map(|e| e as u32));
                    routing.weights.extend(random.values(top_k));
                }
                let input = buffer(&mut b, &x);
                let mut out = buffer(&mut b, &old);
                b.moe(&input, rows, &routing, &experts, &mut out);
                let got = values(&mut b, &out, rows * hidden);
                for r in [0, 33, rows - 1] {
                    let one = buffer(&mut b, &x[r * hidden..(r + 1) * hidden]);
                    let mut out = buffer(&mut b, &old[r * hidden..(r + 1) * hidden]);
                    let slots = r * top_k..(r + 1) * top_k;
                    let own = Routing {
                        top_k,
                        experts: routing.experts[slots.clone()].to_vec(),
                        weights: routing.weights[slots].to_vec(),
                    };
                    b.moe(&one, 1, &own, &experts, &mut out);
                    let alone = values(&mut b, &out, hidden);
                    assert_bits(&alone, &got[r * hidden..(r + 1) * hidden], "a row alone");
                    let mut want = vec![(0.0f64, 0.0f64); hidden];
                    for (&e, &weight) in own.experts.iter().zip(&own.weights) {
                        let e = &experts[e as usize];
                        let mut act = b.alloc(width).unwrap();
                        let input = Input {
                            x: &one,
                            rows: 1,
                            norm: None,
                            fine: false,
                        };
                        b.gate_up_silu(input, &e.gate, &e.up, &mut act);
                        let down = linear(&mut b, &act, 1, &e.down, hidden);
                        for (want, d) in want.iter_mut().zip(down) {
                            let term = f64::from(weight) * f64::from(d);
                            *want = (want.0 + term, want.1 + term.abs());
                        }
                    }
                    for (want, old) in want.iter_mut().zip(&old[r * hidden..]) {
                        let old = f64::from(*old);
                        *want = (want.0 + old, want.1 + old.abs());
                    }
                    assert_close(&alone, &want, &format!("{dtype} {level}, row {r}"));
                }
            }
        }
    }
}

#[test]
fn rotations_turn_pairs_and_leave_the_rest() {
    let mut random = Random::new(3);
    let (rows, heads, dim, rotated) = (5, 3, 24, 16);
    let segments = Segments::dense(heads, dim).part(8, rotated);
    let x = random.values(rows * heads * dim);
    let angles = random.values(rows * rotated / 2);
    let cos_sin: Vec<f32> = angles
        .chunks_exact(rotated / 2)
        .flat_map(|row| {
            row.iter()
                .map(|a| a.cos())
                .chain(row.iter().map(|a| a.sin()))
        })
        .collect();
    for interleaved in [false, true] {
        for level in levels() {
            let mut b = backend(level, Precision::Fast, 2);
            let mut buf = buffer(&mut b, &x);
            b.rope(&mut buf, rows, segments, &cos_sin, interleaved);
            let got = values(&mut b, &buf, x.len());
            let mut want = x.clone();
            for r in 0..rows {
                for h in 0..heads {
                    let at = segments.start(r, h);
                    for i in 0..rotated / 2 {
                        let (first, second) = if interleaved {
                            (at + 2 * i, at + 2 * i + 1)
                        } else {
                            (at + i, at + rotated / 2 + i)
                        };
                        let (sin, cos) = angles[r * rotated / 2 + i].sin_cos();
                        want[first] = x[first] * cos - x[second] * sin;
                        want[second] = x[second] * cos + x[first] * sin;
                    }
                }
            }
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                assert!(
                    (g - w).abs() < 1e-6,
                    "{level} {interleaved}: value {i} is {g}, not {w}"
                );
            }
        }
    }
}

#[test]
fn segments_are_normed_and_copied_in_place() {
    let mut random = Random::new(4);
    let (rows, heads, dim) = (4, 3, 40);
    let x = random.values(rows * heads * dim);
    let factors = random.values(24);
    let part = Segments::dense(heads, dim).part(10, 24);
    for level in levels() {
        let mut b = backend(level, Precision::Fast, 2);
        let (mut buf, weight) = (buffer(&mut b, &x), buffer(&mut b, &factors));
        let norm = Norm {
            weight: &weight,
            dim: 24,
            eps: 1e-6,
        };
        b.norm_segments(&mut buf, rows, part, norm);
        let got = values(&mut b, &buf, x.len());
        let mut want: Vec<f64> = x.iter().map(|&v| v.into()).collect();
        for r in 0..rows {
            for h in 0..heads {
                let at = part.start(r, h);
                let mean = x[at..at + 24].iter().map(|v| f64::from(v * v)).sum::<f64>() / 24.0;
                for i in 0..24 {
                    want[at + i] *= f64::from(factors[i]) / (mean + 1e-6).sqrt();
                }
            }
        }
        for (g, w) in got.iter().zip(&want) {
            assert!((f64::from(*g) - w).abs() < 1e-5, "{level}: {g} not {w}");
        }
        let mut out = b.alloc(rows * heads * 24).unwrap();
        b.copy_segments(&buf, rows, part, &mut out, Segments::dense(heads, 24));
        let copied = values(&mut b, &out, rows * heads * 24);
        for (i, row) in copied.chunks_exact(24).enumerate() {
            assert_bits(
                row,
                &got[part.start(i / heads, i % heads)..][..24],
                "copied",
            );
        }
        let mut out = b.alloc(3 * heads * dim).unwrap();
        b.gather_rows(&buf, heads * dim, &[3, 0, 3], &mut out);
        let gathered = values(&mut b, &out, 3 * heads * dim);
        assert_bits(
            &gathered[..heads * dim],
            &got[3 * heads * dim..],
            "gathered",
        );
        assert_bits(
            &gathered[heads * dim..2 * heads * dim],
            &got[..heads * dim],
            "gathered",
        );
    }
}

#[test]
fn no_rows_are_no_work() {
    let mut random = Random::new(5);
    let mut b = backend(CpuLevel::detect(), Precision::Fast, 2);
    let w = matrix(&mut b, &mut random, DType::Q8_0, 20, 32);
    let x = b.alloc(0).unwrap();
    assert!(linear(&mut b, &x, 0, &w, 20).is_empty());
    let mut out = b.alloc(0).unwrap();
    b.embed(&w, &[], &mut out);
    let weight = buffer(&mut b, &[1.0; 32]);
    let norm = Norm {
        weight: &weight,
        dim: 32,
        eps: 1e-6,
    };
    b.rms_norm(&x, 0, norm, &mut out);
    let mut buf = b.alloc(0).unwrap();
    b.rope(&mut buf, 0, Segments::dense(1, 32), &[], true);
    b.norm_segments(&mut buf, 0, Segments::dense(1, 32), norm);
    b.moe(&x, 0, &Routing::default(), &[], &mut out);
    b.gather_rows(&x, 32, &[], &mut out);
}

#[test]
fn what_is_not_weights_is_refused() {
    let mut b = backend(CpuLevel::detect(), Precision::Fast, 1);
    let view = MatrixView::from_blocks(DType::I32, 1, 2, &[0; 8]).unwrap();
    let error = b.load_matrix(&view).unwrap_err().to_string();
    assert!(error.contains("I32"), "{error}");
}

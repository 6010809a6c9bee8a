//! Random operands, every level of the machine, and the scalar definitions results are held to.
#![allow(dead_code)] // each test file uses its part

use half::{bf16, f16};
use scrimp_backend::Backend;
use scrimp_cpu::{CpuBackend, CpuBuffer, CpuLevel, CpuOptions, Precision};
use scrimp_tensor::{DType, MatrixView};

/// A small generator of reproducible values.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, n: usize) -> usize {
        ((self.bits() >> 32) as usize * n) >> 32
    }

    /// Roughly normal.
    pub fn value(&mut self) -> f32 {
        let sum: f32 = (0..4)
            .map(|_| (self.bits() >> 40) as f32 / (1u64 << 24) as f32)
            .sum();
        (sum - 2.0) * 1.7
    }

    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }
}

/// Every type that weights may be stored in.
pub const WEIGHTS: [DType; 16] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::F8E4M3,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::IQ4NL,
    DType::MXFP4,
    DType::Q2K,
    DType::Q3K,
    DType::Q4K,
    DType::Q5K,
    DType::Q6K,
];

/// Byte offsets of a block's half-precision scales.
fn halves(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 | DType::IQ4NL => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
        DType::Q2K => &[80, 82],
        DType::Q3K => &[108],
        DType::Q6K => &[208],
        _ => &[],
    }
}

/// A stored matrix of random blocks with ordinary scales.
pub fn weight_bytes(random: &mut Random, dtype: DType, rows: usize, cols: usize) -> Vec<u8> {
    let blocks = rows * cols / dtype.block_len();
    let mut bytes = Vec::new();
    for _ in 0..blocks {
        let mut block: Vec<u8> = (0..dtype.block_bytes())
            .map(|_| random.bits() as u8)
            .collect();
        match dtype {
            DType::F32 => block.copy_from_slice(&random.value().to_le_bytes()),
            DType::F16 => block.copy_from_slice(&f16::from_f32(random.value()).to_le_bytes()),
            DType::BF16 => block.copy_from_slice(&bf16::from_f32(random.value()).to_le_bytes()),
            DType::F8E4M3 if block[0] & 0x7f == 0x7f => block[0] = 0x38,
            DType::MXFP4 => block[0] = 120 + block[0] % 12,
            _ => {}
        }
        for &at in halves(dtype) {
            let scale = f16::from_f32(random.value() * 0.05);
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
        bytes.extend(block);
    }
    bytes
}

/// All of a view's values.
pub fn decoded(view: &MatrixView<'_>) -> Vec<f32> {
    let mut out = vec![0.0; view.rows * view.cols];
    for (row, out) in out.chunks_exact_mut(view.cols.max(1)).enumerate() {
        view.decode_row(row, out).unwrap();
    }
    out
}

/// Levels that this machine has.
pub fn levels() -> Vec<CpuLevel> {
    CpuLevel::ALL
        .into_iter()
        .filter(|level| level.is_available())
        .collect()
}

pub fn backend(level: CpuLevel, precision: Precision, threads: usize) -> CpuBackend {
    CpuBackend::new(CpuOptions {
        threads: Some(threads),
        level: Some(level),
        precision,
        ..CpuOptions::default()
    })
    .unwrap()
}

pub fn buffer(backend: &mut CpuBackend, values: &[f32]) -> CpuBuffer {
    let mut buffer = backend.alloc(values.len()).unwrap();
    backend.write(&mut buffer, values);
    buffer
}

pub fn values(backend: &mut CpuBackend, buffer: &CpuBuffer, len: usize) -> Vec<f32> {
    backend.read(buffer, len).into_owned()
}

/// Every treatment of activations: a backend's precision, and whether an input asks for more.
pub const TREATMENTS: [(Precision, bool); 3] = [
    (Precision::Exact, false),
    (Precision::Fast, false),
    (Precision::Fast, true),
];

/// Activations as a product sees them.
pub fn rounded(
    x: &[f32],
    cols: usize,
    dtype: DType,
    level: CpuLevel,
    (precision, fine): (Precision, bool),
) -> Vec<f32> {
    if precision == Precision::Exact {
        return x.to_vec();
    }
    if dtype.is_block() {
        let mut out = Vec::new();
        for row in x.chunks_exact(cols) {
            for block in row.chunks_exact(32) {
                let d = block.iter().fold(0.0f32, |a, v| a.max(v.abs())) / 127.0;
                let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
                out.extend(block.iter().map(|v| {
                    let steps = v * inverse;
                    let high = steps.round_ties_even().clamp(-127.0, 127.0);
                    if !fine {
                        return high * d;
                    }
                    let low = ((steps - high) * 256.0).round_ties_even();
                    let seen = (256.0 * high + low.clamp(-127.0, 127.0)) * (d / 256.0);
                    assert!(
                        (seen - v).abs() <= d / 200.0,
                        "{seen} for {v}, steps of {d}"
                    );
                    seen
                }));
            }
        }
        return out;
    }
    let bf16_dot = {
        let backend = backend(level, precision, 1);
        backend.description().contains("BF16")
    };
    if dtype == DType::BF16 && bf16_dot && !fine {
        return x.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
    }
    x.to_vec()
}

/// `x · Wᵀ` in f64, with `Σ |w·x|` beside each.
pub fn product(x: &[f32], weight: &[f32], cols: usize) -> Vec<(f64, f64)> {
    let mut out = Vec::new();
    for row in x.chunks_exact(cols) {
        for w in weight.chunks_exact(cols) {
            let terms = row
                .iter()
                .zip(w)
                .map(|(&a, &b)| f64::from(a) * f64::from(b));
            out.push(terms.fold((0.0, 0.0), |(sum, abs), t| (sum + t, abs + t.abs())));
        }
    }
    out
}

/// Asserts that `got` is `want` but for f32 rounding of sums.
pub fn assert_close(got: &[f32], want: &[(f64, f64)], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&g, &(w, abs))) in got.iter().zip(want).enumerate() {
        let error = (f64::from(g) - w).abs();
        assert!(
            error <= 2e-6 * abs + 1e-12,
            "{what}: output {i} is {g}, not {w} (±{abs})"
        );
    }
}

/// Asserts equality bit for bit.
pub fn assert_bits(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert_eq!(
            g.to_bits(),
            w.to_bits(),
            "{what}: value {i} is {g}, not {w}"
        );
    }
}

//! Activations on their way into a product: normed, then as f32, blocks of integers or BF16.

use crate::kernels::{load_up_to, store_up_to};
use crate::simd::{Kernel, LANES, Simd};

/// 32 activations as integers, with what products need beside them.
///
/// An integer is one int8 code, or two: `256 · high + low`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct ActBlock<const TERMS: usize> {
    /// Eight groups of four codes, each in ±127; the high term first.
    pub(crate) codes: [[i32; 8]; TERMS],
    /// Value of one step of the integers.
    pub(crate) d: f32,
    /// `-Σ` of the integers.
    pub(crate) negated_sum: i32,
    /// The same over each half.
    pub(crate) negated_sums: [i32; 2],
}

/// Bits that a low term adds to a high one.
pub(crate) const TERM_LOG2: u32 = 8;

/// Rows to convert.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    /// First row of values.
    pub(crate) x: *const f32,
    /// Values from a row to the next.
    pub(crate) stride: usize,
    /// Rows.
    pub(crate) rows: usize,
    /// Values in a row.
    pub(crate) cols: usize,
    /// RMS norm's factors; null for no norm.
    pub(crate) norm: *const f32,
    /// Added to the mean square.
    pub(crate) eps: f32,
    /// First converted row.
    pub(crate) out: *mut u8,
    /// Bytes from a converted row to the next.
    pub(crate) out_stride: usize,
}

/// `1 / rms(x)` of one row.
///
/// # Safety
/// `x` is readable for `n` values.
#[inline(always)]
pub(crate) unsafe fn inverse_rms<S: Simd>(s: S, x: *const f32, n: usize, eps: f32) -> f32 {
    let mut sums = [s.splat(0.0); 2];
    let mut i = 0;
    while i < n {
        // SAFETY: `i < n`.
        let v = unsafe { load_up_to(s, x.add(i), n - i) };
        let sum = &mut sums[i / LANES % 2];
        *sum = s.fma(v, v, *sum);
        i += LANES;
    }
    let sum = s.sum(s.add(sums[0], sums[1]));
    1.0 / (sum / n as f32 + eps).sqrt()
}

/// Up to sixteen values of a row from `i` on, normed where a norm is given.
///
/// # Safety
/// `i < rows.cols`; `x` is a row of `rows`.
#[inline(always)]
unsafe fn normed<S: Simd>(s: S, rows: &Rows, x: *const f32, inverse: f32, i: usize) -> S::F {
    // SAFETY: by contract.
    unsafe {
        let v = load_up_to(s, x.add(i), rows.cols - i);
        if rows.norm.is_null() {
            return v;
        }
        let w = load_up_to(s, rows.norm.add(i), rows.cols - i);
        s.mul(s.mul(v, s.splat(inverse)), w)
    }
}

/// Calls `row(x, inverse rms, out)` for each row.
macro_rules! each_row {
    ($s:ident, $rows:ident, |$x:ident, $inverse:ident, $out:ident| $body:block) => {
        for r in 0..$rows.rows {
            let $x = $rows.x.add(r * $rows.stride);
            let $out = $rows.out.add(r * $rows.out_stride);
            let $inverse = if $rows.norm.is_null() {
                1.0
            } else {
                inverse_rms($s, $x, $rows.cols, $rows.eps)
            };
            $body
        }
    };
}

/// Rows to normed f32 rows; may be done in place.
pub(crate) struct ToFloat;

impl Kernel for ToFloat {
    type Args = Rows;

    #[inline(always)]
    unsafe fn run<S: Simd>(s: S, rows: &Rows) {
        // SAFETY: rows and their outputs are valid for `cols` values each.
        unsafe {
            each_row!(s, rows, |x, inverse, out| {
                for i in (0..rows.cols).step_by(LANES) {
                    let v = normed(s, rows, x, inverse, i);
                    store_up_to(s, out.cast::<f32>().add(i), rows.cols - i, v);
                }
            });
        }
    }
}

/// Rows to [`ActBlock`]s, each with a step of its own; a last block that is cut is filled up with
/// zeros.
pub(crate) struct ToInts<const TERMS: usize>;

impl<const TERMS: usize> Kernel for ToInts<TERMS> {
    type Args = Rows;

    #[inline(always)]
    unsafe fn run<S: Simd>(s: S, rows: &Rows) {
        // SAFETY: rows are readable for `cols` values, outputs writable for a block per 32.
        unsafe {
            each_row!(s, rows, |x, inverse, out| {
                for block in 0..rows.cols.div_ceil(2 * LANES) {
                    let (a, b) = pair(s, rows, x, inverse, block);
                    let d = s.max_lane(magnitude(s, a, b)) / 127.0;
                    quantize(s, a, b, d, out.cast::<ActBlock<TERMS>>().add(block));
                }
            });
        }
    }
}

/// Rows to [`ActBlock`]s that share the row's one step: its greatest magnitude is 127 of them.
pub(crate) struct ToInt8Tokens;

impl Kernel for ToInt8Tokens {
    type Args = Rows;

    #[inline(always)]
    unsafe fn run<S: Simd>(s: S, rows: &Rows) {
        // SAFETY: as above.
        unsafe {
            each_row!(s, rows, |x, inverse, out| {
                let blocks = rows.cols.div_ceil(2 * LANES);
                let mut greatest = s.splat(0.0);
                for block in 0..blocks {
                    let (a, b) = pair(s, rows, x, inverse, block);
                    greatest = s.max(greatest, magnitude(s, a, b));
                }
                let d = s.max_lane(greatest) / 127.0;
                for block in 0..blocks {
                    let (a, b) = pair(s, rows, x, inverse, block);
                    quantize(s, a, b, d, out.cast::<ActBlock<1>>().add(block));
                }
            });
        }
    }
}

/// The two halves of a block of a row, zeros behind its end.
///
/// # Safety
/// `x` is a row of `rows`, which has this block.
#[inline(always)]
unsafe fn pair<S: Simd>(
    s: S,
    rows: &Rows,
    x: *const f32,
    inverse: f32,
    block: usize,
) -> (S::F, S::F) {
    let (first, second) = (block * 2 * LANES, block * 2 * LANES + LANES);
    // SAFETY: by contract.
    unsafe {
        let a = normed(s, rows, x, inverse, first);
        if second >= rows.cols {
            return (a, s.splat(0.0));
        }
        (a, normed(s, rows, x, inverse, second))
    }
}

/// The greater magnitude of each lane.
#[inline(always)]
fn magnitude<S: Simd>(s: S, a: S::F, b: S::F) -> S::F {
    let (low, high) = (s.min(a, b), s.max(a, b));
    s.max(high, s.sub(s.splat(0.0), low))
}

/// A block in steps of `d`.
///
/// # Safety
/// `out` is writable.
#[inline(always)]
unsafe fn quantize<S: Simd, const TERMS: usize>(
    s: S,
    a: S::F,
    b: S::F,
    d: f32,
    out: *mut ActBlock<TERMS>,
) {
    // A step too small to divide by stands for a block of zeros.
    let usable = d >= f32::MIN_POSITIVE;
    let inverse = s.splat(if usable { 1.0 / d } else { 0.0 });
    // What is left to say of each half, in steps of the term to come.
    let mut left = [s.mul(a, inverse), s.mul(b, inverse)];
    let mut sums = [0i32; 2];
    let finer = s.splat((1 << TERM_LOG2) as f32);
    for term in 0..TERMS {
        for (half, left) in left.iter_mut().enumerate() {
            let bounded = s.max(s.min(*left, s.splat(127.0)), s.splat(-127.0));
            let code = s.to_int(bounded);
            *left = s.mul(s.sub(*left, s.to_float(code)), finer);
            // Sums of small integers are exact in f32.
            sums[half] = (sums[half] << TERM_LOG2) + s.sum(s.to_float(code)) as i32;
            // SAFETY: by contract; the codes of a term are 32 bytes.
            unsafe {
                let codes = (&raw mut (*out).codes[term]).cast::<i8>();
                s.store_low_bytes(codes.add(half * LANES), code);
            }
        }
    }
    // SAFETY: by contract.
    unsafe {
        (*out).d = d / (1 << (TERM_LOG2 * (TERMS as u32 - 1))) as f32;
        (*out).negated_sum = -(sums[0] + sums[1]);
        (*out).negated_sums = [-sums[0], -sums[1]];
    }
}

/// Rows to BF16; an odd row is followed by a zero.
pub(crate) struct ToBf16;

impl Kernel for ToBf16 {
    type Args = Rows;

    #[inline(always)]
    unsafe fn run<S: Simd>(s: S, rows: &Rows) {
        // SAFETY: rows are readable for `cols` values, outputs writable for `cols` and one.
        unsafe {
            each_row!(s, rows, |x, inverse, out| {
                for i in (0..rows.cols).step_by(LANES) {
                    let v = normed(s, rows, x, inverse, i);
                    let out = out.cast::<u16>().add(i);
                    let n = (rows.cols.next_multiple_of(2) - i).min(LANES);
                    let mut halves = [0u16; LANES];
                    s.store_bf16(halves.as_mut_ptr(), v);
                    std::ptr::copy_nonoverlapping(halves.as_ptr(), out, n);
                }
            });
        }
    }
}

//! Sixteen lanes as plain arrays: what the compiler's baseline makes of them.
//!
//! On aarch64 that baseline has NEON and fused multiply-add, and the arrays become vectors of
//! both: the `neon` level is these arrays with products fused.

#![allow(clippy::needless_range_loop)] // lane by lane is the point

use half::{bf16, f16};

use super::{Kernel, KernelFn, LANES, Level, Simd};

/// Arrays, with multiply-add rounded once when `FUSED`.
#[derive(Clone, Copy)]
pub(crate) struct Portable<const FUSED: bool>;

/// Compiles kernels for [`Portable`].
pub(crate) enum PortableLevel<const FUSED: bool> {}

impl<const FUSED: bool> Level for PortableLevel<FUSED> {
    fn shell<K: Kernel>() -> KernelFn<K::Args> {
        unsafe fn shell<K: Kernel, const FUSED: bool>(args: &K::Args) {
            // SAFETY: the caller vouches for the operands; no instruction beyond the baseline.
            unsafe { K::run(Portable::<FUSED>, args) }
        }
        shell::<K, FUSED>
    }
}

type F = [f32; LANES];
type I = [i32; LANES];

#[inline(always)]
fn map(a: F, f: impl Fn(f32) -> f32) -> F {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = f(a[i]);
    }
    out
}

#[inline(always)]
fn zip(a: F, b: F, f: impl Fn(f32, f32) -> f32) -> F {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    out
}

#[inline(always)]
fn zip_int(a: I, b: I, f: impl Fn(i32, i32) -> i32) -> I {
    let mut out = [0; LANES];
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    out
}

#[inline(always)]
fn fold(mut v: F, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            v[i] = f(v[i], v[i + half]);
        }
        half /= 2;
    }
    v[0]
}

#[inline(always)]
fn dot_bytes(acc: I, w: I, a: I, w_bias: i32) -> I {
    let mut out = acc;
    for i in 0..LANES {
        let (w, a) = (w[i].to_le_bytes(), a[i].to_le_bytes());
        for j in 0..4 {
            out[i] += (i32::from(w[j]) - w_bias) * i32::from(a[j] as i8);
        }
    }
    out
}

impl<const FUSED: bool> Simd for Portable<FUSED> {
    type F = F;
    type I = I;
    const WIDE_BIAS_LOG2: Option<u32> = None;
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> F {
        // SAFETY: readable for 16 values by contract.
        unsafe { p.cast::<F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: F) {
        // SAFETY: writable for 16 values by contract.
        unsafe { p.cast::<F>().write_unaligned(v) }
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        let mut out = c;
        for i in 0..LANES {
            out[i] = if FUSED {
                a[i].mul_add(b[i], c[i])
            } else {
                // A fused one would be a library call at x86's baseline.
                a[i] * b[i] + c[i]
            };
        }
        out
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn zero_below(self, v: F, x: F, bound: F) -> F {
        let mut out = v;
        for i in 0..LANES {
            if x[i] < bound[i] {
                out[i] = 0.0;
            }
        }
        out
    }
    #[inline(always)]
    fn sum(self, v: F) -> f32 {
        fold(v, |a, b| a + b)
    }
    #[inline(always)]
    fn max_lane(self, v: F) -> f32 {
        fold(v, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn sum_each(self, v: [F; LANES]) -> F {
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = self.sum(v[i]);
        }
        out
    }
    #[inline(always)]
    fn transpose(self, v: [F; LANES]) -> [F; LANES] {
        let mut out = v;
        for i in 0..LANES {
            for j in 0..LANES {
                out[j][i] = v[i][j];
            }
        }
        out
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> F {
        // SAFETY: readable for 16 values by contract.
        let v = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = f16::from_bits(v[i]).to_f32_const();
        }
        out
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> F {
        // SAFETY: readable for 16 values by contract.
        let v = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = f32::from_bits(u32::from(v[i]) << 16);
        }
        out
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> I {
        // SAFETY: readable for 16 bytes by contract.
        let v = unsafe { p.cast::<[u8; LANES]>().read_unaligned() };
        let mut out = [0; LANES];
        for i in 0..LANES {
            out[i] = i32::from(v[i]);
        }
        out
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> I {
        // SAFETY: readable for 16 bytes by contract.
        let v = unsafe { p.cast::<[i8; LANES]>().read_unaligned() };
        let mut out = [0; LANES];
        for i in 0..LANES {
            out[i] = i32::from(v[i]);
        }
        out
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: F) {
        let mut out = [0u16; LANES];
        for i in 0..LANES {
            out[i] = f16::from_f32_const(v[i]).to_bits();
        }
        // SAFETY: writable for 16 values by contract.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(out) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: F) {
        let mut out = [0u16; LANES];
        for i in 0..LANES {
            out[i] = bf16::from_f32(v[i]).to_bits();
        }
        // SAFETY: writable for 16 values by contract.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(out) }
    }
    #[inline(always)]
    unsafe fn store_low_bytes(self, p: *mut i8, v: I) {
        let mut out = [0i8; LANES];
        for i in 0..LANES {
            out[i] = v[i] as i8;
        }
        // SAFETY: writable for 16 bytes by contract.
        unsafe { p.cast::<[i8; LANES]>().write_unaligned(out) }
    }
    #[inline(always)]
    fn splat_int(self, x: i32) -> I {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> I {
        // SAFETY: readable for 64 bytes by contract.
        unsafe { p.cast::<I>().read_unaligned() }
    }
    #[inline(always)]
    fn and(self, a: I, b: I) -> I {
        zip_int(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn or(self, a: I, b: I) -> I {
        zip_int(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn add_int(self, a: I, b: I) -> I {
        zip_int(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn sub_int(self, a: I, b: I) -> I {
        zip_int(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    fn shl(self, a: I, by: u32) -> I {
        zip_int(a, a, |a, _| a << by)
    }
    #[inline(always)]
    fn shr(self, a: I, by: u32) -> I {
        zip_int(a, a, |a, _| (a as u32 >> by) as i32)
    }
    #[inline(always)]
    fn to_float(self, a: I) -> F {
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = a[i] as f32;
        }
        out
    }
    #[inline(always)]
    fn to_int(self, a: F) -> I {
        // Adding 1.5·2²³ leaves the nearest integer in the low bits, ties to even.
        const MAGIC: f32 = 12_582_912.0;
        let shifted = map(a, |x| x + MAGIC);
        let mut out = [0; LANES];
        for i in 0..LANES {
            out[i] = (shifted[i].to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
        }
        out
    }
    #[inline(always)]
    fn bits_to_float(self, a: I) -> F {
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = f32::from_bits(a[i] as u32);
        }
        out
    }
    #[inline(always)]
    fn bits_to_int(self, a: F) -> I {
        let mut out = [0; LANES];
        for i in 0..LANES {
            out[i] = a[i].to_bits() as i32;
        }
        out
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], index: I) -> I {
        let mut out = [0; LANES];
        for i in 0..LANES {
            let b = index[i].to_le_bytes();
            out[i] = i32::from_le_bytes(b.map(|b| table[usize::from(b & 15)]));
        }
        out
    }
    #[inline(always)]
    fn dot_narrow(self, acc: I, w: I, a: I) -> I {
        dot_bytes(acc, w, a, 0)
    }
    #[inline(always)]
    fn dot_wide(self, acc: I, w: I, a: I) -> I {
        dot_bytes(acc, w, a, 128)
    }
    #[inline(always)]
    fn dot_bf16(self, acc: F, w: I, a: I) -> F {
        let high = [!0xffff; LANES];
        let lo = self.mul(
            self.bits_to_float(self.shl(w, 16)),
            self.bits_to_float(self.shl(a, 16)),
        );
        let hi = self.mul(
            self.bits_to_float(self.and(w, high)),
            self.bits_to_float(self.and(a, high)),
        );
        self.add(self.add(acc, hi), lo)
    }
}

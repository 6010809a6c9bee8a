//! The types that a KV cache keeps, sixteen values at a time.

use half::{bf16, f16};

use crate::simd::Simd;

/// A type that the cache keeps.
pub(crate) trait Element: Copy + 'static {
    /// Whether loading converts nothing.
    const IS_F32: bool;
    const ZERO: Self;
    /// # Safety
    /// `p` is readable for 16 values.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::F;
    /// # Safety
    /// `p` is writable for 16 values.
    unsafe fn store<S: Simd>(s: S, p: *mut Self, v: S::F);
}

impl Element for f32 {
    const IS_F32: bool = true;
    const ZERO: f32 = 0.0;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const f32) -> S::F {
        // SAFETY: by contract.
        unsafe { s.load(p) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut f32, v: S::F) {
        // SAFETY: by contract.
        unsafe { s.store(p, v) }
    }
}

impl Element for f16 {
    const IS_F32: bool = false;
    const ZERO: f16 = f16::ZERO;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const f16) -> S::F {
        // SAFETY: by contract.
        unsafe { s.load_f16(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut f16, v: S::F) {
        // SAFETY: by contract.
        unsafe { s.store_f16(p.cast(), v) }
    }
}

impl Element for bf16 {
    const IS_F32: bool = false;
    const ZERO: bf16 = bf16::ZERO;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const bf16) -> S::F {
        // SAFETY: by contract.
        unsafe { s.load_bf16(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut bf16, v: S::F) {
        // SAFETY: by contract.
        unsafe { s.store_bf16(p.cast(), v) }
    }
}

//! Sixteen lanes in two 256-bit registers.

use std::arch::x86_64::*;

use super::avx512::intrinsics;
use super::portable::Portable;
use super::{LANES, Simd, level};

/// AVX2 with FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

level!(Avx2Level, Avx2, "avx2,fma,f16c");

/// Lanes 0..8 and 8..16.
type F = [__m256; 2];
type I = [__m256i; 2];

/// `w · a` over four bytes a lane: `w` and `a` signed, `|w| <= 128`, `|a| <= 127`.
///
/// # Safety
/// AVX2 exists.
#[inline(always)]
unsafe fn dot_signed(acc: __m256i, w: __m256i, a: __m256i) -> __m256i {
    // SAFETY: by contract.
    unsafe {
        let signed = _mm256_sign_epi8(a, w);
        dot_unsigned(acc, _mm256_abs_epi8(w), signed)
    }
}

/// The same with `w` unsigned; pairs must not exceed i16.
///
/// # Safety
/// AVX2 exists.
#[inline(always)]
unsafe fn dot_unsigned(acc: __m256i, w: __m256i, a: __m256i) -> __m256i {
    // SAFETY: by contract.
    unsafe {
        let pairs = _mm256_maddubs_epi16(w, a);
        _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

/// `sum_each` of eight vectors already folded to eight lanes.
///
/// # Safety
/// AVX2 exists.
#[inline(always)]
unsafe fn sum_each_8(v: [__m256; 8]) -> __m256 {
    // SAFETY: by contract.
    unsafe {
        let mut a = [v[0]; 4];
        for i in 0..4 {
            // l ^ 4: the halves of vectors i and i + 4.
            let low = _mm256_permute2f128_ps::<0x20>(v[i], v[i + 4]);
            let high = _mm256_permute2f128_ps::<0x31>(v[i], v[i + 4]);
            a[i] = _mm256_add_ps(low, high);
        }
        let mut b = [a[0]; 2];
        for i in 0..2 {
            let low = _mm256_shuffle_ps::<0b01_00_01_00>(a[i], a[i + 2]);
            let high = _mm256_shuffle_ps::<0b11_10_11_10>(a[i], a[i + 2]);
            b[i] = _mm256_add_ps(low, high);
        }
        let low = _mm256_shuffle_ps::<0b10_00_10_00>(b[0], b[1]);
        let high = _mm256_shuffle_ps::<0b11_01_11_01>(b[0], b[1]);
        // Each half: 0, 2, 1, 3.
        _mm256_permute_ps::<0b11_01_10_00>(_mm256_add_ps(low, high))
    }
}

impl Simd for Avx2 {
    type F = F;
    type I = I;
    const WIDE_BIAS_LOG2: Option<u32> = None;
    const MANY_REGISTERS: bool = false;

    intrinsics! {
        fn splat(x: f32) -> F = [_mm256_set1_ps(x); 2];
        fn add(a: F, b: F) -> F = [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])];
        fn sub(a: F, b: F) -> F = [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])];
        fn mul(a: F, b: F) -> F = [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])];
        fn div(a: F, b: F) -> F = [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])];
        fn fma(a: F, b: F, c: F) -> F = [
            _mm256_fmadd_ps(a[0], b[0], c[0]),
            _mm256_fmadd_ps(a[1], b[1], c[1])
        ];
        fn max(a: F, b: F) -> F = [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])];
        fn min(a: F, b: F) -> F = [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])];
        fn zero_below(v: F, x: F, bound: F) -> F = [
            _mm256_and_ps(v[0], _mm256_cmp_ps::<_CMP_NLT_UQ>(x[0], bound[0])),
            _mm256_and_ps(v[1], _mm256_cmp_ps::<_CMP_NLT_UQ>(x[1], bound[1]))
        ];
        fn splat_int(x: i32) -> I = [_mm256_set1_epi32(x); 2];
        fn and(a: I, b: I) -> I = [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])];
        fn or(a: I, b: I) -> I = [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])];
        fn add_int(a: I, b: I) -> I =
            [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])];
        fn sub_int(a: I, b: I) -> I =
            [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])];
        fn shl(a: I, by: u32) -> I = [
            _mm256_sllv_epi32(a[0], _mm256_set1_epi32(by as i32)),
            _mm256_sllv_epi32(a[1], _mm256_set1_epi32(by as i32))
        ];
        fn shr(a: I, by: u32) -> I = [
            _mm256_srlv_epi32(a[0], _mm256_set1_epi32(by as i32)),
            _mm256_srlv_epi32(a[1], _mm256_set1_epi32(by as i32))
        ];
        fn to_float(a: I) -> F = [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])];
        fn to_int(a: F) -> I = [_mm256_cvtps_epi32(a[0]), _mm256_cvtps_epi32(a[1])];
        fn bits_to_float(a: I) -> F = [_mm256_castsi256_ps(a[0]), _mm256_castsi256_ps(a[1])];
        fn bits_to_int(a: F) -> I = [_mm256_castps_si256(a[0]), _mm256_castps_si256(a[1])];
        fn lookup(table: &[u8; 16], index: I) -> I = {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(table, index[0]), _mm256_shuffle_epi8(table, index[1])]
        };
        fn dot_narrow(acc: I, w: I, a: I) -> I =
            [dot_unsigned(acc[0], w[0], a[0]), dot_unsigned(acc[1], w[1], a[1])];
        fn dot_wide(acc: I, w: I, a: I) -> I = {
            let bias = _mm256_set1_epi8(-128);
            [
                dot_signed(acc[0], _mm256_xor_si256(w[0], bias), a[0]),
                dot_signed(acc[1], _mm256_xor_si256(w[1], bias), a[1]),
            ]
        };
        fn sum(v: F) -> f32 = {
            let v = _mm256_add_ps(v[0], v[1]);
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        };
        fn max_lane(v: F) -> f32 = {
            let v = _mm256_max_ps(v[0], v[1]);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        };
        fn sum_each(v: [F; LANES]) -> F = {
            let mut folded = [_mm256_setzero_ps(); LANES];
            for i in 0..LANES {
                folded[i] = _mm256_add_ps(v[i][0], v[i][1]);
            }
            let mut halves = [[_mm256_setzero_ps(); 8]; 2];
            halves[0].copy_from_slice(&folded[..8]);
            halves[1].copy_from_slice(&folded[8..]);
            [sum_each_8(halves[0]), sum_each_8(halves[1])]
        };
    }

    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: SSE is x86-64's baseline; a prefetch of any address has no effect but on caches.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }

    #[inline(always)]
    fn prefetch_far(self, p: *const u8) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }

    intrinsics! {
        unsafe fn load(p: *const f32) -> F = [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))];
        unsafe fn store(p: *mut f32, v: F) = {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        };
        unsafe fn load_f16(p: *const u16) -> F = [
            _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))
        ];
        unsafe fn load_bf16(p: *const u16) -> F = {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(8).cast()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
        };
        unsafe fn load_u8(p: *const u8) -> I = [
            _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())),
            _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8).cast()))
        ];
        unsafe fn load_i8(p: *const i8) -> I = [
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())),
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8).cast()))
        ];
        unsafe fn store_f16(p: *mut u16, v: F) = {
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<NEAREST>(v[0]));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<NEAREST>(v[1]));
        };
        unsafe fn load_bytes(p: *const u8) -> I = [
            _mm256_loadu_si256(p.cast()),
            _mm256_loadu_si256(p.add(32).cast())
        ];
    }

    // Off the hot paths, the plain way compiled with these features is good enough.

    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: F) {
        let mut lanes = [0.0; LANES];
        // SAFETY: sixteen lanes; `p` is writable for 16 values by contract.
        unsafe {
            self.store(lanes.as_mut_ptr(), v);
            Portable::<false>.store_bf16(p, lanes);
        }
    }

    #[inline(always)]
    unsafe fn store_low_bytes(self, p: *mut i8, v: I) {
        // SAFETY: both are 64 plain bytes; `p` is writable for 16 by contract.
        unsafe { Portable::<false>.store_low_bytes(p, std::mem::transmute::<I, [i32; LANES]>(v)) }
    }

    #[inline(always)]
    fn transpose(self, v: [F; LANES]) -> [F; LANES] {
        let mut rows = [[0.0f32; LANES]; LANES];
        // SAFETY: each row has sixteen lanes.
        unsafe {
            for (row, v) in rows.iter_mut().zip(v) {
                self.store(row.as_mut_ptr(), v);
            }
            Portable::<false>
                .transpose(rows)
                .map(|row| self.load(row.as_ptr()))
        }
    }

    #[inline(always)]
    fn dot_bf16(self, acc: F, w: I, a: I) -> F {
        let high = self.splat_int(!0xffff);
        let part = |v: I| {
            (
                self.bits_to_float(self.shl(v, 16)),
                self.bits_to_float(self.and(v, high)),
            )
        };
        let ((w0, w1), (a0, a1)) = (part(w), part(a));
        self.fma(w0, a0, self.fma(w1, a1, acc))
    }
}

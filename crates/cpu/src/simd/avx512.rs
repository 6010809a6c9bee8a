//! Sixteen lanes in one 512-bit register, with VNNI, and BF16 dot products where they are.

use std::arch::x86_64::*;

use super::{LANES, Simd, level};

/// AVX-512 F, BW, DQ, VL and VNNI; BF16 too when `DOT`.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const DOT: bool>;

level!(
    Avx512Level,
    Avx512::<false>,
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
);
level!(
    Avx512Bf16Level,
    Avx512::<true>,
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16"
);

/// Intrinsics as trait methods: `name(args) -> result = expression`.
macro_rules! intrinsics {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $body:expr;)*) => {
        $(
            #[inline(always)]
            fn $name(self, $($arg: $ty),*) -> $out {
                // SAFETY: the token exists, so the instructions do.
                unsafe { $body }
            }
        )*
    };
    ($(unsafe fn $name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)? = $body:expr;)*) => {
        $(
            #[inline(always)]
            unsafe fn $name(self, $($arg: $ty),*) $(-> $out)? {
                // SAFETY: the token exists, so the instructions do; memory is as the trait asks.
                unsafe { $body }
            }
        )*
    };
}
pub(super) use intrinsics;

impl<const DOT: bool> Simd for Avx512<DOT> {
    type F = __m512;
    type I = __m512i;
    const WIDE_BIAS_LOG2: Option<u32> = Some(7);
    const MANY_REGISTERS: bool = true;

    intrinsics! {
        fn splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        fn add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        fn sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        fn mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        fn div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        fn max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        fn min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        fn zero_below(v: __m512, x: __m512, bound: __m512) -> __m512 =
            _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, bound), v);
        fn splat_int(x: i32) -> __m512i = _mm512_set1_epi32(x);
        fn and(a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
        fn or(a: __m512i, b: __m512i) -> __m512i = _mm512_or_si512(a, b);
        fn add_int(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
        fn sub_int(a: __m512i, b: __m512i) -> __m512i = _mm512_sub_epi32(a, b);
        fn shl(a: __m512i, by: u32) -> __m512i =
            _mm512_sllv_epi32(a, _mm512_set1_epi32(by as i32));
        fn shr(a: __m512i, by: u32) -> __m512i =
            _mm512_srlv_epi32(a, _mm512_set1_epi32(by as i32));
        fn to_float(a: __m512i) -> __m512 = _mm512_cvtepi32_ps(a);
        fn to_int(a: __m512) -> __m512i = _mm512_cvtps_epi32(a);
        fn bits_to_float(a: __m512i) -> __m512 = _mm512_castsi512_ps(a);
        fn bits_to_int(a: __m512) -> __m512i = _mm512_castps_si512(a);
        fn lookup(table: &[u8; 16], index: __m512i) -> __m512i = _mm512_shuffle_epi8(
            _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())),
            index
        );
        fn dot_narrow(acc: __m512i, w: __m512i, a: __m512i) -> __m512i =
            _mm512_dpbusd_epi32(acc, w, a);
        fn dot_wide(acc: __m512i, w: __m512i, a: __m512i) -> __m512i =
            _mm512_dpbusd_epi32(acc, w, a);
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
        unsafe fn load(p: *const f32) -> __m512 = _mm512_loadu_ps(p);
        unsafe fn store(p: *mut f32, v: __m512) = _mm512_storeu_ps(p, v);
        unsafe fn load_f16(p: *const u16) -> __m512 =
            _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()));
        unsafe fn load_bf16(p: *const u16) -> __m512 = _mm512_castsi512_ps(
            _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))
        );
        unsafe fn load_u8(p: *const u8) -> __m512i =
            _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
        unsafe fn load_i8(p: *const i8) -> __m512i =
            _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()));
        unsafe fn store_f16(p: *mut u16, v: __m512) = _mm256_storeu_si256(
            p.cast(),
            _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v)
        );
        unsafe fn store_low_bytes(p: *mut i8, v: __m512i) =
            _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(v));
        unsafe fn load_bytes(p: *const u8) -> __m512i = _mm512_loadu_si512(p.cast());
    }

    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: __m512) {
        // Round half to even on the bits; a NaN gets its quiet bit and keeps its top.
        let bits = self.bits_to_int(v);
        let odd = self.and(self.shr(bits, 16), self.splat_int(1));
        let rounded = self.add_int(bits, self.add_int(odd, self.splat_int(0x7fff)));
        let quiet = self.or(bits, self.splat_int(0x0040_0000));
        // SAFETY: the token exists; `p` is writable for 16 values by contract.
        unsafe {
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let bits = _mm512_mask_mov_epi32(rounded, nan, quiet);
            let halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(bits));
            _mm256_storeu_si256(p.cast(), halves);
        }
    }

    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: the token exists.
        unsafe {
            let v = _mm512_add_ps(v, _mm512_shuffle_f32x4::<0b01_00_11_10>(v, v));
            let v = _mm512_add_ps(v, _mm512_shuffle_f32x4::<0b10_11_00_01>(v, v));
            let v = _mm512_add_ps(v, _mm512_permute_ps::<0b01_00_11_10>(v));
            let v = _mm512_add_ps(v, _mm512_permute_ps::<0b10_11_00_01>(v));
            _mm512_cvtss_f32(v)
        }
    }

    #[inline(always)]
    fn max_lane(self, v: __m512) -> f32 {
        // SAFETY: the token exists.
        unsafe {
            let v = _mm512_max_ps(v, _mm512_shuffle_f32x4::<0b01_00_11_10>(v, v));
            let v = _mm512_max_ps(v, _mm512_shuffle_f32x4::<0b10_11_00_01>(v, v));
            let v = _mm512_max_ps(v, _mm512_permute_ps::<0b01_00_11_10>(v));
            let v = _mm512_max_ps(v, _mm512_permute_ps::<0b10_11_00_01>(v));
            _mm512_cvtss_f32(v)
        }
    }

    #[inline(always)]
    fn sum_each(self, v: [__m512; LANES]) -> __m512 {
        // Each step adds the two halves of two vectors into one: distances 8, 4, 2, 1.
        // SAFETY: the token exists.
        unsafe {
            let mut a = [v[0]; 8];
            for i in 0..8 {
                // Vectors i and i + 8: lanes l + (l ^ 8), the first in the low half.
                let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(v[i], v[i + 8]);
                let high = _mm512_shuffle_f32x4::<0b11_10_11_10>(v[i], v[i + 8]);
                a[i] = _mm512_add_ps(low, high);
            }
            let mut b = [a[0]; 4];
            for i in 0..4 {
                // Quarters: i, i + 4, i + 8, i + 12 after l ^ 4.
                let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(a[i], a[i + 4]);
                let high = _mm512_shuffle_f32x4::<0b11_01_11_01>(a[i], a[i + 4]);
                b[i] = _mm512_add_ps(low, high);
            }
            // Quarters now hold vectors i, i + 8, i + 4, i + 12.
            let mut c = [b[0]; 2];
            for i in 0..2 {
                let low = _mm512_shuffle_ps::<0b01_00_01_00>(b[i], b[i + 2]);
                let high = _mm512_shuffle_ps::<0b11_10_11_10>(b[i], b[i + 2]);
                c[i] = _mm512_add_ps(low, high);
            }
            // Each quarter: i, i, i + 2, i + 2.
            let low = _mm512_shuffle_ps::<0b10_00_10_00>(c[0], c[1]);
            let high = _mm512_shuffle_ps::<0b11_01_11_01>(c[0], c[1]);
            // Each quarter: 0, 2, 1, 3; quarters of +0, +8, +4, +12.
            let sums = _mm512_add_ps(low, high);
            let order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
            _mm512_permutexvar_ps(order, sums)
        }
    }

    #[inline(always)]
    fn transpose(self, v: [__m512; LANES]) -> [__m512; LANES] {
        // SAFETY: the token exists.
        unsafe {
            let mut a = v;
            for i in 0..8 {
                a[2 * i] = _mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]);
                a[2 * i + 1] = _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]);
            }
            let mut b = a;
            for i in 0..4 {
                let q = 4 * i;
                b[q] = _mm512_shuffle_ps::<0b01_00_01_00>(a[q], a[q + 2]);
                b[q + 1] = _mm512_shuffle_ps::<0b11_10_11_10>(a[q], a[q + 2]);
                b[q + 2] = _mm512_shuffle_ps::<0b01_00_01_00>(a[q + 1], a[q + 3]);
                b[q + 3] = _mm512_shuffle_ps::<0b11_10_11_10>(a[q + 1], a[q + 3]);
            }
            let mut c = b;
            for i in 0..4 {
                c[i] = _mm512_shuffle_f32x4::<0b10_00_10_00>(b[i], b[i + 4]);
                c[i + 4] = _mm512_shuffle_f32x4::<0b11_01_11_01>(b[i], b[i + 4]);
                c[i + 8] = _mm512_shuffle_f32x4::<0b10_00_10_00>(b[i + 8], b[i + 12]);
                c[i + 12] = _mm512_shuffle_f32x4::<0b11_01_11_01>(b[i + 8], b[i + 12]);
            }
            let mut out = c;
            for i in 0..4 {
                out[i] = _mm512_shuffle_f32x4::<0b10_00_10_00>(c[i], c[i + 8]);
                out[i + 8] = _mm512_shuffle_f32x4::<0b11_01_11_01>(c[i], c[i + 8]);
                out[i + 4] = _mm512_shuffle_f32x4::<0b10_00_10_00>(c[i + 4], c[i + 12]);
                out[i + 12] = _mm512_shuffle_f32x4::<0b11_01_11_01>(c[i + 4], c[i + 12]);
            }
            out
        }
    }

    #[inline(always)]
    fn dot_bf16(self, acc: __m512, w: __m512i, a: __m512i) -> __m512 {
        if !DOT {
            unreachable!("the BF16 product is in no table without BF16 dot products");
        }
        // SAFETY: the token with `DOT` exists; both types are 512 plain bits.
        unsafe {
            let pairs = |v| std::mem::transmute::<__m512i, __m512bh>(v);
            _mm512_dpbf16_ps(acc, pairs(w), pairs(a))
        }
    }
}

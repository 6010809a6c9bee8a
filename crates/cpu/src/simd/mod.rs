//! Sixteen lanes, whatever the machine: the small vector trait that every kernel is written in.
//!
//! A kernel is written once, generic over [`Simd`], and compiled once per level:
//!
//! ```text
//! struct Kernel;                                   // what is computed
//! fn Kernel::run<S: Simd>(s: S, args)              // how, in sixteen-lane steps, inline(always)
//! #[target_feature(enable = "...")] fn shell<K>    // one per level: K::run(Level, args)
//! KernelTable { kernel: shell::<Kernel>, .. }      // chosen once, plain function pointers
//! ```
//!
//! Only the shell carries `target_feature`; everything below it is `#[inline(always)]` and so is
//! compiled with the shell's features. A token such as [`avx512::Avx512`] is made by its shell
//! alone, and a shell is called only through a table built for a detected level: a token in hand
//! is the proof that its instructions exist.
//!
//! The width is fixed at sixteen f32 lanes (one AVX-512 register, two of AVX2, four of NEON)
//! because weights are packed in panels of sixteen output rows: a lane is an output, so every
//! output is summed in the same order at every level and for any number of activation rows.
//!
//! Why not a crate: `pulp` has the same token-and-shell structure but exposes neither VNNI nor
//! BF16 dot products nor byte shuffles at 512 bits, which are what the hot loops consist of;
//! `fearless_simd` stops at AVX2. What is left to share with them would be loads and adds.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod math;
pub(crate) mod portable;

/// Lanes of a vector, and rows of a weight panel.
pub(crate) const LANES: usize = 16;

/// Vectors of sixteen f32 or i32 lanes (or 64 bytes).
///
/// Sums over lanes follow one tree at every level: lanes `l` and `l ^ 8` first, then `l ^ 4`,
/// `l ^ 2`, `l ^ 1`.
pub(crate) trait Simd: Copy {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen i32, or 64 bytes.
    type I: Copy;

    /// What [`Simd::dot_wide`] leaves in its sum: `bias · Σ a`, which the caller takes off.
    const WIDE_BIAS_LOG2: Option<u32>;

    /// Whether tiles may hold two dozen vectors in registers.
    const MANY_REGISTERS: bool;

    fn splat(self, x: f32) -> Self::F;
    /// # Safety
    /// `p` is readable for 16 values (any alignment; so for all loads and stores here).
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// # Safety
    /// `p` is writable for 16 values.
    unsafe fn store(self, p: *mut f32, v: Self::F);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once where the machine can.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a > b ? a : b`, so `b` when either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b`, so `b` when either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `v` where not `x < bound`, else 0.
    fn zero_below(self, v: Self::F, x: Self::F, bound: Self::F) -> Self::F;
    /// Sum of the lanes, in the trait's tree.
    fn sum(self, v: Self::F) -> f32;
    /// Greatest lane.
    fn max_lane(self, v: Self::F) -> f32;
    /// Lane `i` is the sum of the lanes of `v[i]`, in the trait's tree.
    fn sum_each(self, v: [Self::F; LANES]) -> Self::F;
    /// Lane `j` of vector `i` becomes lane `i` of vector `j`.
    fn transpose(self, v: [Self::F; LANES]) -> [Self::F; LANES];

    /// # Safety
    /// `p` is readable for 16 values.
    unsafe fn load_f16(self, p: *const u16) -> Self::F;
    /// # Safety
    /// `p` is readable for 16 values.
    unsafe fn load_bf16(self, p: *const u16) -> Self::F;
    /// Sixteen bytes as i32 lanes, zero-extended.
    /// # Safety
    /// `p` is readable for 16 bytes.
    unsafe fn load_u8(self, p: *const u8) -> Self::I;
    /// Sixteen bytes as i32 lanes, sign-extended.
    /// # Safety
    /// `p` is readable for 16 bytes.
    unsafe fn load_i8(self, p: *const i8) -> Self::I;
    /// Rounds to half precision, ties to even.
    /// # Safety
    /// `p` is writable for 16 values.
    unsafe fn store_f16(self, p: *mut u16, v: Self::F);
    /// Rounds to BF16, ties to even; NaN stays NaN.
    /// # Safety
    /// `p` is writable for 16 values.
    unsafe fn store_bf16(self, p: *mut u16, v: Self::F);
    /// The low byte of every lane.
    /// # Safety
    /// `p` is writable for 16 bytes.
    unsafe fn store_low_bytes(self, p: *mut i8, v: Self::I);

    /// Asks for the cache line at `p`, which need not be readable, to come as near as it can.
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        let _ = p;
    }

    /// The same, but not nearer than the second cache.
    #[inline(always)]
    fn prefetch_far(self, p: *const u8) {
        let _ = p;
    }

    fn splat_int(self, x: i32) -> Self::I;
    /// # Safety
    /// `p` is readable for 64 bytes.
    unsafe fn load_bytes(self, p: *const u8) -> Self::I;
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I;
    fn sub_int(self, a: Self::I, b: Self::I) -> Self::I;
    /// Shifts every lane left.
    fn shl(self, a: Self::I, by: u32) -> Self::I;
    /// Shifts every lane right, filling with zeros.
    fn shr(self, a: Self::I, by: u32) -> Self::I;
    fn to_float(self, a: Self::I) -> Self::F;
    /// Nearest integer, ties to even; values outside i32 are unspecified.
    fn to_int(self, a: Self::F) -> Self::I;
    /// The same bits.
    fn bits_to_float(self, a: Self::I) -> Self::F;
    /// The same bits.
    fn bits_to_int(self, a: Self::F) -> Self::I;
    /// `table[byte]` for every byte; bytes are below 16.
    fn lookup(self, table: &[u8; 16], index: Self::I) -> Self::I;
    /// `acc + Σ₄ w·a` in every lane over its four bytes: `w` unsigned and below 128, `a` signed
    /// and not -128. Exact.
    fn dot_narrow(self, acc: Self::I, w: Self::I, a: Self::I) -> Self::I;
    /// The same for any byte `w`, meaning `w - 128`; see [`Simd::WIDE_BIAS_LOG2`].
    fn dot_wide(self, acc: Self::I, w: Self::I, a: Self::I) -> Self::I;
    /// `acc + w₀·a₀ + w₁·a₁` in every lane over its two BF16 halves.
    fn dot_bf16(self, acc: Self::F, w: Self::I, a: Self::I) -> Self::F;
}

/// A computation to be compiled for every level.
pub(crate) trait Kernel {
    /// Its operands.
    type Args;

    /// # Safety
    /// As the kernel's operands say; and the level's instructions must exist.
    unsafe fn run<S: Simd>(s: S, args: &Self::Args);
}

/// A kernel compiled for one level.
pub(crate) type KernelFn<A> = unsafe fn(&A);

/// A level's way to compile kernels.
pub(crate) trait Level {
    /// The kernel as a plain function pointer; calling it needs the level's instructions.
    fn shell<K: Kernel>() -> KernelFn<K::Args>;
}

/// Emits the one function per level that carries its target features.
macro_rules! level {
    ($level:ident, $token:expr, $features:literal) => {
        /// Compiles kernels for this level.
        pub(crate) enum $level {}

        impl $crate::simd::Level for $level {
            fn shell<K: $crate::simd::Kernel>() -> $crate::simd::KernelFn<K::Args> {
                #[target_feature(enable = $features)]
                unsafe fn shell<K: $crate::simd::Kernel>(args: &K::Args) {
                    // SAFETY: the caller vouches for the operands; this function's features are
                    // those that the token stands for.
                    unsafe { K::run($token, args) }
                }
                shell::<K>
            }
        }
    };
}
pub(crate) use level;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::CpuLevel;

    /// Runs every lane operation that the levels implement by themselves.
    struct Probe;

    #[derive(Default)]
    struct ProbeArgs {
        /// Sixteen vectors.
        x: Vec<f32>,
        bytes: Vec<u8>,
        out: std::cell::RefCell<Vec<(&'static str, Vec<f32>)>>,
    }

    fn lanes<S: Simd>(s: S, v: S::F) -> Vec<f32> {
        let mut out = vec![0.0; LANES];
        // SAFETY: sixteen values.
        unsafe { s.store(out.as_mut_ptr(), v) };
        out
    }

    impl Kernel for Probe {
        type Args = ProbeArgs;

        #[inline(always)]
        unsafe fn run<S: Simd>(s: S, a: &ProbeArgs) {
            let mut out = Vec::new();
            // SAFETY: sixteen vectors of values, 64 bytes.
            let (v, bytes) = unsafe {
                let mut v = [s.splat(0.0); LANES];
                for (i, v) in v.iter_mut().enumerate() {
                    *v = s.load(a.x.as_ptr().add(i * LANES));
                }
                (v, s.load_bytes(a.bytes.as_ptr()))
            };
            out.push(("sum_each", lanes(s, s.sum_each(v))));
            out.push(("sums", v.iter().map(|&v| s.sum(v)).collect()));
            out.push(("max_lane", v.iter().map(|&v| s.max_lane(v)).collect()));
            let turned = s.transpose(v);
            out.push((
                "transpose",
                turned.iter().flat_map(|&v| lanes(s, v)).collect(),
            ));
            let nibbles = s.and(bytes, s.splat_int(0x0f0f_0f0f));
            let table = [3, 250, 0, 7, 9, 255, 1, 2, 128, 127, 64, 5, 11, 200, 90, 33];
            let looked_up = s.lookup(&table, nibbles);
            let signed = s.bits_to_int(v[0]);
            let signed = s.sub_int(signed, s.and(signed, s.splat_int(0x0101_0101)));
            let narrow = s.dot_narrow(
                s.splat_int(5),
                nibbles,
                s.and(signed, s.splat_int(0x7f7f_7f7f)),
            );
            out.push(("dot_narrow", lanes(s, s.to_float(narrow))));
            let a7 = s.and(signed, s.splat_int(0x7f7f_7f7f));
            let sum = s.dot_narrow(s.splat_int(0), s.splat_int(0x0101_0101), a7);
            let mut wide = s.dot_wide(s.splat_int(-9), looked_up, a7);
            if let Some(log2) = S::WIDE_BIAS_LOG2 {
                wide = s.sub_int(wide, s.shl(sum, log2));
            }
            out.push(("dot_wide", lanes(s, s.to_float(wide))));
            let rounded = s.to_int(s.mul(v[1], s.splat(3.5)));
            out.push(("to_int", lanes(s, s.to_float(rounded))));
            out.push(("zero_below", lanes(s, s.zero_below(v[1], v[2], v[3]))));
            let (mut halves, mut brains) = ([0u16; LANES], [0u16; LANES]);
            let mut low = [0i8; LANES];
            // SAFETY: sixteen values each.
            unsafe {
                s.store_f16(halves.as_mut_ptr(), v[4]);
                s.store_bf16(brains.as_mut_ptr(), v[5]);
                s.store_low_bytes(low.as_mut_ptr(), rounded);
                out.push(("f16", lanes(s, s.load_f16(halves.as_ptr()))));
                out.push(("bf16", lanes(s, s.load_bf16(brains.as_ptr()))));
                out.push(("i8", lanes(s, s.to_float(s.load_i8(low.as_ptr())))));
                out.push(("u8", lanes(s, s.to_float(s.load_u8(low.as_ptr().cast())))));
            }
            *a.out.borrow_mut() = out;
        }
    }

    /// `exp` of many values.
    struct Exp;

    impl Kernel for Exp {
        type Args = (Vec<f32>, std::cell::RefCell<Vec<f32>>);

        #[inline(always)]
        unsafe fn run<S: Simd>(s: S, (x, out): &Self::Args) {
            for x in x.chunks_exact(LANES) {
                // SAFETY: sixteen values.
                let v = unsafe { s.load(x.as_ptr()) };
                out.borrow_mut().extend(lanes(s, math::exp(s, v)));
            }
        }
    }

    fn shells<K: Kernel>() -> Vec<(CpuLevel, KernelFn<K::Args>)> {
        let mut all = vec![(
            CpuLevel::Portable,
            portable::PortableLevel::<false>::shell::<K>(),
        )];
        #[cfg(target_arch = "x86_64")]
        {
            all.push((CpuLevel::Avx2, avx2::Avx2Level::shell::<K>()));
            all.push((CpuLevel::Avx512, avx512::Avx512Level::shell::<K>()));
        }
        all.retain(|(level, _)| level.is_available());
        all
    }

    #[test]
    fn every_level_agrees_with_the_portable_one_bit_for_bit() {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        let x = (0..LANES * LANES)
            .map(|_| next() as f32 / 4096.0 - 2048.0)
            .collect();
        let bytes = (0..64).map(|_| next() as u8).collect();
        let args = ProbeArgs {
            x,
            bytes,
            ..ProbeArgs::default()
        };
        let mut want = None;
        for (level, shell) in shells::<Probe>() {
            // SAFETY: the level is available.
            unsafe { shell(&args) };
            let got = args.out.take();
            let want = want.get_or_insert_with(|| got.clone());
            for ((name, got), (_, want)) in got.iter().zip(want.iter()) {
                assert_eq!(got, want, "{name} at {level}");
            }
        }
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut x: Vec<f32> = (0..160_000).map(|i| i as f32 * 1.09e-3 - 87.3).collect();
        x.extend([0.0, -0.0, 1e-30, -1e-30, 88.0, -87.33, 1.0, -1.0]);
        x.extend([f32::NEG_INFINITY, -1e30, -88.0, -104.0]);
        x.extend([f32::NAN; 4]);
        let args = (x, std::cell::RefCell::default());
        for (level, shell) in shells::<Exp>() {
            // SAFETY: the level is available.
            unsafe { shell(&args) };
            let got = args.1.take();
            assert_eq!(got.len(), args.0.len());
            for (&x, &got) in args.0.iter().zip(&got) {
                let want = f64::from(x).exp();
                if x.is_nan() {
                    assert!(got.is_nan(), "{level}: exp(NaN) is {got}");
                } else if x < -87.34 {
                    assert_eq!(got, 0.0, "{level}: exp({x})");
                } else if x <= 88.0 {
                    let ulp = want * 2.0f64.powi(-23);
                    let error = (f64::from(got) - want).abs() / ulp;
                    assert!(
                        error <= 2.0,
                        "{level}: exp({x}) is {got}, off by {error} ulp"
                    );
                }
            }
            assert_eq!(got[160_000], 1.0, "{level}: exp(0)");
        }
    }
}

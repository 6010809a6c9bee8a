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

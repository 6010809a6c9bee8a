//! Loops compiled for this machine's vectors: the one door to SIMD here, and a safe one.

use pulp::{Arch, WithSimd};

/// A loop whose body the compiler may vectorize.
pub(crate) trait Kernel {
    /// What it gives.
    type Output;

    /// The loop; every function it calls has to be inlined into it.
    fn run(self) -> Self::Output;
}

struct Compiled<K>(K);

impl<K: Kernel> WithSimd for Compiled<K> {
    type Output = K::Output;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _simd: S) -> K::Output {
        self.0.run()
    }
}

/// Runs a loop compiled for the widest vectors there are.
pub(crate) fn run<K: Kernel>(kernel: K) -> K::Output {
    Arch::new().dispatch(Compiled(kernel))
}

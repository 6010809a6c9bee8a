//! Which instruction set runs, how many threads, how precisely: chosen once, at construction.

use std::fmt;
use std::str::FromStr;

/// An instruction set that the kernels are compiled for.
///
/// Ordered from the plainest to the best; [`CpuLevel::detect`] picks the last one that the
/// machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CpuLevel {
    /// Whatever the compiler's baseline has.
    Portable,
    /// Aarch64's 128-bit vectors.
    Neon,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI; BF16 dot products where the machine has them.
    Avx512,
}

impl CpuLevel {
    /// Every level, plainest first.
    pub const ALL: [CpuLevel; 4] = [
        CpuLevel::Portable,
        CpuLevel::Neon,
        CpuLevel::Avx2,
        CpuLevel::Avx512,
    ];

    /// The best level that this machine has.
    pub fn detect() -> CpuLevel {
        CpuLevel::ALL
            .into_iter()
            .rfind(|level| level.is_available())
            .unwrap_or(CpuLevel::Portable)
    }

    /// Whether this machine can run the level.
    pub fn is_available(self) -> bool {
        match self {
            CpuLevel::Portable => true,
            CpuLevel::Neon => cfg!(target_arch = "aarch64"),
            CpuLevel::Avx2 => has_avx2(),
            CpuLevel::Avx512 => has_avx512(),
        }
    }

    /// The name used on the command line.
    pub fn name(self) -> &'static str {
        match self {
            CpuLevel::Portable => "portable",
            CpuLevel::Neon => "neon",
            CpuLevel::Avx2 => "avx2",
            CpuLevel::Avx512 => "avx512",
        }
    }
}

impl fmt::Display for CpuLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CpuLevel {
    type Err = UnknownLevel;

    fn from_str(name: &str) -> Result<Self, UnknownLevel> {
        CpuLevel::ALL
            .into_iter()
            .find(|level| level.name() == name)
            .ok_or_else(|| UnknownLevel(name.to_owned()))
    }
}

/// A level name that there is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no CPU level: use portable, neon, avx2 or avx512")]
pub struct UnknownLevel(String);

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

/// Whether AVX-512 comes with BF16 dot products.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx512_bf16() -> bool {
    has_avx512() && is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}

/// How activations meet packed weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// f32 activations against decoded weights, whatever the format; but for weights that were
    /// made for activations in int8 with a step for each token (W8A8): those are rounded so
    /// whatever the precision, for that is what such a model computes.
    Exact,
    /// Activations rounded to int8 in blocks of 32 for block and group-quantized formats (for block
    /// formats to two int8, where they are to be rounded finely; groups have to be multiples of 32
    /// columns, in order), to BF16 for BF16 weights where the machine multiplies those; f32 for F32,
    /// F16 and FP8 weights.
    #[default]
    Fast,
}

/// How to set up a [`crate::CpuBackend`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads that compute, the caller's included; `None` takes the available cores.
    pub threads: Option<usize>,
    /// Instruction set; `None` takes the best there is.
    pub level: Option<CpuLevel>,
    /// How activations meet packed weights.
    pub precision: Precision,
    /// Rows of a lone sequence from which latent attention is computed in plain form; `None` for
    /// never, which keeps a token's bits independent of how its prompt was cut.
    pub expand_latents_from: Option<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for level in CpuLevel::ALL {
            assert_eq!(level.name().parse(), Ok(level));
        }
        assert!("sse9".parse::<CpuLevel>().is_err());
    }

    #[test]
    fn the_detected_level_is_available() {
        assert!(CpuLevel::detect().is_available());
    }
}

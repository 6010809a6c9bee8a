//! The generator's numbers: integer arithmetic that any language can repeat.

/// SplitMix64's output function (Steele, Lea and Flood 2014): a bijection on 64-bit integers.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A stream of random integers.
pub(super) struct SplitMix64(u64);

impl SplitMix64 {
    /// A stream for each combination of parts.
    pub fn new(seed: u64, family: u64, steps: u64, split: u64) -> SplitMix64 {
        let parts = [
            (seed, 0x9E37_79B9_7F4A_7C15),
            (family, 0xBF58_476D_1CE4_E5B9),
            (steps, 0x94D0_49BB_1331_11EB),
            (split, 0xD6E8_FEB8_6659_FD93_u64),
        ];
        let add = |state: u64, (x, k): (u64, u64)| state.wrapping_add(x.wrapping_mul(k));
        SplitMix64(parts.into_iter().fold(0, add))
    }

    /// An integer in `0..n`: the high half of a 32 by 32 bit product.
    pub fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let high = mix(self.0) >> 32;
        ((high * u64::from(n)) >> 32) as u32
    }

    /// One of `options`.
    pub fn pick<'a, T: ?Sized>(&mut self, options: &[&'a T]) -> &'a T {
        options[self.below(options.len() as u32) as usize]
    }
}

/// Sixteen buckets that depend on a text's bytes alone (FNV-1a, mixed).
pub(super) fn bucket(text: &str) -> u64 {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    mix(text.bytes().fold(0xCBF2_9CE4_8422_2325, fnv)) & 15
}

//! Random numbers that depend on a request's seed and a token's index, and on nothing else.
//!
//! A generator with a state would tie a request's tokens to how often it was asked, and a shared
//! one to what else runs. Here the `i`-th number of a seed is a function of the two: the `i`-th
//! output of SplitMix64 (Steele, Lea, Flood 2014) started from the mixed seed.

/// The increment of SplitMix64: 2⁶⁴ over the golden ratio.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The `index`-th number of `seed`, uniform in `[0, 1)` with 53 bits.
pub fn uniform(seed: u64, index: u64) -> f64 {
    let start = mix(seed.wrapping_add(GAMMA));
    let bits = mix(start.wrapping_add(GAMMA.wrapping_mul(index.wrapping_add(1))));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The seed of one of a request's several choices (`n`): choice 0 keeps the request's own.
pub fn choice_seed(seed: u64, choice: u32) -> u64 {
    match choice {
        0 => seed,
        n => mix(seed ^ GAMMA.wrapping_mul(u64::from(n))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_uniform_and_uncorrelated() {
        // 100 cells, 200,000 draws: chi-square of 99 degrees has mean 99, deviation 14.
        let draws = 200_000u64;
        for by_seed in [false, true] {
            let mut cells = [0u32; 100];
            let (mut sum, mut lag) = (0.0, 0.0);
            let mut previous = 0.5;
            for i in 0..draws {
                let u = if by_seed {
                    uniform(i, 3)
                } else {
                    uniform(3, i)
                };
                assert!((0.0..1.0).contains(&u));
                cells[(u * 100.0) as usize] += 1;
                sum += u;
                lag += (u - 0.5) * (previous - 0.5);
                previous = u;
            }
            let expected = draws as f64 / 100.0;
            let chi: f64 = cells
                .iter()
                .map(|&c| (f64::from(c) - expected).powi(2) / expected)
                .sum();
            assert!((50.0..160.0).contains(&chi), "chi-square {chi}");
            assert!((sum / draws as f64 - 0.5).abs() < 0.003);
            assert!((lag / draws as f64).abs() < 0.001);
        }
    }

    #[test]
    fn choices_have_their_own_streams() {
        assert_eq!(choice_seed(42, 0), 42);
        let firsts: std::collections::BTreeSet<u64> = (0..100)
            .map(|n| uniform(choice_seed(42, n), 0).to_bits())
            .collect();
        assert_eq!(firsts.len(), 100);
    }
}

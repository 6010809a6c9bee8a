//! A group's grid: scale and zero point, as they will be stored, and rounding to it.

use half::{bf16, f16};
use scrimp_tensor::DType;

/// Grids of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GridSpec {
    /// Bits of a code, 4 or 8.
    pub bits: u32,
    /// Whether the zero point is the middle of the codes.
    pub symmetric: bool,
    /// Whether a symmetric grid's scale may be negative: the one code without a mirror image then
    /// goes to the largest value, whichever its sign.
    pub signed: bool,
    /// Least zero point that may be stored.
    pub zero_min: u8,
    /// Type that scales are stored in.
    pub scale: DType,
}

/// One group's grid: `w = (code − zero) · scale`, codes unsigned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// Distance of two codes, exactly as stored.
    pub scale: f32,
    /// Code of 0, a whole number.
    pub zero: f32,
}

impl GridSpec {
    /// The largest code.
    pub fn max_code(&self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    /// Code of 0 in a symmetric grid.
    pub fn middle(&self) -> f32 {
        (1u32 << (self.bits - 1)) as f32
    }

    /// The grid over `shrink` of the range of a group of least and largest value `min` and `max`.
    #[inline(always)]
    pub fn over(&self, min: f32, max: f32, shrink: f32) -> Grid {
        let codes = self.max_code();
        if self.symmetric && self.signed {
            let largest = if max > -min { max } else { min };
            return Grid {
                scale: self.stored_scale(-largest * shrink / self.middle()),
                zero: self.middle(),
            };
        }
        if self.symmetric {
            let reach = max.max(-min) * shrink;
            return Grid {
                scale: self.stored_scale(reach / (codes * 0.5)),
                zero: self.middle(),
            };
        }
        let (min, max) = (min.min(0.0) * shrink, max.max(0.0) * shrink);
        let scale = self.stored_scale((max - min) / codes);
        let zero = (-min / scale).clamp(f32::from(self.zero_min), codes);
        Grid {
            scale,
            zero: zero.round_ties_even(),
        }
    }

    /// The nearest scale of the same sign that can be stored; 1 for a group of zeros, which every
    /// scale fits.
    #[inline(always)]
    pub fn stored_scale(&self, scale: f32) -> f32 {
        if scale.is_nan() || scale == 0.0 {
            return 1.0;
        }
        let size = match (self.scale, scale.abs()) {
            (DType::F16, size) => f16::from_f32(size.clamp(SMALLEST_F16, LARGEST_F16)).to_f32(),
            (DType::BF16, size) => round_bf16(size.clamp(f32::MIN_POSITIVE, LARGEST_BF16)),
            (_, size) => size.clamp(f32::MIN_POSITIVE, f32::MAX),
        };
        size.copysign(scale)
    }
}

/// The least scale in F16: its least normal number, so that it keeps its eleven bits.
const SMALLEST_F16: f32 = 6.103_515_6e-5;
const LARGEST_F16: f32 = 65504.0;
const LARGEST_BF16: f32 = 3.389_531_4e38;

/// To nearest, ties to even, in whole-number arithmetic that vectorizes; for finite values.
#[inline(always)]
fn round_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

/// A value as `dtype` stores it.
pub fn rounded(value: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::BF16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

impl Grid {
    /// The nearest code, ties to even.
    #[inline(always)]
    pub fn code(&self, value: f32, max_code: f32) -> f32 {
        (value / self.scale + self.zero)
            .clamp(0.0, max_code)
            .round_ties_even()
    }

    /// What a code stands for.
    #[inline(always)]
    pub fn value(&self, code: f32) -> f32 {
        (code - self.zero) * self.scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: GridSpec = GridSpec {
        bits: 4,
        symmetric: false,
        signed: false,
        zero_min: 0,
        scale: DType::F32,
    };

    #[test]
    fn grids_hold_their_range_and_zero() {
        let symmetric = GridSpec {
            symmetric: true,
            ..SPEC
        };
        let grid = symmetric.over(-3.0, 1.5, 1.0);
        assert_eq!((grid.scale, grid.zero), (0.4, 8.0));
        assert_eq!(grid.code(-3.0, 15.0), 0.0); // −7.5 is a tie, and 0 is even
        assert_eq!(grid.code(9.0, 15.0), 15.0);
        let signed = GridSpec {
            signed: true,
            ..symmetric
        };
        for (min, max) in [(-3.0, 1.5), (-1.5, 3.0)] {
            let grid = signed.over(min, max, 1.0);
            assert_eq!(grid.scale.abs(), 0.375);
            let largest = if max > -min { max } else { min };
            assert_eq!(grid.code(largest, 15.0), 0.0);
            assert_eq!(grid.value(0.0), largest);
            assert_eq!(grid.value(grid.code(-largest, 15.0)), -largest * 7.0 / 8.0);
        }
        let grid = SPEC.over(0.5, 1.5, 1.0); // 0 is taken in
        assert_eq!((grid.scale, grid.zero), (0.1, 0.0));
        let shifted = GridSpec {
            zero_min: 1,
            ..SPEC
        };
        assert_eq!(shifted.over(0.5, 1.5, 1.0).zero, 1.0);
        assert_eq!(SPEC.over(-1.5, -0.5, 1.0).zero, 15.0);
        let nothing = SPEC.over(0.0, 0.0, 1.0);
        assert_eq!(nothing.value(nothing.code(0.0, 15.0)), 0.0);
    }

    #[test]
    fn scales_are_what_will_be_stored() {
        for value in [0.1f32, 3.0e-3, 1.004, 7.77e-9, 65_000.0] {
            let spec = GridSpec {
                scale: DType::BF16,
                ..SPEC
            };
            assert_eq!(spec.stored_scale(value), bf16::from_f32(value).to_f32());
        }
        let spec = GridSpec {
            scale: DType::F16,
            ..SPEC
        };
        assert_eq!(spec.stored_scale(1e9), 65504.0);
        assert!(spec.stored_scale(1e-30) > 0.0);
        assert_eq!(spec.stored_scale(-1e9), -65504.0);
        assert_eq!(spec.stored_scale(f32::NAN), 1.0);
    }
}

//! One value at a time: floats, integers, and the 8-bit E4M3.

use half::{bf16, f16};

/// Values of the 256 E4M3 codes: bias 7, no infinities, NaN at `0x7f` and `0xff`.
pub const F8E4M3_VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        values[code] = f8e4m3_value(code as u32);
        code += 1;
    }
    values
};

/// The greatest E4M3 value.
pub const F8E4M3_MAX: f32 = 448.0;

const fn f8e4m3_value(code: u32) -> f32 {
    let (sign, exponent, mantissa) = (code >> 7, code >> 3 & 15, code & 7);
    let magnitude = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa as f32 * (1.0 / 512.0),
        _ => f32::from_bits((exponent + 120) << 23 | mantissa << 20),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

/// The E4M3 code nearest to `value`, ties to the even code. What is beyond ±448, infinities
/// included, becomes ±448; NaN stays NaN.
pub fn f8e4m3_from_f32(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs();
    if magnitude.is_nan() {
        return sign | 0x7f;
    }
    if magnitude >= F8E4M3_MAX {
        return sign | 0x7e;
    }
    // Below the least normal, 2^-6, codes are multiples of 2^-9; the eighth of them is 2^-6 itself.
    if magnitude < 1.0 / 64.0 {
        return sign | (magnitude * 512.0).round_ties_even() as u8;
    }
    // Above it, a code is the top of an f32 with another bias: drop 20 bits, ties to even. A
    // mantissa that overflows carries into the exponent, which is the right next code.
    let bits = magnitude.to_bits();
    let rounded = (bits + 0x7_ffff + (bits >> 20 & 1)) >> 20;
    sign | (rounded - (120 << 3)) as u8
}

/// Applies `value` to each `N`-byte element of `bytes`.
pub(crate) fn decode_each<const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    value: impl Fn([u8; N]) -> f32,
) {
    for (out, element) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *out = value(*element);
    }
}

/// Applies `bytes` to each value, storing `N` bytes apiece.
pub(crate) fn encode_each<const N: usize>(
    values: &[f32],
    out: &mut [u8],
    bytes: impl Fn(f32) -> [u8; N],
) {
    for (value, out) in values.iter().zip(out.as_chunks_mut::<N>().0) {
        *out = bytes(*value);
    }
}

pub(crate) fn f16_value(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

pub(crate) fn bf16_value(bytes: [u8; 2]) -> f32 {
    bf16::from_le_bytes(bytes).to_f32()
}

pub(crate) fn f16_bytes(value: f32) -> [u8; 2] {
    f16::from_f32(value).to_le_bytes()
}

pub(crate) fn bf16_bytes(value: f32) -> [u8; 2] {
    bf16::from_f32(value).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_e4m3_code_survives_a_round_trip() {
        for code in 0..=255u8 {
            let value = F8E4M3_VALUES[usize::from(code)];
            assert_eq!(f8e4m3_from_f32(value), code, "{value}");
        }
    }

    #[test]
    fn e4m3_rounds_to_the_nearest_code_and_ties_to_even() {
        for low in 0..0x7eu8 {
            let (a, b) = (
                F8E4M3_VALUES[usize::from(low)],
                F8E4M3_VALUES[usize::from(low) + 1],
            );
            let middle = (a + b) / 2.0;
            let even = low + low % 2;
            assert_eq!(f8e4m3_from_f32(middle), even, "between {a} and {b}");
            assert_eq!(f8e4m3_from_f32(-middle), even | 0x80);
            assert_eq!(f8e4m3_from_f32(middle.next_down()), low);
            assert_eq!(f8e4m3_from_f32(middle.next_up()), low + 1);
        }
    }

    #[test]
    fn e4m3_saturates() {
        assert_eq!(f8e4m3_from_f32(449.0), 0x7e);
        assert_eq!(f8e4m3_from_f32(f32::NEG_INFINITY), 0xfe);
        assert_eq!(f8e4m3_from_f32(f32::NAN) & 0x7f, 0x7f);
    }
}

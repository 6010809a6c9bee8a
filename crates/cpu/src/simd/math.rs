//! Transcendentals in sixteen lanes.

use super::Simd;

/// Below this `exp` is taken as 0: the least input whose result is a normal number.
const EXP_LOW: f32 = -87.336_54;
/// Above this `exp` is taken at the bound: softmax has no positive inputs, and silu is 0 there.
const EXP_HIGH: f32 = 88.0;
const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts; the first has few enough bits for `n · LN2_HIGH` to be exact.
const LN2_HIGH: f32 = 355.0 / 512.0;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Taylor coefficients of `exp` on ±ln 2 / 2, highest first, fitted for least error.
const EXP_POLY: [f32; 6] = [
    1.987_569_1e-4,
    1.398_199_9e-3,
    8.333_452e-3,
    4.166_579_6e-2,
    1.666_666_5e-1,
    0.5,
];

/// `e^x` to within 2 units in the last place; 0 below the least normal result, NaN for NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let clamped = s.min(s.splat(EXP_HIGH), s.max(s.splat(EXP_LOW), x));
    let n = s.to_int(s.mul(clamped, s.splat(LOG2_E)));
    let nf = s.to_float(n);
    let r = s.fma(nf, s.splat(-LN2_HIGH), clamped);
    let r = s.fma(nf, s.splat(-LN2_LOW), r);
    let mut p = s.splat(EXP_POLY[0]);
    for &c in &EXP_POLY[1..] {
        p = s.fma(p, r, s.splat(c));
    }
    let p = s.add(s.fma(s.mul(r, r), p, r), s.splat(1.0));
    let power = s.bits_to_float(s.shl(s.add_int(n, s.splat_int(127)), 23));
    s.zero_below(s.mul(p, power), x, s.splat(EXP_LOW))
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    let e = exp(s, s.sub(s.splat(0.0), x));
    s.div(x, s.add(s.splat(1.0), e))
}

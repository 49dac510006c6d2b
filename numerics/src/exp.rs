//! One exponential for all paths: the C library's differs between machines, so it cannot be part of a contract.

/// Below this `exp` is zero: results would be subnormal, which some units flush.
pub const EXP_MIN: f32 = -87.0;
/// Above this `exp` saturates at `exp(88)`.
pub const EXP_MAX: f32 = 88.0;
/// log2(e).
pub const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// Upper part of ln 2: few enough bits that `n * LN2_HI` is exact for |n| < 2^11.
pub const LN2_HI: f32 = 0.693_359_4;
/// ln 2 - `LN2_HI`.
pub const LN2_LO: f32 = -2.121_944_4e-4;
/// Polynomial for `(exp(r) - 1 - r) / r^2` on |r| <= ln2/2, highest power first (Cephes `expf`).
pub const POLY: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.000_000_3e-1];

/// e^x in f32, within 2 ulp of the true value, identical bits on every machine: plain multiplies and adds, no fused
/// operations. SIMD paths follow the same operations in the same order. NaN stays NaN.
pub fn exp(x: f32) -> f32 {
    if x.is_nan() {
        return x;
    }
    if x < EXP_MIN {
        return 0.0;
    }
    let x = if x > EXP_MAX { EXP_MAX } else { x };
    let n = (x * LOG2_E).round_ties_even();
    let r = (x - n * LN2_HI) - n * LN2_LO;
    let mut p = POLY[0];
    for c in &POLY[1..] {
        p = p * r + c;
    }
    let y = (p * (r * r) + r) + 1.0;
    y * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

/// The logistic function `1 / (1 + exp(-x))`.
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `x * sigmoid(x)` (SiLU, arXiv 1702.03118).
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_two_ulp() {
        let mut x = -86.9_f32;
        while x < 88.0 {
            let want = (f64::from(x)).exp();
            let got = f64::from(exp(x));
            let ulp = f64::from(f32::EPSILON) * want;
            assert!((got - want).abs() <= 2.0 * ulp, "exp({x}) = {got}, want {want}");
            x += 0.001_37;
        }
    }

    #[test]
    fn ends_are_defined() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::INFINITY).is_finite());
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(silu(0.0), 0.0);
    }
}

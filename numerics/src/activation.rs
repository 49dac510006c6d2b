//! Activation functions of one f32, with the same bits on every machine: plain multiplies, adds and divisions around
//! [`exp`]. SIMD and device paths follow the same operations in the same order.

use std::fmt;
use std::str::FromStr;

use crate::exp::{exp, silu};

/// `sqrt(2 / pi)`, of the tanh form of GELU.
pub const SQRT_2_OVER_PI: f32 = 0.797_884_6;
/// Factor of the cube in the tanh form of GELU.
pub const GELU_CUBE: f32 = 0.044_715;
/// `1 / sqrt(2)`.
pub const INV_SQRT_2: f32 = std::f32::consts::FRAC_1_SQRT_2;
/// `p` of the complementary error function (Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7).
pub const ERFC_P: f32 = 0.327_591_1;
/// Its coefficients of `t^5 .. t^1`.
pub const ERFC_POLY: [f32; 5] = [1.061_405_4, -1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6];

/// A function that a layer applies element by element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Activation {
    /// `x / (1 + exp(-x))` (arXiv 1702.03118), also called swish.
    Silu,
    /// `x * Phi(x)` with the normal distribution's `Phi` (arXiv 1606.08415); config.json calls it `gelu`.
    Gelu,
    /// `x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))`, the tanh form of GELU; `gelu_new`, `gelu_pytorch_tanh`.
    GeluTanh,
}

impl Activation {
    /// All of them.
    pub const ALL: [Activation; 3] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh];

    /// The word for it in IR text, plans and device sources.
    pub const fn name(self) -> &'static str {
        match self {
            Activation::Silu => "silu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
        }
    }

    /// The function's value.
    pub fn apply(self, x: f32) -> f32 {
        match self {
            Activation::Silu => silu(x),
            Activation::Gelu => gelu(x),
            Activation::GeluTanh => gelu_tanh(x),
        }
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Activation {
    type Err = String;

    /// Reads [`Activation::name`] back.
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Activation::ALL.into_iter().find(|a| a.name() == text);
        found.ok_or_else(|| format!("unknown activation {text}, expected one of silu, gelu, gelu_tanh"))
    }
}

fn gelu_tanh(x: f32) -> f32 {
    let u = SQRT_2_OVER_PI * (x + GELU_CUBE * ((x * x) * x));
    x / (1.0 + exp(-(u + u)))
}

fn gelu(x: f32) -> f32 {
    let z = x.abs() * INV_SQRT_2;
    let t = 1.0 / (1.0 + ERFC_P * z);
    let mut p = ERFC_POLY[0];
    for c in &ERFC_POLY[1..] {
        p = p * t + c;
    }
    // Phi(-|x|): half of the complementary error function. The other tail is one minus it.
    let tail = 0.5 * ((p * t) * exp(-(z * z)));
    // The tail of an infinity is 0, and their product must be: a finite number stands for it.
    let low = x.abs().min(f32::MAX) * tail;
    if x < 0.0 { -low } else { x - low }
}

/// `tanh(x)` in f32, within 1e-7 of the true value.
pub fn tanh(x: f32) -> f32 {
    let e = exp(-2.0 * x.abs());
    let y = (1.0 - e) / (1.0 + e);
    if x < 0.0 { -y } else { y }
}

/// `cap * tanh(x / cap)`: squashes into `-cap..cap` (Gemma 2, arXiv 2408.00118).
pub fn softcap(x: f32, cap: f32) -> f32 {
    cap * tanh(x / cap)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error function by its series, good to 1e-12 for |z| < 6.
    fn erf(z: f64) -> f64 {
        let (mut term, mut sum) = (z, z);
        for n in 1..200 {
            term *= -z * z / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn agree_with_their_definitions() {
        let mut x = -5.5_f32;
        while x < 5.5 {
            let d = f64::from(x);
            let want = [
                (Activation::Silu, d / (1.0 + (-d).exp())),
                (Activation::Gelu, 0.5 * d * (1.0 + erf(d / 2.0_f64.sqrt()))),
                (
                    Activation::GeluTanh,
                    0.5 * d
                        * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (d + 0.044715 * d.powi(3))).tanh()),
                ),
            ];
            for (act, want) in want {
                let got = f64::from(act.apply(x));
                assert!((got - want).abs() < 8e-7, "{act}({x}) = {got}, want {want}");
            }
            assert!((f64::from(tanh(x)) - d.tanh()).abs() < 1.2e-7, "tanh({x})");
            assert!((f64::from(softcap(x * 20.0, 30.0)) - 30.0 * (d * 20.0 / 30.0).tanh()).abs() < 4e-6);
            x += 0.003_7;
        }
    }

    #[test]
    fn ends_are_defined() {
        for act in Activation::ALL {
            assert_eq!(act.apply(0.0), 0.0);
            assert_eq!(act.apply(100.0), 100.0);
            assert!(act.apply(-100.0).abs() < 1e-30);
            assert!(act.apply(f32::NAN).is_nan());
            assert_eq!(act.apply(f32::INFINITY), f32::INFINITY);
            assert_eq!(act.name().parse(), Ok(act));
        }
        assert_eq!(Activation::Gelu.apply(f32::NEG_INFINITY).to_bits(), (-0.0_f32).to_bits());
        assert_eq!((tanh(50.0), tanh(-50.0), tanh(0.0)), (1.0, -1.0, 0.0));
        assert!("relu".parse::<Activation>().is_err());
    }
}

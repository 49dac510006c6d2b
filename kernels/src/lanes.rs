//! Portable maths over 16 lanes with the bits of `lathe_numerics`, free of branches so that it vectorises.

use lathe_numerics::activation::{ERFC_P, ERFC_POLY, GELU_CUBE, INV_SQRT_2, SQRT_2_OVER_PI};
use lathe_numerics::exp::{EXP_MAX, EXP_MIN, LN2_HI, LN2_LO, LOG2_E, POLY};
use lathe_numerics::gating::{SWIGLU_ALPHA, SWIGLU_LIMIT};

/// 1.5 * 2^23: adding it to |x| < 2^22 rounds x to an integer, ties to even, in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;

/// `numerics::exp::exp`, bit for bit.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let c = if x > EXP_MAX { EXP_MAX } else { x };
    let c = if c < EXP_MIN { EXP_MIN } else { c };
    let t = c * LOG2_E + ROUND;
    let n = t - ROUND;
    let r = (c - n * LN2_HI) - n * LN2_LO;
    let mut p = POLY[0];
    p = p * r + POLY[1];
    p = p * r + POLY[2];
    p = p * r + POLY[3];
    p = p * r + POLY[4];
    p = p * r + POLY[5];
    let y = (p * (r * r) + r) + 1.0;
    let int = t.to_bits().wrapping_sub(ROUND.to_bits());
    let y = y * f32::from_bits(int.wrapping_add(127) << 23);
    let y = if x < EXP_MIN { 0.0 } else { y };
    if x.is_nan() { x } else { y }
}

/// `numerics::exp::silu`, bit for bit.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `numerics::activation::tanh`, bit for bit.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let e = exp(-2.0 * x.abs());
    let y = (1.0 - e) / (1.0 + e);
    if x < 0.0 { -y } else { y }
}

/// `numerics::activation::softcap`, bit for bit.
#[inline(always)]
pub fn softcap(x: f32, cap: f32) -> f32 {
    cap * tanh(x / cap)
}

/// `numerics::Activation::Gelu`, bit for bit.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    let z = x.abs() * INV_SQRT_2;
    let t = 1.0 / (1.0 + ERFC_P * z);
    let mut p = ERFC_POLY[0];
    p = p * t + ERFC_POLY[1];
    p = p * t + ERFC_POLY[2];
    p = p * t + ERFC_POLY[3];
    p = p * t + ERFC_POLY[4];
    let tail = 0.5 * ((p * t) * exp(-(z * z)));
    let size = x.abs();
    let low = (if size > f32::MAX { f32::MAX } else { size }) * tail;
    let high = x - low;
    if x < 0.0 { -low } else { high }
}

/// `numerics::Activation::GeluTanh`, bit for bit.
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    let u = SQRT_2_OVER_PI * (x + GELU_CUBE * ((x * x) * x));
    x / (1.0 + exp(-(u + u)))
}

/// `numerics::Gating::ClampedSwiglu`, bit for bit.
#[inline(always)]
pub fn clamped_swiglu(gate: f32, up: f32) -> f32 {
    let gate = if gate > SWIGLU_LIMIT { SWIGLU_LIMIT } else { gate };
    let up = if up > SWIGLU_LIMIT { SWIGLU_LIMIT } else { up };
    let up = if up < -SWIGLU_LIMIT { -SWIGLU_LIMIT } else { up };
    (up + 1.0) * (gate / (1.0 + exp(-(SWIGLU_ALPHA * gate))))
}

/// Runs `$body` with `$f` bound to the function of an [`Activation`](lathe_numerics::Activation), a type of its own each,
/// so that loops over it vectorise.
macro_rules! with_activation {
    ($act:expr, $f:ident => $body:expr) => {
        match $act {
            lathe_numerics::Activation::Silu => {
                let $f = $crate::lanes::silu;
                $body
            }
            lathe_numerics::Activation::Gelu => {
                let $f = $crate::lanes::gelu;
                $body
            }
            lathe_numerics::Activation::GeluTanh => {
                let $f = $crate::lanes::gelu_tanh;
                $body
            }
        }
    };
}
pub(crate) use with_activation;

/// `numerics::exp::sigmoid`, bit for bit.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use lathe_numerics::{Activation, activation};

    use super::*;
    use crate::IsaPath;

    /// `got`, run over lanes by every path, against `want`: every `stride`th float of both signs, and all the ends.
    fn same_bits(name: &str, stride: usize, got: impl Fn(f32) -> f32 + Copy, want: impl Fn(f32) -> f32) {
        for path in IsaPath::all() {
            let mut bits = (0..=u32::MAX).step_by(stride);
            let mut ends = [EXP_MIN, EXP_MAX, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::NAN]
                .into_iter()
                .flat_map(|x| (-40i32..=40).map(move |d| x.to_bits().wrapping_add_signed(d)));
            loop {
                let mut x = [0.0f32; 256];
                let mut n = 0;
                while n < x.len() {
                    let Some(b) = ends.next().or_else(|| bits.next()) else { break };
                    x[n] = f32::from_bits(b);
                    n += 1;
                }
                if n == 0 {
                    break;
                }
                let mut y = x;
                path.run(
                    #[inline(always)]
                    || y.iter_mut().for_each(|v| *v = got(*v)),
                );
                for (x, y) in x[..n].iter().zip(&y) {
                    let want = want(*x);
                    assert!(want.to_bits() == y.to_bits() || (want.is_nan() && y.is_nan()), "{name}({x:e})");
                }
            }
        }
    }

    #[test]
    fn functions_have_the_contract_bits() {
        same_bits("exp", 251, exp, lathe_numerics::exp::exp);
        same_bits("tanh", 1009, tanh, activation::tanh);
        same_bits("softcap", 1009, |x| softcap(x, 50.0), |x| activation::softcap(x, 50.0));
        for act in Activation::ALL {
            with_activation!(act, f => same_bits(act.name(), 1009, f, |x| act.apply(x)));
        }
    }

    #[test]
    fn gating_has_the_contract_bits() {
        for path in IsaPath::all() {
            for i in 0..4000 {
                let (gate, up) = ((i % 63) as f32 * 0.31 - 9.7, (i / 63) as f32 * 0.29 - 9.1);
                let got = path.run(|| clamped_swiglu(gate, up));
                let want = lathe_numerics::Gating::ClampedSwiglu.apply(gate, up);
                assert_eq!(got.to_bits(), want.to_bits(), "{gate} {up}");
                assert_eq!(sigmoid(gate).to_bits(), lathe_numerics::exp::sigmoid(gate).to_bits());
            }
        }
    }
}

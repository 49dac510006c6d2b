//! How a gated MLP joins its two halves, element by element, with the same bits on every machine.

use std::fmt;
use std::str::FromStr;

use crate::activation::Activation;
use crate::exp::exp;

/// Bound of gate (from above) and up (from both sides) in [`Gating::ClampedSwiglu`].
pub const SWIGLU_LIMIT: f32 = 7.0;
/// Factor of the gate inside of the logistic function of [`Gating::ClampedSwiglu`].
pub const SWIGLU_ALPHA: f32 = 1.702;

/// The function of gate and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Gating {
    /// `act(gate) * up` (arXiv 2002.05202).
    Plain(Activation),
    /// `(up + 1) * (gate / (1 + exp(-1.702 gate)))` with gate at most 7 and up within -7..7, as gpt-oss has it
    /// (arXiv 2508.10925).
    ClampedSwiglu,
}

impl Gating {
    /// The word for it in IR text, plans and device sources.
    pub const fn name(self) -> &'static str {
        match self {
            Gating::Plain(act) => act.name(),
            Gating::ClampedSwiglu => "clamped_swiglu",
        }
    }

    /// The function's value.
    pub fn apply(self, gate: f32, up: f32) -> f32 {
        match self {
            Gating::Plain(act) => act.apply(gate) * up,
            Gating::ClampedSwiglu => {
                let gate = if gate > SWIGLU_LIMIT { SWIGLU_LIMIT } else { gate };
                let up = if up > SWIGLU_LIMIT { SWIGLU_LIMIT } else { up };
                let up = if up < -SWIGLU_LIMIT { -SWIGLU_LIMIT } else { up };
                (up + 1.0) * (gate / (1.0 + exp(-(SWIGLU_ALPHA * gate))))
            }
        }
    }
}

impl From<Activation> for Gating {
    fn from(act: Activation) -> Self {
        Gating::Plain(act)
    }
}

impl fmt::Display for Gating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Gating {
    type Err = String;

    /// Reads [`Gating::name`] back.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == Gating::ClampedSwiglu.name() {
            return Ok(Gating::ClampedSwiglu);
        }
        text.parse().map(Gating::Plain).map_err(|e: String| format!("{e}, clamped_swiglu"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clamps_both_halves() {
        let f = |gate, up| Gating::ClampedSwiglu.apply(gate, up);
        let true_value = |gate: f64, up: f64| (up + 1.0) * gate / (1.0 + (-1.702 * gate).exp());
        for (gate, up) in [(0.5, -0.25), (-3.0, 2.0), (6.9, 6.9), (-20.0, -6.9)] {
            let want = true_value(f64::from(gate), f64::from(up));
            assert!((f64::from(f(gate, up)) - want).abs() < 1e-5 * want.abs().max(1.0), "{gate} {up}");
        }
        assert_eq!((f(9.0, 1.0), f(1.0, 9.0), f(1.0, -9.0)), (f(7.0, 1.0), f(1.0, 7.0), f(1.0, -7.0)));
        assert!(f(-9.0, 0.0) < 0.0 && f(-9.0, 0.0) != f(-7.0, 0.0));
        assert!(f(f32::NAN, 1.0).is_nan() && f(1.0, f32::NAN).is_nan());
    }

    #[test]
    fn names_round_trip() {
        for gating in [Gating::ClampedSwiglu, Activation::Gelu.into(), Activation::Silu.into()] {
            assert_eq!(gating.name().parse(), Ok(gating));
        }
        assert_eq!(Gating::from(Activation::Silu).apply(0.5, 3.0), Activation::Silu.apply(0.5) * 3.0);
        assert!("relu".parse::<Gating>().is_err());
    }
}

//! `activation(x) {act, out}`: element by element in f32 (`lathe_numerics::Activation`), rounded once to `out`.

use lathe_numerics::{Activation, DType};

use crate::facts::Facts;
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Operation, elementwise};
use crate::tensor::Value;

/// `x: float[t, n]` gives `out[t, n]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Activate {
    /// The function.
    pub act: Activation,
    /// Result type; f32 unless stated.
    pub out: DType,
}

impl Default for Activate {
    fn default() -> Self {
        Self { act: Activation::Silu, out: DType::F32 }
    }
}

impl Operation for Activate {
    const NAME: &'static str = "activation";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("act", &mut self.act);
        a.out(&mut self.out);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        elementwise(args, ["x"], self.out)
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        Ok(vec![cx.finish(0, inputs[0].floats()?.iter().map(|&x| self.act.apply(x)).collect())])
    }

    fn is_elementwise(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interp::testing::{eval, floats};

    #[test]
    fn matches_the_definition() {
        let x = floats(DType::F32, [1, 3], &[0.0, 1.0, -2.0]);
        for (act, want) in [
            (Activation::Silu, [0.0, 0.731_058_6, -0.238_405_84]),
            (Activation::Gelu, [0.0, 0.841_344_7, -0.045_500_264]),
            (Activation::GeluTanh, [0.0, 0.841_192, -0.045_402_3]),
        ] {
            for (got, want) in eval(Activate { act, out: DType::F32 }, &[&x]).iter().zip(want) {
                assert!((got - want).abs() < 1e-6, "{act}: {got}, want {want}");
            }
        }
    }
}

//! `activation(x) {act}`: element by element in f32 (`lathe_numerics::Activation`), rounded once to the type of `x`.

use lathe_numerics::Activation;

use crate::facts::Facts;
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Operation};
use crate::tensor::Value;

/// The activation of a `[t, n]` tensor; type and shape of the result are those of the operand.
#[derive(Clone, Debug, PartialEq)]
pub struct Activate {
    /// The function.
    pub act: Activation,
}

impl Default for Activate {
    fn default() -> Self {
        Self { act: Activation::Silu }
    }
}

impl Operation for Activate {
    const NAME: &'static str = "activation";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("act", &mut self.act);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        args.expect(1, 1)?;
        let (dtype, shape) = args.float(0, "x", 2)?;
        Ok(vec![Facts::tensor(dtype, shape.iter().cloned())])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        Ok(vec![cx.finish(0, inputs[0].floats()?.iter().map(|&x| self.act.apply(x)).collect())])
    }

    fn is_rowwise(&self, _input: usize) -> bool {
        true
    }

    fn is_elementwise(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use lathe_numerics::DType;

    use super::*;
    use crate::interp::testing::{eval, floats};

    #[test]
    fn matches_the_definition() {
        let x = floats(DType::F32, [1, 3], &[0.0, 1.0, -2.0]);
        for (act, want) in [
            (Activation::Silu, [0.0, 0.731_058_6, -0.238_405_84]),
            (Activation::Gelu, [0.0, 0.841_344_75, -0.045_500_264]),
            (Activation::GeluTanh, [0.0, 0.841_192, -0.045_402_3]),
        ] {
            for (got, want) in eval(Activate { act }, &[&x]).iter().zip(want) {
                assert!((got - want).abs() < 1e-6, "{act}: {got}, want {want}");
            }
        }
    }
}

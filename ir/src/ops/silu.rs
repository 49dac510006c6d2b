//! `silu(x)`: element by element `x / (1 + exp(-x))` in f32, rounded once to the type of `x`.

use lathe_numerics::exp::silu;

use crate::facts::Facts;
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Operation};
use crate::tensor::Value;

/// SiLU of a `[t, n]` tensor; type and shape of the result are those of the operand.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Silu {}

impl Operation for Silu {
    const NAME: &'static str = "silu";

    fn attrs(&mut self, _a: &mut Attrs) {}

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        args.expect(1, 1)?;
        let (dtype, shape) = args.float(0, "x", 2)?;
        Ok(vec![Facts::tensor(dtype, shape.iter().cloned())])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        Ok(vec![cx.finish(0, inputs[0].floats()?.iter().map(|&x| silu(x)).collect())])
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
        let got = eval(Silu {}, &[&floats(DType::F32, [1, 3], &[0.0, 1.0, -2.0])]);
        for (got, want) in got.iter().zip([0.0, 0.731_058_6, -0.238_405_84]) {
            assert!((got - want).abs() < 1e-6);
        }
    }
}

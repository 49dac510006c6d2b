//! `scale(x) {factor, out}`: element by element `x * factor` in f32, rounded once to `out`.

use lathe_numerics::DType;

use crate::facts::Facts;
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Operation, elementwise};
use crate::tensor::Value;

/// `x: float[t, n]` gives `out[t, n]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    /// What every element is multiplied by.
    pub factor: f32,
    /// Result type; f32 unless stated.
    pub out: DType,
}

impl Default for Scale {
    fn default() -> Self {
        Self { factor: 1.0, out: DType::F32 }
    }
}

impl Operation for Scale {
    const NAME: &'static str = "scale";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("factor", &mut self.factor);
        a.out(&mut self.out);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        elementwise(args, ["x"], self.out)
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        Ok(vec![cx.finish(0, inputs[0].floats()?.iter().map(|x| x * self.factor).collect())])
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
    fn multiplies_then_rounds() {
        let x = floats(DType::BF16, [1, 2], &[257.0, -1.5]);
        assert_eq!(eval(Scale { factor: 0.5, out: DType::BF16 }, &[&x]), [128.0, -0.75]);
    }
}

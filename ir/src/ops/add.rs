//! `add(a, b) {out}`: element by element `a + b` in f32, rounded once to `out`.

use lathe_numerics::DType;

use crate::facts::Facts;
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Operation, elementwise};
use crate::tensor::Value;

/// The elementwise sum of two `[t, n]` tensors of any float types; the result has type `out`.
#[derive(Clone, Debug, PartialEq)]
pub struct Add {
    /// Result type; f32 unless stated.
    pub out: DType,
}

impl Default for Add {
    fn default() -> Self {
        Self { out: DType::F32 }
    }
}

impl Operation for Add {
    const NAME: &'static str = "add";

    fn attrs(&mut self, a: &mut Attrs) {
        a.out(&mut self.out);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        elementwise(args, ["a", "b"], self.out)
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        let (a, b) = (inputs[0].floats()?, inputs[1].floats()?);
        Ok(vec![cx.finish(0, a.iter().zip(b).map(|(x, y)| x + y).collect())])
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
    fn rounds_once() {
        let (a, b) = (floats(DType::F32, [1, 2], &[1.001, 256.0]), floats(DType::BF16, [1, 2], &[0.0, 1.0]));
        assert_eq!(eval(Add::default(), &[&a, &b]), [1.001, 257.0]);
        assert_eq!(eval(Add { out: DType::BF16 }, &[&a, &b]), [1.0, 256.0]);
    }
}

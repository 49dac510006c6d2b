//! `cast(x) {out}`: every element rounded once to `out`.

use lathe_numerics::DType;

use crate::facts::Facts;
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Operation, elementwise};
use crate::tensor::Value;

/// `x: float[t, n]` gives `out[t, n]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cast {
    /// Result type; f32 unless stated.
    pub out: DType,
}

impl Default for Cast {
    fn default() -> Self {
        Self { out: DType::F32 }
    }
}

impl Operation for Cast {
    const NAME: &'static str = "cast";

    fn attrs(&mut self, a: &mut Attrs) {
        a.out(&mut self.out);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        elementwise(args, ["x"], self.out)
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        Ok(vec![cx.finish(0, inputs[0].floats()?.to_vec())])
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
    fn rounds_to_the_type() {
        let x = floats(DType::F32, [1, 2], &[257.0, -1.5]);
        assert_eq!(eval(Cast { out: DType::BF16 }, &[&x]), [256.0, -1.5]);
    }
}

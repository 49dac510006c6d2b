//! `linear_add(x, residual, @w, [@bias])`: `add {out = D} (linear(x, w, bias), residual)`.
//!
//! The projection stays in f32; one rounding, of the sum, to the type `D` of `residual`. Bit for bit the two ops.

use crate::facts::{Bindings, Facts};
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Cost, Operation, same_dim};
use crate::ops::linear;
use crate::tensor::Value;

/// `x: float[t, k]`, `residual: D[t, n]`, then the weights of `linear`, give `D[t, n]`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct LinearAdd;

impl Operation for LinearAdd {
    const NAME: &'static str = "linear_add";

    fn attrs(&mut self, _: &mut Attrs) {}

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        args.expect(3, 4)?;
        let (dtype, residual) = args.float(1, "residual", 2)?;
        let facts = args.facts();
        let projection = [&facts[..1], &facts[2..]].concat();
        let (rows, n) = linear::check(&Args::new(&projection, args.cache))?;
        same_dim(rows, "rows of x", &residual[0], "rows of residual")?;
        same_dim(&n.into(), "rows of w", &residual[1], "columns of residual")?;
        Ok(vec![Facts::tensor(dtype, residual.iter().cloned())])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        let (residual, projection) = (inputs[1], [&inputs[..1], &inputs[2..]].concat());
        let sum =
            linear::apply(&projection, cx)?.iter().zip(residual.floats()?).map(|(a, b)| a + b).collect();
        Ok(vec![cx.finish(0, sum)])
    }

    fn is_rowwise(&self, input: usize) -> bool {
        input < 2
    }

    fn is_weight(&self, input: usize) -> bool {
        input > 1
    }

    fn cost(&self, inputs: &[&Facts], outputs: &[&Facts], at: &Bindings) -> Cost {
        linear::gemm_cost(&[&inputs[..1], &inputs[2..]].concat(), outputs, at)
    }
}

#[cfg(test)]
mod tests {
    use lathe_numerics::DType;

    use super::*;
    use crate::interp::testing::{eval, floats, try_eval, vector};

    #[test]
    fn rounds_the_sum_once() {
        let x = floats(DType::F32, [1, 1], &[1.001]);
        let w = floats(DType::F32, [1, 1], &[1.0]);
        let residual = floats(DType::BF16, [1, 1], &[256.0]);
        assert_eq!(eval(LinearAdd, &[&x, &residual, &w]), [DType::BF16.round(257.001)]);
        assert_eq!(eval(LinearAdd, &[&x, &residual, &w, &vector(DType::F32, &[3.0])]), [260.0]);
        let wide = floats(DType::BF16, [1, 2], &[0.0, 0.0]);
        let why = try_eval(LinearAdd, &[&x, &wide, &w]).unwrap_err();
        assert_eq!(why, "rows of w (1) differs from columns of residual (2)");
    }
}

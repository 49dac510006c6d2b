//! `combine_add(y, weights, residual, [shared, gate])`: `add {out = D} (combine(y, weights, shared, gate), residual)`.
//!
//! The weighted sum stays in f32; one rounding, of the sum with the residual, to its type `D`. Bit for bit the two ops.

use crate::facts::Facts;
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Operation, dim_is, same_dim};
use crate::ops::combine;
use crate::tensor::Value;

/// Operands of `combine` with `residual: D[t, n]` as the third give `D[t, n]`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct CombineAdd;

impl Operation for CombineAdd {
    const NAME: &'static str = "combine_add";

    fn attrs(&mut self, _: &mut Attrs) {}

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        args.expect(3, 5)?;
        let (dtype, residual) = args.float(2, "residual", 2)?;
        let facts = args.facts();
        let sum = [&facts[..2], &facts[3..]].concat();
        let (rows, n) = combine::check(&Args::new(&sum, args.cache))?;
        same_dim(rows, "rows of y", &residual[0], "rows of residual")?;
        dim_is(&residual[1], "columns of residual", n)?;
        Ok(vec![Facts::tensor(dtype, residual.iter().cloned())])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        let (residual, sum) = (inputs[2], [&inputs[..2], &inputs[3..]].concat());
        let sum = combine::apply(&sum)?.iter().zip(residual.floats()?).map(|(a, b)| a + b).collect();
        Ok(vec![cx.finish(0, sum)])
    }

    fn is_rowwise(&self, _input: usize) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use lathe_numerics::DType;

    use super::*;
    use crate::interp::testing::{eval, floats, try_eval};

    #[test]
    fn rounds_the_sum_once() {
        let y = floats(DType::F32, [1, 2], &[1.001, 2.0]);
        let w = floats(DType::F32, [1, 2], &[1.0, 0.25]);
        let residual = floats(DType::BF16, [1, 1], &[256.0]);
        assert_eq!(eval(CombineAdd, &[&y, &w, &residual]), [DType::BF16.round(257.501)]);
        let wide = floats(DType::BF16, [1, 2], &[0.0; 2]);
        let why = try_eval(CombineAdd, &[&y, &w, &wide]).unwrap_err();
        assert_eq!(why, "columns of residual (2) differs from the attributes (1)");
    }
}

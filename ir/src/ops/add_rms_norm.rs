//! `add_rms_norm(x, residual, @w) {eps}`: `sum = x + residual` and `normed = rms_norm(sum, w)`.
//!
//! Rounding points: the f32 sum is rounded to the type of `residual`; the norm reads that rounded sum and is rounded
//! once, to the same type. Bit for bit `add {out = D}` followed by `rms_norm`.

use crate::facts::Facts;
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Operation, same_dim};
use crate::ops::rms_norm::{check_eps, check_weight, normalise};
use crate::tensor::Value;

/// `x: float[t, h]`, `residual: D[t, h]`, `w: float[h]` gives `sum: D[t, h]`, `normed: D[t, h]`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct AddRmsNorm {
    /// Added to the mean square.
    pub eps: f32,
}

impl Operation for AddRmsNorm {
    const NAME: &'static str = "add_rms_norm";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("eps", &mut self.eps);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        args.expect(3, 3)?;
        let ((_, x), (dtype, residual)) = (args.float(0, "x", 2)?, args.float(1, "residual", 2)?);
        same_dim(&x[0], "rows of x", &residual[0], "rows of residual")?;
        same_dim(&x[1], "columns of x", &residual[1], "columns of residual")?;
        check_weight(args, 2, &x[1])?;
        check_eps(self.eps)?;
        let facts = Facts::tensor(dtype, x.iter().cloned());
        Ok(vec![facts.clone(), facts])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        let (x, residual, w) = (inputs[0].floats()?, inputs[1].floats()?, inputs[2].floats()?);
        let sum = cx.finish(0, x.iter().zip(residual).map(|(a, b)| a + b).collect());
        let normed = cx.finish(1, normalise(sum.floats()?, w, w.len(), self.eps));
        Ok(vec![sum, normed])
    }

    fn is_rowwise(&self, input: usize) -> bool {
        input < 2
    }

    fn is_weight(&self, input: usize) -> bool {
        input == 2
    }
}

#[cfg(test)]
mod tests {
    use lathe_numerics::DType;

    use super::*;
    use crate::interp::testing::{eval_all, floats, vector};

    #[test]
    fn norm_reads_the_rounded_sum() {
        let x = floats(DType::F32, [1, 2], &[1.0, 4.0]);
        let residual = floats(DType::BF16, [1, 2], &[256.0, 0.0]);
        let w = vector(DType::BF16, &[1.0, 1.0]);
        let got = eval_all(AddRmsNorm { eps: 0.0 }, &[&x, &residual, &w]);
        assert_eq!(got[0].floats().unwrap(), [256.0, 4.0]);
        let want = DType::BF16.round(256.0 / ((256.0_f32 * 256.0 + 16.0) / 2.0).sqrt());
        assert_eq!(got[1].floats().unwrap()[0], want);
    }
}

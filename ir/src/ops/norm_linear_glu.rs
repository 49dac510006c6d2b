//! `norm_linear_glu(x, @norm, @gate_up, [@bias]) {act, cols, eps, interleave, out}`:
//! `linear_glu {act, cols, interleave, out} (rms_norm {eps} (x, norm), gate_up, bias)`.
//!
//! Rounding points: the normed row, to the type of `x`; the result, to `out`. Bit for bit the two ops.

use lathe_numerics::{Activation, DType};

use crate::facts::{Bindings, Facts};
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Cost, Operation};
use crate::ops::norm_linear::{self, behind_norm};
use crate::ops::{LinearGlu, glu, linear};
use crate::tensor::Value;

/// `x: D[t, k]`, `norm: float[k]`, then the other operands of `linear_glu`, give `out[t, cols]`.
#[derive(Clone, Debug, PartialEq)]
pub struct NormLinearGlu {
    /// Of the gate.
    pub act: Activation,
    /// Added to the mean square.
    pub eps: f32,
    /// Columns of the result.
    pub cols: usize,
    /// Weight rows per group.
    pub interleave: usize,
    /// Result type; f32 unless stated.
    pub out: DType,
}

impl Default for NormLinearGlu {
    fn default() -> Self {
        Self { act: Activation::Silu, eps: 0.0, cols: 0, interleave: 16, out: DType::F32 }
    }
}

impl Operation for NormLinearGlu {
    const NAME: &'static str = "norm_linear_glu";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("act", &mut self.act);
        a.required("eps", &mut self.eps);
        a.required("cols", &mut self.cols);
        a.required("interleave", &mut self.interleave);
        a.out(&mut self.out);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        let op = LinearGlu { act: self.act, cols: self.cols, interleave: self.interleave, out: self.out };
        behind_norm(args, self.eps, |args| op.infer(args))
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        let width = inputs[2].tensor()?.shape[0];
        let projection = norm_linear::apply(inputs, self.eps, cx)?;
        Ok(vec![cx.finish(0, glu::activate(&projection, self.act, width, self.cols, self.interleave))])
    }

    fn is_rowwise(&self, input: usize) -> bool {
        input == 0
    }

    fn is_weight(&self, input: usize) -> bool {
        input > 0
    }

    fn cost(&self, inputs: &[&Facts], outputs: &[&Facts], at: &Bindings) -> Cost {
        linear::gemm_cost(&[&inputs[..1], &inputs[2..]].concat(), outputs, at)
    }
}

#[cfg(test)]
mod tests {
    use lathe_numerics::exp::silu;

    use super::*;
    use crate::interp::testing::{eval, floats, vector};

    #[test]
    fn is_glu_of_the_normed_row() {
        let x = floats(DType::F32, [1, 1], &[5.0]);
        let w = floats(DType::F32, [2, 1], &[0.5, 3.0]);
        let op = NormLinearGlu { act: Activation::Silu, eps: 0.0, cols: 1, interleave: 1, out: DType::F32 };
        assert_eq!(eval(op, &[&x, &vector(DType::F32, &[2.0]), &w]), [silu(1.0) * 6.0]);
    }
}

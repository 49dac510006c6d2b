//! `linear_glu(x, @gate_up, [@bias]) {act, cols, interleave, out}`: `glu(linear(x, gate_up, bias))`.
//!
//! The projection stays in f32; one rounding, to `out`. Bit for bit `linear` followed by `glu`.

use lathe_numerics::{Activation, DType};

use crate::facts::{Bindings, Dim, Facts};
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Cost, Operation, float_out};
use crate::ops::{glu, linear};
use crate::tensor::Value;

/// `x: float[t, k]`, `gate_up: float[2 * ceil(cols / interleave) * interleave, k]`, a bias of as many rows, gives
/// `out[t, cols]`.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearGlu {
    /// Of the gate.
    pub act: Activation,
    /// Columns of the result; the weight is padded to whole groups.
    pub cols: usize,
    /// Weight rows per group.
    pub interleave: usize,
    /// Result type; f32 unless stated.
    pub out: DType,
}

impl Default for LinearGlu {
    fn default() -> Self {
        Self { act: Activation::Silu, cols: 0, interleave: 16, out: DType::F32 }
    }
}

impl Operation for LinearGlu {
    const NAME: &'static str = "linear_glu";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("act", &mut self.act);
        a.required("cols", &mut self.cols);
        a.required("interleave", &mut self.interleave);
        a.out(&mut self.out);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        let (rows, n) = linear::check(args)?;
        let want = glu::padded(self.cols, self.interleave)?;
        if n != want {
            return Err(format!("gate_up has {n} rows, expected {want}"));
        }
        float_out(self.out)?;
        Ok(vec![Facts::tensor(self.out, [rows.clone(), Dim::from(self.cols)])])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        let width = inputs[1].tensor()?.shape[0];
        Ok(vec![cx.finish(
            0,
            glu::activate(&linear::apply(inputs, cx)?, self.act, width, self.cols, self.interleave),
        )])
    }

    fn is_rowwise(&self, input: usize) -> bool {
        input == 0
    }

    fn is_weight(&self, input: usize) -> bool {
        input > 0
    }

    fn cost(&self, inputs: &[&Facts], outputs: &[&Facts], at: &Bindings) -> Cost {
        linear::gemm_cost(inputs, outputs, at)
    }
}

#[cfg(test)]
mod tests {
    use lathe_numerics::exp::silu;

    use super::*;
    use crate::interp::testing::{eval, floats};

    #[test]
    fn is_glu_of_linear() {
        let x = floats(DType::F32, [1, 1], &[2.0]);
        let w = floats(DType::F32, [2, 1], &[0.5, 3.0]);
        let got =
            eval(LinearGlu { act: Activation::Silu, cols: 1, interleave: 1, out: DType::F32 }, &[&x, &w]);
        assert_eq!(got, [silu(1.0) * 6.0]);
    }
}

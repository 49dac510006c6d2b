//! `expert_linear_glu(x, ids, @gate_up, [@bias]) {act, cols, experts, interleave, out}`: the gated half of an expert.
//!
//! `expert_linear` with weights whose rows are interleaved as `glu` reads them, then the gating of each choice on its own:
//! sums and gating in f32, one rounding, to `out`.

use lathe_numerics::{Activation, DType, Gating};

use crate::facts::{Bindings, Dim, Facts};
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Cost, Operation, float_out};
use crate::ops::{expert_linear, glu};
use crate::tensor::Value;

/// Operands of `expert_linear` with `2 * ceil(cols / interleave) * interleave` rows per expert give `out[t, c * cols]`
/// for `c` choices.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertLinearGlu {
    /// How gate and up become one.
    pub act: Gating,
    /// Columns of one choice's result.
    pub cols: usize,
    /// Experts in the weight.
    pub experts: usize,
    /// Rows per group of the weight.
    pub interleave: usize,
    /// Result type; f32 unless stated.
    pub out: DType,
}

impl Default for ExpertLinearGlu {
    fn default() -> Self {
        let act = Gating::Plain(Activation::Silu);
        Self { act, cols: 0, experts: 0, interleave: 16, out: DType::F32 }
    }
}

impl Operation for ExpertLinearGlu {
    const NAME: &'static str = "expert_linear_glu";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("act", &mut self.act);
        a.required("cols", &mut self.cols);
        a.required("experts", &mut self.experts);
        a.required("interleave", &mut self.interleave);
        a.out(&mut self.out);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        let found = expert_linear::check(args, self.experts)?;
        let want = glu::padded(self.cols, self.interleave)?;
        if found.n != want {
            return Err(format!("an expert of gate_up has {} rows, expected {want}", found.n));
        }
        float_out(self.out)?;
        Ok(vec![Facts::tensor(self.out, [found.rows.clone(), Dim::from(found.choices * self.cols)])])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        let width = inputs[2].tensor()?.shape[0] / self.experts;
        let gate_up = expert_linear::apply(inputs, self.experts, cx)?;
        Ok(vec![cx.finish(0, glu::gated(&gate_up, self.act, width, self.cols, self.interleave))])
    }

    fn is_rowwise(&self, input: usize) -> bool {
        input < 2
    }

    fn is_weight(&self, input: usize) -> bool {
        input > 1
    }

    fn cost(&self, inputs: &[&Facts], outputs: &[&Facts], at: &Bindings) -> Cost {
        expert_linear::cost(inputs, outputs, at, self.experts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interp::testing::{eval, floats, try_eval};
    use crate::tensor::Tensor;

    #[test]
    fn gates_each_choice() {
        let op = ExpertLinearGlu {
            act: Gating::ClampedSwiglu,
            cols: 1,
            experts: 2,
            interleave: 1,
            out: DType::F32,
        };
        let x = floats(DType::F32, [1, 1], &[2.0]);
        let w = floats(DType::F32, [4, 1], &[0.5, 3.0, -1.0, 4.0]);
        let ids = Value::Tensor(Tensor::int(vec![1, 2], vec![1, 0]));
        let want = [(-2.0, 8.0), (1.0, 6.0)].map(|(gate, up)| Gating::ClampedSwiglu.apply(gate, up));
        assert_eq!(eval(op.clone(), &[&x, &ids, &w]), want);
        let why = try_eval(ExpertLinearGlu { cols: 2, ..op }, &[&x, &ids, &w]).unwrap_err();
        assert_eq!(why, "an expert of gate_up has 2 rows, expected 4");
    }
}

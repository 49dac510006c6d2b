//! `glu(gate_up) {act, cols, interleave, out}`: `out[c] = act(gate[c]) * up[c]` on an interleaved projection.
//!
//! With `g = interleave`, column `c` has its gate at `(c / g) * 2g + c % g` and its up `g` columns later. All in f32,
//! one rounding, to `out`: bit for bit `mul(activation(gate), up)` on f32 operands.

use lathe_numerics::{Activation, DType, Gating};

use crate::facts::{Dim, Facts};
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Operation, dim_is, float_out};
use crate::tensor::Value;

/// `gate_up: float[t, 2 * ceil(cols / interleave) * interleave]` gives `out[t, cols]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Glu {
    /// Of the gate.
    pub act: Activation,
    /// Columns of the result; the operand is padded to whole groups.
    pub cols: usize,
    /// Columns per group.
    pub interleave: usize,
    /// Result type; f32 unless stated.
    pub out: DType,
}

impl Default for Glu {
    fn default() -> Self {
        Self { act: Activation::Silu, cols: 0, interleave: 16, out: DType::F32 }
    }
}

/// The activation of rows of `width` columns, unrounded.
pub(super) fn activate(
    gate_up: &[f32],
    act: Activation,
    width: usize,
    cols: usize,
    group: usize,
) -> Vec<f32> {
    gated(gate_up, act.into(), width, cols, group)
}

/// The same for any gating.
pub(super) fn gated(gate_up: &[f32], gating: Gating, width: usize, cols: usize, group: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(gate_up.len() / width * cols);
    for row in gate_up.chunks_exact(width) {
        for c in 0..cols {
            let gate = c / group * 2 * group + c % group;
            out.push(gating.apply(row[gate], row[gate + group]));
        }
    }
    out
}

/// Columns of the padded operand.
///
/// # Errors
/// If an attribute is 0.
pub(super) fn padded(cols: usize, group: usize) -> Result<usize, String> {
    if cols == 0 || group == 0 {
        return Err("cols and interleave must not be 0".into());
    }
    Ok(cols.div_ceil(group) * group * 2)
}

impl Operation for Glu {
    const NAME: &'static str = "glu";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("act", &mut self.act);
        a.required("cols", &mut self.cols);
        a.required("interleave", &mut self.interleave);
        a.out(&mut self.out);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        args.expect(1, 1)?;
        let (_, x) = args.float(0, "gate_up", 2)?;
        dim_is(&x[1], "columns of gate_up", padded(self.cols, self.interleave)?)?;
        float_out(self.out)?;
        Ok(vec![Facts::tensor(self.out, [x[0].clone(), Dim::from(self.cols)])])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        let width = inputs[0].tensor()?.row_len();
        Ok(vec![cx.finish(0, activate(inputs[0].floats()?, self.act, width, self.cols, self.interleave))])
    }

    fn is_rowwise(&self, _input: usize) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use lathe_numerics::exp::silu;

    use super::*;
    use crate::interp::testing::{eval, floats, try_eval};

    #[test]
    fn reads_groups_in_turn() {
        // Groups of 2, 3 columns: gate 0, gate 1, up 0, up 1, gate 2, pad, up 2, pad.
        let x = floats(DType::F32, [1, 8], &[0.0, 1.0, 9.0, 2.0, -1.0, 5.0, 3.0, 5.0]);
        let got = eval(Glu { act: Activation::Silu, cols: 3, interleave: 2, out: DType::F32 }, &[&x]);
        assert_eq!(got, [0.0, silu(1.0) * 2.0, silu(-1.0) * 3.0]);
        let why = try_eval(Glu { act: Activation::Silu, cols: 5, interleave: 2, out: DType::F32 }, &[&x])
            .unwrap_err();
        assert_eq!(why, "columns of gate_up (8) differs from the attributes (12)");
    }
}

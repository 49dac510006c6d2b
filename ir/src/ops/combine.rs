//! `combine(y, weights, [shared, gate]) {out}`: the weighted sum of a row's experts.
//!
//! `((y_0 w_0 + y_1 w_1) + y_2 w_2) + ...` in the order of the choices, products and sums apart, in f32; then, with a
//! shared expert, `+ sigmoid(gate) * shared` (Qwen2-MoE, arXiv 2407.10671). One rounding, to `out`.

use lathe_numerics::DType;
use lathe_numerics::exp::sigmoid;

use crate::facts::{Dim, Facts};
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Operation, dim_is, float_out, same_dim};
use crate::tensor::Value;

/// `y: float[t, c * n]`, `weights: f32[t, c]`, `shared: f32[t, n]`, `gate: f32[t, 1]` gives `out[t, n]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Combine {
    /// Result type; f32 unless stated.
    pub out: DType,
}

impl Default for Combine {
    fn default() -> Self {
        Self { out: DType::F32 }
    }
}

/// Checks operands `y, weights, [shared, gate]`; gives rows and columns of the sum.
pub(super) fn check<'a>(args: &Args<'a>) -> Result<(&'a Dim, usize), String> {
    let ((_, y), (dtype, weights)) = (args.float(0, "y", 2)?, args.float(1, "weights", 2)?);
    same_dim(&y[0], "rows of y", &weights[0], "rows of weights")?;
    let (Some(columns), Some(choices @ 1..)) = (y[1].as_const(), weights[1].as_const()) else {
        return Err("columns of y or weights are symbolic or none".into());
    };
    if columns == 0 || !columns.is_multiple_of(choices) {
        return Err(format!("{columns} columns of y are no whole parts for {choices} choices"));
    }
    let mut dtypes = vec![dtype];
    match args.len() {
        2 => {}
        4 => {
            let ((a, shared), (b, gate)) = (args.float(2, "shared", 2)?, args.float(3, "gate", 2)?);
            for (what, shape) in [("rows of shared", shared), ("rows of gate", gate)] {
                same_dim(&shape[0], what, &y[0], "rows of y")?;
            }
            dim_is(&shared[1], "columns of shared", columns / choices)?;
            dim_is(&gate[1], "columns of gate", 1)?;
            dtypes.extend([a, b]);
        }
        n => return Err(format!("{n} operands, expected 2 or 4")),
    }
    match dtypes.into_iter().find(|d| *d != DType::F32) {
        Some(dtype) => Err(format!("weights, shared or gate is {dtype}, expected f32")),
        None => Ok((&y[0], columns / choices)),
    }
}

/// Evaluates operands that passed [`check`], unrounded.
pub(super) fn apply(inputs: &[&Value]) -> Result<Vec<f32>, String> {
    let (y, weights) = (inputs[0].tensor()?, inputs[1].tensor()?);
    let choices = weights.row_len();
    let n = y.row_len() / choices;
    let mut out = Vec::with_capacity(y.len() / choices);
    for (row, w) in y.floats()?.chunks_exact(choices * n).zip(weights.floats()?.chunks_exact(choices)) {
        for c in 0..n {
            let first = row[c] * w[0];
            out.push((1..choices).fold(first, |sum, j| sum + row[j * n + c] * w[j]));
        }
    }
    if let [_, _, shared, gate] = inputs {
        let shared = shared.floats()?.chunks_exact(n);
        for ((row, shared), gate) in out.chunks_exact_mut(n).zip(shared).zip(gate.floats()?) {
            row.iter_mut().zip(shared).for_each(|(o, s)| *o += sigmoid(*gate) * s);
        }
    }
    Ok(out)
}

impl Operation for Combine {
    const NAME: &'static str = "combine";

    fn attrs(&mut self, a: &mut Attrs) {
        a.out(&mut self.out);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        let (rows, n) = check(args)?;
        float_out(self.out)?;
        Ok(vec![Facts::tensor(self.out, [rows.clone(), Dim::from(n)])])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        Ok(vec![cx.finish(0, apply(inputs)?)])
    }

    fn is_rowwise(&self, _input: usize) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interp::testing::{eval, floats, try_eval};

    #[test]
    fn sums_choices_in_order_then_the_shared_expert() {
        let y = floats(DType::F32, [1, 4], &[1.0, 2.0, 30.0, 40.0]);
        let w = floats(DType::F32, [1, 2], &[0.5, 2.0]);
        assert_eq!(eval(Combine::default(), &[&y, &w]), [60.5, 81.0]);
        let (shared, gate) = (floats(DType::F32, [1, 2], &[2.0, 4.0]), floats(DType::F32, [1, 1], &[0.0]));
        assert_eq!(eval(Combine::default(), &[&y, &w, &shared, &gate]), [61.5, 83.0]);
        // 2^24 + 1 is lost, 2^24 - 2^24 + 1 is not.
        let y = floats(DType::F32, [1, 3], &[16_777_216.0, 1.0, -16_777_216.0]);
        assert_eq!(eval(Combine::default(), &[&y, &floats(DType::F32, [1, 3], &[1.0; 3])]), [0.0]);
    }

    #[test]
    fn operands_must_fit() {
        let y = floats(DType::F32, [1, 3], &[0.0; 3]);
        let w = floats(DType::F32, [1, 2], &[0.0; 2]);
        let why = try_eval(Combine::default(), &[&y, &w]).unwrap_err();
        assert_eq!(why, "3 columns of y are no whole parts for 2 choices");
        assert_eq!(try_eval(Combine::default(), &[&y, &w, &w]).unwrap_err(), why);
    }
}

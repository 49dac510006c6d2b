//! `norm_linear(x, @norm, @w, [@bias]) {eps, out}`: `linear {out} (rms_norm {eps} (x, norm), w, bias)`.
//!
//! Rounding points: the normed row, to the type of `x`; the result, to `out`. Bit for bit the two ops.

use lathe_numerics::DType;

use crate::facts::{Bindings, Facts};
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Cost, Operation};
use crate::ops::{Linear, RmsNorm, linear, rms_norm};
use crate::tensor::Value;

/// `x: D[t, k]`, `norm: float[k]`, then the other operands of `linear`, give `out[t, n]`.
#[derive(Clone, Debug, PartialEq)]
pub struct NormLinear {
    /// Added to the mean square.
    pub eps: f32,
    /// Result type; f32 unless stated.
    pub out: DType,
}

impl Default for NormLinear {
    fn default() -> Self {
        Self { eps: 0.0, out: DType::F32 }
    }
}

/// Checks `x, @norm` as `rms_norm` does, and hands the normed rows with the operands behind them to `rest`.
pub(super) fn behind_norm(
    args: &Args<'_>,
    eps: f32,
    rest: impl FnOnce(&Args<'_>) -> Result<Vec<Facts>, String>,
) -> Result<Vec<Facts>, String> {
    let facts = args.facts();
    let (first, behind) = facts.split_at(facts.len().min(2));
    let normed = RmsNorm { eps, groups: 1 }.infer(&Args::new(first, args.cache))?;
    let operands: Vec<&Facts> = normed.iter().chain(behind.iter().copied()).collect();
    rest(&Args::new(&operands, args.cache))
}

/// The projection of normed rows, unrounded: operands `x, @norm, @w, [@bias]`.
pub(super) fn apply(inputs: &[&Value], eps: f32, cx: &EvalCx<'_>) -> Result<Vec<f32>, String> {
    let normed = rms_norm::apply(inputs[0], inputs[1], eps)?;
    let operands: Vec<&Value> = std::iter::once(&normed).chain(inputs[2..].iter().copied()).collect();
    linear::apply(&operands, cx)
}

impl Operation for NormLinear {
    const NAME: &'static str = "norm_linear";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("eps", &mut self.eps);
        a.out(&mut self.out);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        behind_norm(args, self.eps, |args| Linear { act: None, out: self.out }.infer(args))
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        Ok(vec![cx.finish(0, apply(inputs, self.eps, cx)?)])
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
    use super::*;
    use crate::interp::testing::{eval, floats, try_eval, vector};

    #[test]
    fn the_normed_row_is_rounded_to_the_type_of_x() {
        let x = floats(DType::BF16, [1, 2], &[3.0, 4.0]);
        let norm = vector(DType::BF16, &[1.0, 1.0]);
        let w = floats(DType::F32, [1, 2], &[1.0, 0.0]);
        let want = DType::BF16.round(3.0 / 12.5f32.sqrt());
        assert_eq!(eval(NormLinear::default(), &[&x, &norm, &w]), [want]);
        let why = try_eval(NormLinear::default(), &[&x, &vector(DType::BF16, &[1.0]), &w]).unwrap_err();
        assert_eq!(why, "columns of x (2) differs from length of w (1)");
        assert!(try_eval(NormLinear::default(), &[&x]).is_err());
    }
}

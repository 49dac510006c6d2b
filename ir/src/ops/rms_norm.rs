//! `rms_norm(x, @w) {eps}`: `y[j] = (x[j] * inv) * w[j]` with `inv = 1 / sqrt(mean(x^2) + eps)` (arXiv 1910.07467).
//!
//! All in f32; the sum of squares takes the contract's 16 lanes and tree. One rounding, at the end, to the type of `x`.

use lathe_numerics::contract::{TREE_LANES, tree16};

use crate::facts::Facts;
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Operation, same_dim};
use crate::tensor::{Tensor, Value};

/// `x: D[t, h]`, `w: float[h]` gives `D[t, h]`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f32,
}

/// Normalises every row of `x` (rows of `w.len()`), unrounded.
pub(super) fn normalise(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(w.len()) {
        let mut lanes = [0.0; TREE_LANES];
        for (i, v) in row.iter().enumerate() {
            lanes[i % TREE_LANES] += v * v;
        }
        let inv = 1.0 / (tree16(&lanes) / w.len() as f32 + eps).sqrt();
        out.extend(row.iter().zip(w).map(|(v, g)| v * inv * g));
    }
    out
}

/// `rms_norm` of operands that fit it, rounded to the type of `x`.
pub(super) fn apply(x: &Value, w: &Value, eps: f32) -> Result<Value, String> {
    let facts = x.tensor()?;
    Ok(Value::Tensor(Tensor::float(
        facts.dtype,
        facts.shape.clone(),
        normalise(x.floats()?, w.floats()?, eps),
    )))
}

/// Checks that `w` is one float per column of `x`.
pub(super) fn check_weight(args: &Args<'_>, at: usize, cols: &crate::facts::Dim) -> Result<(), String> {
    let (_, w) = args.float(at, "w", 1)?;
    same_dim(cols, "columns of x", &w[0], "length of w")?;
    match w[0].as_const() {
        Some(n) if n > 0 => Ok(()),
        _ => Err("length of w is symbolic or 0".into()),
    }
}

/// Checks that a norm's `eps` keeps the root defined.
pub(super) fn check_eps(eps: f32) -> Result<(), String> {
    if eps >= 0.0 { Ok(()) } else { Err("eps is negative".into()) }
}

impl Operation for RmsNorm {
    const NAME: &'static str = "rms_norm";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("eps", &mut self.eps);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        args.expect(2, 2)?;
        let (dtype, x) = args.float(0, "x", 2)?;
        check_weight(args, 1, &x[1])?;
        check_eps(self.eps)?;
        Ok(vec![Facts::tensor(dtype, x.iter().cloned())])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        Ok(vec![cx.finish(0, normalise(inputs[0].floats()?, inputs[1].floats()?, self.eps))])
    }

    fn is_rowwise(&self, input: usize) -> bool {
        input == 0
    }

    fn is_weight(&self, input: usize) -> bool {
        input == 1
    }
}

#[cfg(test)]
mod tests {
    use lathe_numerics::DType;

    use super::*;
    use crate::interp::testing::{eval, floats, try_eval, vector};

    #[test]
    fn divides_by_the_root_mean_square() {
        let x = floats(DType::F32, [2, 2], &[3.0, 4.0, 0.0, 0.0]);
        let got = eval(RmsNorm { eps: 0.0 }, &[&x, &vector(DType::F32, &[1.0, 10.0])]);
        assert!((got[0] - 0.848_528_1).abs() < 1e-6 && (got[1] - 11.313_708).abs() < 1e-5);
        let zero = eval(RmsNorm { eps: 1e-5 }, &[&x, &vector(DType::F32, &[1.0, 1.0])]);
        assert_eq!(zero[2..], [0.0, 0.0]);
    }

    #[test]
    fn weight_must_fit() {
        let x = floats(DType::F32, [1, 2], &[3.0, 4.0]);
        let why = try_eval(RmsNorm { eps: 0.0 }, &[&x, &vector(DType::F32, &[1.0])]).unwrap_err();
        assert_eq!(why, "columns of x (2) differs from length of w (1)");
    }
}

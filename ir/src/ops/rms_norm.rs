//! `rms_norm(x, @w) {eps, groups}`: `y[j] = (x[j] * inv) * w[j]` with `inv = 1 / sqrt(mean(x^2) + eps)` (arXiv 1910.07467),
//! over each of `groups` equal parts of a row by itself, as for the heads of a query.
//!
//! All in f32; the sum of squares takes the contract's 16 lanes and tree. One rounding, at the end, to the type of `x`.

use lathe_numerics::contract::{TREE_LANES, tree16};

use crate::facts::{Dim, Facts};
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Operation, same_dim};
use crate::tensor::{Tensor, Value};

/// `x: D[t, groups * n]`, `w: float[n]` for all groups or `float[groups * n]`, gives `D[t, groups * n]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f32,
    /// Parts of a row that are normalised apart; 1 unless stated.
    pub groups: usize,
}

impl Default for RmsNorm {
    fn default() -> Self {
        Self { eps: 0.0, groups: 1 }
    }
}

/// Normalises rows of `n` elements, unrounded; `w` holds the weights of one row or of several that follow each other.
pub(super) fn normalise(x: &[f32], w: &[f32], n: usize, eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for (row, w) in x.chunks_exact(n).zip(w.chunks_exact(n).cycle()) {
        let mut lanes = [0.0; TREE_LANES];
        for (i, v) in row.iter().enumerate() {
            lanes[i % TREE_LANES] += v * v;
        }
        let inv = 1.0 / (tree16(&lanes) / n as f32 + eps).sqrt();
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
        normalise(x.floats()?, w.floats()?, facts.row_len(), eps),
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

/// Checks that `w` is one float per column of a group of `x`, or of `x`; gives the columns of a group.
pub(super) fn check_groups(args: &Args<'_>, at: usize, cols: &Dim, groups: usize) -> Result<usize, String> {
    let n = cols.as_const().ok_or("columns of x are symbolic")?;
    if groups == 0 || n == 0 || !n.is_multiple_of(groups) {
        return Err(format!("{n} columns of x are no multiple of {groups} groups"));
    }
    let (_, w) = args.float(at, "w", 1)?;
    if groups == 1 || w[0] != Dim::from(n / groups) {
        check_weight(args, at, cols)?;
    }
    Ok(n / groups)
}

/// Checks that a norm's `eps` keeps the root defined.
pub(super) fn check_eps(eps: f32) -> Result<(), String> {
    if eps >= 0.0 { Ok(()) } else { Err("eps is negative".into()) }
}

impl Operation for RmsNorm {
    const NAME: &'static str = "rms_norm";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("eps", &mut self.eps);
        a.optional("groups", &mut self.groups, 1);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        args.expect(2, 2)?;
        let (dtype, x) = args.float(0, "x", 2)?;
        check_groups(args, 1, &x[1], self.groups)?;
        check_eps(self.eps)?;
        Ok(vec![Facts::tensor(dtype, x.iter().cloned())])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        let n = inputs[0].tensor()?.row_len() / self.groups;
        Ok(vec![cx.finish(0, normalise(inputs[0].floats()?, inputs[1].floats()?, n, self.eps))])
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
        let got = eval(RmsNorm::default(), &[&x, &vector(DType::F32, &[1.0, 10.0])]);
        assert!((got[0] - 0.848_528_1).abs() < 1e-6 && (got[1] - 11.313_708).abs() < 1e-5);
        let zero = eval(RmsNorm { eps: 1e-5, groups: 1 }, &[&x, &vector(DType::F32, &[1.0, 1.0])]);
        assert_eq!(zero[2..], [0.0, 0.0]);
    }

    #[test]
    fn groups_are_rows_of_their_own() {
        let x = floats(DType::F32, [1, 4], &[3.0, 4.0, 6.0, 8.0]);
        let two = RmsNorm { eps: 0.0, groups: 2 };
        let shared = eval(two.clone(), &[&x, &vector(DType::F32, &[1.0, 10.0])]);
        assert_eq!(shared[..2], shared[2..]);
        let own = eval(two, &[&x, &vector(DType::F32, &[1.0, 10.0, 2.0, 20.0])]);
        assert_eq!((own[2], own[3]), (2.0 * own[0], 2.0 * own[1]));
        let why = try_eval(RmsNorm { eps: 0.0, groups: 3 }, &[&x, &vector(DType::F32, &[1.0])]).unwrap_err();
        assert_eq!(why, "4 columns of x are no multiple of 3 groups");
    }

    #[test]
    fn weight_must_fit() {
        let x = floats(DType::F32, [1, 2], &[3.0, 4.0]);
        let why = try_eval(RmsNorm::default(), &[&x, &vector(DType::F32, &[1.0])]).unwrap_err();
        assert_eq!(why, "columns of x (2) differs from length of w (1)");
    }
}

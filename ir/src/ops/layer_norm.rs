//! `layer_norm(x, @w, [@bias]) {eps, groups}`: `y[j] = ((x[j] - mean) * inv) * w[j] + bias[j]` with
//! `inv = 1 / sqrt(mean((x - mean)^2) + eps)` (arXiv 1607.06450), over each of `groups` equal parts of a row by itself.
//!
//! All in f32; both sums take the contract's 16 lanes and tree, the second is of the differences. One rounding, at the
//! end, to the type of `x`.

use lathe_numerics::contract::{TREE_LANES, tree16};

use crate::facts::Facts;
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Operation, same_dim};
use crate::ops::rms_norm::{check_eps, check_groups};
use crate::tensor::Value;

/// `x: D[t, groups * n]`, `w` and `bias: float[n]` for all groups or `float[groups * n]`, gives `D[t, groups * n]`.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f32,
    /// Parts of a row that are normalised apart; 1 unless stated.
    pub groups: usize,
}

impl Default for LayerNorm {
    fn default() -> Self {
        Self { eps: 0.0, groups: 1 }
    }
}

/// The sum of `terms` by the contract's lanes and tree.
fn sum(terms: impl Iterator<Item = f32>) -> f32 {
    let mut lanes = [0.0; TREE_LANES];
    terms.enumerate().for_each(|(i, v)| lanes[i % TREE_LANES] += v);
    tree16(&lanes)
}

impl Operation for LayerNorm {
    const NAME: &'static str = "layer_norm";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("eps", &mut self.eps);
        a.optional("groups", &mut self.groups, 1);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        args.expect(2, 3)?;
        let (dtype, x) = args.float(0, "x", 2)?;
        check_groups(args, 1, &x[1], self.groups)?;
        if args.len() == 3 {
            let ((_, w), (_, bias)) = (args.float(1, "w", 1)?, args.float(2, "bias", 1)?);
            same_dim(&bias[0], "length of bias", &w[0], "length of w")?;
        }
        check_eps(self.eps)?;
        Ok(vec![Facts::tensor(dtype, x.iter().cloned())])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        let (x, w) = (inputs[0].floats()?, inputs[1].floats()?);
        let bias = inputs.get(2).map(|b| b.floats()).transpose()?;
        let n = inputs[0].tensor()?.row_len() / self.groups;
        let mut out = Vec::with_capacity(x.len());
        for (i, row) in x.chunks_exact(n).enumerate() {
            let from = i % (w.len() / n) * n;
            let mean = sum(row.iter().copied()) / n as f32;
            let variance = sum(row.iter().map(|v| (v - mean) * (v - mean))) / n as f32;
            let inv = 1.0 / (variance + self.eps).sqrt();
            for (j, v) in row.iter().enumerate() {
                let y = (v - mean) * inv * w[from + j];
                out.push(bias.map_or(y, |b| y + b[from + j]));
            }
        }
        Ok(vec![cx.finish(0, out)])
    }

    fn is_rowwise(&self, input: usize) -> bool {
        input == 0
    }

    fn is_weight(&self, input: usize) -> bool {
        input > 0
    }
}

#[cfg(test)]
mod tests {
    use lathe_numerics::DType;

    use super::*;
    use crate::interp::testing::{eval, floats, try_eval, vector};

    #[test]
    fn centres_and_scales() {
        let x = floats(DType::F32, [1, 4], &[1.0, 3.0, 10.0, 30.0]);
        let op = LayerNorm { eps: 0.0, groups: 2 };
        let (w, b) = (vector(DType::F32, &[1.0, 2.0]), vector(DType::F32, &[0.5, 0.0]));
        assert_eq!(eval(op.clone(), &[&x, &w]), [-1.0, 2.0, -1.0, 2.0]);
        assert_eq!(eval(op, &[&x, &w, &b]), [-0.5, 2.0, -0.5, 2.0]);
        let constant = floats(DType::F32, [1, 2], &[7.0, 7.0]);
        assert_eq!(eval(LayerNorm { eps: 1e-5, groups: 1 }, &[&constant, &w, &b]), [0.5, 0.0]);
    }

    #[test]
    fn operands_must_fit() {
        let x = floats(DType::F32, [1, 2], &[3.0, 4.0]);
        let (one, two) = (vector(DType::F32, &[1.0]), vector(DType::F32, &[1.0, 1.0]));
        let why = try_eval(LayerNorm::default(), &[&x, &one]).unwrap_err();
        assert_eq!(why, "columns of x (2) differs from length of w (1)");
        let why = try_eval(LayerNorm::default(), &[&x, &two, &one]).unwrap_err();
        assert_eq!(why, "length of bias (1) differs from length of w (2)");
    }
}

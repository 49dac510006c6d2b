//! `expert_linear(x, ids, @w, [@bias]) {experts, out}`: one `linear` per row and chosen expert.
//!
//! `w` is the weights of all experts one below the other, `[experts * n, k]`, and `bias` likewise. Choice `j` of row `r`
//! takes expert `ids[r, j]` and fills columns `j * n .. (j + 1) * n` of row `r`. Its x is row `r` of `x` or, where x has
//! `k` columns for each choice, columns `j * k .. (j + 1) * k` of it. Sums are those of `linear` with the `[n, k]` weight
//! of that expert: K slices follow that shape. One rounding, to `out`.

use lathe_numerics::DType;

use crate::facts::{Bindings, Dim, Facts};
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Cost, Operation, elements, float_out, same_dim};
use crate::ops::linear;
use crate::tensor::Value;

/// `x: float[t, k]` or `float[t, c * k]`, `ids: i32[t, c]`, `w: float[experts * n, k]`, `bias: float[experts * n]`, also as a column, gives
/// `out[t, c * n]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertLinear {
    /// Experts in the weight.
    pub experts: usize,
    /// Result type; f32 unless stated.
    pub out: DType,
}

impl Default for ExpertLinear {
    fn default() -> Self {
        Self { experts: 0, out: DType::F32 }
    }
}

/// What [`check`] found.
pub(super) struct Experts<'a> {
    /// Rows of x.
    pub rows: &'a Dim,
    /// Chosen experts per row.
    pub choices: usize,
    /// Rows of one expert's weight.
    pub n: usize,
}

/// Checks operands `x, ids, @w, [@bias]`.
pub(super) fn check<'a>(args: &Args<'a>, experts: usize) -> Result<Experts<'a>, String> {
    args.expect(3, 4)?;
    let ((_, x), (_, w)) = (args.float(0, "x", 2)?, args.float(2, "w", 2)?);
    let (DType::I32, [rows, choices]) = args.any(1, "ids")? else {
        return Err("ids are no i32 matrix".into());
    };
    same_dim(&x[0], "rows of x", rows, "rows of ids")?;
    let size = |dim: &Dim, what: &str| {
        dim.as_const().filter(|n| *n > 0).ok_or(format!("{what} are symbolic or none"))
    };
    let (choices, columns) = (size(choices, "columns of ids")?, size(&x[1], "columns of x")?);
    let (all, k) = (size(&w[0], "rows of w")?, size(&w[1], "columns of w")?);
    if columns != k && columns != choices * k {
        return Err(format!("x has {columns} columns, expected {k}, or that for each of {choices} choices"));
    }
    if experts == 0 || !all.is_multiple_of(experts) {
        return Err(format!("{all} rows of w are no whole experts, of which there are {experts}"));
    }
    if args.len() == 4 {
        // A bias that was taken out of a matrix is a column.
        let column = matches!(args.any(3, "bias")?.1, [_, one] if one.as_const() == Some(1));
        let (_, bias) = args.float(3, "bias", if column { 2 } else { 1 })?;
        same_dim(&bias[0], "length of bias", &w[0], "rows of w")?;
    }
    Ok(Experts { rows: &x[0], choices, n: all / experts })
}

/// Evaluates operands that passed [`check`], unrounded: `[t * choices, n]`.
pub(super) fn apply(inputs: &[&Value], experts: usize, cx: &EvalCx<'_>) -> Result<Vec<f32>, String> {
    let (x, ids, w) = (inputs[0].tensor()?, inputs[1].tensor()?, inputs[2].tensor()?);
    let bias = inputs.get(3).map(|b| b.floats()).transpose()?;
    let (n, k, choices) = (w.shape[0] / experts, w.shape[1], ids.row_len());
    let (x, weights) = (x.floats()?.chunks_exact(k).collect::<Vec<_>>(), w.floats()?);
    let shared = x.len() < ids.len();
    let mut chosen_by = vec![Vec::new(); experts];
    for (at, &id) in ids.ints()?.iter().enumerate() {
        let expert = usize::try_from(id).ok().and_then(|e| chosen_by.get_mut(e));
        expert.ok_or_else(|| format!("expert {id} is outside {experts} experts"))?.push(at);
    }
    let mut out = vec![0.0; ids.len() * n];
    for (e, chosen_by) in chosen_by.iter().enumerate().filter(|(_, by)| !by.is_empty()) {
        let rows = chosen_by.iter().flat_map(|&at| x[if shared { at / choices } else { at }]);
        let rows: Vec<f32> = rows.copied().collect();
        let bias = bias.map(|b| &b[e * n..(e + 1) * n]);
        let ys = linear::product(&rows, &weights[e * n * k..(e + 1) * n * k], bias, n, k, cx.threads);
        for (at, y) in chosen_by.iter().zip(ys.chunks_exact(n)) {
            out[at * n..(at + 1) * n].copy_from_slice(y);
        }
    }
    Ok(out)
}

/// The weight moves once at most, and no more of it than there are choices.
pub(super) fn cost(inputs: &[&Facts], outputs: &[&Facts], at: &Bindings, experts: usize) -> Cost {
    let choices = elements(inputs[1], at);
    let weight = elements(inputs[2], at) / experts.max(1) as f64;
    let size = inputs[2].dtype().map_or(0, DType::size) as f64;
    let rest = Cost::streaming(&[inputs[0], inputs[1]], outputs, at);
    Cost { flops: 2.0 * choices * weight, bytes: rest.bytes + choices.min(experts as f64) * weight * size }
}

impl Operation for ExpertLinear {
    const NAME: &'static str = "expert_linear";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("experts", &mut self.experts);
        a.out(&mut self.out);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        let found = check(args, self.experts)?;
        float_out(self.out)?;
        Ok(vec![Facts::tensor(self.out, [found.rows.clone(), Dim::from(found.choices * found.n)])])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        Ok(vec![cx.finish(0, apply(inputs, self.experts, cx)?)])
    }

    fn is_rowwise(&self, input: usize) -> bool {
        input < 2
    }

    fn is_weight(&self, input: usize) -> bool {
        input > 1
    }

    fn cost(&self, inputs: &[&Facts], outputs: &[&Facts], at: &Bindings) -> Cost {
        cost(inputs, outputs, at, self.experts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interp::testing::{eval, floats, try_eval, vector};
    use crate::tensor::Tensor;

    #[test]
    fn every_choice_has_its_expert() {
        let op = ExpertLinear { experts: 3, out: DType::F32 };
        // Expert e multiplies by 10^e and by twice that.
        let w = floats(DType::F32, [6, 1], &[1.0, 2.0, 10.0, 20.0, 100.0, 200.0]);
        let ids = Value::Tensor(Tensor::int(vec![2, 2], vec![2, 0, 1, 1]));
        let shared = floats(DType::F32, [2, 1], &[3.0, 5.0]);
        assert_eq!(
            eval(op.clone(), &[&shared, &ids, &w]),
            [300.0, 600.0, 3.0, 6.0, 50.0, 100.0, 50.0, 100.0]
        );
        let own = floats(DType::F32, [2, 2], &[3.0, 4.0, 5.0, 6.0]);
        let bias = vector(DType::F32, &[0.5, 0.0, 0.0, 0.0, 0.0, 1.0]);
        let got = eval(op.clone(), &[&own, &ids, &w, &bias]);
        assert_eq!(got, [300.0, 601.0, 4.5, 8.0, 50.0, 100.0, 60.0, 120.0]);
        let column = floats(DType::F32, [6, 1], bias.floats().unwrap());
        assert_eq!(eval(op.clone(), &[&own, &ids, &w, &column]), got);
        let wrong = Value::Tensor(Tensor::int(vec![2, 1], vec![0, 3]));
        assert_eq!(try_eval(op, &[&shared, &wrong, &w]).unwrap_err(), "expert 3 is outside 3 experts");
    }

    #[test]
    fn operands_must_fit() {
        let (x, w) = (floats(DType::F32, [1, 3], &[0.0; 3]), floats(DType::F32, [4, 1], &[0.0; 4]));
        let ids = Value::Tensor(Tensor::int(vec![1, 2], vec![0, 1]));
        let why = try_eval(ExpertLinear { experts: 2, out: DType::F32 }, &[&x, &ids, &w]).unwrap_err();
        assert_eq!(why, "x has 3 columns, expected 1, or that for each of 2 choices");
        let x = floats(DType::F32, [1, 1], &[0.0]);
        let why = try_eval(ExpertLinear { experts: 3, out: DType::F32 }, &[&x, &ids, &w]).unwrap_err();
        assert_eq!(why, "4 rows of w are no whole experts, of which there are 3");
    }
}

//! `linear(x, @w, [@bias]) {act, out}`: `y = act(x w^T + bias)`.
//!
//! K is cut into `gemm_slices(n, k)` slices; each is summed from zero in ascending k with separate products and sums
//! in f32, the slices are folded left, the bias is added last, the activation, if any, is of that sum. One rounding, to
//! `out`: bit for bit `activation` behind an f32 projection.

use lathe_numerics::{Activation, DType};

use crate::facts::{Bindings, Dim, Facts};
use crate::interp::EvalCx;
use crate::matmul::matmul;
use crate::op::{Args, Attrs, Cost, Operation, elements, float_out, same_dim};
use crate::tensor::Value;

/// `x: float[t, k]`, `w: float[n, k]`, `bias: float[n]` gives `out[t, n]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// Of the sum; none unless stated.
    pub act: Option<Activation>,
    /// Result type; f32 unless stated.
    pub out: DType,
}

impl Default for Linear {
    fn default() -> Self {
        Self { act: None, out: DType::F32 }
    }
}

/// The product, unrounded: `x` is `[t, k]`, `w` is `[n, k]`.
pub(super) fn product(
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    n: usize,
    k: usize,
    threads: usize,
) -> Vec<f32> {
    let mut out = matmul(x, w, n, k, threads);
    if let Some(bias) = bias {
        for y in out.chunks_exact_mut(n) {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }
    out
}

/// Checks operands `x, @w, [@bias]`; gives the rows of `x` and the number of features.
pub(super) fn check<'a>(args: &Args<'a>) -> Result<(&'a Dim, usize), String> {
    args.expect(2, 3)?;
    let ((_, x), (_, w)) = (args.float(0, "x", 2)?, args.float(1, "w", 2)?);
    same_dim(&x[1], "columns of x", &w[1], "columns of w")?;
    let (Some(n @ 1..), Some(1..)) = (w[0].as_const(), w[1].as_const()) else {
        return Err("shape of w is symbolic or empty".into());
    };
    if args.len() == 3 {
        let (_, bias) = args.float(2, "bias", 1)?;
        same_dim(&bias[0], "length of bias", &w[0], "rows of w")?;
    }
    Ok((&x[0], n))
}

/// Evaluates operands that passed [`check`], unrounded.
pub(super) fn apply(inputs: &[&Value], cx: &EvalCx<'_>) -> Result<Vec<f32>, String> {
    let w = inputs[1].tensor()?;
    let bias = inputs.get(2).map(|b| b.floats()).transpose()?;
    Ok(product(inputs[0].floats()?, w.floats()?, bias, w.shape[0], w.shape[1], cx.threads))
}

/// Operands and results moved once; two operations per product.
pub(super) fn gemm_cost(inputs: &[&Facts], outputs: &[&Facts], at: &Bindings) -> Cost {
    let rows = inputs[0].shape()[0].eval(at).unwrap_or(0) as f64;
    Cost { flops: 2.0 * rows * elements(inputs[1], at), ..Cost::streaming(inputs, outputs, at) }
}

impl Operation for Linear {
    const NAME: &'static str = "linear";

    fn attrs(&mut self, a: &mut Attrs) {
        a.optional("act", &mut self.act, None);
        a.out(&mut self.out);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        let (rows, n) = check(args)?;
        float_out(self.out)?;
        Ok(vec![Facts::tensor(self.out, [rows.clone(), Dim::from(n)])])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        let mut y = apply(inputs, cx)?;
        if let Some(act) = self.act {
            y.iter_mut().for_each(|y| *y = act.apply(*y));
        }
        Ok(vec![cx.finish(0, y)])
    }

    fn is_rowwise(&self, input: usize) -> bool {
        input == 0
    }

    fn is_weight(&self, input: usize) -> bool {
        input > 0
    }

    fn cost(&self, inputs: &[&Facts], outputs: &[&Facts], at: &Bindings) -> Cost {
        gemm_cost(inputs, outputs, at)
    }
}

#[cfg(test)]
mod tests {
    use lathe_numerics::gemm_slices;

    use super::*;
    use crate::interp::testing::{eval, floats, try_eval, vector};

    #[test]
    fn small_products_by_hand() {
        let x = floats(DType::F32, [2, 2], &[1.0, 2.0, 0.5, -1.0]);
        let w = floats(DType::BF16, [3, 2], &[1.0, 0.0, 0.0, 1.0, 3.0, 4.0]);
        assert_eq!(eval(Linear::default(), &[&x, &w]), [1.0, 2.0, 11.0, 0.5, -1.0, -2.5]);
        let bias = vector(DType::F32, &[0.0, 0.0, 0.25]);
        assert_eq!(
            eval(Linear { act: None, out: DType::BF16 }, &[&x, &w, &bias])[2],
            DType::BF16.round(11.25)
        );
        let silu = eval(Linear { act: Some(Activation::Silu), out: DType::F32 }, &[&x, &w, &bias]);
        assert_eq!(silu[5], Activation::Silu.apply(-2.25));
    }

    #[test]
    fn slices_are_summed_apart() {
        // k = 1024, n = 1: slices of 512. The first holds 2^24 and one 1.0 that f32 cannot add; the second holds
        // three 1.0, which survive because they are summed from zero.
        assert_eq!(gemm_slices(1, 1024), 2);
        let mut x = vec![0.0; 1024];
        x[0] = 16_777_216.0;
        x[1] = 1.0;
        x[512..516].fill(1.0);
        let got = product(&x, &vec![1.0; 1024], None, 1, 1024, 1);
        assert_eq!(got, [16_777_220.0]);
    }

    #[test]
    fn operands_must_fit() {
        let x = floats(DType::F32, [1, 2], &[1.0, 2.0]);
        let why = try_eval(Linear::default(), &[&x, &floats(DType::F32, [1, 3], &[0.0; 3])]).unwrap_err();
        assert_eq!(why, "columns of x (2) differs from columns of w (3)");
    }
}

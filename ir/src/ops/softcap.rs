//! `softcap(x) {cap, out}`: element by element `cap * tanh(x / cap)` in f32 (arXiv 2408.00118), rounded once to `out`.

use crate::facts::Facts;
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Operation, elementwise};
use crate::tensor::Value;
use lathe_numerics::DType;
use lathe_numerics::activation::softcap;

/// `x: float[t, n]` gives `out[t, n]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Softcap {
    /// Bound of the result, above 0.
    pub cap: f32,
    /// Result type; f32 unless stated.
    pub out: DType,
}

impl Default for Softcap {
    fn default() -> Self {
        Self { cap: 1.0, out: DType::F32 }
    }
}

impl Operation for Softcap {
    const NAME: &'static str = "softcap";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("cap", &mut self.cap);
        a.out(&mut self.out);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        if self.cap <= 0.0 {
            return Err("cap is not positive".into());
        }
        elementwise(args, ["x"], self.out)
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        Ok(vec![cx.finish(0, inputs[0].floats()?.iter().map(|&x| softcap(x, self.cap)).collect())])
    }

    fn is_elementwise(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interp::testing::{eval, floats};

    #[test]
    fn squashes() {
        let x = floats(DType::F32, [1, 3], &[0.0, 300.0, -1.0]);
        let got = eval(Softcap { cap: 30.0, out: DType::F32 }, &[&x]);
        assert!(got[0] == 0.0 && got[1] == 30.0 && (got[2] + 0.999_63).abs() < 1e-5, "{got:?}");
    }
}

//! `slice_cols(x) {len, start}`: columns `start .. start + len`. Exact: no rounding.

use crate::facts::{Dim, Facts};
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Operation};
use crate::tensor::Value;

/// `x: D[t, n]` gives `D[t, len]`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct SliceCols {
    /// First column.
    pub start: usize,
    /// Number of columns.
    pub len: usize,
}

impl Operation for SliceCols {
    const NAME: &'static str = "slice_cols";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("start", &mut self.start);
        a.required("len", &mut self.len);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        args.expect(1, 1)?;
        let (dtype, shape) = args.float(0, "x", 2)?;
        let cols = shape[1].as_const().ok_or("columns of x are symbolic")?;
        let end = self.start + self.len;
        if self.len == 0 || end > cols {
            return Err(format!("columns {}..{end} are empty or outside {cols}", self.start));
        }
        Ok(vec![Facts::tensor(dtype, [shape[0].clone(), Dim::from(self.len)])])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        let (x, width) = (inputs[0].floats()?, inputs[0].tensor()?.row_len());
        let rows = x.chunks_exact(width);
        Ok(vec![cx.finish(0, rows.flat_map(|r| &r[self.start..self.start + self.len]).copied().collect())])
    }

    fn is_rowwise(&self, _input: usize) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use lathe_numerics::DType;

    use super::*;
    use crate::interp::testing::{eval, floats, try_eval};

    #[test]
    fn takes_columns() {
        let x = floats(DType::F32, [2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(eval(SliceCols { start: 1, len: 2 }, &[&x]), [1.0, 2.0, 4.0, 5.0]);
        assert!(try_eval(SliceCols { start: 2, len: 2 }, &[&x]).unwrap_err().contains("outside 3"));
    }
}

//! `gather_rows(x, rows)`: row `rows[i]` of `x`. Exact: no rounding.

use lathe_numerics::DType;

use crate::facts::Facts;
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Operation};
use crate::tensor::{Data, Value};

/// `x: D[t, ..]`, `rows: i32[r]` gives `D[r, ..]`; `x` may also be `i32[t]`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct GatherRows {}

impl Operation for GatherRows {
    const NAME: &'static str = "gather_rows";

    fn attrs(&mut self, _a: &mut Attrs) {}

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        args.expect(2, 2)?;
        let (dtype, shape) = args.any(0, "x")?;
        let rows = args.ints(1, "rows")?;
        let [_, tail @ ..] = shape else { return Err("x has rank 0, expected 1 or more".into()) };
        if !dtype.is_float() && dtype != DType::I32 {
            return Err(format!("x is {dtype}, expected a float type or i32"));
        }
        Ok(vec![Facts::tensor(dtype, std::iter::once(rows).chain(tail).cloned())])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        let (x, rows) = (inputs[0].tensor()?, inputs[1].ints()?);
        let (n, width) = (x.shape[0], x.row_len());
        let mut starts = Vec::with_capacity(rows.len());
        for &row in rows {
            let at = usize::try_from(row).ok().filter(|&r| r < n);
            starts.push(at.ok_or_else(|| format!("row {row} is outside {n} rows"))? * width);
        }
        Ok(vec![match &x.data {
            Data::Float(d) => cx.finish(0, starts.iter().flat_map(|&s| &d[s..s + width]).copied().collect()),
            Data::Int(d) => {
                cx.finish_ints(0, starts.iter().flat_map(|&s| &d[s..s + width]).copied().collect())
            }
        }])
    }

    fn is_rowwise(&self, input: usize) -> bool {
        input == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interp::testing::{eval, floats, ints, try_eval};

    #[test]
    fn picks_rows_and_refuses_others() {
        let x = floats(DType::F32, [3, 2], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(eval(GatherRows {}, &[&x, &ints(&[2, 2, 0])]), [4.0, 5.0, 4.0, 5.0, 0.0, 1.0]);
        assert_eq!(eval(GatherRows {}, &[&x, &ints(&[])]), [0.0; 0]);
        assert_eq!(try_eval(GatherRows {}, &[&x, &ints(&[3])]).unwrap_err(), "row 3 is outside 3 rows");
    }
}

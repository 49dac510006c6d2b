//! `embedding(tokens, @table)`: row `tokens[i]` of the table. Exact: no rounding.

use crate::facts::{Bindings, Facts};
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Cost, Operation, elements};
use crate::tensor::Value;

/// `tokens: i32[t]`, `table: D[vocab, h]` gives `D[t, h]`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Embedding {}

impl Operation for Embedding {
    const NAME: &'static str = "embedding";

    fn attrs(&mut self, _a: &mut Attrs) {}

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        args.expect(2, 2)?;
        let tokens = args.ints(0, "tokens")?;
        let (dtype, table) = args.float(1, "table", 2)?;
        Ok(vec![Facts::tensor(dtype, [tokens.clone(), table[1].clone()])])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        let (table, h) = (inputs[1].floats()?, inputs[1].tensor()?.row_len());
        let mut out = Vec::new();
        for &token in inputs[0].ints()? {
            let row = usize::try_from(token).ok().and_then(|r| table.get(r.checked_mul(h)?..)?.get(..h));
            out.extend_from_slice(row.ok_or_else(|| format!("token {token} is outside the table"))?);
        }
        Ok(vec![cx.finish(0, out)])
    }

    fn is_rowwise(&self, input: usize) -> bool {
        input == 0
    }

    fn is_weight(&self, input: usize) -> bool {
        input == 1
    }

    fn cost(&self, inputs: &[&Facts], outputs: &[&Facts], at: &Bindings) -> Cost {
        let tokens = Cost::streaming(&inputs[..1], outputs, at).bytes;
        let read: f64 =
            outputs.iter().map(|f| elements(f, at) * f.dtype().map_or(0, |d| d.size()) as f64).sum();
        Cost { flops: 0.0, bytes: tokens + read }
    }
}

#[cfg(test)]
mod tests {
    use lathe_numerics::DType;

    use super::*;
    use crate::interp::testing::{eval, floats, ints, try_eval};

    #[test]
    fn picks_rows_and_refuses_others() {
        let table = floats(DType::BF16, [3, 2], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(eval(Embedding {}, &[&ints(&[2, 0]), &table]), [4.0, 5.0, 0.0, 1.0]);
        for bad in [-1, 3] {
            let why = try_eval(Embedding {}, &[&ints(&[bad]), &table]).unwrap_err();
            assert_eq!(why, format!("token {bad} is outside the table"));
        }
    }
}

//! `rope(x, positions, @table) {head_dim, heads, out, rotary_dim}`: rotary embedding by halves (arXiv 2104.09864).
//!
//! In each head, for `i < rotary_dim/2` with `c, s` from row `positions[row]` of the table and `j = i + rotary_dim/2`:
//! `y[i] = x[i]*c - x[j]*s`, `y[j] = x[j]*c + x[i]*s`; the rest of the head is copied. In f32, products unfused, one
//! rounding, to `out`.

use lathe_numerics::DType;

use crate::facts::Facts;
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Operation, dim_is, float_out, same_dim};
use crate::tensor::Value;

/// `x: float[t, heads * head_dim]`, `positions: i32[t]`, `table: f32[max_pos, rotary_dim]` gives
/// `out[t, heads * head_dim]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Heads per row.
    pub heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Rotated elements at the start of each head; even.
    pub rotary_dim: usize,
    /// Result type; f32 unless stated.
    pub out: DType,
}

impl Default for Rope {
    fn default() -> Self {
        Self { heads: 0, head_dim: 0, rotary_dim: 0, out: DType::F32 }
    }
}

/// Checks `@table` and gives the rotary width.
pub(super) fn check_table(args: &Args<'_>, at: usize, head_dim: usize) -> Result<usize, String> {
    let (dtype, table) = args.float(at, "table", 2)?;
    if dtype != DType::F32 {
        return Err(format!("table is {dtype}, expected f32"));
    }
    match table[1].as_const() {
        Some(dim) if dim > 0 && dim.is_multiple_of(2) && dim <= head_dim => Ok(dim),
        _ => Err(format!("columns of table are not an even number in 2..={head_dim}")),
    }
}

/// Rotates each head of `row` in place by the row of `table` (`[max_pos, rotary]`) that belongs to `position`.
pub(super) fn rotate(
    row: &mut [f32],
    position: i32,
    table: &[f32],
    rotary: usize,
    head_dim: usize,
) -> Result<(), String> {
    let angles = usize::try_from(position).ok().and_then(|p| table.chunks_exact(rotary).nth(p));
    let angles = angles.ok_or_else(|| format!("position {position} is outside the table"))?;
    let half = rotary / 2;
    for head in row.chunks_exact_mut(head_dim) {
        for i in 0..half {
            let (c, s) = (angles[i], angles[half + i]);
            let (a, b) = (head[i], head[i + half]);
            head[i] = a * c - b * s;
            head[i + half] = b * c + a * s;
        }
    }
    Ok(())
}

impl Operation for Rope {
    const NAME: &'static str = "rope";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("heads", &mut self.heads);
        a.required("head_dim", &mut self.head_dim);
        a.required("rotary_dim", &mut self.rotary_dim);
        a.out(&mut self.out);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        args.expect(3, 3)?;
        let (_, x) = args.float(0, "x", 2)?;
        dim_is(&x[1], "columns of x", self.heads * self.head_dim)?;
        same_dim(&x[0], "rows", args.ints(1, "positions")?, "length of positions")?;
        let rotary = check_table(args, 2, self.head_dim)?;
        if rotary != self.rotary_dim {
            return Err(format!("rotary_dim is {}, the table has {rotary} columns", self.rotary_dim));
        }
        float_out(self.out)?;
        Ok(vec![Facts::tensor(self.out, x.iter().cloned())])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        let (positions, table) = (inputs[1].ints()?, inputs[2].floats()?);
        let mut out = inputs[0].floats()?.to_vec();
        for (row, &p) in out.chunks_exact_mut(inputs[0].tensor()?.row_len().max(1)).zip(positions) {
            rotate(row, p, table, self.rotary_dim, self.head_dim)?;
        }
        Ok(vec![cx.finish(0, out)])
    }

    fn is_rowwise(&self, input: usize) -> bool {
        input < 2
    }

    fn is_weight(&self, input: usize) -> bool {
        input == 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interp::testing::{eval, floats, ints, try_eval};

    #[test]
    fn turns_pairs_half_a_rotary_apart() {
        // Two positions: no turn, a quarter turn. Heads of 3, of which 2 are rotated.
        let table = floats(DType::F32, [2, 2], &[1.0, 0.0, 0.0, 1.0]);
        let x = floats(DType::F32, [2, 6], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let op = Rope { heads: 2, head_dim: 3, rotary_dim: 2, out: DType::F32 };
        let got = eval(op.clone(), &[&x, &ints(&[0, 1]), &table]);
        assert_eq!(got, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -2.0, 1.0, 3.0, -5.0, 4.0, 6.0]);
        let why = try_eval(op, &[&x, &ints(&[0, 2]), &table]).unwrap_err();
        assert_eq!(why, "position 2 is outside the table");
    }
}

//! `rope_append(qkv, positions, @table, state) {head_dim, heads, kv_heads, layer, out}`: rotary embedding on a merged
//! projection (columns q | k | v) and the append of k and v.
//!
//! Rounding points: q is rounded once to `out` after its rotation; k (rotated in f32) and v are rounded once to the
//! cache's type. Bit for bit `rope {out}` on q, `rope` to f32 on k and `kv_append`, on slices of an f32 projection.

use lathe_numerics::DType;

use crate::facts::{Dim, Facts};
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Operation, dim_is, float_out};
use crate::ops::attention::check_heads;
use crate::ops::rope::{check_table, rotate};
use crate::tensor::Value;

/// `qkv: float[t, (heads + 2 * kv_heads) * head_dim]`, `positions: i32[t]`, `table: f32[max_pos, rotary]` and the
/// state before give `q: out[t, heads * head_dim]` and the state after. The rotary width is the table's.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeAppend {
    /// Cache layer.
    pub layer: usize,
    /// Query heads.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Type of q; f32 unless stated.
    pub out: DType,
}

impl Default for RopeAppend {
    fn default() -> Self {
        Self { layer: 0, heads: 0, kv_heads: 0, head_dim: 0, out: DType::F32 }
    }
}

impl Operation for RopeAppend {
    const NAME: &'static str = "rope_append";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("layer", &mut self.layer);
        a.required("heads", &mut self.heads);
        a.required("kv_heads", &mut self.kv_heads);
        a.required("head_dim", &mut self.head_dim);
        a.out(&mut self.out);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        args.expect(4, 4)?;
        let (_, qkv) = args.float(0, "qkv", 2)?;
        check_heads(args.state(3, self.layer)?, self.heads, self.kv_heads, self.head_dim)?;
        dim_is(&qkv[1], "columns of qkv", (self.heads + 2 * self.kv_heads) * self.head_dim)?;
        check_table(args, 1, &qkv[0], self.head_dim)?;
        float_out(self.out)?;
        let q = Facts::tensor(self.out, [qkv[0].clone(), Dim::from(self.heads * self.head_dim)]);
        Ok(vec![q, Facts::State])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        let (qkv, positions) = (inputs[0].floats()?, inputs[1].ints()?);
        let (table, rotary) = (inputs[2].floats()?, inputs[2].tensor()?.row_len());
        let (q_width, kv_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        for (row, &p) in qkv.chunks_exact(q_width + 2 * kv_width).zip(positions) {
            let mut rotated = row[..q_width + kv_width].to_vec();
            rotate(&mut rotated, p, table, rotary, self.head_dim)?;
            q.extend_from_slice(&rotated[..q_width]);
            k.extend_from_slice(&rotated[q_width..]);
            v.extend_from_slice(&row[q_width + kv_width..]);
        }
        cx.append(self.layer, &k, &v)?;
        Ok(vec![cx.finish(0, q), Value::State])
    }

    fn has_effects(&self) -> bool {
        true
    }

    fn is_weight(&self, input: usize) -> bool {
        input == 2
    }

    fn cache_layer(&self) -> Option<usize> {
        Some(self.layer)
    }
}

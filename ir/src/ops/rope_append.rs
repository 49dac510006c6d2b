//! `rope_append(qkv, positions, state, [@table], [@q_norm, @k_norm]) {eps, head_dim, heads, kv_heads, layer, out,
//! qk_norm}`: norms of query and key, rotary embedding and the append of k and v, on a merged projection (columns
//! q | k | v). Without a table nothing rotates.
//!
//! Rounding points: q is rounded once to `out`, after norm and rotation in f32; k (likewise) and v are rounded once to the
//! cache's type. Bit for bit `rms_norm`, `rope {out}` (or `cast`) on q, `rms_norm`, `rope` to f32 on k and `kv_append`, on
//! slices of an f32 projection.

use lathe_numerics::DType;

use crate::facts::{Dim, Facts};
use crate::interp::EvalCx;
use crate::op::{Args, AttrValue, Attrs, Operation, dim_is, float_out, same_dim};
use crate::ops::attention::check_heads;
use crate::ops::rms_norm::{check_eps, normalise};
use crate::ops::rope::{check_table, rotate};
use crate::tensor::Value;

/// What query and key are normalised over before they rotate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum QkNorm {
    /// Nothing.
    #[default]
    None,
    /// Each head by itself; weights `float[head_dim]`.
    Head,
    /// All heads of the query, and all of the key; weights `float[heads * head_dim]`, `float[kv_heads * head_dim]`.
    Row,
}

impl AttrValue for QkNorm {
    fn text(&self) -> String {
        match self {
            QkNorm::None => "none",
            QkNorm::Head => "head",
            QkNorm::Row => "row",
        }
        .into()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let all = [QkNorm::None, QkNorm::Head, QkNorm::Row];
        all.into_iter().find(|n| n.text() == text).ok_or_else(|| "expected none, head or row".into())
    }
}

/// `qkv: float[t, (heads + 2 * kv_heads) * head_dim]`, `positions: i32[t]`, the state before and `table: f32[max_pos,
/// rotary]` give `q: out[t, heads * head_dim]` and the state after. The rotary width is the table's.
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
    /// Norm of query and key.
    pub qk_norm: QkNorm,
    /// Added to the norm's mean square; 0 unless stated.
    pub eps: f32,
    /// Type of q; f32 unless stated.
    pub out: DType,
}

impl Default for RopeAppend {
    fn default() -> Self {
        Self {
            layer: 0,
            heads: 0,
            kv_heads: 0,
            head_dim: 0,
            qk_norm: QkNorm::None,
            eps: 0.0,
            out: DType::F32,
        }
    }
}

impl RopeAppend {
    /// Number of norm weights, which stand last.
    pub fn n_norms(&self) -> usize {
        if self.qk_norm == QkNorm::None { 0 } else { 2 }
    }

    fn widths(&self) -> (usize, usize) {
        (self.heads * self.head_dim, self.kv_heads * self.head_dim)
    }

    /// Elements that are normalised together in query and key.
    fn norm_widths(&self) -> (usize, usize) {
        match self.qk_norm {
            QkNorm::Row => self.widths(),
            QkNorm::None | QkNorm::Head => (self.head_dim, self.head_dim),
        }
    }
}

impl Operation for RopeAppend {
    const NAME: &'static str = "rope_append";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("layer", &mut self.layer);
        a.required("heads", &mut self.heads);
        a.required("kv_heads", &mut self.kv_heads);
        a.required("head_dim", &mut self.head_dim);
        a.optional("qk_norm", &mut self.qk_norm, QkNorm::None);
        a.optional("eps", &mut self.eps, 0.0);
        a.out(&mut self.out);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        let norms = self.n_norms();
        args.expect(3 + norms, 4 + norms)?;
        let (_, qkv) = args.float(0, "qkv", 2)?;
        check_heads(args.state(2, self.layer)?, self.heads, self.kv_heads, self.head_dim)?;
        let (q_width, kv_width) = self.widths();
        dim_is(&qkv[1], "columns of qkv", q_width + 2 * kv_width)?;
        same_dim(&qkv[0], "rows", args.ints(1, "positions")?, "length of positions")?;
        if args.len() == 4 + norms {
            check_table(args, 3, self.head_dim)?;
        }
        if norms > 0 {
            let (q_norm, k_norm) = self.norm_widths();
            let ((_, q), (_, k)) =
                (args.float(args.len() - 2, "q_norm", 1)?, args.float(args.len() - 1, "k_norm", 1)?);
            dim_is(&q[0], "length of q_norm", q_norm)?;
            dim_is(&k[0], "length of k_norm", k_norm)?;
            check_eps(self.eps)?;
        }
        float_out(self.out)?;
        let q = Facts::tensor(self.out, [qkv[0].clone(), Dim::from(q_width)]);
        Ok(vec![q, Facts::State])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        let (qkv, positions) = (inputs[0].floats()?, inputs[1].ints()?);
        let (tables, norms) = inputs[3..].split_at(inputs.len() - 3 - self.n_norms());
        let table =
            tables.first().map(|t| Ok::<_, String>((t.floats()?, t.tensor()?.row_len()))).transpose()?;
        let norms = match norms {
            [q, k] => Some((q.floats()?, k.floats()?)),
            _ => None,
        };
        let (q_width, kv_width) = self.widths();
        let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        for (row, &p) in qkv.chunks_exact(q_width + 2 * kv_width).zip(positions) {
            let mut rotated = row[..q_width + kv_width].to_vec();
            if let Some((q_norm, k_norm)) = norms {
                let (q_len, k_len) = self.norm_widths();
                let (q, k) = rotated.split_at_mut(q_width);
                q.copy_from_slice(&normalise(q, q_norm, q_len, self.eps));
                k.copy_from_slice(&normalise(k, k_norm, k_len, self.eps));
            }
            if let Some((table, rotary)) = table {
                rotate(&mut rotated, p, table, rotary, self.head_dim)?;
            }
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
        input > 2
    }

    fn cache_layer(&self) -> Option<usize> {
        Some(self.layer)
    }
}

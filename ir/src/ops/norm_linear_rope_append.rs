//! `norm_linear_rope_append(x, positions, state, @table, @norm, @w, [@bias]) {eps, head_dim, heads, kv_heads, layer, out}`:
//! `rope_append(norm_linear {eps} (x, norm, w, bias), positions, state, table)`.
//!
//! Rounding points: the normed row, to the type of `x`; then those of `rope_append`. Bit for bit the two ops.

use lathe_numerics::DType;

use crate::facts::{Bindings, Facts};
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Cost, Operation};
use crate::ops::norm_linear::{self, NormLinear};
use crate::ops::{RopeAppend, linear};
use crate::tensor::{Tensor, Value};

/// `x: D[t, k]`, positions, state and table as `rope_append` has them, `norm: float[k]`,
/// `w: float[(heads + 2 * kv_heads) * head_dim, k]` and a bias of as many rows give `q: out[t, heads * head_dim]` and the
/// state after.
#[derive(Clone, Debug, PartialEq)]
pub struct NormLinearRopeAppend {
    /// Added to the mean square.
    pub eps: f32,
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

impl Default for NormLinearRopeAppend {
    fn default() -> Self {
        Self { eps: 0.0, layer: 0, heads: 0, kv_heads: 0, head_dim: 0, out: DType::F32 }
    }
}

/// Operands of the rotation, between x and the weights: positions, state, table.
const ROTATION: std::ops::Range<usize> = 1..4;

impl NormLinearRopeAppend {
    fn rope_append(&self) -> RopeAppend {
        RopeAppend {
            layer: self.layer,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            out: self.out,
            ..RopeAppend::default()
        }
    }
}

impl Operation for NormLinearRopeAppend {
    const NAME: &'static str = "norm_linear_rope_append";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("eps", &mut self.eps);
        a.required("layer", &mut self.layer);
        a.required("heads", &mut self.heads);
        a.required("kv_heads", &mut self.kv_heads);
        a.required("head_dim", &mut self.head_dim);
        a.out(&mut self.out);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        args.expect(6, 7)?;
        let facts = args.facts();
        let projection = [&facts[..ROTATION.start], &facts[ROTATION.end..]].concat();
        let op = NormLinear { eps: self.eps, out: DType::F32 };
        let qkv = op.infer(&Args::new(&projection, args.cache))?;
        let operands: Vec<&Facts> = qkv.iter().chain(facts[ROTATION].iter().copied()).collect();
        self.rope_append().infer(&Args::new(&operands, args.cache))
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        let projection = [&inputs[..ROTATION.start], &inputs[ROTATION.end..]].concat();
        let qkv = norm_linear::apply(&projection, self.eps, cx)?;
        let shape = vec![projection[0].tensor()?.shape[0], projection[2].tensor()?.shape[0]];
        let qkv = Value::Tensor(Tensor::float(DType::F32, shape, qkv));
        let operands: Vec<&Value> = std::iter::once(&qkv).chain(inputs[ROTATION].iter().copied()).collect();
        self.rope_append().eval(&operands, cx)
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

    fn cost(&self, inputs: &[&Facts], outputs: &[&Facts], at: &Bindings) -> Cost {
        linear::gemm_cost(&[&inputs[..1], &inputs[5..]].concat(), outputs, at)
    }
}

//! `kv_append(k, v, state) {layer}`: writes the rows of `k` and `v` to the KV cache of their own sequence, at their own
//! position. Rounding point: both are rounded once to the cache's type. Which sequence and position a row has is the
//! batch's knowledge, an implicit operand.

use crate::facts::Facts;
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Operation, dim_is, same_dim};
use crate::tensor::Value;

/// `k, v: float[t, kv_heads * head_dim]` and the state before give the state after.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct KvAppend {
    /// Cache layer.
    pub layer: usize,
}

impl Operation for KvAppend {
    const NAME: &'static str = "kv_append";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("layer", &mut self.layer);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        args.expect(3, 3)?;
        let ((_, k), (_, v)) = (args.float(0, "k", 2)?, args.float(1, "v", 2)?);
        let cache = args.state(2, self.layer)?;
        same_dim(&k[0], "rows of k", &v[0], "rows of v")?;
        dim_is(&k[1], "columns of k", cache.kv_heads * cache.head_dim)?;
        dim_is(&v[1], "columns of v", cache.kv_heads * cache.head_dim)?;
        Ok(vec![Facts::State])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        cx.append(self.layer, inputs[0].floats()?, inputs[1].floats()?)?;
        Ok(vec![Value::State])
    }

    fn has_effects(&self) -> bool {
        true
    }

    fn cache_layer(&self) -> Option<usize> {
        Some(self.layer)
    }
}

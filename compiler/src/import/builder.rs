//! What every importer builds with: the decoder's frame, and weights in the plan's type.

use lathe_ir::entity::ValueId;
use lathe_ir::facts::{Cache, Dim, Facts};
use lathe_ir::graph::Graph;
use lathe_ir::ops::Op;
use lathe_ir::weight::WeightExpr;
use lathe_numerics::DType;
use lathe_plan::schema::Limits;

use crate::checkpoint::TensorSource;
use crate::error::{CompileError, Result};

/// A decoder's graph while it grows.
pub struct Builder<'a> {
    /// The graph.
    pub graph: Graph,
    /// Type of weights and activations.
    pub dtype: DType,
    /// `i32[t]`: token ids.
    pub tokens: ValueId,
    /// `i32[t]`: absolute positions.
    pub positions: ValueId,
    /// `i32[r]`: rows whose logits are wanted.
    pub rows: ValueId,
    /// The KV state before the step.
    pub state: ValueId,
    source: &'a dyn TensorSource,
}

impl<'a> Builder<'a> {
    /// A decoder with symbols `t`, `s`, `r`, its inputs, and a cache of the given extents.
    ///
    /// # Errors
    /// None for the names used here.
    pub fn decoder(source: &'a dyn TensorSource, limits: Limits, dtype: DType, cache: Cache) -> Result<Self> {
        let mut graph = Graph::new("decoder");
        let t = graph.symbol("t", 1, limits.max_num_tokens as usize)?;
        graph.symbol("s", 1, limits.max_batch as usize)?;
        let r = graph.symbol("r", 0, limits.max_sample_rows as usize)?;
        graph.set_cache(cache)?;
        let tokens = graph.input("tokens", Facts::tensor(DType::I32, [Dim::symbol(t)]))?;
        let positions = graph.input("positions", Facts::tensor(DType::I32, [Dim::symbol(t)]))?;
        let rows = graph.input("rows", Facts::tensor(DType::I32, [Dim::symbol(r)]))?;
        let state = graph.input("state", Facts::State)?;
        Ok(Builder { graph, dtype, tokens, positions, rows, state, source })
    }

    /// The checkpoint tensor `name` in the plan's type: a cast of it where it is stored in another.
    ///
    /// # Errors
    /// A tensor that the importer did not ask for: a fault of the importer.
    pub fn weight(&mut self, name: &str) -> Result<ValueId> {
        let info = self
            .source
            .info(name)
            .ok_or_else(|| CompileError::Bug(format!("importer takes {name} and did not ask for it")))?;
        let stored = self.graph.tensor(name, Facts::fixed(info.dtype, &info.shape))?;
        if info.dtype == self.dtype {
            return Ok(stored);
        }
        let lathe_ir::graph::Def::Weight(id) = self.graph.value(stored).def else {
            return Err(CompileError::Bug(format!("weight {name} is no weight")));
        };
        let cast = format!("{name}.{}", self.dtype);
        Ok(self.graph.weight(
            &cast,
            Facts::fixed(self.dtype, &info.shape),
            WeightExpr::Cast(id, self.dtype),
        )?)
    }

    /// The weight `PREFIX.weight`, and `PREFIX.bias` where the layer has one.
    ///
    /// # Errors
    /// As [`Builder::weight`].
    pub fn layer_weights(&mut self, prefix: &str, bias: bool) -> Result<Vec<ValueId>> {
        let mut weights = vec![self.weight(&format!("{prefix}.weight"))?];
        if bias {
            weights.push(self.weight(&format!("{prefix}.bias"))?);
        }
        Ok(weights)
    }

    /// Appends a node with one result.
    ///
    /// # Errors
    /// Operands that do not fit: a fault of the importer.
    pub fn op(&mut self, op: impl Into<Op>, inputs: &[ValueId], name: &str) -> Result<ValueId> {
        Ok(self.graph.push1(op, inputs, name)?)
    }
}

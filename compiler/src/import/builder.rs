//! What every importer builds with: the decoder's frame, and weights in the plan's type.

use lathe_ir::entity::{ValueId, WeightId};
use lathe_ir::facts::{Cache, Dim, Facts};
use lathe_ir::graph::Graph;
use lathe_ir::ops::{Linear, Op};
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
        let id = self.id(stored)?;
        self.recipe(&format!("{name}.{}", self.dtype), &info.shape, WeightExpr::Cast(id, self.dtype))
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

    /// `linear` of `x` with `PREFIX.weight` and `PREFIX.bias`, in f32.
    ///
    /// # Errors
    /// As [`Builder::weight`].
    pub fn linear(&mut self, x: ValueId, prefix: &str, bias: bool, name: &str) -> Result<ValueId> {
        let mut operands = vec![x];
        operands.extend(self.layer_weights(prefix, bias)?);
        self.op(Linear { act: None, out: DType::F32 }, &operands, name)
    }

    /// A weight made of others.
    ///
    /// # Errors
    /// Weights that do not fit together: a fault of the importer.
    pub fn recipe(&mut self, name: &str, shape: &[usize], expr: WeightExpr) -> Result<ValueId> {
        Ok(self.graph.weight(name, Facts::fixed(self.dtype, shape), expr)?)
    }

    /// The id of a weight that [`Builder::weight`] or [`Builder::recipe`] gave.
    ///
    /// # Errors
    /// A value that is no weight.
    pub fn id(&self, weight: ValueId) -> Result<WeightId> {
        let name = || self.graph.value_name(weight).to_string();
        self.graph
            .as_weight(weight)
            .ok_or_else(|| CompileError::Bug(format!("weight {} is no weight", name())))
    }

    /// Weights of one width, one below the other.
    ///
    /// # Errors
    /// As [`Builder::recipe`].
    pub fn concat(&mut self, name: &str, of: Vec<WeightId>) -> Result<ValueId> {
        let shapes = of.iter().map(|w| self.graph.weight_facts(*w).fixed_shape().unwrap_or_default());
        let shape = shapes.reduce(|sum, s| {
            sum.iter().take(1).zip(&s).map(|(a, b)| a + b).chain(s[1..].iter().copied()).collect()
        });
        self.recipe(name, &shape.unwrap_or_default(), WeightExpr::Concat(of))
    }

    /// Appends a node with several results.
    ///
    /// # Errors
    /// As [`Builder::op`].
    pub fn ops<const N: usize>(
        &mut self,
        op: impl Into<Op>,
        inputs: &[ValueId],
        names: [&str; N],
    ) -> Result<[ValueId; N]> {
        let results = self.graph.push(op, inputs, &names)?;
        results.try_into().map_err(|_| CompileError::Bug(format!("a node of {N} results has others")))
    }

    /// Appends a node with one result.
    ///
    /// # Errors
    /// Operands that do not fit: a fault of the importer.
    pub fn op(&mut self, op: impl Into<Op>, inputs: &[ValueId], name: &str) -> Result<ValueId> {
        Ok(self.graph.push1(op, inputs, name)?)
    }
}

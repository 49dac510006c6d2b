//! What graphs are built with: the decoder's frame, and parameters in the plan's type.

use lathe_ir::entity::{ValueId, WeightId};
use lathe_ir::facts::{Cache, Dim, Facts};
use lathe_ir::graph::{Def, Graph};
use lathe_ir::ops::{LayerNorm, Linear, Op, RmsNorm};
use lathe_ir::weight::WeightExpr;
use lathe_numerics::DType;
use lathe_plan::schema::Limits;

use super::names::Names;
use super::param::{Norm, NormKind, Param, Projection};
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
    names: Names,
}

impl<'a> Builder<'a> {
    /// A decoder with symbols `t`, `s`, `r`, its inputs, and a cache of the given extents.
    ///
    /// # Errors
    /// None for the names used here.
    pub fn decoder(
        source: &'a dyn TensorSource,
        names: Names,
        limits: Limits,
        dtype: DType,
        cache: Cache,
    ) -> Result<Self> {
        let mut graph = Graph::new("decoder");
        let t = graph.symbol("t", 1, limits.max_num_tokens as usize)?;
        graph.symbol("s", 1, limits.max_batch as usize)?;
        let r = graph.symbol("r", 0, limits.max_sample_rows as usize)?;
        graph.set_cache(cache)?;
        let tokens = graph.input("tokens", Facts::tensor(DType::I32, [Dim::symbol(t)]))?;
        let positions = graph.input("positions", Facts::tensor(DType::I32, [Dim::symbol(t)]))?;
        let rows = graph.input("rows", Facts::tensor(DType::I32, [Dim::symbol(r)]))?;
        let state = graph.input("state", Facts::State)?;
        Ok(Builder { graph, dtype, tokens, positions, rows, state, source, names })
    }

    /// A parameter in the plan's type; the same value however often it is asked for.
    ///
    /// # Errors
    /// A tensor that the importer did not ask for: a fault of the importer.
    pub fn param(&mut self, param: &Param) -> Result<ValueId> {
        match param {
            Param::Stored(spec) => self.stored(&spec.name),
            Param::Part { of, rows, name } => {
                let (of, base) = self.operand(of)?;
                self.made(format!("{base}.{name}"), WeightExpr::Rows { of, pick: *rows })
            }
            Param::Transposed(of) => {
                let (of, base) = self.operand(of)?;
                self.made(format!("{base}.transposed"), WeightExpr::Transpose(of))
            }
            Param::OnePlus(of) => {
                let (of, base) = self.operand(of)?;
                self.made(format!("{base}.plus_one"), WeightExpr::Plus { of, addend: 1.0 })
            }
            Param::Joined(of) => {
                let parts = of.iter().map(|p| self.operand(p)).collect::<Result<Vec<_>>>()?;
                let base = parts.first().map(|(_, name)| name.clone()).unwrap_or_default();
                let of = parts.into_iter().map(|(id, _)| id).collect();
                self.made(format!("{base}.joined"), WeightExpr::Concat(of))
            }
        }
    }

    /// The checkpoint's tensor: a cast of it where it is stored in another type than the plan's.
    fn stored(&mut self, name: &str) -> Result<ValueId> {
        let name = &*self.names.stored(self.source, name);
        let info = self
            .source
            .info(name)
            .ok_or_else(|| CompileError::Bug(format!("importer takes {name} and did not ask for it")))?;
        let stored = match self.graph.find_weight(name) {
            Some(id) => self.graph.weight_data(id).value,
            None => self.graph.tensor(name, Facts::fixed(info.dtype, &info.shape))?,
        };
        if info.dtype == self.dtype {
            return Ok(stored);
        }
        let of = self.weight_id(stored)?;
        self.made(format!("{name}.{}", self.dtype), WeightExpr::Cast(of, self.dtype))
    }

    /// The parameter's weight.
    ///
    /// # Errors
    /// As [`Builder::param`].
    pub fn param_id(&mut self, param: &Param) -> Result<WeightId> {
        let value = self.param(param)?;
        self.weight_id(value)
    }

    fn operand(&mut self, param: &Param) -> Result<(WeightId, String)> {
        let value = self.param(param)?;
        Ok((self.weight_id(value)?, self.graph.value_name(value).to_owned()))
    }

    /// The id of a weight.
    ///
    /// # Errors
    /// A value that is no weight: a fault of the importer.
    pub fn weight_id(&self, value: ValueId) -> Result<WeightId> {
        match self.graph.value(value).def {
            Def::Weight(id) => Ok(id),
            _ => Err(CompileError::Bug(format!("%{} is no weight", self.graph.value_name(value)))),
        }
    }

    /// The weight of that recipe, declared if it is new.
    ///
    /// # Errors
    /// A recipe whose operands do not fit: a fault of the importer.
    pub fn made(&mut self, name: String, expr: WeightExpr) -> Result<ValueId> {
        if let Some(id) = self.graph.find_weight(&name) {
            return Ok(self.graph.weight_data(id).value);
        }
        let operands: Vec<&Facts> = expr.operands().iter().map(|&w| self.graph.weight_facts(w)).collect();
        let bug = |why: String| CompileError::Bug(format!("weight {name}: {why}"));
        let facts = expr.infer(&operands).map_err(bug)?.ok_or_else(|| bug("it is no recipe".into()))?;
        Ok(self.graph.weight(&name, facts, expr)?)
    }

    /// `x` through a linear layer, unrounded.
    ///
    /// # Errors
    /// Operands that do not fit: a fault of the importer.
    pub fn linear(&mut self, x: ValueId, projection: &Projection, name: &str) -> Result<ValueId> {
        let mut operands = vec![x, self.param(&projection.weight)?];
        if let Some(bias) = &projection.bias {
            operands.push(self.param(bias)?);
        }
        self.op(Linear { act: None, out: DType::F32 }, &operands, name)
    }

    /// `x` normalised, in its type.
    ///
    /// # Errors
    /// Operands that do not fit: a fault of the importer.
    pub fn norm(&mut self, x: ValueId, norm: &Norm, name: &str) -> Result<ValueId> {
        let mut operands = vec![x, self.param(&norm.weight)?];
        if let Some(bias) = &norm.bias {
            operands.push(self.param(bias)?);
        }
        let (eps, groups) = (norm.eps, norm.groups);
        match norm.kind {
            NormKind::Rms => self.op(RmsNorm { eps, groups }, &operands, name),
            NormKind::Layer => self.op(LayerNorm { eps, groups }, &operands, name),
        }
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

//! Launches that work row by row or element by element: norms and elementwise functions.

use lathe_ir::ValueId;
use lathe_ir::entity::NodeId;
use lathe_ir::ops::Op;
use lathe_kernels::elementwise::{Binary, Unary};
use lathe_numerics::DType;
use lathe_plan::schema::{Layout, Operand, Param};

use super::{Selection, choice, float, int};
use crate::error::Result;

/// A launch's kernel, inputs, outputs and parameters.
pub(super) type Chosen = (&'static str, Vec<Operand>, Vec<Operand>, Vec<(String, Param)>);

/// Parameters of a norm; a row that is one group needs no word about it.
pub(super) fn norm_params(eps: f32, groups: usize) -> Vec<(String, Param)> {
    let mut params = vec![float("eps", eps)];
    params.extend((groups != 1).then(|| int("groups", groups)));
    params
}

impl Selection<'_> {
    pub(super) fn unary(&mut self, id: NodeId, function: Unary) -> Result<Chosen> {
        let node = self.graph.node(id);
        let mut x = self.read(node.inputs[0])?;
        if let Op::SliceCols(slice) = &node.op {
            x.col_offset += slice.start as u64;
            x.cols = slice.len as u64;
        }
        let mut params = vec![choice("fn", function.name())];
        params.extend(function.param().map(|p| float("param", p)));
        Ok(("unary", vec![x], vec![self.write(node.outputs[0])?], params))
    }

    pub(super) fn binary(&mut self, id: NodeId, function: Binary) -> Result<Chosen> {
        let node = self.graph.node(id);
        let inputs = vec![self.read(node.inputs[0])?, self.read(node.inputs[1])?];
        Ok(("binary", inputs, vec![self.write(node.outputs[0])?], vec![choice("fn", function.name())]))
    }

    /// Rows, then the weights of a norm over them.
    pub(super) fn norm(&mut self, id: NodeId) -> Result<Vec<Operand>> {
        let inputs = &self.graph.node(id).inputs;
        let mut operands = vec![self.read(inputs[0])?];
        operands.extend(self.norm_weights(id, &inputs[1..], inputs[0])?);
        Ok(operands)
    }

    /// Weights of a norm over `x`: all of its type, or all f32.
    pub(super) fn norm_weights(
        &mut self,
        id: NodeId,
        weights: &[ValueId],
        x: ValueId,
    ) -> Result<Vec<Operand>> {
        let x = self.dtype(x);
        let stored = if weights.iter().all(|w| self.dtype(*w) == x) { x } else { Some(DType::F32) };
        weights.iter().map(|w| self.weight(id, *w, Layout::RowMajor, stored)).collect()
    }
}

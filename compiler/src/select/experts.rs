//! Mixtures of experts: a router's choice, the experts' projections and their weighted sum.
//!
//! The choice is one launch with two results more than its node: choices grouped by expert, which the projections read.

use lathe_ir::entity::{NodeId, ValueId};
use lathe_ir::ops::{ExpertLinear, ExpertLinearGlu, Over, TopK};
use lathe_numerics::DType;
use lathe_numerics::contract::PANEL;
use lathe_plan::schema::{Buffer, Expr, Operand};

use super::{Chosen, Selection, choice, int};
use crate::error::Result;

/// Buffers of a choice's grouping.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grouping {
    order: u32,
    starts: u32,
}

impl Selection<'_> {
    pub(super) fn top_k(&mut self, id: NodeId, op: &TopK) -> Result<Chosen> {
        let node = self.graph.node(id);
        let logits = self.read(node.inputs[0])?;
        let experts = logits.cols;
        let (ids, weights) = (self.write(node.outputs[0])?, self.write(node.outputs[1])?);
        let name = self.graph.value_name(node.outputs[0]).to_string();
        let order = self.buffer(format!("{name}.order"), DType::I32, ids.rows.clone(), ids.cols);
        let starts = self.buffer(format!("{name}.starts"), DType::I32, Expr::constant(experts + 1), 1);
        self.groupings.insert(node.outputs[0], Grouping { order: order.0, starts: starts.0 });
        let over = match op.over {
            Over::All => "all",
            Over::Chosen => "chosen",
        };
        let params = vec![int("k", op.k), choice("over", over)];
        Ok(("top_k", vec![logits], vec![ids, weights, order.1, starts.1], params))
    }

    pub(super) fn expert_linear(&mut self, id: NodeId, op: &ExpertLinear) -> Result<Chosen> {
        let inputs = self.experts(id, op.experts)?;
        let params = vec![choice("epilogue", "store"), int("experts", op.experts)];
        Ok(("expert_gemm", inputs, vec![self.write(self.graph.node(id).outputs[0])?], params))
    }

    pub(super) fn expert_linear_glu(&mut self, id: NodeId, op: &ExpertLinearGlu) -> Result<Chosen> {
        if op.interleave != PANEL {
            return Err(
                self.unsupported(id, format!("the kernel wants gate and up rows interleaved by {PANEL}"))
            );
        }
        let inputs = self.experts(id, op.experts)?;
        let params = vec![
            choice("act", op.act.name()),
            int("cols", op.cols),
            choice("epilogue", "glu"),
            int("experts", op.experts),
        ];
        Ok(("expert_gemm", inputs, vec![self.write(self.graph.node(id).outputs[0])?], params))
    }

    pub(super) fn combine(&mut self, id: NodeId, kernel: &'static str) -> Result<Chosen> {
        let node = self.graph.node(id);
        let inputs = node.inputs.iter().map(|v| self.read(*v)).collect::<Result<Vec<_>>>()?;
        Ok((kernel, inputs, vec![self.write(node.outputs[0])?], vec![]))
    }

    /// Operands of an expert's projection: rows, the grouping, packed weights of their type, f32 bias.
    fn experts(&mut self, id: NodeId, experts: usize) -> Result<Vec<Operand>> {
        let inputs = &self.graph.node(id).inputs;
        let ids: ValueId = inputs[1];
        let Some(&Grouping { order, starts }) = self.groupings.get(&ids) else {
            let name = self.graph.value_name(ids);
            return Err(self.unsupported(id, format!("%{name} is not what top_k has chosen")));
        };
        let stored = self.graph.facts(inputs[2]).fixed_shape().map_or(0, |s| s[0] / experts.max(1));
        if !stored.is_multiple_of(PANEL) {
            let why =
                format!("the kernel wants experts of a multiple of {PANEL} features, these have {stored}");
            return Err(self.unsupported(id, why));
        }
        let group = |index: u32| Operand::buffer(index, &self.buffers[index as usize]);
        let rows = [self.read(inputs[0])?, group(order), group(starts)];
        if rows[2].rows.constant != experts as u64 + 1 {
            return Err(self.unsupported(id, "its experts are not as many as the router's logits"));
        }
        self.weights_behind(id, &rows, &inputs[2..])
    }

    /// A buffer that no value of the graph has.
    fn buffer(&mut self, name: String, dtype: DType, rows: Expr, cols: u64) -> (u32, Operand) {
        let buffer = Buffer { name, dtype, rows, cols, offset: 0 };
        let index = self.buffers.len() as u32;
        let operand = Operand::buffer(index, &buffer);
        self.buffers.push(buffer);
        (index, operand)
    }
}

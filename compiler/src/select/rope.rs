//! Launches that rotate queries and keys and append to the cache.

use lathe_ir::entity::NodeId;
use lathe_ir::ops::{KvAppend, QkNorm, Rope, RopeAppend};
use lathe_kernels::rope_append::NormOver;
use lathe_numerics::DType;
use lathe_plan::schema::{Input, Layout};

use super::rows::Chosen;
use super::{Selection, choice, float, int};
use crate::error::Result;

/// What a norm of query and key is over.
pub(super) fn norm_over(norm: QkNorm) -> Option<NormOver> {
    match norm {
        QkNorm::None => None,
        QkNorm::Head => Some(NormOver::Head),
        QkNorm::Row => Some(NormOver::Row),
    }
}

impl Selection<'_> {
    pub(super) fn rope_append(&mut self, id: NodeId, op: &RopeAppend) -> Result<Chosen> {
        let node = self.graph.node(id);
        self.expect_dtype(id, node.inputs[0], DType::F32)?;
        let (table, norms) = node.inputs[3..].split_at(node.inputs.len() - 3 - op.n_norms());
        let mut inputs = vec![self.read(node.inputs[0])?, self.input(id, node.inputs[1], Input::Positions)?];
        if let Some(&table) = table.first() {
            inputs.push(self.weight(id, table, Layout::RowMajor, None)?);
        }
        inputs.push(self.cache(id, op.layer)?);
        for &norm in norms {
            inputs.push(self.weight(id, norm, Layout::RowMajor, Some(DType::F32))?);
        }
        let mut params =
            vec![int("head_dim", op.head_dim), int("heads", op.heads), int("kv_heads", op.kv_heads)];
        if let Some(over) = norm_over(op.qk_norm) {
            params.insert(0, float("eps", op.eps));
            params.push(choice("qk_norm", over.name()));
        }
        Ok(("rope_append", inputs, vec![self.write(node.outputs[0])?], params))
    }

    pub(super) fn rope(&mut self, id: NodeId, op: &Rope) -> Result<Chosen> {
        let node = self.graph.node(id);
        let inputs = vec![
            self.read(node.inputs[0])?,
            self.input(id, node.inputs[1], Input::Positions)?,
            self.weight(id, node.inputs[2], Layout::RowMajor, None)?,
        ];
        let params = vec![int("head_dim", op.head_dim), int("heads", op.heads)];
        Ok(("rope", inputs, vec![self.write(node.outputs[0])?], params))
    }

    pub(super) fn kv_append(&mut self, id: NodeId, op: &KvAppend) -> Result<Chosen> {
        let node = self.graph.node(id);
        let inputs = vec![self.read(node.inputs[0])?, self.read(node.inputs[1])?, self.cache(id, op.layer)?];
        let (kv_heads, head_dim) = self.cached(op.layer);
        Ok(("kv_append", inputs, vec![], vec![int("head_dim", head_dim), int("kv_heads", kv_heads)]))
    }

    /// KV heads of a cache layer and their size; the layer exists.
    pub(super) fn cached(&self, layer: usize) -> (usize, usize) {
        self.cache.layer(layer).map_or((0, 0), |l| (l.kv_heads as usize, l.head_dim as usize))
    }
}

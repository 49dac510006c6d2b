//! Fuses `rope_append(norm_linear(x))` into one `norm_linear_rope_append`: the merged projection never leaves the registers.
//! Needs: an f32 projection whose one user is the rotation. Keeps: facts, roundings, bits. Gives up: the projection has a
//! second user or is rounded, query and key are normalised, or nothing rotates.

use lathe_ir::driver::{Cx, Precision, Rule};
use lathe_ir::ops::{NormLinearRopeAppend, Op, QkNorm};
use lathe_ir::patch::Patch;
use lathe_ir::{Graph, IrError, NodeId};
use lathe_numerics::DType;

/// Runs after `fuse-norm-linear`, which makes its pattern.
pub const FUSE_NORM_LINEAR_ROPE_APPEND: Rule =
    Rule { name: "fuse-norm-linear-rope-append", precision: Precision::Exact, root: "rope_append", apply };

fn apply<'g>(g: &'g Graph, node: NodeId, cx: &Cx) -> Result<Option<Patch<'g>>, IrError> {
    let Op::RopeAppend(rope) = g.op(node) else { return Ok(None) };
    let qkv = g.input_of(node, 0);
    let Some(producer) = g.producer(qkv) else { return Ok(None) };
    let (Op::NormLinear(projection), Some(_)) = (g.op(producer), cx.uses.only_user(qkv)) else {
        return Ok(None);
    };
    let plain = rope.qk_norm == QkNorm::None && g.node(node).inputs.len() == 4;
    if projection.out != DType::F32 || !plain {
        return Ok(None);
    }
    let op = NormLinearRopeAppend {
        eps: projection.eps,
        layer: rope.layer,
        heads: rope.heads,
        kv_heads: rope.kv_heads,
        head_dim: rope.head_dim,
        out: rope.out,
    };
    let (projected, rotated) = (&g.node(producer).inputs, &g.node(node).inputs);
    let mut patch = Patch::new(g);
    let fused = patch.add_all(op, &[&projected[..1], &rotated[1..], &projected[1..]].concat())?;
    for (at, value) in fused.into_iter().enumerate() {
        patch.replace(g.node(node).outputs[at], value)?;
    }
    Ok(Some(patch))
}

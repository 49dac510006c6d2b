//! Fuses `glu(linear(x))` into one `linear_glu`: the projection never leaves the registers.
//! Needs: an f32 projection. Keeps: facts, roundings, bits. Gives up: the projection has a second user or is rounded.

use lathe_ir::driver::{Cx, Precision, Rule};
use lathe_ir::ops::{LinearGlu, Op};
use lathe_ir::patch::Patch;
use lathe_ir::{Graph, IrError, NodeId};
use lathe_numerics::DType;

/// Runs after `merge-gate-up`, which makes its pattern.
pub const FUSE_LINEAR_GLU: Rule =
    Rule { name: "fuse-linear-glu", precision: Precision::Exact, root: "glu", apply };

fn apply<'g>(g: &'g Graph, node: NodeId, cx: &Cx) -> Result<Option<Patch<'g>>, IrError> {
    let Op::Glu(glu) = g.op(node) else { return Ok(None) };
    let projection = g.input_of(node, 0);
    let Some(linear) = g.producer(projection) else { return Ok(None) };
    let (Op::Linear(op), Some(_)) = (g.op(linear), cx.uses.only_user(projection)) else { return Ok(None) };
    if op.out != DType::F32 || op.act.is_some() {
        return Ok(None);
    }
    let mut patch = Patch::new(g);
    let fused = LinearGlu { act: glu.act, cols: glu.cols, interleave: glu.interleave, out: glu.out };
    let fused = patch.add(fused, &g.node(linear).inputs)?;
    patch.replace(g.output_of(node), fused)?;
    Ok(Some(patch))
}

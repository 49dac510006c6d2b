//! Fuses `activation(linear(x))` into the projection: it never leaves the registers.
//! Needs: an f32 projection without activation. Keeps: facts, roundings, bits. Gives up: the projection has a second user
//! or is rounded.

use lathe_ir::driver::{Cx, Precision, Rule};
use lathe_ir::ops::{Linear, Op};
use lathe_ir::patch::Patch;
use lathe_ir::{Graph, IrError, NodeId};
use lathe_numerics::DType;

/// Runs after `merge-gate-up`, which wants the activation of a gate by itself.
pub const FUSE_LINEAR_ACTIVATION: Rule =
    Rule { name: "fuse-linear-activation", precision: Precision::Exact, root: "activation", apply };

fn apply<'g>(g: &'g Graph, node: NodeId, cx: &Cx) -> Result<Option<Patch<'g>>, IrError> {
    let Op::Activate(activation) = g.op(node) else { return Ok(None) };
    let projection = g.input_of(node, 0);
    let Some(linear) = g.producer(projection) else { return Ok(None) };
    let plain = matches!(g.op(linear), Op::Linear(Linear { act: None, out: DType::F32 }));
    if !plain || cx.uses.only_user(projection).is_none() {
        return Ok(None);
    }
    let mut patch = Patch::new(g);
    let op = Linear { act: Some(activation.act), out: activation.out };
    let fused = patch.add(op, &g.node(linear).inputs)?;
    patch.replace(g.output_of(node), fused)?;
    Ok(Some(patch))
}

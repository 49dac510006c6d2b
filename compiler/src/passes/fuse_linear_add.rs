//! Fuses `add(linear(x), residual)` into one `linear_add`: the projection never leaves the registers.
//! Needs: an f32 projection without activation, a sum of the residual's type. Keeps: facts, roundings, bits. Gives up: the projection has a
//! second user or is rounded, the other operand has another type than the sum.

use lathe_ir::driver::{Cx, Precision, Rule};
use lathe_ir::ops::{Linear, LinearAdd, Op};
use lathe_ir::patch::Patch;
use lathe_ir::{Graph, IrError, NodeId, ValueId};
use lathe_numerics::DType;

/// For devices, whose projections have an epilogue that adds; where norms follow as launches of their own,
/// `fuse-add-rms-norm` is the better half.
pub const FUSE_LINEAR_ADD: Rule =
    Rule { name: "fuse-linear-add", precision: Precision::Exact, root: "add", apply };

fn apply<'g>(g: &'g Graph, node: NodeId, cx: &Cx) -> Result<Option<Patch<'g>>, IrError> {
    let sum = g.output_of(node);
    let (a, b) = (g.input_of(node, 0), g.input_of(node, 1));
    let fits = |delta: ValueId, residual: ValueId| {
        let linear = g.producer(delta)?;
        let f32_projection = matches!(g.op(linear), Op::Linear(Linear { act: None, out: DType::F32 }));
        cx.uses.only_user(delta)?;
        (f32_projection && g.facts(residual).dtype() == g.facts(sum).dtype()).then_some((linear, residual))
    };
    let Some((linear, residual)) = fits(a, b).or_else(|| fits(b, a)) else { return Ok(None) };
    let operands = &g.node(linear).inputs;
    let mut patch = Patch::new(g);
    let fused = patch.add(LinearAdd, &[&[operands[0], residual], &operands[1..]].concat())?;
    patch.replace(sum, fused)?;
    Ok(Some(patch))
}

//! Fuses `add(combine(y, weights), residual)` into one `combine_add`: the experts' sum never leaves the registers.
//! Needs: an f32 sum of experts, a result of the residual's type. Keeps: facts, roundings, bits. Gives up: the experts'
//! sum has a second user or is rounded, the other operand has another type than the result.

use lathe_ir::driver::{Cx, Precision, Rule};
use lathe_ir::ops::{Combine, CombineAdd, Op};
use lathe_ir::patch::Patch;
use lathe_ir::{Graph, IrError, NodeId, ValueId};
use lathe_numerics::DType;

/// For devices, as `fuse-linear-add`.
pub const FUSE_COMBINE_ADD: Rule =
    Rule { name: "fuse-combine-add", precision: Precision::Exact, root: "add", apply };

fn apply<'g>(g: &'g Graph, node: NodeId, cx: &Cx) -> Result<Option<Patch<'g>>, IrError> {
    let sum = g.output_of(node);
    let (a, b) = (g.input_of(node, 0), g.input_of(node, 1));
    let fits = |delta: ValueId, residual: ValueId| {
        let combine = g.producer(delta)?;
        let exact = matches!(g.op(combine), Op::Combine(Combine { out: DType::F32 }));
        cx.uses.only_user(delta)?;
        (exact && g.facts(residual).dtype() == g.facts(sum).dtype()).then_some((combine, residual))
    };
    let Some((combine, residual)) = fits(a, b).or_else(|| fits(b, a)) else { return Ok(None) };
    let operands = &g.node(combine).inputs;
    let mut patch = Patch::new(g);
    let fused = patch.add(CombineAdd, &[&operands[..2], &[residual], &operands[2..]].concat())?;
    patch.replace(sum, fused)?;
    Ok(Some(patch))
}

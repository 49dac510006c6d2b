//! Fuses `linear(rms_norm(x))` into one `norm_linear`, and `linear_glu` in the same way.
//! Needs: a norm whose one user is the projection. Keeps: facts, roundings, bits. Gives up: the norm has a second user,
//! several groups or a weight of another type, the projection an activation.

use lathe_ir::driver::{Cx, Precision, Rule};
use lathe_ir::ops::{NormLinear, NormLinearGlu, Op};
use lathe_ir::patch::Patch;
use lathe_ir::{Graph, IrError, NodeId, ValueId};

/// Runs after `fuse-linear-glu` has taken the projections that it can.
pub const FUSE_NORM_LINEAR: Rule =
    Rule { name: "fuse-norm-linear", precision: Precision::Exact, root: "linear", apply };

/// As above.
pub const FUSE_NORM_LINEAR_GLU: Rule =
    Rule { name: "fuse-norm-linear-glu", precision: Precision::Exact, root: "linear_glu", apply };

fn apply<'g>(g: &'g Graph, node: NodeId, cx: &Cx) -> Result<Option<Patch<'g>>, IrError> {
    let Some((eps, operands)) = normed(g, node, cx) else { return Ok(None) };
    let fused: Op = match g.op(node) {
        Op::Linear(op) if op.act.is_none() => NormLinear { eps, out: op.out }.into(),
        Op::LinearGlu(op) => {
            NormLinearGlu { act: op.act, eps, cols: op.cols, interleave: op.interleave, out: op.out }.into()
        }
        _ => return Ok(None),
    };
    let mut patch = Patch::new(g);
    let fused = patch.add(fused, &operands)?;
    patch.replace(g.output_of(node), fused)?;
    Ok(Some(patch))
}

/// The norm's eps, and the operands of both: x and the norm's weight, then the projection's weights.
fn normed(g: &Graph, node: NodeId, cx: &Cx) -> Option<(f32, Vec<ValueId>)> {
    let rows = g.input_of(node, 0);
    let producer = g.producer(rows)?;
    let Op::RmsNorm(norm) = g.op(producer) else { return None };
    let weight = g.input_of(producer, 1);
    if norm.groups != 1 || g.facts(weight).dtype() != g.facts(rows).dtype() {
        return None;
    }
    cx.uses.only_user(rows)?;
    Some((norm.eps, [&g.node(producer).inputs[..], &g.node(node).inputs[1..]].concat()))
}

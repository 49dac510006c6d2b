//! Fuses a residual addition and the norm that reads it into one `add_rms_norm`, which yields both.
//! Needs: `rms_norm(add(delta, residual))` where the sum has the residual's type. Keeps: facts, both roundings, bits;
//! other users of the sum read the fused op's. Gives up: no operand of the sum has its type, the other is not f32 (the
//! kernel adds what a projection left unrounded), or the norm is one of several groups.

use lathe_ir::driver::{Cx, Precision, Rule};
use lathe_ir::ops::{AddRmsNorm, Op};
use lathe_ir::patch::Patch;
use lathe_ir::{Graph, IrError, NodeId};
use lathe_numerics::DType;

/// Runs after `gather-sampled-rows`, so that the last layer's sums are fused on the rows that are left.
pub const FUSE_ADD_RMS_NORM: Rule =
    Rule { name: "fuse-add-rms-norm", precision: Precision::Exact, root: "rms_norm", apply };

fn apply<'g>(g: &'g Graph, node: NodeId, _cx: &Cx) -> Result<Option<Patch<'g>>, IrError> {
    let Op::RmsNorm(norm) = g.op(node) else { return Ok(None) };
    let (sum, scale) = (g.input_of(node, 0), g.input_of(node, 1));
    let Some(add) = g.producer(sum).filter(|&n| matches!(g.op(n), Op::Add(_))) else { return Ok(None) };
    let (a, b) = (g.input_of(add, 0), g.input_of(add, 1));
    let is_residual = |v| g.facts(v).dtype() == g.facts(sum).dtype();
    // Where both have the type, importers write the residual second.
    let (delta, residual) = match (is_residual(a), is_residual(b)) {
        (_, true) => (a, b),
        (true, false) => (b, a),
        (false, false) => return Ok(None),
    };
    if norm.groups != 1 || g.facts(delta).dtype() != Some(DType::F32) {
        return Ok(None);
    }
    let mut patch = Patch::new(g);
    let fused = patch.add_all(AddRmsNorm { eps: norm.eps }, &[delta, residual, scale])?;
    patch.replace(sum, fused[0])?;
    patch.replace(g.output_of(node), fused[1])?;
    Ok(Some(patch))
}

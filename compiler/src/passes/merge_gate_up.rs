//! Merges the gate and up projections of a gated MLP into one linear with interleaved rows, read by `glu`.
//! Needs: `mul(activation(linear(x, @gate)), linear(x, @up))`, in either order of operands, f32 up to the product. Keeps:
//! facts and roundings. Gives up: the projections read different inputs, an inner value has a second user, is rounded,
//! or only one projection has a bias.
//!
//! Exact where the merged weight has the K slices of its parts.

use lathe_ir::driver::{Cx, Rule};
use lathe_ir::ops::{Glu, Linear, Op};
use lathe_ir::patch::Patch;
use lathe_ir::{Graph, IrError, NodeId, ValueId, WeightExpr, WeightId};
use lathe_numerics::contract::PANEL;
use lathe_numerics::{Activation, DType};

use super::merged_weight::{RESLICED, keeps_slices, name};

/// Runs before `fuse-linear-glu`, which takes both results into one.
pub const MERGE_GATE_UP: Rule = Rule { name: "merge-gate-up", precision: RESLICED, root: "mul", apply };

fn apply<'g>(g: &'g Graph, node: NodeId, cx: &Cx) -> Result<Option<Patch<'g>>, IrError> {
    let Op::Mul(mul) = g.op(node) else { return Ok(None) };
    let (a, b) = (g.input_of(node, 0), g.input_of(node, 1));
    let Some((act, gate, up)) = gated(g, cx, a, b).or_else(|| gated(g, cx, b, a)) else { return Ok(None) };
    let (gate_in, up_in) = (&g.node(gate).inputs, &g.node(up).inputs);
    if gate_in[0] != up_in[0] || gate_in.len() != up_in.len() {
        return Ok(None);
    }
    let mut patch = Patch::new(g);
    let mut inputs = vec![gate_in[0]];
    for (&gate, &up) in gate_in[1..].iter().zip(&up_in[1..]) {
        let (Some(gate), Some(up)) = (g.as_weight(gate), g.as_weight(up)) else { return Ok(None) };
        if g.weight_facts(gate) != g.weight_facts(up) {
            return Ok(None);
        }
        inputs.push(interleaved(g, &mut patch, vec![gate, up])?);
    }
    let Some(shape) = g.facts(gate_in[1]).fixed_shape() else { return Ok(None) };
    let (cols, k) = (shape[0], shape[1]);
    let merged = patch.add(Linear { act: None, out: DType::F32 }, &inputs)?;
    patch.name(merged, &format!("{}.merged", g.value_name(g.output_of(gate))));
    let product = patch.add(Glu { act, cols, interleave: PANEL, out: mul.out }, &[merged])?;
    patch.replace(g.output_of(node), product)?;
    if keeps_slices([cols], 2 * cols.next_multiple_of(PANEL), k) {
        patch.mark_exact();
    }
    Ok(Some(patch))
}

fn interleaved(g: &Graph, patch: &mut Patch<'_>, of: Vec<WeightId>) -> Result<ValueId, IrError> {
    let expr = WeightExpr::Interleave { of: of.clone(), group: PANEL };
    patch.weight(&name(g, &of, &expr), expr)
}

/// The activation and the linears behind `activation(gate)` and `up`, if nothing else reads any value between.
fn gated(g: &Graph, cx: &Cx, activated: ValueId, up: ValueId) -> Option<(Activation, NodeId, NodeId)> {
    let inner = |value: ValueId| {
        cx.uses.only_user(value)?;
        g.producer(value).filter(|_| g.facts(value).dtype() == Some(DType::F32))
    };
    let linear =
        |value: ValueId| inner(value).filter(|&n| matches!(g.op(n), Op::Linear(Linear { act: None, .. })));
    let activation = inner(activated)?;
    let Op::Activate(op) = g.op(activation) else { return None };
    Some((op.act, linear(g.input_of(activation, 0))?, linear(up)?))
}

//! Moves `gather_rows` up through row-wise ops, so that only rows that are sampled are computed: the logits, the final
//! norm, and the last layer from its attention on.
//! Needs: nothing but what ops say of themselves (`is_rowwise`). Keeps: facts, bits. Gives up: the op has effects or
//! reads more than the row (attention), a result of it is also needed whole, or its operand is an input of the graph,
//! which kernels read where the step brings it.

use std::collections::HashMap;

use lathe_ir::driver::{Cx, Precision, Rule};
use lathe_ir::ops::{GatherRows, Op};
use lathe_ir::patch::Patch;
use lathe_ir::{Def, Graph, IrError, NodeId, ValueId};

/// Runs before the fusions, so that they see the rows that are left.
pub const GATHER_SAMPLED_ROWS: Rule =
    Rule { name: "gather-sampled-rows", precision: Precision::Exact, root: "gather_rows", apply };

fn apply<'g>(g: &'g Graph, node: NodeId, cx: &Cx) -> Result<Option<Patch<'g>>, IrError> {
    let (value, rows) = (g.input_of(node, 0), g.input_of(node, 1));
    let Some(producer) = g.producer(value) else { return Ok(None) };
    let whole = g.node(producer);
    let Some(gathers) = gathers_of(g, producer, rows, cx) else { return Ok(None) };
    let gathered = |at: usize| !whole.op.is_weight(at);
    let movable = |(at, v): (usize, &ValueId)| {
        !gathered(at) || (whole.op.is_rowwise(at) && !matches!(g.value(*v).def, Def::Input))
    };
    if whole.op.has_effects() || !whole.inputs.iter().enumerate().all(movable) {
        return Ok(None);
    }
    let mut patch = Patch::new(g);
    let mut made: HashMap<ValueId, ValueId> = HashMap::new();
    let mut inputs = Vec::with_capacity(whole.inputs.len());
    for (at, &input) in whole.inputs.iter().enumerate() {
        if !gathered(at) {
            inputs.push(input);
            continue;
        }
        let part = match made.get(&input) {
            Some(&part) => part,
            None => {
                let part = patch.add(GatherRows {}, &[input, rows])?;
                patch.name(part, &format!("{}.rows", g.value_name(input)));
                made.insert(input, part);
                part
            }
        };
        inputs.push(part);
    }
    if made.is_empty() {
        return Ok(None);
    }
    let results = patch.add_all(whole.op.clone(), &inputs)?;
    for (gather, at) in gathers {
        patch.replace(g.output_of(gather), results[at])?;
    }
    Ok(Some(patch))
}

/// The gathers that read results of `producer`, with the number of the result, if all its users are gathers of `rows`.
fn gathers_of(g: &Graph, producer: NodeId, rows: ValueId, cx: &Cx) -> Option<Vec<(NodeId, usize)>> {
    let mut gathers = Vec::new();
    for (at, &output) in g.node(producer).outputs.iter().enumerate() {
        if cx.uses.is_returned(output) {
            return None;
        }
        for &user in cx.uses.of(output) {
            let same_rows = matches!(g.op(user), Op::GatherRows(_)) && g.input_of(user, 1) == rows;
            if !same_rows || g.input_of(user, 0) != output {
                return None;
            }
            gathers.push((user, at));
        }
    }
    Some(gathers)
}

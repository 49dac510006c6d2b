//! Merges the query, key and value projections of one input into one linear, whose columns are sliced apart again.
//! Needs: `attention(rope(linear), kv_append(rope(linear), linear))`, where a norm may stand before a rotation and a rounding in
//! its place. Keeps: facts. Gives up: the projections read
//! different inputs, differ in type, or only some have a bias.
//!
//! Exact where the merged weight has the K slices of its parts.

use lathe_ir::driver::{Cx, Rule};
use lathe_ir::ops::{Linear, Op, SliceCols};
use lathe_ir::patch::Patch;
use lathe_ir::{Graph, IrError, NodeId, ValueId, WeightExpr, WeightId};

use super::attention_inputs::AttentionInputs;
use super::merged_weight::{RESLICED, keeps_slices, name};

/// Runs before `fuse-rope-append`, which wants the merged projection.
pub const MERGE_QKV: Rule = Rule { name: "merge-qkv", precision: RESLICED, root: "attention", apply };

fn apply<'g>(g: &'g Graph, node: NodeId, _cx: &Cx) -> Result<Option<Patch<'g>>, IrError> {
    let Some(linears) = projections(g, node) else { return Ok(None) };
    let operand = |l: NodeId, at: usize| g.node(l).inputs.get(at).copied();
    let (first, op) = (linears[0], g.op(linears[0]));
    let alike = |&l: &NodeId| {
        g.op(l) == op
            && g.node(l).inputs.len() == g.node(first).inputs.len()
            && operand(l, 0) == operand(first, 0)
    };
    let (Op::Linear(Linear { act: None, out }), true) = (op, linears.iter().all(alike)) else {
        return Ok(None);
    };
    let weights_at = |at: usize| -> Option<Vec<WeightId>> {
        linears.iter().map(|&l| operand(l, at).and_then(|v| g.as_weight(v))).collect()
    };
    let same_type =
        |of: &[WeightId]| of.iter().all(|&w| g.weight_facts(w).dtype() == g.weight_facts(of[0]).dtype());

    let Some(weights) = weights_at(1).filter(|w| same_type(w)) else { return Ok(None) };
    let shapes: Option<Vec<Vec<usize>>> = weights.iter().map(|&w| g.weight_facts(w).fixed_shape()).collect();
    let Some(shapes) = shapes else { return Ok(None) };
    let widths: Vec<usize> = shapes.iter().map(|s| s[0]).collect();

    let mut patch = Patch::new(g);
    let concat = |patch: &mut Patch<'g>, of: Vec<WeightId>| {
        let expr = WeightExpr::Concat(of.clone());
        patch.weight(&name(g, &of, &expr), expr)
    };
    let mut inputs = vec![g.input_of(first, 0), concat(&mut patch, weights)?];
    if g.node(first).inputs.len() == 3 {
        let Some(biases) = weights_at(2).filter(|w| same_type(w)) else { return Ok(None) };
        inputs.push(concat(&mut patch, biases)?);
    }
    let merged = patch.add(Linear { act: None, out: *out }, &inputs)?;
    patch.name(merged, &format!("{}.merged", g.value_name(g.output_of(first))));
    let mut start = 0;
    for (&linear, &len) in linears.iter().zip(&widths) {
        let part = patch.add(SliceCols { start, len }, &[merged])?;
        patch.replace(g.output_of(linear), part)?;
        start += len;
    }
    if keeps_slices(widths, start, shapes[0][1]) {
        patch.mark_exact();
    }
    Ok(Some(patch))
}

/// The three linears behind an attention, in the order query, key, value.
fn projections(g: &Graph, attention: NodeId) -> Option<[NodeId; 3]> {
    let inputs = AttentionInputs::of(g, attention)?;
    let linear = |value: ValueId| g.producer(value).filter(|&n| matches!(g.op(n), Op::Linear(_)));
    let all = [linear(inputs.q.source)?, linear(inputs.k.source)?, linear(inputs.v)?];
    let distinct = all[0] != all[1] && all[1] != all[2] && all[0] != all[2];
    distinct.then_some(all)
}

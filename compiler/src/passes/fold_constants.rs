//! Folds what is known before anything runs: weight recipes that are detours, equal recipes under two names, and column
//! slices that select everything or follow each other.
//! Needs: a verified graph. Keeps: facts, bits. Weights that are left over are for `remove-dead`.

use lathe_ir::driver::{Pass, Precision};
use lathe_ir::ops::{Op, SliceCols};
use lathe_ir::patch::Patch;
use lathe_ir::{Graph, IrError, NodeId, ValueId, WeightExpr, WeightId};
use lathe_numerics::DType;

/// Counts nodes that changed.
pub const FOLD_CONSTANTS: Pass = Pass { name: "fold-constants", precision: Precision::Exact, run };

fn run(g: &mut Graph) -> Result<usize, IrError> {
    let mut changes = 0;
    loop {
        let found =
            g.nodes().map(|(id, _)| id).find_map(|id| folded(g, id).transpose().map(|patch| (id, patch)));
        let Some((id, patch)) = found else { return Ok(changes) };
        let edit = patch?.finish();
        edit.apply(g, id)?;
        changes += 1;
    }
}

fn folded(g: &Graph, id: NodeId) -> Result<Option<Patch<'_>>, IrError> {
    if let Op::SliceCols(slice) = g.op(id) {
        return folded_slice(g, id, slice);
    }
    let node = g.node(id);
    let mut patch = Patch::new(g);
    let mut inputs = node.inputs.clone();
    for input in &mut inputs {
        if let Some(weight) = g.as_weight(*input) {
            *input = match shorter(g, weight) {
                None => *input,
                Some(Shorter::Weight(other)) => g.weight_data(other).value,
                Some(Shorter::Recipe(expr)) => {
                    let taken =
                        |name: &String| g.find_weight(name).is_some_and(|w| g.weight_data(w).expr != expr);
                    let names = (1_u64..).map(|n| format!("{}.folded{n}", g.weight_name(weight)));
                    let name = names.take(1 << 20).find(|n| !taken(n)).unwrap_or_default();
                    patch.weight(&name, expr)?
                }
            };
        }
    }
    if inputs == node.inputs {
        return Ok(None);
    }
    let results = patch.add_all(node.op.clone(), &inputs)?;
    for (&old, &new) in node.outputs.iter().zip(&results) {
        patch.replace(old, new)?;
    }
    Ok(Some(patch))
}

fn folded_slice<'g>(g: &'g Graph, id: NodeId, slice: &SliceCols) -> Result<Option<Patch<'g>>, IrError> {
    let (of, result): (ValueId, ValueId) = (g.input_of(id, 0), g.output_of(id));
    let mut patch = Patch::new(g);
    if g.facts(of) == g.facts(result) {
        patch.replace(result, of)?;
        return Ok(Some(patch));
    }
    let Some(inner) = g.producer(of) else { return Ok(None) };
    let Op::SliceCols(first) = g.op(inner) else { return Ok(None) };
    let joined = SliceCols { start: first.start + slice.start, len: slice.len };
    let joined = patch.add(joined, &[g.input_of(inner, 0)])?;
    patch.replace(result, joined)?;
    Ok(Some(patch))
}

enum Shorter {
    Weight(WeightId),
    Recipe(WeightExpr),
}

/// A weight or recipe with the same elements and fewer steps.
fn shorter(g: &Graph, weight: WeightId) -> Option<Shorter> {
    let expr = &g.weight_data(weight).expr;
    let dtype = |w: WeightId| g.weight_facts(w).dtype();
    // The first declaration of an equal recipe stands for all.
    if let Some((first, _)) = g.weights().find(|(_, w)| w.expr == *expr)
        && first != weight
        && g.weight_facts(first) == g.weight_facts(weight)
    {
        return Some(Shorter::Weight(first));
    }
    match expr {
        WeightExpr::Cast(of, to) if dtype(*of) == Some(*to) => Some(Shorter::Weight(*of)),
        WeightExpr::Cast(of, to) => match g.weight_data(*of).expr {
            // Widening to f32 loses nothing, so the second rounding is the only one.
            WeightExpr::Cast(inner, DType::F32) if dtype(inner) == Some(*to) => Some(Shorter::Weight(inner)),
            WeightExpr::Cast(inner, DType::F32) => Some(Shorter::Recipe(WeightExpr::Cast(inner, *to))),
            _ => None,
        },
        WeightExpr::Concat(of) => match of[..] {
            [only] => Some(Shorter::Weight(only)),
            _ => {
                let parts = |w: &WeightId| match &g.weight_data(*w).expr {
                    WeightExpr::Concat(inner) => inner.clone(),
                    _ => vec![*w],
                };
                let flat: Vec<WeightId> = of.iter().flat_map(parts).collect();
                (flat.len() > of.len()).then_some(Shorter::Recipe(WeightExpr::Concat(flat)))
            }
        },
        WeightExpr::Tensor(_)
        | WeightExpr::Interleave { .. }
        | WeightExpr::RopeTable(_)
        | WeightExpr::Rows { .. }
        | WeightExpr::Transpose(_)
        | WeightExpr::Plus { .. } => None,
    }
}

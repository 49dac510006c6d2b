//! Excerpts of a graph: some of its nodes, wired together, with some operands replaced.

use std::collections::HashMap;

use lathe_ir::entity::{Id, NodeId, ValueId, WeightId};
use lathe_ir::ops::Op;
use lathe_ir::weight::WeightExpr;
use lathe_ir::{Def, Facts, Graph};

use crate::error::{CompileError, Result};

/// A matrix that stands in for a weight at one operand.
#[derive(Clone, Debug)]
pub struct StandIn {
    /// Tensor name by which the source knows it.
    pub name: String,
    /// Facts.
    pub facts: Facts,
}

/// What an excerpt takes over.
pub struct Excerpt<'a> {
    /// The whole graph.
    pub graph: &'a Graph,
    /// Nodes that are kept, in order.
    pub nodes: Vec<NodeId>,
    /// Values that are read from another value instead.
    pub alias: HashMap<ValueId, ValueId>,
    /// Weights that are replaced, by node and operand.
    pub stand_ins: HashMap<(NodeId, usize), StandIn>,
    /// What the excerpt returns.
    pub outputs: &'a [ValueId],
}

impl Excerpt<'_> {
    /// The excerpt as a graph of its own, without what it does not need.
    ///
    /// # Errors
    /// If the nodes do not fit together.
    pub fn build(&self) -> Result<Graph> {
        let from = self.graph;
        let mut to = Graph::new(&from.name);
        for (_, symbol) in from.symbols().iter() {
            to.symbol(&symbol.name, symbol.min, symbol.max).map_err(bug)?;
        }
        if let Some(cache) = from.cache() {
            to.set_cache(cache.clone()).map_err(bug)?;
        }
        let mut values: HashMap<ValueId, ValueId> = HashMap::new();
        for &input in from.inputs() {
            let data = from.value(input);
            values.insert(input, to.input(&data.name, data.facts.clone()).map_err(bug)?);
        }
        let mut weights: HashMap<WeightId, WeightId> = HashMap::new();
        for (id, weight) in from.weights() {
            let expr = renumbered(&weight.expr, &weights)?;
            let value = to.weight(from.weight_name(id), from.weight_facts(id).clone(), expr).map_err(bug)?;
            values.insert(weight.value, value);
            weights.extend(to.as_weight(value).map(|new| (id, new)));
        }
        let mut stand_ins: Vec<_> = self.stand_ins.iter().collect();
        stand_ins.sort_by_key(|((node, at), _)| (node.index(), *at));
        let mut replaced = HashMap::new();
        for (operand, stand_in) in stand_ins {
            let value = match to.find_weight(&stand_in.name) {
                Some(weight) => to.weight_data(weight).value,
                None => to.tensor(&stand_in.name, stand_in.facts.clone()).map_err(bug)?,
            };
            replaced.insert(*operand, value);
        }
        for &id in &self.nodes {
            let node = from.node(id);
            let mut inputs = Vec::with_capacity(node.inputs.len());
            for (at, &input) in node.inputs.iter().enumerate() {
                let value = replaced.get(&(id, at)).or_else(|| values.get(&self.source(input)));
                inputs.push(*value.ok_or_else(|| {
                    CompileError::Bug(format!(
                        "{}: %{} is not in the excerpt",
                        from.node_label(id),
                        from.value_name(input)
                    ))
                })?);
            }
            let names: Vec<&str> = node.outputs.iter().map(|&v| from.value_name(v)).collect();
            let outputs = to.push(node.op.clone(), &inputs, &names).map_err(bug)?;
            values.extend(node.outputs.iter().copied().zip(outputs));
        }
        let outputs: Option<Vec<ValueId>> =
            self.outputs.iter().map(|v| values.get(&self.source(*v)).copied()).collect();
        to.set_outputs(&outputs.ok_or_else(|| CompileError::Bug("an excerpt without its result".into()))?);
        to.remove_dead();
        Ok(to)
    }

    fn source(&self, value: ValueId) -> ValueId {
        self.alias.get(&value).copied().unwrap_or(value)
    }
}

fn renumbered(expr: &WeightExpr, weights: &HashMap<WeightId, WeightId>) -> Result<WeightExpr> {
    let one = |w: &WeightId| {
        weights.get(w).copied().ok_or_else(|| CompileError::Bug("a recipe refers to a later weight".into()))
    };
    let all = |of: &[WeightId]| of.iter().map(one).collect::<Result<Vec<_>>>();
    Ok(match expr {
        WeightExpr::Tensor(_) | WeightExpr::RopeTable(_) => expr.clone(),
        WeightExpr::Concat(of) => WeightExpr::Concat(all(of)?),
        WeightExpr::Interleave { of, group } => WeightExpr::Interleave { of: all(of)?, group: *group },
        WeightExpr::Cast(of, dtype) => WeightExpr::Cast(one(of)?, *dtype),
        WeightExpr::Rows { of, pick } => WeightExpr::Rows { of: one(of)?, pick: *pick },
        WeightExpr::Transpose(of) => WeightExpr::Transpose(one(of)?),
        WeightExpr::Plus { of, addend } => WeightExpr::Plus { of: one(of)?, addend: *addend },
    })
}

fn bug(error: lathe_ir::IrError) -> CompileError {
    CompileError::Bug(format!("excerpt: {error}"))
}

/// The graph with the layers between the first and the last left out: what comes out of the first goes into the last.
/// `None` if there is nothing between, or no single value runs from layer to layer.
///
/// # Errors
/// As [`Excerpt::build`].
pub fn first_and_last_layer(graph: &Graph) -> Result<Option<Graph>> {
    let nodes: Vec<NodeId> = graph.nodes().map(|(id, _)| id).collect();
    let attends = |id: &NodeId| graph.op(*id).cache_layer().is_some() && !graph.op(*id).has_effects();
    let attention: Vec<usize> = (0..nodes.len()).filter(|&at| attends(&nodes[at])).collect();
    if attention.len() < 3 {
        return Ok(None);
    }
    let waists = waists(graph, &nodes);
    let last_waist =
        |from: usize, to: usize| waists.iter().rev().find(|(at, _)| (from + 1..=to).contains(at)).copied();
    let n = attention.len();
    let (Some((after_first, first)), Some((before_last, last))) =
        (last_waist(attention[0], attention[1]), last_waist(attention[n - 2], attention[n - 1]))
    else {
        return Ok(None);
    };
    // The cache's order token also runs through all layers.
    let mut alias = HashMap::from([(last, first)]);
    let state = |at: usize| {
        nodes[..at].iter().rev().flat_map(|&id| &graph.node(id).outputs).find(|v| graph.facts(**v).is_state())
    };
    if let (Some(&early), Some(&late)) = (state(after_first), state(before_last)) {
        alias.insert(late, early);
    }
    let kept = nodes[..after_first].iter().chain(&nodes[before_last..]).copied().collect();
    Excerpt { graph, nodes: kept, alias, stand_ins: HashMap::new(), outputs: graph.outputs() }
        .build()
        .map(Some)
}

/// The graph up to its first router, whose logits it returns. `None` without routers.
///
/// # Errors
/// As [`Excerpt::build`].
pub fn first_router(graph: &Graph) -> Result<Option<Graph>> {
    let nodes: Vec<NodeId> = graph.nodes().map(|(id, _)| id).collect();
    let Some(at) = nodes.iter().position(|&id| matches!(graph.op(id), Op::TopK(_))) else { return Ok(None) };
    let outputs = &graph.node(nodes[at]).inputs[..1];
    let (nodes, alias, stand_ins) = (nodes[..at].to_vec(), HashMap::new(), HashMap::new());
    Excerpt { graph, nodes, alias, stand_ins, outputs }.build().map(Some)
}

/// Positions in the node order where exactly one tensor that a node computed is still needed, and that tensor.
fn waists(graph: &Graph, nodes: &[NodeId]) -> Vec<(usize, ValueId)> {
    let computed = |v: &ValueId| matches!(graph.value(*v).def, Def::Node(_)) && !graph.facts(*v).is_state();
    let mut last_use: HashMap<ValueId, usize> = HashMap::new();
    for (at, &id) in nodes.iter().enumerate() {
        last_use.extend(graph.node(id).inputs.iter().filter(|v| computed(v)).map(|&v| (v, at)));
    }
    last_use.extend(graph.outputs().iter().map(|&v| (v, nodes.len())));
    let mut live: Vec<ValueId> = Vec::new();
    let mut found = Vec::new();
    for (at, &id) in nodes.iter().enumerate() {
        live.retain(|v| last_use.get(v).is_some_and(|&last| last >= at));
        if let [only] = live[..] {
            found.push((at, only));
        }
        live.extend(graph.node(id).outputs.iter().filter(|v| computed(v)));
    }
    found
}

//! A proposed edit: new nodes and weights, and which old values they replace.
//!
//! Tables only grow, so a patch hands out the ids that its values will have, and rules mix old and new ids freely.
//! The fact check lives in [`Patch::replace`], so no rule can forget it.

use std::collections::{HashMap, HashSet};

use crate::driver::Precision;
use crate::entity::{Id, NodeId, ValueId};
use crate::error::IrError;
use crate::facts::Facts;
use crate::graph::{Def, Graph};
use crate::op::Args;
use crate::ops::Op;
use crate::weight::WeightExpr;

/// An edit of one graph, built by a rule and applied by the driver.
pub struct Patch<'g> {
    g: &'g Graph,
    edit: Edit,
}

struct NewNode {
    op: Op,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
}

enum NewValue {
    Weight { name: String, facts: Facts, expr: WeightExpr },
    Result { name: Option<String>, facts: Facts },
}

/// A finished patch, free of the borrow of its graph.
pub struct Edit {
    first_value: usize,
    first_node: usize,
    n_weights: usize,
    values: Vec<NewValue>,
    nodes: Vec<NewNode>,
    replaced: Vec<(ValueId, ValueId)>,
    pub(crate) precision: Option<Precision>,
}

impl<'g> Patch<'g> {
    /// An empty patch of `g`.
    pub fn new(g: &'g Graph) -> Self {
        let edit = Edit {
            first_value: g.values.len(),
            first_node: g.nodes.len(),
            n_weights: g.weights.len(),
            values: Vec::new(),
            nodes: Vec::new(),
            replaced: Vec::new(),
            precision: None,
        };
        Self { g, edit }
    }

    /// Facts of an old or new value.
    pub fn facts(&self, value: ValueId) -> &Facts {
        match value.index().checked_sub(self.edit.first_value).and_then(|i| self.edit.values.get(i)) {
            Some(NewValue::Weight { facts, .. } | NewValue::Result { facts, .. }) => facts,
            None => self.g.facts(value),
        }
    }

    fn push(&mut self, value: NewValue) -> ValueId {
        self.edit.values.push(value);
        ValueId::from_index(self.edit.first_value + self.edit.values.len() - 1)
    }

    /// Adds a node with any number of results. They take the name of what they replace, else that of the first
    /// replaced value with the op's name as suffix; [`Patch::name`] overrides.
    ///
    /// # Errors
    /// [`IrError::Operand`] if the op refuses its operands.
    pub fn add_all(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> Result<Vec<ValueId>, IrError> {
        let op = op.into();
        let facts: Vec<&Facts> = inputs.iter().map(|&v| self.facts(v)).collect();
        let made = op
            .infer(&Args::new(&facts, self.g.cache()))
            .map_err(|reason| IrError::Operand { node: format!("new {}", op.name()), reason })?;
        let outputs: Vec<ValueId> =
            made.into_iter().map(|facts| self.push(NewValue::Result { name: None, facts })).collect();
        self.edit.nodes.push(NewNode { op, inputs: inputs.to_vec(), outputs: outputs.clone() });
        Ok(outputs)
    }

    /// [`Patch::add_all`] for the first result.
    ///
    /// # Errors
    /// As [`Patch::add_all`].
    pub fn add(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> Result<ValueId, IrError> {
        Ok(self.add_all(op, inputs)?[0])
    }

    /// Wishes a name for a new result; a suffix is added if it is taken.
    pub fn name(&mut self, value: ValueId, wish: &str) {
        let new = value.index().checked_sub(self.edit.first_value).and_then(|i| self.edit.values.get_mut(i));
        if let Some(NewValue::Result { name, .. }) = new {
            *name = Some(wish.into());
        }
    }

    /// The weight `name` made by `expr` over old weights; the facts are those of the recipe. An equal declaration that
    /// stands already is used again.
    ///
    /// # Errors
    /// If the name is taken by another declaration, or the recipe does not fit its operands.
    pub fn weight(&mut self, name: &str, expr: WeightExpr) -> Result<ValueId, IrError> {
        let fail = |reason: String| IrError::Weight { name: name.into(), reason };
        if let Some(old) = expr.operands().iter().find(|w| w.index() >= self.edit.n_weights) {
            return Err(fail(format!("refers to weight number {} of the same patch", old.index())));
        }
        let operands: Vec<&Facts> = expr.operands().iter().map(|&w| self.g.weight_facts(w)).collect();
        let facts = expr.infer(&operands).map_err(fail)?;
        let facts =
            facts.ok_or_else(|| fail("a patch makes weights of weights, not checkpoint tensors".into()))?;
        if let Some(old) = self.g.find_weight(name).map(|w| self.g.weight_data(w)) {
            return if old.expr == expr { Ok(old.value) } else { Err(fail("declared twice".into())) };
        }
        let wanted = |v: &NewValue| match v {
            NewValue::Weight { name: n, expr: e, .. } if n == name => Some(*e == expr),
            _ => None,
        };
        let made = self.edit.values.iter().enumerate().find_map(|(i, v)| wanted(v).map(|same| (i, same)));
        match made {
            Some((i, true)) => return Ok(ValueId::from_index(self.edit.first_value + i)),
            Some((_, false)) => return Err(fail("declared twice".into())),
            None => {}
        }
        self.g.check_fresh_weight(name)?;
        Ok(self.push(NewValue::Weight { name: name.into(), facts, expr }))
    }

    /// Lets `new` stand wherever `old` was used. Nodes that are not needed any more go.
    ///
    /// # Errors
    /// [`IrError::Refused`] if the facts differ, or `old` is no result of a node.
    pub fn replace(&mut self, old: ValueId, new: ValueId) -> Result<(), IrError> {
        let refused =
            |reason: String| IrError::Refused { subject: format!("%{}", self.g.value_name(old)), reason };
        if self.g.producer(old).is_none() {
            return Err(refused("only results of nodes can be replaced".into()));
        }
        if self.facts(new) != self.g.facts(old) {
            let (was, is) = (self.g.facts_text(old), self.facts(new).text(self.g.symbols()));
            return Err(refused(format!("the facts change from {was} to {is}")));
        }
        let clash = |&(o, n): &(ValueId, ValueId)| o == old || o == new || n == old;
        if old == new || self.edit.replaced.iter().any(clash) {
            return Err(refused("replaced twice, or by itself".into()));
        }
        self.edit.replaced.push((old, new));
        Ok(())
    }

    /// States that this application is exact although its rule in general is not.
    pub fn mark_exact(&mut self) {
        self.edit.precision = Some(Precision::Exact);
    }

    /// Ends the borrow of the graph.
    pub fn finish(self) -> Edit {
        self.edit
    }
}

impl Edit {
    /// Applies the patch at `root`, all or nothing. New nodes stand where the root stood, or earlier if a user needs it;
    /// other nodes keep their order.
    ///
    /// # Errors
    /// [`IrError::Refused`] for an empty patch, one made for another graph, or one that closes a cycle.
    pub fn apply(self, g: &mut Graph, root: NodeId) -> Result<(), IrError> {
        let refused = |reason: &str| IrError::Refused { subject: g.node_label(root), reason: reason.into() };
        if (self.first_value, self.first_node, self.n_weights)
            != (g.values.len(), g.nodes.len(), g.weights.len())
        {
            return Err(refused("made for another state of the graph"));
        }
        if self.replaced.is_empty() {
            return Err(refused("replaces nothing"));
        }
        let mut next = g.clone();
        let subst: HashMap<ValueId, ValueId> = self.replaced.iter().copied().collect();
        for &id in &g.order {
            for v in &mut next.nodes[id].inputs {
                *v = subst.get(v).copied().unwrap_or(*v);
            }
        }
        for v in &mut next.outputs {
            *v = subst.get(v).copied().unwrap_or(*v);
        }
        let new_nodes: Vec<NodeId> =
            (0..self.nodes.len()).map(|i| NodeId::from_index(self.first_node + i)).collect();
        self.append(&mut next);
        let removed = unneeded(&next, &new_nodes, &self.replaced);

        let mut wanted = Vec::with_capacity(next.order.len() + new_nodes.len());
        for &id in &g.order {
            if id == root {
                wanted.extend(new_nodes.iter().copied());
            }
            if !removed.contains(&id) {
                wanted.push(id);
            }
        }
        let order =
            depend(&next, &wanted).ok_or_else(|| refused("a new node needs a result that needs it"))?;
        next.set_order(order);
        self.rename(&mut next, &removed);
        next.forget_lines();
        *g = next;
        Ok(())
    }

    /// Appends values, weights and nodes under the ids that the patch handed out. Results get names that are not in use.
    fn append(&self, g: &mut Graph) {
        let producers: HashMap<ValueId, NodeId> = self
            .nodes
            .iter()
            .enumerate()
            .flat_map(|(i, n)| n.outputs.iter().map(move |&v| (v, NodeId::from_index(self.first_node + i))))
            .collect();
        let base = self.replaced.first().map_or(String::new(), |r| g.value_name(r.0).to_string());
        for (i, value) in self.values.iter().enumerate() {
            let id = ValueId::from_index(self.first_value + i);
            match value {
                NewValue::Weight { name, facts, expr } => {
                    g.add_weight(name.clone(), facts.clone(), expr.clone(), None);
                }
                NewValue::Result { name, facts } => {
                    let node = producers[&id];
                    let op = self.nodes[node.index() - self.first_node].op.name();
                    let wish = name.clone().unwrap_or_else(|| format!("{base}.{op}"));
                    let name = g.fresh_name(&wish);
                    g.add_value(name, facts.clone(), Def::Node(node));
                }
            }
        }
        for node in &self.nodes {
            g.nodes.push(crate::graph::Node {
                op: node.op.clone(),
                inputs: node.inputs.clone(),
                outputs: node.outputs.clone(),
                line: None,
            });
        }
    }

    /// A new value takes over the name of the first value that it replaces, if that one is gone.
    fn rename(&self, g: &mut Graph, removed: &HashSet<NodeId>) {
        let mut named: HashSet<ValueId> = HashSet::new();
        for &(old, new) in &self.replaced {
            let gone = g.producer(old).is_some_and(|n| removed.contains(&n));
            let is_new = new.index() >= self.first_value && g.as_weight(new).is_none();
            let wished = matches!(
                new.index().checked_sub(self.first_value).and_then(|i| self.values.get(i)),
                Some(NewValue::Result { name: Some(_), .. })
            );
            if gone && is_new && !wished && named.insert(new) {
                let name = g.value_name(old).to_string();
                g.rename(new, name);
            }
        }
    }
}

/// Old nodes that the replacement leaves without users. A node with effects goes only if the patch replaces a result
/// of it, for then the patch has taken over the effect.
fn unneeded(g: &Graph, new_nodes: &[NodeId], replaced: &[(ValueId, ValueId)]) -> HashSet<NodeId> {
    let mut users: HashMap<ValueId, usize> = HashMap::new();
    let operands = g.order.iter().chain(new_nodes).flat_map(|&n| &g.nodes[n].inputs);
    operands.chain(&g.outputs).for_each(|&v| *users.entry(v).or_default() += 1);
    let taken_over: HashSet<ValueId> = replaced.iter().map(|r| r.0).collect();

    let mut removed = HashSet::new();
    let mut queue: Vec<NodeId> = replaced.iter().filter_map(|r| g.producer(r.0)).collect();
    while let Some(id) = queue.pop() {
        let node = &g.nodes[id];
        let used = node.outputs.iter().any(|v| users.get(v).is_some_and(|&n| n > 0));
        let effect_stays = node.op.has_effects() && !node.outputs.iter().any(|v| taken_over.contains(v));
        if used || effect_stays || new_nodes.contains(&id) || !removed.insert(id) {
            continue;
        }
        for v in &node.inputs {
            if let Some(n) = users.get_mut(v) {
                *n -= 1;
            }
            queue.extend(g.producer(*v));
        }
    }
    removed
}

/// `wanted`, each node after the producers of its operands, otherwise in the given order; `None` for a cycle.
fn depend(g: &Graph, wanted: &[NodeId]) -> Option<Vec<NodeId>> {
    enum Mark {
        Open,
        Done,
    }
    let known: HashSet<NodeId> = wanted.iter().copied().collect();
    let mut marks: HashMap<NodeId, Mark> = HashMap::new();
    let mut order = Vec::with_capacity(wanted.len());
    for &start in wanted {
        let mut stack = vec![start];
        while let Some(&id) = stack.last() {
            match marks.get(&id) {
                Some(Mark::Done) => {
                    stack.pop();
                }
                Some(Mark::Open) => {
                    marks.insert(id, Mark::Done);
                    order.push(id);
                    stack.pop();
                }
                None => {
                    marks.insert(id, Mark::Open);
                    for producer in g.nodes[id].inputs.iter().rev().filter_map(|&v| g.producer(v)) {
                        match marks.get(&producer) {
                            Some(Mark::Done) => {}
                            Some(Mark::Open) => return None,
                            None if known.contains(&producer) => stack.push(producer),
                            None => return None,
                        }
                    }
                }
            }
        }
    }
    Some(order)
}

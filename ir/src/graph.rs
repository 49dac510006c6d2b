//! The graph: append-only tables of values, nodes and weights, and the order in which nodes stand in the text.
//!
//! Ids stay valid for the graph's life. A removed node leaves the order, not the table, so side tables never shift.

use std::collections::{HashMap, HashSet};

use crate::entity::{Id, NodeId, SymbolId, Table, ValueId, WeightId};
use crate::error::IrError;
use crate::facts::{Bindings, Cache, Facts, Symbol, Symbols};
use crate::op::{Args, Cost};
use crate::ops::Op;
use crate::weight::{Weight, WeightExpr};

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Def {
    /// An input of the graph.
    Input,
    /// A weight.
    Weight(WeightId),
    /// A result of a node.
    Node(NodeId),
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueData {
    /// Name without sigil, unique among the graph's values of its kind.
    pub name: String,
    /// Facts.
    pub facts: Facts,
    /// Origin.
    pub def: Def,
}

/// An operation with its operands and results.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// Operands.
    pub inputs: Vec<ValueId>,
    /// Results.
    pub outputs: Vec<ValueId>,
    pub(crate) line: Option<u32>,
}

/// Where the parts of a parsed graph stood.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lines {
    pub header: u32,
    pub cache: u32,
    pub outputs: u32,
}

/// A function from inputs, weights and cache to outputs.
#[derive(Clone, Debug)]
pub struct Graph {
    /// Name without `@`.
    pub name: String,
    pub(crate) symbols: Symbols,
    pub(crate) cache: Option<Cache>,
    pub(crate) weights: Table<WeightId, Weight>,
    pub(crate) weight_order: Vec<WeightId>,
    pub(crate) values: Table<ValueId, ValueData>,
    pub(crate) nodes: Table<NodeId, Node>,
    pub(crate) order: Vec<NodeId>,
    pub(crate) inputs: Vec<ValueId>,
    pub(crate) outputs: Vec<ValueId>,
    pub(crate) lines: Option<Lines>,
    names: HashMap<String, ValueId>,
    weight_names: HashMap<String, WeightId>,
}

/// True for names that text can hold: letters, digits, `_`, `.`, `-`.
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// True for names of symbols: a letter or `_`, then letters, digits, `_`; not the word `in`.
pub fn is_symbol_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn bad_name(sigil: char, name: &str, reason: &str) -> IrError {
    IrError::Name { name: format!("{sigil}{name}"), reason: reason.into() }
}

impl Graph {
    /// An empty graph.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            symbols: Table::new(),
            cache: None,
            weights: Table::new(),
            weight_order: Vec::new(),
            values: Table::new(),
            nodes: Table::new(),
            order: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            lines: None,
            names: HashMap::new(),
            weight_names: HashMap::new(),
        }
    }

    // --- Building ---

    /// Declares a symbol with inclusive bounds.
    ///
    /// # Errors
    /// If the name is malformed or taken.
    pub fn symbol(&mut self, name: &str, min: usize, max: usize) -> Result<SymbolId, IrError> {
        if !is_symbol_name(name) {
            return Err(IrError::Name { name: name.into(), reason: "malformed symbol name".into() });
        }
        if self.find_symbol(name).is_some() {
            return Err(IrError::Name { name: name.into(), reason: "symbol declared twice".into() });
        }
        Ok(self.symbols.push(Symbol { name: name.into(), min, max }))
    }

    /// Declares the KV cache, replacing an earlier declaration.
    ///
    /// # Errors
    /// If the name is malformed.
    pub fn set_cache(&mut self, cache: Cache) -> Result<(), IrError> {
        if !is_name(&cache.name) {
            return Err(bad_name('@', &cache.name, "malformed name"));
        }
        self.cache = Some(cache);
        Ok(())
    }

    /// Adds a graph input. The interpreter fills `tokens`, `positions`, `rows` and states from the batch.
    ///
    /// # Errors
    /// If the name is malformed or taken.
    pub fn input(&mut self, name: &str, facts: Facts) -> Result<ValueId, IrError> {
        self.check_fresh(name)?;
        let value = self.add_value(name.into(), facts, Def::Input);
        self.inputs.push(value);
        Ok(value)
    }

    /// Declares a weight. `facts` must be fixed; recipes may only refer to weights declared before.
    ///
    /// # Errors
    /// If the name is malformed or taken.
    pub fn weight(&mut self, name: &str, facts: Facts, expr: WeightExpr) -> Result<ValueId, IrError> {
        self.check_fresh_weight(name)?;
        Ok(self.add_weight(name.into(), facts, expr, None))
    }

    /// Declares a weight that is the checkpoint tensor of the same name.
    ///
    /// # Errors
    /// As [`Graph::weight`].
    pub fn tensor(&mut self, name: &str, facts: Facts) -> Result<ValueId, IrError> {
        self.weight(name, facts, WeightExpr::Tensor(name.into()))
    }

    /// Appends a node, infers the facts of its results and names them.
    ///
    /// # Errors
    /// If the op refuses its operands, or a name is malformed, taken, or one too few or many.
    pub fn push(
        &mut self,
        op: impl Into<Op>,
        inputs: &[ValueId],
        names: &[&str],
    ) -> Result<Vec<ValueId>, IrError> {
        let op = op.into();
        for name in names {
            self.check_fresh(name)?;
        }
        let facts = self.infer(&op, inputs).map_err(|reason| IrError::Operand {
            node: format!("{} %{}", op.name(), names.first().unwrap_or(&"?")),
            reason,
        })?;
        if facts.len() != names.len() {
            return Err(IrError::Operand {
                node: format!("{} %{}", op.name(), names.first().unwrap_or(&"?")),
                reason: format!("{} results, {} names", facts.len(), names.len()),
            });
        }
        let outs = names.iter().map(|n| n.to_string()).zip(facts).collect();
        Ok(self.push_stated(op, inputs.to_vec(), outs, None))
    }

    /// [`Graph::push`] for an op with one result.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn push1(&mut self, op: impl Into<Op>, inputs: &[ValueId], name: &str) -> Result<ValueId, IrError> {
        Ok(self.push(op, inputs, &[name])?[0])
    }

    /// Sets the graph's results.
    pub fn set_outputs(&mut self, outputs: &[ValueId]) {
        self.outputs = outputs.to_vec();
    }

    pub(crate) fn infer(&self, op: &Op, inputs: &[ValueId]) -> Result<Vec<Facts>, String> {
        let facts: Vec<&Facts> = inputs.iter().map(|&v| self.facts(v)).collect();
        op.infer(&Args::new(&facts, self.cache.as_ref()))
    }

    pub(crate) fn push_stated(
        &mut self,
        op: Op,
        inputs: Vec<ValueId>,
        outs: Vec<(String, Facts)>,
        line: Option<u32>,
    ) -> Vec<ValueId> {
        let node = self.nodes.next_id();
        let outputs: Vec<ValueId> =
            outs.into_iter().map(|(name, facts)| self.add_value(name, facts, Def::Node(node))).collect();
        self.nodes.push(Node { op, inputs, outputs: outputs.clone(), line });
        self.order.push(node);
        outputs
    }

    pub(crate) fn add_value(&mut self, name: String, facts: Facts, def: Def) -> ValueId {
        let value = self.values.push(ValueData { name: name.clone(), facts, def });
        if !matches!(def, Def::Weight(_)) {
            self.names.insert(name, value);
        }
        value
    }

    pub(crate) fn add_weight(
        &mut self,
        name: String,
        facts: Facts,
        expr: WeightExpr,
        line: Option<u32>,
    ) -> ValueId {
        let weight = self.weights.next_id();
        let value = self.add_value(name.clone(), facts, Def::Weight(weight));
        self.weights.push(Weight { value, expr, line });
        self.weight_order.push(weight);
        self.weight_names.insert(name, weight);
        value
    }

    pub(crate) fn check_fresh(&self, name: &str) -> Result<(), IrError> {
        if !is_name(name) {
            return Err(bad_name('%', name, "malformed name"));
        }
        if self.names.contains_key(name) {
            return Err(bad_name('%', name, "defined twice"));
        }
        Ok(())
    }

    pub(crate) fn check_fresh_weight(&self, name: &str) -> Result<(), IrError> {
        if !is_name(name) {
            return Err(bad_name('@', name, "malformed name"));
        }
        if self.weight_names.contains_key(name) || self.cache.as_ref().is_some_and(|c| c.name == name) {
            return Err(bad_name('@', name, "declared twice"));
        }
        Ok(())
    }

    /// `base`, or `base` with the first free suffix `.1`, `.2`, ...
    pub fn fresh_name(&self, base: &str) -> String {
        if !self.names.contains_key(base) {
            return base.into();
        }
        let mut n = 1_u64;
        loop {
            let name = format!("{base}.{n}");
            if !self.names.contains_key(&name) {
                return name;
            }
            n += 1;
        }
    }

    pub(crate) fn rename(&mut self, value: ValueId, name: String) {
        if self.names.get(&self.values[value].name) == Some(&value) {
            self.names.remove(&self.values[value].name);
        }
        self.names.insert(name.clone(), value);
        self.values[value].name = name;
    }

    // --- Reading ---

    /// Nodes in order.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> {
        self.order.iter().map(|&id| (id, &self.nodes[id]))
    }

    /// Number of nodes in the order.
    pub fn n_nodes(&self) -> usize {
        self.order.len()
    }

    /// A node; also one that was removed.
    pub fn node(&self, node: NodeId) -> &Node {
        &self.nodes[node]
    }

    /// A node's operation.
    pub fn op(&self, node: NodeId) -> &Op {
        &self.nodes[node].op
    }

    /// Operand `at` of a node. Panics outside the operands; see [`Graph::node`] for a checked look.
    pub fn input_of(&self, node: NodeId, at: usize) -> ValueId {
        self.nodes[node].inputs[at]
    }

    /// First result of a node; every op has one.
    pub fn output_of(&self, node: NodeId) -> ValueId {
        self.nodes[node].outputs[0]
    }

    /// A value.
    pub fn value(&self, value: ValueId) -> &ValueData {
        &self.values[value]
    }

    /// A value's facts.
    pub fn facts(&self, value: ValueId) -> &Facts {
        &self.values[value].facts
    }

    /// A value's name without sigil.
    pub fn value_name(&self, value: ValueId) -> &str {
        &self.values[value].name
    }

    /// The node that yields the value; `None` for inputs and weights.
    pub fn producer(&self, value: ValueId) -> Option<NodeId> {
        match self.values[value].def {
            Def::Node(node) => Some(node),
            Def::Input | Def::Weight(_) => None,
        }
    }

    /// The weight that the value is; `None` for others.
    pub fn as_weight(&self, value: ValueId) -> Option<WeightId> {
        match self.values[value].def {
            Def::Weight(weight) => Some(weight),
            Def::Input | Def::Node(_) => None,
        }
    }

    /// A weight's declaration.
    pub fn weight_data(&self, weight: WeightId) -> &Weight {
        &self.weights[weight]
    }

    /// A weight's name without `@`.
    pub fn weight_name(&self, weight: WeightId) -> &str {
        self.value_name(self.weights[weight].value)
    }

    /// A weight's facts.
    pub fn weight_facts(&self, weight: WeightId) -> &Facts {
        self.facts(self.weights[weight].value)
    }

    /// Weights in order of declaration.
    pub fn weights(&self) -> impl Iterator<Item = (WeightId, &Weight)> {
        self.weight_order.iter().map(|&id| (id, &self.weights[id]))
    }

    /// Graph inputs.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// Graph results.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// Declared symbols.
    pub fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    /// The declared KV cache.
    pub fn cache(&self) -> Option<&Cache> {
        self.cache.as_ref()
    }

    /// The input or result with this name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.names.get(name).copied()
    }

    /// The weight with this name.
    pub fn find_weight(&self, name: &str) -> Option<WeightId> {
        self.weight_names.get(name).copied()
    }

    /// The symbol with this name.
    pub fn find_symbol(&self, name: &str) -> Option<SymbolId> {
        self.symbols.iter().find(|(_, s)| s.name == name).map(|(id, _)| id)
    }

    /// `op %first_result`, as errors and logs name a node.
    pub fn node_label(&self, node: NodeId) -> String {
        let node = &self.nodes[node];
        match node.outputs.first() {
            Some(&v) => format!("{} %{}", node.op.name(), self.value_name(v)),
            None => node.op.name().into(),
        }
    }

    /// Facts in text, e.g. `bf16[t, 256]`.
    pub fn facts_text(&self, value: ValueId) -> String {
        self.facts(value).text(&self.symbols)
    }

    /// Work of a node at the given symbol values.
    pub fn cost(&self, node: NodeId, at: &Bindings) -> Cost {
        let node = &self.nodes[node];
        let facts = |vs: &[ValueId]| vs.iter().map(|&v| self.facts(v)).collect::<Vec<_>>();
        node.op.cost(&facts(&node.inputs), &facts(&node.outputs), at)
    }

    /// Who uses each value now.
    pub fn uses(&self) -> Uses {
        let mut users = vec![Vec::new(); self.values.len()];
        let mut returned = vec![0; self.values.len()];
        for (id, node) in self.nodes() {
            node.inputs.iter().for_each(|v| users[v.index()].push(id));
        }
        self.outputs.iter().for_each(|v| returned[v.index()] += 1);
        Uses { users, returned }
    }

    // --- Editing ---

    /// Changes the bounds of a symbol.
    pub fn set_bounds(&mut self, symbol: SymbolId, min: usize, max: usize) {
        self.symbols[symbol].min = min;
        self.symbols[symbol].max = max;
    }

    /// Drops nodes whose results nobody needs and which have no effects, and weights that no node or recipe needs.
    /// Returns how many nodes and weights went.
    pub fn remove_dead(&mut self) -> (usize, usize) {
        let mut needed: HashSet<ValueId> = self.outputs.iter().copied().collect();
        let mut kept = Vec::with_capacity(self.order.len());
        for &id in self.order.iter().rev() {
            let node = &self.nodes[id];
            if node.op.has_effects() || node.outputs.iter().any(|v| needed.contains(v)) {
                needed.extend(node.inputs.iter().copied());
                kept.push(id);
            }
        }
        kept.reverse();
        let n_nodes = self.order.len() - kept.len();
        self.set_order(kept);

        let mut live: HashSet<WeightId> = HashSet::new();
        for &id in self.weight_order.iter().rev() {
            if live.contains(&id) || needed.contains(&self.weights[id].value) {
                live.insert(id);
                live.extend(self.weights[id].expr.operands().iter().copied());
            }
        }
        let n_weights = self.weight_order.len() - live.len();
        self.weight_order.retain(|id| live.contains(id));
        self.weight_names.retain(|_, id| live.contains(id));
        (n_nodes, n_weights)
    }

    /// Forgets where things stood in a text, once the graph is not that text's any more.
    pub(crate) fn forget_lines(&mut self) {
        self.lines = None;
        for &id in &self.order {
            self.nodes[id].line = None;
        }
        for &id in &self.weight_order {
            self.weights[id].line = None;
        }
    }

    /// Sets the order; names of nodes that are not in it become free.
    pub(crate) fn set_order(&mut self, order: Vec<NodeId>) {
        let live: HashSet<NodeId> = order.iter().copied().collect();
        let values = &self.values;
        self.names.retain(|_, v| match values[*v].def {
            Def::Node(node) => live.contains(&node),
            Def::Input | Def::Weight(_) => true,
        });
        self.order = order;
    }
}

/// Users of each value at one moment.
#[derive(Clone, Debug)]
pub struct Uses {
    users: Vec<Vec<NodeId>>,
    returned: Vec<usize>,
}

impl Uses {
    /// Nodes that take the value, in order; one entry per operand.
    pub fn of(&self, value: ValueId) -> &[NodeId] {
        self.users.get(value.index()).map_or(&[], Vec::as_slice)
    }

    /// True if the graph returns the value.
    pub fn is_returned(&self, value: ValueId) -> bool {
        self.returned.get(value.index()).is_some_and(|&n| n > 0)
    }

    /// The node that is the value's only user, once; `None` if there are more or the graph returns it.
    pub fn only_user(&self, value: ValueId) -> Option<NodeId> {
        match self.of(value) {
            [user] if !self.is_returned(value) => Some(*user),
            _ => None,
        }
    }
}

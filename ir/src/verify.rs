//! The verifier. It checks, and returns every fault it finds:
//!
//! 1. symbol bounds are not empty, and no extent is negative within them;
//! 2. the cache has a float type and no extent of 0;
//! 3. weights have fixed, non-empty float shapes, a recipe yields exactly the declared facts, and checkpoint names are
//!    printable ASCII without quotes and backslashes, as the text form needs;
//! 4. operands are defined before use, and stand as weights exactly where the op asks for a weight;
//! 5. each op accepts its operands and attributes (its own list is in its file), and the facts of each result are the
//!    inferred ones;
//! 6. the cache order is a chain: a state is written from once, a layer is written once, and what reads a layer takes a
//!    state that comes after the layer's write;
//! 7. the graph returns at least one value, and only values that exist.
//!
//! Names are unique and well-formed, and recipes refer backwards, by construction.

use std::collections::{BTreeSet, HashMap, HashSet};

use lathe_numerics::DType;

use crate::entity::{NodeId, ValueId, WeightId};
use crate::error::{Fault, IrError};
use crate::facts::Facts;
use crate::graph::{Def, Graph};
use crate::weight::WeightExpr;

/// Checks the whole graph.
///
/// # Errors
/// [`IrError::Invalid`] with every fault.
pub fn verify(graph: &Graph) -> Result<(), IrError> {
    let faults = faults(graph);
    if faults.is_empty() { Ok(()) } else { Err(IrError::Invalid(faults)) }
}

/// All faults of a graph, in order of the text.
pub fn faults(graph: &Graph) -> Vec<Fault> {
    let mut check = Check { g: graph, faults: Vec::new() };
    check.header();
    check.weights();
    check.nodes();
    check.cache_order();
    check.outputs();
    check.faults.sort_by_key(|f| f.line);
    check.faults
}

struct Check<'a> {
    g: &'a Graph,
    faults: Vec<Fault>,
}

impl Check<'_> {
    fn fault(&mut self, subject: String, line: u32, reason: impl Into<String>) {
        self.faults.push(Fault { subject, line, reason: reason.into() });
    }

    fn weight_fault(&mut self, id: WeightId, reason: impl Into<String>) {
        let g = self.g;
        let at = g.weight_order.iter().position(|&w| w == id).unwrap_or(0);
        let line = g.weights[id].line.unwrap_or((2 + usize::from(g.cache.is_some()) + at) as u32);
        self.fault(format!("weight @{}", g.weight_name(id)), line, reason);
    }

    fn node_fault(&mut self, id: NodeId, reason: impl Into<String>) {
        let g = self.g;
        let at = g.order.iter().position(|&n| n == id).unwrap_or(0);
        let before = 2 + usize::from(g.cache.is_some()) + g.weight_order.len();
        let line = g.nodes[id].line.unwrap_or((before + at) as u32);
        self.fault(g.node_label(id), line, reason);
    }

    fn header(&mut self) {
        let g = self.g;
        let (header, cache_line) = g.lines.map_or((1, 2), |l| (l.header, l.cache));
        for (_, symbol) in g.symbols.iter() {
            if symbol.min > symbol.max {
                let reason = format!("bounds {}..={} are empty", symbol.min, symbol.max);
                self.fault(format!("symbol {}", symbol.name), header, reason);
            }
        }
        for &v in &g.inputs {
            if let Some(reason) = self.negative(v) {
                self.fault(format!("input %{}", g.value_name(v)), header, reason);
            }
        }
        if let Some(cache) = &g.cache {
            let subject = format!("cache @{}", cache.name);
            if !cache.dtype.is_float() {
                self.fault(
                    subject.clone(),
                    cache_line,
                    format!("type is {}, expected a float type", cache.dtype),
                );
            }
            if cache.layers == 0 || cache.kv_heads == 0 || cache.head_dim == 0 {
                self.fault(subject, cache_line, "an extent is 0");
            }
        }
    }

    fn negative(&self, value: ValueId) -> Option<String> {
        let shape = self.g.facts(value).shape();
        let low = shape.iter().map(|d| (d, d.bounds(&self.g.symbols).0)).find(|(_, low)| *low < 0)?;
        Some(format!("extent {} can be {}", low.0.text(&self.g.symbols), low.1))
    }

    fn weights(&mut self) {
        let g = self.g;
        for (id, weight) in g.weights() {
            let facts = g.facts(weight.value);
            if !facts.dtype().is_some_and(DType::is_float) {
                self.weight_fault(id, format!("is {}, expected a float tensor", facts.text(&g.symbols)));
                continue;
            }
            if facts.fixed_shape().is_none_or(|s| s.contains(&0)) {
                self.weight_fault(id, format!("shape {} is symbolic or empty", facts.text(&g.symbols)));
                continue;
            }
            if let WeightExpr::Tensor(name) = &weight.expr
                && !name.chars().all(|c| matches!(c, ' '..='~') && c != '"' && c != '\\')
            {
                self.weight_fault(id, format!("checkpoint name {name:?} cannot stand in text"));
            }
            let operands: Vec<&Facts> = weight.expr.operands().iter().map(|&w| g.weight_facts(w)).collect();
            match weight.expr.infer(&operands) {
                Ok(Some(made)) if made != *facts => {
                    let (made, stated) = (made.text(&g.symbols), facts.text(&g.symbols));
                    self.weight_fault(id, format!("recipe makes {made}, declared {stated}"));
                }
                Ok(_) => {}
                Err(reason) => self.weight_fault(id, reason),
            }
        }
    }

    fn nodes(&mut self) {
        let g = self.g;
        let mut defined: HashSet<ValueId> = g.inputs.iter().copied().collect();
        defined.extend(g.weights().map(|(_, w)| w.value));
        for (id, node) in g.nodes() {
            for (at, &v) in node.inputs.iter().enumerate() {
                let is_weight = matches!(g.value(v).def, Def::Weight(_));
                let name = format!("{}{}", if is_weight { '@' } else { '%' }, g.value_name(v));
                if !defined.contains(&v) {
                    self.node_fault(id, format!("operand {name} is not defined before"));
                }
                match (is_weight, node.op.is_weight(at)) {
                    (false, true) => self.node_fault(id, format!("operand {name} must be a weight")),
                    (true, false) => self.node_fault(id, format!("operand {name} must not be a weight")),
                    _ => {}
                }
            }
            match g.infer(&node.op, &node.inputs) {
                Err(reason) => self.node_fault(id, reason),
                Ok(facts) if facts.len() != node.outputs.len() => {
                    self.node_fault(id, format!("{} results, expected {}", node.outputs.len(), facts.len()));
                }
                Ok(facts) => {
                    for (&v, made) in node.outputs.iter().zip(facts) {
                        if made != *g.facts(v) {
                            let (made, stated) = (made.text(&g.symbols), g.facts_text(v));
                            let reason = format!("%{} is {made}, stated {stated}", g.value_name(v));
                            self.node_fault(id, reason);
                        }
                    }
                }
            }
            for &v in &node.outputs {
                if let Some(reason) = self.negative(v) {
                    self.node_fault(id, reason);
                }
                defined.insert(v);
            }
        }
    }

    fn cache_order(&mut self) {
        let g = self.g;
        let mut written_from: HashSet<ValueId> = HashSet::new();
        let mut layers_of: HashMap<ValueId, BTreeSet<usize>> = HashMap::new();
        let mut writers: HashMap<usize, NodeId> = HashMap::new();
        for (id, node) in g.nodes() {
            let Some(layer) = node.op.cache_layer() else { continue };
            let is_state = |v: &&ValueId| g.facts(**v).is_state();
            let Some(before) = node.inputs.iter().find(is_state) else { continue };
            let mut layers = layers_of.get(before).cloned().unwrap_or_default();
            let Some(&after) = node.outputs.iter().find(is_state) else {
                if !layers.contains(&layer) {
                    self.node_fault(id, format!("reads layer {layer} before it is written"));
                }
                continue;
            };
            if !written_from.insert(*before) {
                let name = g.value_name(*before);
                self.node_fault(id, format!("state %{name} is written from twice"));
            }
            if writers.insert(layer, id).is_some() {
                self.node_fault(id, format!("layer {layer} is written twice"));
            }
            layers.insert(layer);
            layers_of.insert(after, layers);
        }
    }

    fn outputs(&mut self) {
        let g = self.g;
        let printed = 2 + usize::from(g.cache.is_some()) + g.weight_order.len() + g.n_nodes();
        let line = g.lines.map_or(printed as u32, |l| l.outputs);
        let subject = format!("graph @{}", g.name);
        if g.outputs.is_empty() {
            self.fault(subject.clone(), line, "returns nothing");
        }
        let order: HashSet<NodeId> = g.order.iter().copied().collect();
        for &v in &g.outputs {
            if g.producer(v).is_some_and(|n| !order.contains(&n)) {
                self.fault(subject.clone(), line, format!("returns %{}, which is gone", g.value_name(v)));
            }
        }
    }
}

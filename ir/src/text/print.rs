//! Graph to canonical text.

use std::fmt;

use crate::entity::{ValueId, WeightId};
use crate::graph::{Def, Graph};
use crate::op::Attrs;
use crate::weight::WeightExpr;

impl Graph {
    fn operand(&self, value: ValueId) -> String {
        let sigil = if matches!(self.value(value).def, Def::Weight(_)) { '@' } else { '%' };
        format!("{sigil}{}", self.value_name(value))
    }

    fn operands(&self, values: &[ValueId]) -> String {
        values.iter().map(|&v| self.operand(v)).collect::<Vec<_>>().join(", ")
    }

    fn weight_names(&self, weights: &[WeightId]) -> String {
        weights.iter().map(|&w| format!("@{}", self.weight_name(w))).collect::<Vec<_>>().join(", ")
    }

    fn recipe(&self, name: &str, expr: &WeightExpr) -> String {
        match expr {
            WeightExpr::Tensor(source) if source == name => String::new(),
            WeightExpr::Tensor(source) => format!(" = tensor \"{source}\""),
            WeightExpr::Concat(of) => format!(" = concat {}", self.weight_names(of)),
            WeightExpr::Interleave { of, group } => format!(" = interleave{group} {}", self.weight_names(of)),
            WeightExpr::Rows { of, pick } => {
                let mut pick = *pick;
                let attrs = attributes(&Attrs::write(|a| pick.attrs(a)));
                format!(" = rows @{}{attrs}", self.weight_name(*of))
            }
            WeightExpr::Transpose(of) => format!(" = transpose @{}", self.weight_name(*of)),
            WeightExpr::Plus { of, addend } => {
                format!(" = plus @{} {{addend = {addend:?}}}", self.weight_name(*of))
            }
            WeightExpr::Cast(of, _) => format!(" = cast @{}", self.weight_name(*of)),
            WeightExpr::RopeTable(table) => {
                let mut table = table.clone();
                format!(" = rope_table{}", attributes(&Attrs::write(|a| table.attrs(a))))
            }
        }
    }
}

fn attributes(attrs: &std::collections::BTreeMap<&'static str, String>) -> String {
    if attrs.is_empty() {
        return String::new();
    }
    let each: Vec<String> = attrs.iter().map(|(k, v)| format!("{k} = {v}")).collect();
    format!(" {{{}}}", each.join(", "))
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts = |v: &ValueId| self.facts_text(*v);
        let inputs: Vec<String> =
            self.inputs.iter().map(|v| format!("%{}: {}", self.value_name(*v), facts(v))).collect();
        write!(f, "graph @{}({})", self.name, inputs.join(", "))?;
        let bounds: Vec<String> =
            self.symbols.iter().map(|(_, s)| format!("{} in {}..={}", s.name, s.min, s.max)).collect();
        if !bounds.is_empty() {
            write!(f, " where {}", bounds.join(", "))?;
        }
        writeln!(f, " {{")?;
        if let Some(c) = &self.cache {
            let (layers, heads, dim) = (c.layers, c.kv_heads, c.head_dim);
            writeln!(
                f,
                "  cache @{} : {}[layers={layers}, kv_heads={heads}, head_dim={dim}]",
                c.name, c.dtype
            )?;
        }
        for (id, weight) in self.weights() {
            let name = self.weight_name(id);
            writeln!(f, "  weight @{name} : {}{}", facts(&weight.value), self.recipe(name, &weight.expr))?;
        }
        for (_, node) in self.nodes() {
            let results: Vec<String> = node.outputs.iter().map(facts).collect();
            write!(f, "  {} = {}", self.operands(&node.outputs), node.op.name())?;
            if !node.inputs.is_empty() {
                write!(f, " {}", self.operands(&node.inputs))?;
            }
            writeln!(f, "{} : {}", attributes(&node.op.attrs()), results.join(", "))?;
        }
        if self.outputs.is_empty() {
            writeln!(f, "  return\n}}")
        } else {
            writeln!(f, "  return {}\n}}", self.operands(&self.outputs))
        }
    }
}

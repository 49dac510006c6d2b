//! Text to graph. Facts are taken as stated; the verifier compares them with what the ops infer.

use std::collections::BTreeMap;

use lathe_numerics::DType;

use super::cursor::{Cursor, Place};
use crate::entity::{ValueId, WeightId};
use crate::error::IrError;
use crate::facts::{Cache, Dim, Facts};
use crate::graph::{Graph, Lines};
use crate::op::{AttrValue, Attrs};
use crate::ops::Op;
use crate::rope_table::RopeTable;
use crate::weight::{RowPick, WeightExpr};

/// Reads one graph.
///
/// # Errors
/// [`IrError::Parse`] with line and column of the first fault. Never panics.
pub fn parse(text: &str) -> Result<Graph, IrError> {
    let mut p = Parser { c: Cursor::new(text), g: Graph::new("") };
    p.graph()?;
    if !p.c.at_end() {
        return p.c.expected("the end of the text");
    }
    Ok(p.g)
}

struct Parser<'a> {
    c: Cursor<'a>,
    g: Graph,
}

type Parsed<T> = Result<T, IrError>;

impl Parser<'_> {
    /// Turns another error into a parse error at `place`.
    fn at<T>(&self, place: Place, result: Result<T, IrError>) -> Parsed<T> {
        result.or_else(|e| self.c.error(place, e.to_string()))
    }

    fn graph(&mut self) -> Parsed<()> {
        if !self.c.take_word("graph") {
            return self.c.expected("\"graph\"");
        }
        let mut lines = Lines { header: self.c.here().line, ..Lines::default() };
        self.g.name = self.c.name("@")?.into();
        self.c.expect("(")?;
        // Symbols are declared after the inputs that use them: read the inputs twice.
        let inputs = self.c.here();
        while !self.c.take(")") {
            if self.c.at_end() {
                return self.c.expected("\")\"");
            }
            if self.c.attribute().is_err() {
                self.skip_character()?;
            }
        }
        if self.c.take_word("where") {
            self.symbol()?;
            while self.c.take(",") {
                self.symbol()?;
            }
        }
        let body = self.c.here();
        self.c.go_back(inputs);
        if !self.c.take(")") {
            self.input()?;
            while self.c.take(",") {
                self.input()?;
            }
            self.c.expect(")")?;
        }
        self.c.go_back(body);
        self.c.expect("{")?;
        self.body(&mut lines)?;
        self.g.lines = Some(lines);
        Ok(())
    }

    fn skip_character(&mut self) -> Parsed<()> {
        for mark in ["%", ":", ",", "[", "]", "*", "+", "-"] {
            if self.c.take(mark) {
                return Ok(());
            }
        }
        self.c.expected("an input such as %x: f32[t, 4]")
    }

    fn symbol(&mut self) -> Parsed<()> {
        let place = self.c.here();
        let name = self.c.word("a symbol")?;
        if !self.c.take_word("in") {
            return self.c.expected("\"in\"");
        }
        let min = self.c.integer()?;
        self.c.expect("..=")?;
        let max = self.c.integer()?;
        let declared = self.g.symbol(name, min, max);
        self.at(place, declared).map(drop)
    }

    fn input(&mut self) -> Parsed<()> {
        let place = self.c.here();
        let name = self.c.name("%")?;
        self.c.expect(":")?;
        let facts = self.facts()?;
        let added = self.g.input(name, facts);
        self.at(place, added).map(drop)
    }

    fn dtype(&mut self) -> Parsed<DType> {
        let place = self.c.here();
        let word = self.c.word("a type")?;
        DType::parse(word).or_else(|_| self.c.error(place, format!("{word:.40} is not a type")))
    }

    fn facts(&mut self) -> Parsed<Facts> {
        if self.c.take_word("state") {
            return Ok(Facts::State);
        }
        let dtype = self.dtype()?;
        self.c.expect("[")?;
        let mut shape = Vec::new();
        if !self.c.take("]") {
            shape.push(self.dim()?);
            while self.c.take(",") {
                shape.push(self.dim()?);
            }
            self.c.expect("]")?;
        }
        Ok(Facts::Tensor { dtype, shape })
    }

    fn dim(&mut self) -> Parsed<Dim> {
        let first = if self.c.take("-") { self.term()?.times(-1) } else { self.term()? };
        let mut dim = first;
        loop {
            if self.c.take("+") {
                dim = dim.plus(&self.term()?);
            } else if self.c.take("-") {
                dim = dim.plus(&self.term()?.times(-1));
            } else {
                return Ok(dim);
            }
        }
    }

    fn term(&mut self) -> Parsed<Dim> {
        let place = self.c.here();
        if let Ok(name) = self.c.word("a symbol") {
            return match self.g.find_symbol(name) {
                Some(symbol) => Ok(Dim::symbol(symbol)),
                None => self.c.error(place, format!("symbol {name:.40} is not declared after \"where\"")),
            };
        }
        let n = self.c.integer()?;
        if !self.c.take("*") {
            return Ok(Dim::from(n));
        }
        let place = self.c.here();
        let name = self.c.word("a symbol")?;
        match self.g.find_symbol(name) {
            Some(symbol) => Ok(Dim::symbol(symbol).times(n as i64)),
            None => self.c.error(place, format!("symbol {name:.40} is not declared after \"where\"")),
        }
    }

    fn body(&mut self, lines: &mut Lines) -> Parsed<()> {
        lines.cache = self.c.here().line;
        if self.c.take_word("cache") {
            self.cache()?;
        }
        while self.c.take_word("weight") {
            self.weight()?;
        }
        lines.outputs = self.c.here().line;
        while !self.c.take_word("return") {
            self.node()?;
            lines.outputs = self.c.here().line;
        }
        let mut outputs = Vec::new();
        if !self.c.take("}") {
            outputs.push(self.operand()?);
            while self.c.take(",") {
                outputs.push(self.operand()?);
            }
            self.c.expect("}")?;
        }
        self.g.set_outputs(&outputs);
        Ok(())
    }

    fn cache(&mut self) -> Parsed<()> {
        let place = self.c.here();
        let name = self.c.name("@")?.to_string();
        self.c.expect(":")?;
        let dtype = self.dtype()?;
        let mut extents = [0; 3];
        for (i, (open, field)) in [("[", "layers"), (",", "kv_heads"), (",", "head_dim")].iter().enumerate() {
            self.c.expect(open)?;
            if !self.c.take_word(field) {
                return self.c.expected(field);
            }
            self.c.expect("=")?;
            extents[i] = self.c.integer()?;
        }
        self.c.expect("]")?;
        let [layers, kv_heads, head_dim] = extents;
        let set = self.g.set_cache(Cache { name, dtype, layers, kv_heads, head_dim });
        self.at(place, set)
    }

    fn weight(&mut self) -> Parsed<()> {
        let place = self.c.here();
        let name = self.c.name("@")?.to_string();
        let fresh = self.g.check_fresh_weight(&name);
        self.at(place, fresh)?;
        self.c.expect(":")?;
        let facts = self.facts()?;
        let expr = if self.c.take("=") { self.recipe(&facts)? } else { WeightExpr::Tensor(name.clone()) };
        self.g.add_weight(name, facts, expr, Some(place.line));
        Ok(())
    }

    fn recipe(&mut self, facts: &Facts) -> Parsed<WeightExpr> {
        let place = self.c.here();
        let word = self.c.word("a recipe")?;
        if let Some(group) = word.strip_prefix("interleave") {
            let group =
                usize::parse(group).or_else(|why| self.c.error(place, format!("interleave: {why}")))?;
            return Ok(WeightExpr::Interleave { of: self.weight_refs()?, group });
        }
        match word {
            "tensor" => Ok(WeightExpr::Tensor(self.c.string()?.into())),
            "concat" => Ok(WeightExpr::Concat(self.weight_refs()?)),
            "cast" => match (self.weight_refs()?.as_slice(), facts.dtype()) {
                (&[of], Some(dtype)) => Ok(WeightExpr::Cast(of, dtype)),
                _ => self.c.error(place, "cast takes one weight and makes a tensor"),
            },
            "rows" | "transpose" | "plus" => {
                let &[of] = self.weight_refs()?.as_slice() else {
                    return self.c.error(place, format!("{word} takes one weight"));
                };
                let attrs = self.attributes()?;
                let (mut pick, mut addend) = (RowPick::default(), 0.0_f32);
                let read = Attrs::read(attrs, |a| match word {
                    "rows" => pick.attrs(a),
                    "plus" => a.required("addend", &mut addend),
                    _ => {}
                });
                match (read, word) {
                    (Err(why), _) => self.c.error(place, format!("{word}: {why}")),
                    (Ok(()), "rows") => Ok(WeightExpr::Rows { of, pick }),
                    (Ok(()), "plus") => Ok(WeightExpr::Plus { of, addend }),
                    (Ok(()), _) => Ok(WeightExpr::Transpose(of)),
                }
            }
            "rope_table" => {
                let attrs = self.attributes()?;
                let mut table = RopeTable::default();
                match Attrs::read(attrs, |a| table.attrs(a)) {
                    Ok(()) => Ok(WeightExpr::RopeTable(table)),
                    Err(why) => self.c.error(place, format!("rope_table: {why}")),
                }
            }
            _ => self.c.error(place, format!("unknown recipe {word:.40}")),
        }
    }

    fn weight_refs(&mut self) -> Parsed<Vec<WeightId>> {
        let mut refs = Vec::new();
        loop {
            let place = self.c.here();
            let name = self.c.name("@")?;
            match self.g.find_weight(name) {
                Some(weight) => refs.push(weight),
                None => return self.c.error(place, format!("weight @{name} is not declared before")),
            }
            if !self.c.take(",") {
                return Ok(refs);
            }
        }
    }

    fn attributes(&mut self) -> Parsed<BTreeMap<String, String>> {
        let mut attrs = BTreeMap::new();
        if !self.c.take("{") {
            return Ok(attrs);
        }
        loop {
            let place = self.c.here();
            let name = self.c.word("an attribute")?;
            self.c.expect("=")?;
            let value = self.c.attribute()?;
            if attrs.insert(name.to_string(), value.to_string()).is_some() {
                return self.c.error(place, format!("attribute {name} stands twice"));
            }
            if !self.c.take(",") {
                self.c.expect("}")?;
                return Ok(attrs);
            }
        }
    }

    fn operand(&mut self) -> Parsed<ValueId> {
        let place = self.c.here();
        if let Ok(name) = self.c.name("@") {
            return match self.g.find_weight(name) {
                Some(weight) => Ok(self.g.weight_data(weight).value),
                None => self.c.error(place, format!("weight @{name} is not declared")),
            };
        }
        let name = self.c.name("%")?;
        match self.g.find(name) {
            Some(value) => Ok(value),
            None => self.c.error(place, format!("%{name} is not defined before")),
        }
    }

    fn node(&mut self) -> Parsed<()> {
        let start = self.c.here();
        let mut names: Vec<String> = Vec::new();
        loop {
            let place = self.c.here();
            let name = self.c.name("%")?.to_string();
            let fresh = self.g.check_fresh(&name);
            self.at(place, fresh)?;
            if names.contains(&name) {
                return self.c.error(place, format!("%{name}: defined twice"));
            }
            names.push(name);
            if !self.c.take(",") {
                break;
            }
        }
        self.c.expect("=")?;
        let place = self.c.here();
        let word = self.c.word("an op")?;
        let mut inputs = Vec::new();
        let next = self.c.here();
        if !self.c.take("{") && !self.c.take(":") {
            inputs.push(self.operand()?);
            while self.c.take(",") {
                inputs.push(self.operand()?);
            }
        } else {
            self.c.go_back(next);
        }
        let attrs = self.attributes()?;
        let op = match Op::from_text(word, attrs) {
            Ok(op) => op,
            Err(why) => return self.c.error(place, format!("{word:.40} %{}: {why}", names[0])),
        };
        self.c.expect(":")?;
        let mut facts = vec![self.facts()?];
        while self.c.take(",") {
            facts.push(self.facts()?);
        }
        if facts.len() != names.len() {
            return self.c.error(start, format!("{} results, {} facts", names.len(), facts.len()));
        }
        self.g.push_stated(op, inputs, names.into_iter().zip(facts).collect(), Some(start.line));
        Ok(())
    }
}

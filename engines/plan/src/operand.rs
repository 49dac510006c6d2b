//! The one way of writing each kind of operand, so that emitter, verifier and engines agree.

use lathe_numerics::DType;

use crate::schema::{
    Buffer, CacheGroup, CacheLayer, Expr, Input, Launch, Operand, Param, Place, Program, Symbol, Weight,
};

/// Index of `t`, tokens in the step, in `Program::symbols`.
pub const TOKENS: u32 = 0;
/// Index of `s`, sequences in the step.
pub const SEQUENCES: u32 = 1;
/// Index of `r`, rows whose logits are wanted.
pub const ROWS: u32 = 2;
/// Names in the order of `Program::symbols`.
pub const SYMBOL_NAMES: [&str; 3] = ["t", "s", "r"];

impl Expr {
    /// A number.
    pub fn constant(constant: u64) -> Self {
        Expr { constant, terms: Vec::new() }
    }

    /// A symbol: `TOKENS`, `SEQUENCES` or `ROWS`.
    pub fn symbol(symbol: u32) -> Self {
        Expr { constant: 0, terms: vec![(symbol, 1)] }
    }

    /// The value under `values`, one per symbol. `None` where a symbol is missing or 64 bits do not hold it.
    pub fn eval(&self, values: &[u64]) -> Option<u64> {
        self.terms.iter().try_fold(self.constant, |sum, (symbol, coefficient)| {
            sum.checked_add(coefficient.checked_mul(*values.get(*symbol as usize)?)?)
        })
    }

    /// The value with every symbol at its largest; no smaller step makes it larger.
    pub fn max(&self, symbols: &[Symbol]) -> Option<u64> {
        self.terms.iter().try_fold(self.constant, |sum, (symbol, coefficient)| {
            sum.checked_add(coefficient.checked_mul(symbols.get(*symbol as usize)?.max)?)
        })
    }
}

impl Buffer {
    /// Bytes at the symbols' bounds. `None` where 64 bits do not hold them.
    pub fn max_bytes(&self, symbols: &[Symbol]) -> Option<u64> {
        self.rows.max(symbols)?.checked_mul(self.cols)?.checked_mul(self.dtype.size() as u64)
    }
}

impl Operand {
    /// All of buffer `index`.
    pub fn buffer(index: u32, buffer: &Buffer) -> Self {
        Operand {
            place: Place::Buffer(index),
            dtype: buffer.dtype,
            rows: buffer.rows.clone(),
            cols: buffer.cols,
            row_stride: buffer.cols,
            col_offset: 0,
        }
    }

    /// All of weight `index`: rows are the first extent, columns the second (1 for a vector), whatever the layout.
    pub fn weight(index: u32, weight: &Weight) -> Self {
        let cols = weight.shape.get(1).copied().unwrap_or(1);
        Operand {
            place: Place::Weight(index),
            dtype: weight.dtype,
            rows: Expr::constant(weight.shape.first().copied().unwrap_or(0)),
            cols,
            row_stride: cols,
            col_offset: 0,
        }
    }

    /// Data of the step: `i32[t, 1]` or `i32[r, 1]`.
    pub fn input(input: Input) -> Self {
        let rows = match input {
            Input::Tokens | Input::Positions => TOKENS,
            Input::SampleRows => ROWS,
        };
        Operand {
            place: Place::Input(input),
            dtype: DType::I32,
            rows: Expr::symbol(rows),
            cols: 1,
            row_stride: 1,
            col_offset: 0,
        }
    }

    /// A layer of a cache group. Extents are zero: they are the group's, and the block table's of each sequence.
    pub fn cache(group: u32, layer: u32, facts: &CacheLayer) -> Self {
        Operand {
            place: Place::Cache { group, layer },
            dtype: facts.dtype,
            rows: Expr::constant(0),
            cols: 0,
            row_stride: 0,
            col_offset: 0,
        }
    }
}

impl Program {
    /// The layer that a cache operand names.
    pub fn cache_layer(&self, group: u32, layer: u32) -> Option<(&CacheGroup, &CacheLayer)> {
        let group = self.cache_groups.get(group as usize)?;
        Some((group, group.layers.get(layer as usize)?))
    }
}

impl Launch {
    /// The parameter `name`.
    pub fn param(&self, name: &str) -> Option<&Param> {
        self.params.iter().find(|(n, _)| n == name).map(|(_, p)| p)
    }

    /// The parameter `name`, if it is an integer.
    pub fn int(&self, name: &str) -> Option<u64> {
        match self.param(name)? {
            Param::Int(value) => Some(*value),
            Param::Float(_) | Param::Name(_) => None,
        }
    }

    /// The parameter `name`, if it is a real number.
    pub fn float(&self, name: &str) -> Option<f32> {
        match self.param(name)? {
            Param::Float(value) => Some(*value),
            Param::Int(_) | Param::Name(_) => None,
        }
    }

    /// The parameter `name`, if it is a choice.
    pub fn choice(&self, name: &str) -> Option<&str> {
        match self.param(name)? {
            Param::Name(value) => Some(value),
            Param::Int(_) | Param::Float(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_checked() {
        let e = Expr { constant: 3, terms: vec![(TOKENS, 2), (ROWS, 1)] };
        assert_eq!(e.eval(&[5, 0, 1]), Some(14));
        assert_eq!(e.eval(&[5]), None);
        assert_eq!(e.eval(&[u64::MAX, 0, 0]), None);
    }
}

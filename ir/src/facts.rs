//! What is known of a value before anything runs: symbolic shape and element type.

use std::fmt::Write;

use lathe_numerics::DType;

use crate::entity::{SymbolId, Table};

/// Largest integer accepted in text and attributes: products of three stay inside `i64`.
pub const INTEGER_LIMIT: usize = 1 << 30;

/// A symbolic dimension with its inclusive bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Name in text: `t` tokens of the step, `s` sequences, `r` rows to sample.
    pub name: String,
    /// Smallest value.
    pub min: usize,
    /// Largest value.
    pub max: usize,
}

/// Symbols of a graph.
pub type Symbols = Table<SymbolId, Symbol>;

/// Extent of one axis: a constant plus integer multiples of symbols.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Dim {
    constant: i64,
    /// Sorted by symbol, coefficients never zero.
    terms: Vec<(SymbolId, i64)>,
}

impl Dim {
    /// `1 * symbol`.
    pub fn symbol(symbol: SymbolId) -> Self {
        Self { constant: 0, terms: vec![(symbol, 1)] }
    }

    /// The extent if no symbol enters and it is not negative.
    pub fn as_const(&self) -> Option<usize> {
        if self.terms.is_empty() { usize::try_from(self.constant).ok() } else { None }
    }

    /// The symbol if the extent is exactly `1 * symbol`.
    pub fn as_symbol(&self) -> Option<SymbolId> {
        match self.terms[..] {
            [(symbol, 1)] if self.constant == 0 => Some(symbol),
            _ => None,
        }
    }

    /// The constant part.
    pub fn constant(&self) -> i64 {
        self.constant
    }

    /// The symbols that enter, with their coefficients, in order of declaration.
    pub fn terms(&self) -> &[(SymbolId, i64)] {
        &self.terms
    }

    /// Sum of two extents.
    pub fn plus(&self, other: &Dim) -> Dim {
        let mut sum = self.clone();
        sum.constant = sum.constant.saturating_add(other.constant);
        for &(symbol, coefficient) in &other.terms {
            sum.add_term(symbol, coefficient);
        }
        sum
    }

    /// The extent times a constant.
    pub fn times(&self, factor: i64) -> Dim {
        let mut out = Dim { constant: self.constant.saturating_mul(factor), terms: Vec::new() };
        for &(symbol, coefficient) in &self.terms {
            out.add_term(symbol, coefficient.saturating_mul(factor));
        }
        out
    }

    fn add_term(&mut self, symbol: SymbolId, coefficient: i64) {
        match self.terms.binary_search_by_key(&symbol, |t| t.0) {
            Ok(at) => {
                self.terms[at].1 = self.terms[at].1.saturating_add(coefficient);
                if self.terms[at].1 == 0 {
                    self.terms.remove(at);
                }
            }
            Err(at) if coefficient != 0 => self.terms.insert(at, (symbol, coefficient)),
            Err(_) => {}
        }
    }

    /// Smallest and largest extent over all symbol bounds.
    pub fn bounds(&self, symbols: &Symbols) -> (i64, i64) {
        let (mut low, mut high) = (i128::from(self.constant), i128::from(self.constant));
        for &(symbol, coefficient) in &self.terms {
            let ends =
                [symbols[symbol].min, symbols[symbol].max].map(|e| e as i128 * i128::from(coefficient));
            low += ends[0].min(ends[1]);
            high += ends[0].max(ends[1]);
        }
        let clamp = |x: i128| x.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64;
        (clamp(low), clamp(high))
    }

    /// The extent under an assignment; `None` if a symbol is unbound or the result is negative.
    pub fn eval(&self, bindings: &Bindings) -> Option<usize> {
        let mut sum = i128::from(self.constant);
        for &(symbol, coefficient) in &self.terms {
            sum += bindings.get(symbol)? as i128 * i128::from(coefficient);
        }
        usize::try_from(sum).ok()
    }

    /// Text such as `4096`, `t`, `2*t + 1`, `t - 1`.
    pub fn text(&self, symbols: &Symbols) -> String {
        let mut out = String::new();
        for &(symbol, coefficient) in &self.terms {
            let name = &symbols[symbol].name;
            let (sign, size) = (coefficient < 0, coefficient.unsigned_abs());
            out.push_str(match (out.is_empty(), sign) {
                (true, false) => "",
                (true, true) => "-",
                (false, false) => " + ",
                (false, true) => " - ",
            });
            if size != 1 {
                let _ = write!(out, "{size}*");
            }
            out.push_str(name);
        }
        if self.terms.is_empty() {
            let _ = write!(out, "{}", self.constant);
        } else if self.constant != 0 {
            let sign = if self.constant < 0 { '-' } else { '+' };
            let _ = write!(out, " {sign} {}", self.constant.unsigned_abs());
        }
        out
    }
}

impl From<usize> for Dim {
    fn from(extent: usize) -> Self {
        Self { constant: i64::try_from(extent).unwrap_or(i64::MAX), terms: Vec::new() }
    }
}

impl From<SymbolId> for Dim {
    fn from(symbol: SymbolId) -> Self {
        Self::symbol(symbol)
    }
}

/// Values of symbols in one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bindings(Vec<Option<usize>>);

impl Bindings {
    /// Binds `symbol`; false if it already has another value.
    pub fn bind(&mut self, symbol: SymbolId, value: usize) -> bool {
        use crate::entity::Id;
        let at = symbol.index();
        if self.0.len() <= at {
            self.0.resize(at + 1, None);
        }
        *self.0[at].get_or_insert(value) == value
    }

    /// The value of `symbol`, if bound.
    pub fn get(&self, symbol: SymbolId) -> Option<usize> {
        use crate::entity::Id;
        self.0.get(symbol.index()).copied().flatten()
    }
}

/// Facts of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Facts {
    /// A dense row-major tensor.
    Tensor {
        /// Element type; every element is rounded to it.
        dtype: DType,
        /// Extents, outermost first.
        shape: Vec<Dim>,
    },
    /// The order token of the KV cache: an op that yields one has written, an op that takes one sees that write.
    State,
}

impl Facts {
    /// Facts of a tensor whose extents are given one by one.
    pub fn tensor(dtype: DType, shape: impl IntoIterator<Item = Dim>) -> Self {
        Facts::Tensor { dtype, shape: shape.into_iter().collect() }
    }

    /// Facts of a tensor without symbols, e.g. a weight.
    pub fn fixed(dtype: DType, shape: &[usize]) -> Self {
        Facts::Tensor { dtype, shape: shape.iter().map(|&d| Dim::from(d)).collect() }
    }

    /// Element type, `None` for a state.
    pub fn dtype(&self) -> Option<DType> {
        match self {
            Facts::Tensor { dtype, .. } => Some(*dtype),
            Facts::State => None,
        }
    }

    /// Extents; empty for a state.
    pub fn shape(&self) -> &[Dim] {
        match self {
            Facts::Tensor { shape, .. } => shape,
            Facts::State => &[],
        }
    }

    /// Extents if none is symbolic.
    pub fn fixed_shape(&self) -> Option<Vec<usize>> {
        self.shape().iter().map(Dim::as_const).collect()
    }

    /// True for the cache order token.
    pub fn is_state(&self) -> bool {
        matches!(self, Facts::State)
    }

    /// Extents under an assignment; `None` as in [`Dim::eval`].
    pub fn shape_at(&self, bindings: &Bindings) -> Option<Vec<usize>> {
        self.shape().iter().map(|d| d.eval(bindings)).collect()
    }

    /// Largest size in bytes over all symbol bounds (saturating), 0 for a state.
    pub fn max_bytes(&self, symbols: &Symbols) -> u64 {
        let Facts::Tensor { dtype, shape } = self else { return 0 };
        shape
            .iter()
            .map(|d| u64::try_from(d.bounds(symbols).1).unwrap_or(0))
            .fold(dtype.size() as u64, u64::saturating_mul)
    }

    /// Text such as `bf16[t, 4096]` or `state`.
    pub fn text(&self, symbols: &Symbols) -> String {
        match self {
            Facts::State => "state".into(),
            Facts::Tensor { dtype, shape } => {
                let dims: Vec<String> = shape.iter().map(|d| d.text(symbols)).collect();
                format!("{dtype}[{}]", dims.join(", "))
            }
        }
    }
}

/// The KV cache that a graph reads and writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Name in text, without `@`.
    pub name: String,
    /// Element type that K and V are rounded to when appended.
    pub dtype: DType,
    /// Number of layers.
    pub layers: usize,
    /// KV heads per layer.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entity::Id;

    #[test]
    fn dims_print_evaluate_and_bound() {
        let mut symbols = Symbols::new();
        let t = symbols.push(Symbol { name: "t".into(), min: 1, max: 10 });
        let s = symbols.push(Symbol { name: "s".into(), min: 0, max: 3 });
        let mut bindings = Bindings::default();
        assert!(bindings.bind(t, 4) && bindings.bind(s, 2) && !bindings.bind(s, 3));
        let (dt, ds) = (Dim::symbol(t), Dim::symbol(s));
        for (dim, text, at, bounds) in [
            (Dim::from(7), "7", Some(7), (7, 7)),
            (dt.clone(), "t", Some(4), (1, 10)),
            (dt.times(2).plus(&Dim::from(1)), "2*t + 1", Some(9), (3, 21)),
            (dt.plus(&ds.times(-1)), "t - s", Some(2), (-2, 10)),
            (ds.times(-1), "-s", None, (-3, 0)),
            (dt.plus(&dt.times(-1)), "0", Some(0), (0, 0)),
        ] {
            assert_eq!(dim.text(&symbols), text);
            assert_eq!(dim.eval(&bindings), at, "{text}");
            assert_eq!(dim.bounds(&symbols), bounds, "{text}");
        }
        assert_eq!(Dim::symbol(SymbolId::from_index(5)).eval(&bindings), None);
    }
}

//! One program: symbols, buffers, launches, operands.

use lathe_numerics::DType;

use super::order::{self, Region};
use super::{MAX_BYTES, MAX_EXTENT, Parts, VerifyError, cache, code, device};
use crate::operand::{ROWS, SYMBOL_NAMES};
use crate::schema::{Expr, Launch, Layout, Operand, Param, Place, Program, Symbol, Target};

/// Most operands that a launch may read or write; checks are quadratic in it.
const MAX_OPERANDS: usize = 16;

pub(super) fn check(p: &Program, parts: &Parts<'_>) -> Result<(), VerifyError> {
    let program = || p.name.clone();
    if p.rank >= p.n_ranks {
        return Err(VerifyError::Rank { program: program(), rank: p.rank, n_ranks: p.n_ranks });
    }
    for (what, bytes) in [("an arena", p.arena_bytes), ("a scratch", p.scratch_bytes)] {
        if bytes > MAX_BYTES {
            return Err(VerifyError::Size { program: program(), what, bytes });
        }
    }
    symbols(p, parts)?;
    for (i, b) in p.buffers.iter().enumerate() {
        let at = || format!("program {}: buffer {i} {}", p.name, b.name);
        if b.cols == 0 || b.cols > MAX_EXTENT {
            return Err(VerifyError::BufferCols { at: at(), cols: b.cols });
        }
        expression(&b.rows, &p.symbols, at)?;
        if !b.offset.is_multiple_of(64) {
            return Err(VerifyError::BufferAlignment { at: at(), offset: b.offset });
        }
        let bytes = upper(&b.rows, &p.symbols) * u128::from(b.cols) * b.dtype.size() as u128;
        let end = u128::from(b.offset) + bytes;
        if end > u128::from(p.arena_bytes) {
            return Err(VerifyError::BufferRange { at: at(), end, arena: p.arena_bytes });
        }
    }
    cache::check(p)?;
    let mut order = order::Tracker::new(p);
    for (i, l) in p.launches.iter().enumerate() {
        launch(p, i, l, parts)?;
        cache::window(p, i, l)?;
        order.launch(i, l)?;
    }
    device::check(p, parts, &code::entries(p))?;
    logits(p, parts, &order)
}

fn symbols(p: &Program, parts: &Parts<'_>) -> Result<(), VerifyError> {
    if !p.symbols.iter().map(|s| s.name.as_str()).eq(SYMBOL_NAMES) {
        return Err(VerifyError::SymbolNames { program: p.name.clone() });
    }
    let l = &parts.card.limits;
    let limits = [l.max_num_tokens, l.max_batch, l.max_sample_rows].map(u64::from);
    for ((s, symbol), limit) in p.symbols.iter().zip(SYMBOL_NAMES).zip(limits) {
        if s.min > s.max || s.max != limit {
            let (min, max) = (s.min, s.max);
            return Err(VerifyError::SymbolBounds { program: p.name.clone(), symbol, min, max, limit });
        }
    }
    Ok(())
}

fn expression(e: &Expr, symbols: &[Symbol], at: impl Fn() -> String) -> Result<(), VerifyError> {
    let known = e.terms.iter().all(|(s, c)| (*s as usize) < symbols.len() && (1..=MAX_EXTENT).contains(c));
    let ascending = e.terms.windows(2).all(|pair| pair[0].0 < pair[1].0);
    if !known || !ascending || e.constant > MAX_EXTENT {
        return Err(VerifyError::Expression { at: at() });
    }
    Ok(())
}

/// The largest value of a checked expression: below 2^74.
pub(super) fn upper(e: &Expr, symbols: &[Symbol]) -> u128 {
    let term = |(s, c): &(u32, u64)| u128::from(*c) * u128::from(symbols[*s as usize].max);
    u128::from(e.constant) + e.terms.iter().map(term).sum::<u128>()
}

/// The smallest value of `a * by_a - b * by_b` over all values of the symbols. Terms stay below 2^113.
fn least_difference(a: &Expr, by_a: u64, b: &Expr, by_b: u64, symbols: &[Symbol]) -> i128 {
    let coefficient = |e: &Expr, symbol: usize| {
        e.terms.iter().find(|(s, _)| *s as usize == symbol).map_or(0, |(_, c)| i128::from(*c))
    };
    let (by_a, by_b) = (i128::from(by_a), i128::from(by_b));
    let constant = i128::from(a.constant) * by_a - i128::from(b.constant) * by_b;
    let corner = |(i, s): (usize, &Symbol)| {
        let slope = coefficient(a, i) * by_a - coefficient(b, i) * by_b;
        slope * i128::from(if slope < 0 { s.max } else { s.min })
    };
    constant + symbols.iter().enumerate().map(corner).sum::<i128>()
}

fn launch(p: &Program, index: usize, l: &Launch, parts: &Parts<'_>) -> Result<(), VerifyError> {
    let at = || order::place(p, index, l);
    if l.kernel.is_empty() {
        return Err(VerifyError::KernelName { at: at() });
    }
    for operands in [&l.inputs, &l.outputs] {
        if operands.len() > MAX_OPERANDS {
            return Err(VerifyError::OperandCount { at: at(), count: operands.len(), most: MAX_OPERANDS });
        }
    }
    for pair in l.params.windows(2) {
        if pair[0].0 >= pair[1].0 {
            return Err(VerifyError::ParamOrder { at: at(), name: pair[1].0.clone() });
        }
    }
    for (name, value) in &l.params {
        if matches!(value, Param::Float(f) if !f.is_finite()) {
            return Err(VerifyError::ParamValue { at: at(), name: name.clone() });
        }
    }
    for (way, operands) in [("input", &l.inputs), ("output", &l.outputs)] {
        for (i, o) in operands.iter().enumerate() {
            let at = || format!("{} {way} {i}", at());
            operand(p, o, parts, &at)?;
            if way == "output" && !matches!(o.place, Place::Buffer(_)) {
                return Err(VerifyError::OutputPlace { at: at() });
            }
        }
    }
    Ok(())
}

fn operand(p: &Program, o: &Operand, parts: &Parts<'_>, at: &dyn Fn() -> String) -> Result<(), VerifyError> {
    let missing = |kind, index| VerifyError::OperandPlace { at: at(), kind, index };
    let dtype = |place: DType| {
        if o.dtype != place {
            return Err(VerifyError::OperandDType { at: at(), dtype: o.dtype, place });
        }
        Ok(())
    };
    match o.place {
        Place::Buffer(index) => {
            let buffer = p.buffers.get(index as usize).ok_or_else(|| missing("buffer", index))?;
            dtype(buffer.dtype)?;
            expression(&o.rows, &p.symbols, at)?;
            let end = o.col_offset.saturating_add(o.cols);
            if o.cols == 0 || end > o.row_stride || o.row_stride > MAX_EXTENT {
                let (row_stride, col_offset, cols) = (o.row_stride, o.col_offset, o.cols);
                return Err(VerifyError::OperandStride { at: at(), row_stride, col_offset, cols });
            }
            // The last element read is rows * stride - stride + end; it lies within rows * cols of the buffer.
            let room = least_difference(&buffer.rows, buffer.cols, &o.rows, o.row_stride, &p.symbols);
            if room < -i128::from(o.row_stride - end) {
                return Err(VerifyError::OperandRange { at: at() });
            }
        }
        Place::Weight(index) => {
            let weight = parts.weights.get(index as usize).ok_or_else(|| missing("weight", index))?;
            dtype(weight.dtype)?;
            if *o != Operand::weight(index, weight) {
                return Err(VerifyError::WeightPart { at: at() });
            }
            let foreign = if p.target == Target::Cpu { Layout::Mma16 } else { Layout::Panel16 };
            if weight.layout == foreign {
                let (weight, layout) = (weight.name.clone(), foreign.name());
                return Err(VerifyError::WeightLayout { at: at(), weight, layout });
            }
        }
        Place::Input(input) => {
            dtype(DType::I32)?;
            if *o != Operand::input(input) {
                return Err(VerifyError::InputShape { at: at() });
            }
        }
        Place::Cache { group, layer } => {
            let facts = p.cache_layer(group, layer);
            let (_, facts) = facts.ok_or_else(|| missing("cache layer", layer))?;
            dtype(facts.dtype)?;
            if *o != Operand::cache(group, layer, facts) {
                return Err(VerifyError::CacheShape { at: at() });
            }
        }
    }
    Ok(())
}

fn logits(p: &Program, parts: &Parts<'_>, order: &order::Tracker<'_>) -> Result<(), VerifyError> {
    let at = || format!("program {}: logits", p.name);
    operand(p, &p.logits, parts, &at)?;
    let o = &p.logits;
    let cols = u64::from(parts.card.vocab_size);
    let Some(region) = Region::of(p, o) else { return Err(VerifyError::OutputPlace { at: at() }) };
    if o.dtype != DType::F32 || o.rows != Expr::symbol(ROWS) || o.cols != cols {
        return Err(VerifyError::LogitsShape { program: p.name.clone(), vocab_size: parts.card.vocab_size });
    }
    order.read(&region, at)
}

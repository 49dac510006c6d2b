//! The reference interpreter: what it says is the meaning of a graph. f32, slow, no tricks but those of [`crate::matmul`].
//!
//! Needs: a graph that the verifier accepts (checked once, in [`Interpreter::new`]). Keeps: every value rounded to its
//! declared type, in the summation orders of the numeric contract, so that chunking and batching change no bit.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use lathe_numerics::DType;

use crate::entity::{Id, ValueId, WeightId};
use crate::error::IrError;
use crate::facts::{Bindings, Facts};
use crate::graph::{Def, Graph, Node};
use crate::kv::KvState;
use crate::tensor::{Data, Tensor, Value};
use crate::verify::verify;
use crate::weight::{RowPick, WeightExpr};

/// Where checkpoint tensors come from.
pub trait WeightSource {
    /// The tensor with this checkpoint name.
    ///
    /// # Errors
    /// Why it cannot be had.
    fn tensor(&self, name: &str) -> Result<Tensor, String>;

    /// Rows of the tensor as a matrix of [product of the leading extents, last extent], or elements of a vector. Whoever can
    /// should read no others.
    ///
    /// # Errors
    /// As [`WeightSource::tensor`]; rows beyond the tensor.
    fn rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor, String> {
        self.tensor(name)?.rows(rows)
    }

    /// Takes back a tensor that it gave and nobody needs any more, perhaps to read the next one into its memory.
    fn recycle(&self, _tensor: Tensor) {}
}

impl WeightSource for BTreeMap<String, Tensor> {
    fn tensor(&self, name: &str) -> Result<Tensor, String> {
        self.get(name).cloned().ok_or_else(|| "not among the given tensors".into())
    }
}

/// The part of one sequence that a step computes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchSequence {
    /// Where the sequence lives in [`KvState`].
    pub slot: usize,
    /// Position of the first token; positions below are in the cache.
    pub start: usize,
    /// Token ids.
    pub tokens: Vec<i32>,
    /// Which of `tokens` (by index) to sample after.
    pub rows: Vec<usize>,
}

/// One step: any mix of prefill chunks and decodes. Rows of the step are the sequences' tokens, one after another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The sequences; slots differ.
    pub sequences: Vec<BatchSequence>,
    /// Graph inputs by name. `tokens`, `positions` and `rows` are made from `sequences` unless given here.
    pub inputs: BTreeMap<String, Tensor>,
}

impl Batch {
    /// A step of the given sequences.
    pub fn new(sequences: Vec<BatchSequence>) -> Self {
        Self { sequences, inputs: BTreeMap::new() }
    }

    fn input(&self, name: &str) -> Option<Tensor> {
        if let Some(given) = self.inputs.get(name) {
            return Some(given.clone());
        }
        let each = |f: fn(&BatchSequence, usize) -> Vec<usize>| -> Vec<i32> {
            let mut first = 0;
            let mut out = Vec::new();
            for s in &self.sequences {
                out.extend(f(s, first).into_iter().map(|x| i32::try_from(x).unwrap_or(-1)));
                first += s.tokens.len();
            }
            out
        };
        let data = match name {
            "tokens" => self.sequences.iter().flat_map(|s| &s.tokens).copied().collect(),
            "positions" => each(|s, _| (s.start..s.start + s.tokens.len()).collect()),
            "rows" => each(|s, first| s.rows.iter().map(|r| first + r).collect()),
            _ => return None,
        };
        Some(Tensor::int(vec![data.len()], data))
    }
}

/// A row of the step: which sequence, which position.
#[derive(Clone, Copy, Debug)]
struct Place {
    slot: usize,
    position: usize,
}

/// What an op's evaluation may use besides its operands.
pub struct EvalCx<'a> {
    /// Concrete facts of the node's results.
    outs: Vec<(DType, Vec<usize>)>,
    places: &'a [Place],
    kv: &'a mut KvState,
    /// Threads that share the work; no result depends on them.
    pub(crate) threads: usize,
}

impl EvalCx<'_> {
    /// Result number `at`: `data` rounded to the result's type.
    pub fn finish(&self, at: usize, data: Vec<f32>) -> Value {
        let (dtype, shape) = &self.outs[at];
        Value::Tensor(Tensor::float(*dtype, shape.clone(), data))
    }

    /// Result number `at` of an op on integers.
    pub fn finish_ints(&self, at: usize, data: Vec<i32>) -> Value {
        Value::Tensor(Tensor::int(self.outs[at].1.clone(), data))
    }

    /// Appends rows of K and V, `[t, kv_heads * head_dim]`, at the places of the step's rows.
    ///
    /// # Errors
    /// If the step has other rows than the batch, or a position is not the next one.
    pub fn append(&mut self, layer: usize, k: &[f32], v: &[f32]) -> Result<(), String> {
        let width = self.kv.width().max(1);
        if k.len() / width != self.places.len() {
            return Err(format!("{} rows, the batch has {} tokens", k.len() / width, self.places.len()));
        }
        for ((place, k), v) in self.places.iter().zip(k.chunks(width)).zip(v.chunks(width)) {
            self.kv.push(place.slot, layer, place.position, k, v)?;
        }
        Ok(())
    }

    /// K and V rows that row `row` of the step sees: positions up to and including its own.
    ///
    /// # Errors
    /// If the row is not of the batch or its position was not appended.
    pub fn visible(&self, layer: usize, row: usize) -> Result<(&[f32], &[f32]), String> {
        let place = self.places.get(row).ok_or_else(|| format!("row {row} is not a token of the batch"))?;
        let len = (place.position + 1) * self.kv.width();
        let held = self.kv.rows(place.slot, layer).filter(|(k, v)| k.len() >= len && v.len() >= len);
        let (k, v) = held.ok_or_else(|| format!("position {} was not appended", place.position))?;
        Ok((&k[..len], &v[..len]))
    }
}

/// Results of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Outputs {
    /// Name and value of every tensor that the graph returns, in order.
    pub tensors: Vec<(String, Tensor)>,
}

impl Outputs {
    /// The tensor with this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|(n, _)| n == name).map(|(_, t)| t)
    }
}

type Operands<'a, 'v> = &'a mut dyn Iterator<Item = Result<Cow<'v, Value>, IrError>>;

/// Runs a graph.
pub struct Interpreter<'a> {
    graph: &'a Graph,
    source: &'a dyn WeightSource,
    kept: Vec<OnceCell<Value>>,
    keep: bool,
    threads: usize,
}

impl<'a> Interpreter<'a> {
    /// An interpreter that reads each weight once, when first needed, and keeps it.
    ///
    /// # Errors
    /// [`IrError::Invalid`] if the verifier refuses the graph.
    pub fn new(graph: &'a Graph, source: &'a dyn WeightSource) -> Result<Self, IrError> {
        verify(graph)?;
        Ok(Self { graph, source, kept: vec![OnceCell::new(); graph.weights.len()], keep: true, threads: 1 })
    }

    /// Reads weights again at each use instead of keeping them, for models larger than memory.
    pub fn streaming(mut self) -> Self {
        self.keep = false;
        self
    }

    /// Shares projections and attention out to as many threads, in place of one. No bit depends on how many.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Runs one step.
    ///
    /// # Errors
    /// [`IrError::Batch`], [`IrError::Weight`] or [`IrError::Eval`]. The cache state is then unspecified.
    pub fn run(&self, batch: &Batch, kv: &mut KvState) -> Result<Outputs, IrError> {
        self.run_watched(batch, kv, &mut |_, _| {})
    }

    /// Runs one step and shows every computed tensor, with its name, to `watch`, which may put other elements into it: the
    /// step goes on from those.
    ///
    /// # Errors
    /// As [`Interpreter::run`].
    pub fn run_watched(
        &self,
        batch: &Batch,
        kv: &mut KvState,
        watch: &mut dyn FnMut(&str, &mut Tensor),
    ) -> Result<Outputs, IrError> {
        let g = self.graph;
        let places = self.places(batch, kv)?;
        let mut bindings = Bindings::default();
        let mut values: HashMap<ValueId, Value> = HashMap::new();
        for &id in g.inputs() {
            values.insert(id, self.bind_input(batch, id, &mut bindings)?);
        }
        for (id, symbol) in g.symbols.iter() {
            if symbol.name == "s" && bindings.get(id).is_none() {
                bindings.bind(id, batch.sequences.len());
            }
            let value = bindings.get(id).unwrap_or(symbol.min);
            if !(symbol.min..=symbol.max).contains(&value) {
                let (name, min, max) = (&symbol.name, symbol.min, symbol.max);
                return Err(IrError::Batch(format!("{name} is {value}, outside {min}..={max}")));
            }
        }
        let last_use = self.last_uses();
        for (at, (id, node)) in g.nodes().enumerate() {
            let fail = |reason| IrError::Eval { node: g.node_label(id), reason };
            let mut weights = HashMap::new();
            for &v in &node.inputs {
                if let Def::Weight(w) = g.value(v).def {
                    weights.insert(v, self.weight(w)?);
                }
            }
            let inputs: Option<Vec<&Value>> = node
                .inputs
                .iter()
                .map(|v| values.get(v).or_else(|| weights.get(v).map(Cow::as_ref)))
                .collect();
            let inputs = inputs.ok_or_else(|| fail("an operand has no value".into()))?;
            let outs = self.result_shapes(node, &bindings).map_err(fail)?;
            let mut cx = EvalCx { outs, places: &places, kv, threads: self.threads };
            let results = node.op.eval(&inputs, &mut cx).map_err(fail)?;
            for (&out, mut value) in node.outputs.iter().zip(results) {
                if let Value::Tensor(t) = &mut value {
                    if t.len() != t.shape.iter().product::<usize>() {
                        return Err(fail(format!("{} elements for shape {:?}", t.len(), t.shape)));
                    }
                    watch(g.value_name(out), t);
                }
                values.insert(out, value);
            }
            for (v, weight) in weights {
                if let (Def::Weight(w), Cow::Owned(Value::Tensor(tensor))) = (g.value(v).def, weight)
                    && matches!(g.weight_data(w).expr, WeightExpr::Tensor(_))
                {
                    self.source.recycle(tensor);
                }
            }
            for v in &node.inputs {
                if last_use.get(v) == Some(&at) {
                    values.remove(v);
                }
            }
        }
        let mut tensors = Vec::new();
        for &out in g.outputs() {
            let name = g.value_name(out).to_string();
            let value = match g.value(out).def {
                Def::Weight(w) => Some(self.weight(w)?.as_ref().clone()),
                Def::Input | Def::Node(_) => values.get(&out).cloned(),
            };
            if let Some(Value::Tensor(t)) = value {
                tensors.push((name, t));
            }
        }
        Ok(Outputs { tensors })
    }

    /// The value of a weight: read from the source or made by its recipe.
    ///
    /// # Errors
    /// [`IrError::Weight`].
    pub fn weight_tensor(&self, weight: WeightId) -> Result<Tensor, IrError> {
        let value = self.weight(weight)?;
        value.as_ref().tensor().cloned().map_err(IrError::Bug)
    }

    fn weight(&self, id: WeightId) -> Result<Cow<'_, Value>, IrError> {
        if let Some(value) = self.kept[id.index()].get() {
            return Ok(Cow::Borrowed(value));
        }
        let value = Value::Tensor(self.make_weight(id)?);
        Ok(if self.keep {
            Cow::Borrowed(self.kept[id.index()].get_or_init(|| value))
        } else {
            Cow::Owned(value)
        })
    }

    fn make_weight(&self, id: WeightId) -> Result<Tensor, IrError> {
        let g = self.graph;
        let fail = |reason| IrError::Weight { name: g.weight_name(id).into(), reason };
        let (weight, facts) = (g.weight_data(id), g.weight_facts(id));
        let shape = facts.fixed_shape().ok_or_else(|| fail("shape is symbolic".into()))?;
        let eval = |expr: &WeightExpr, operands: Operands<'_, '_>| {
            expr.eval(operands, &shape)?.ok_or_else(|| fail("recipe without data".into()))
        };
        let made = match &weight.expr {
            WeightExpr::Tensor(name) => self.source.tensor(name).map_err(fail)?,
            // Of stacked experts only the one that is wanted.
            WeightExpr::Rows { of, pick } if !self.keep => {
                let part = Value::Tensor(self.weight_rows(*of, pick.span())?);
                let pick = RowPick { start: 0, ..*pick };
                eval(&WeightExpr::Rows { of: *of, pick }, &mut std::iter::once(Ok(Cow::Owned(part))))?
            }
            expr => eval(expr, &mut expr.operands().iter().map(|&w| self.weight(w)))?,
        };
        if Some(made.dtype) != facts.dtype() || made.shape != shape || !matches!(made.data, Data::Float(_)) {
            let declared = facts.text(&g.symbols);
            return Err(fail(format!("is {}{:?}, declared {declared}", made.dtype, made.shape)));
        }
        if made.len() != shape.iter().product::<usize>() {
            return Err(fail(format!("holds {} elements, declared {shape:?}", made.len())));
        }
        Ok(made)
    }

    /// Some rows of a weight, see [`WeightSource::rows`].
    fn weight_rows(&self, id: WeightId, rows: Range<usize>) -> Result<Tensor, IrError> {
        let fail = |reason| IrError::Weight { name: self.graph.weight_name(id).into(), reason };
        match &self.graph.weight_data(id).expr {
            WeightExpr::Tensor(name) => self.source.rows(name, rows).map_err(fail),
            WeightExpr::Cast(of, dtype) => {
                let Tensor { shape, data, .. } = self.weight_rows(*of, rows)?;
                match data {
                    Data::Float(data) => Ok(Tensor::float(*dtype, shape, data)),
                    Data::Int(_) => Err(fail("it holds integers".into())),
                }
            }
            _ => self.make_weight(id)?.rows(rows).map_err(fail),
        }
    }

    fn places(&self, batch: &Batch, kv: &mut KvState) -> Result<Vec<Place>, IrError> {
        let mut places = Vec::new();
        let mut seen = HashSet::new();
        let uses_cache = self.graph.nodes().any(|(_, n)| n.op.has_effects());
        for s in &batch.sequences {
            let slot = s.slot;
            if !seen.insert(slot) {
                return Err(IrError::Batch(format!("slot {slot} stands twice")));
            }
            if let Some(row) = s.rows.iter().find(|&&r| r >= s.tokens.len()) {
                return Err(IrError::Batch(format!("slot {slot}: row {row} of {} tokens", s.tokens.len())));
            }
            if uses_cache {
                if s.start > kv.len(slot) {
                    let held = kv.len(slot);
                    return Err(IrError::Batch(format!(
                        "slot {slot} starts at {}, the cache holds {held}",
                        s.start
                    )));
                }
                kv.truncate(slot, s.start);
            }
            places.extend((s.start..s.start + s.tokens.len()).map(|position| Place { slot, position }));
        }
        Ok(places)
    }

    fn bind_input(&self, batch: &Batch, id: ValueId, bindings: &mut Bindings) -> Result<Value, IrError> {
        let g = self.graph;
        let name = g.value_name(id);
        let Facts::Tensor { dtype, shape } = g.facts(id) else { return Ok(Value::State) };
        let given = batch.input(name).ok_or_else(|| IrError::Batch(format!("input %{name} is missing")))?;
        let mismatch = || {
            let want = g.facts_text(id);
            IrError::Batch(format!("input %{name} is {}{:?}, expected {want}", given.dtype, given.shape))
        };
        if given.dtype != *dtype || given.shape.len() != shape.len() {
            return Err(mismatch());
        }
        if given.len() != given.shape.iter().product::<usize>() {
            return Err(mismatch());
        }
        for (dim, &extent) in shape.iter().zip(&given.shape) {
            let fits = match dim.as_symbol() {
                Some(symbol) => bindings.bind(symbol, extent),
                None => dim.eval(bindings) == Some(extent),
            };
            if !fits {
                return Err(mismatch());
            }
        }
        Ok(Value::Tensor(given))
    }

    fn result_shapes(&self, node: &Node, bindings: &Bindings) -> Result<Vec<(DType, Vec<usize>)>, String> {
        let shape = |&v: &ValueId| match self.graph.facts(v) {
            Facts::State => Ok((DType::F32, Vec::new())),
            facts @ Facts::Tensor { dtype, .. } => {
                let shape = facts.shape_at(bindings);
                Ok((*dtype, shape.ok_or_else(|| format!("shape {} is unbound", self.graph.facts_text(v)))?))
            }
        };
        node.outputs.iter().map(shape).collect()
    }

    fn last_uses(&self) -> HashMap<ValueId, usize> {
        let mut last = HashMap::new();
        for (at, (_, node)) in self.graph.nodes().enumerate() {
            last.extend(node.inputs.iter().map(|&v| (v, at)));
        }
        for v in self.graph.outputs() {
            last.remove(v);
        }
        last
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Evaluates one op on literal operands.

    use super::*;
    use crate::op::Args;
    use crate::ops::Op;

    pub fn floats(dtype: DType, shape: [usize; 2], data: &[f32]) -> Value {
        Value::Tensor(Tensor::float(dtype, shape.to_vec(), data.to_vec()))
    }

    pub fn vector(dtype: DType, data: &[f32]) -> Value {
        Value::Tensor(Tensor::float(dtype, vec![data.len()], data.to_vec()))
    }

    pub fn ints(data: &[i32]) -> Value {
        Value::Tensor(Tensor::int(vec![data.len()], data.to_vec()))
    }

    fn run(op: Op, inputs: &[&Value]) -> Result<Vec<Value>, String> {
        let facts = inputs.iter().map(|v| v.tensor().map(|t| Facts::fixed(t.dtype, &t.shape)));
        let facts = facts.collect::<Result<Vec<_>, _>>()?;
        let outs = op.infer(&Args::new(&facts.iter().collect::<Vec<_>>(), None))?;
        let outs: Vec<_> = outs.iter().map(|f| (f.dtype().unwrap(), f.fixed_shape().unwrap())).collect();
        let mut kv = KvState::new(None);
        let results =
            op.eval(inputs, &mut EvalCx { outs: outs.clone(), places: &[], kv: &mut kv, threads: 1 })?;
        for (result, (dtype, shape)) in results.iter().zip(outs) {
            let t = result.tensor().unwrap();
            assert_eq!((t.dtype, &t.shape, t.len()), (dtype, &shape, shape.iter().product()));
        }
        Ok(results)
    }

    pub fn try_eval(op: impl Into<Op>, inputs: &[&Value]) -> Result<Vec<f32>, String> {
        run(op.into(), inputs).map(|r| r[0].floats().unwrap().to_vec())
    }

    pub fn eval(op: impl Into<Op>, inputs: &[&Value]) -> Vec<f32> {
        try_eval(op, inputs).unwrap()
    }

    pub fn eval_all(op: impl Into<Op>, inputs: &[&Value]) -> Vec<Value> {
        run(op.into(), inputs).unwrap()
    }
}

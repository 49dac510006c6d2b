//! A graph asked about a few tokens and a few columns of the logits.
//!
//! Only the rows of the embedding and of the head that the question needs are read, so that no vocabulary-sized tensor is
//! ever held.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use lathe_ir::entity::{NodeId, WeightId};
use lathe_ir::ops::Op;
use lathe_ir::{Batch, BatchSequence, Data, Facts, Graph, Interpreter, KvState, Tensor, WeightSource};

use super::excerpt::{Excerpt, StandIn};
use crate::checkpoint::TensorSource;
use crate::emit::rows::{Rows, widen};
use crate::error::{CompileError, Result};

/// A question, ready for the interpreter.
pub struct Question<'a> {
    /// The graph, with a small embedding and a small head in place of the large ones.
    pub graph: Graph,
    /// What stands for the token ids in it.
    pub tokens: Vec<i32>,
    /// Columns of its result that hold the logits of the ids, in their order.
    columns: Vec<usize>,
    parts: Parts<'a>,
    threads: usize,
}

/// Most tokens and sequences of a step that a question's graph takes, whatever the plan's limits are: how tokens are cut into
/// steps changes no bit.
pub const LARGEST_STEP: usize = 1024;
/// Tokens of a step of an answer: few enough that its values are small beside a layer's weights, which are read again
/// for the next.
const STEP_TOKENS: usize = 256;
/// Elements of a tensor from which on its memory is worth keeping, and more than one thread is worth it to read it.
const LARGE: usize = 1 << 20;

impl<'a> Question<'a> {
    /// Asks for the logits of `ids` after each of `token_ids`.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub fn new(
        graph: &'a Graph,
        source: &'a dyn TensorSource,
        token_ids: &[u32],
        ids: &[u32],
    ) -> Result<Self> {
        let mut parts = Parts { graph, source, rows: HashMap::new(), threads: 1, spare: Mutex::default() };
        let mut stand_ins = HashMap::new();
        let mut tokens: Vec<i32> = token_ids.iter().map(|&t| t as i32).collect();
        let mut columns: Vec<usize> = ids.iter().map(|&i| i as usize).collect();
        if let Some((node, table)) = embedding(graph) {
            stand_ins.insert((node, 1), parts.rows_of("self_test.embedding", table, token_ids)?);
            tokens = (0..tokens.len() as i32).collect();
        }
        if let Some((node, weights)) = head(graph) {
            for (at, &weight) in weights.iter().enumerate() {
                let name = if at == 0 { "self_test.head" } else { "self_test.head_bias" };
                stand_ins.insert((node, at + 1), parts.rows_of(name, weight, ids)?);
            }
            columns = (0..ids.len()).collect();
        }
        let nodes = graph.nodes().map(|(id, _)| id).collect();
        let mut graph =
            Excerpt { graph, nodes, alias: HashMap::new(), stand_ins, outputs: graph.outputs() }.build()?;
        for id in ["t", "r", "s"].iter().filter_map(|name| graph.find_symbol(name)).collect::<Vec<_>>() {
            let (min, max) = (graph.symbols()[id].min, graph.symbols()[id].max);
            graph.set_bounds(id, min, max.max(LARGEST_STEP));
        }
        Ok(Question { graph, tokens, columns, parts, threads: 1 })
    }

    /// Reads weights and answers on as many threads, in place of one. No bit depends on how many.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self.parts.threads = threads.max(1);
        self
    }

    /// Columns of the graph's result.
    pub fn width(&self) -> usize {
        let result = self.graph.outputs().first().map(|&v| self.graph.facts(v).shape());
        result.and_then(|shape| shape.last()?.as_const()).unwrap_or(0)
    }

    /// The interpreter of [`Question::graph`], which reads weights when it needs them and keeps none.
    ///
    /// # Errors
    /// A graph that the interpreter cannot run.
    pub fn interpreter(&self) -> Result<Interpreter<'_>> {
        Ok(Interpreter::new(&self.graph, &self.parts)?.streaming().threads(self.threads))
    }

    /// The logits that were asked for, `[tokens, ids]`.
    ///
    /// # Errors
    /// A tensor that cannot be read, or a graph that the interpreter cannot run.
    pub fn answer(&self) -> Result<Vec<f32>> {
        self.answer_watched(&mut |_, _, _| {})
    }

    /// As [`Question::answer`], and shows every computed tensor to `watch`, with the first position of its step and its name,
    /// as [`Interpreter::run_watched`] does.
    ///
    /// # Errors
    /// As [`Question::answer`].
    pub fn answer_watched(&self, watch: &mut dyn FnMut(usize, &str, &mut Tensor)) -> Result<Vec<f32>> {
        let interpreter = self.interpreter()?;
        let mut kv = KvState::new(self.graph.cache());
        let mut all = Vec::new();
        for start in (0..self.tokens.len()).step_by(STEP_TOKENS) {
            let end = (start + STEP_TOKENS).min(self.tokens.len());
            let mut watch = |name: &str, value: &mut Tensor| watch(start, name, value);
            let outputs = interpreter.run_watched(&self.batch(start, end), &mut kv, &mut watch)?;
            let bug = |what: &str| CompileError::Bug(format!("question: {what}"));
            let (_, logits) = outputs.tensors.first().ok_or_else(|| bug("the graph returns no tensor"))?;
            let (rows, width) = (logits.floats().map_err(|e| bug(&e))?, logits.row_len().max(1));
            for row in rows.chunks(width) {
                all.extend(self.columns.iter().filter_map(|&c| row.get(c)));
            }
        }
        Ok(all)
    }

    /// Tokens `start..end` as a step in which every row samples.
    pub fn batch(&self, start: usize, end: usize) -> Batch {
        let (tokens, rows) = (self.tokens[start..end].to_vec(), (0..end - start).collect());
        Batch::new(vec![BatchSequence { slot: 0, start, tokens, rows }])
    }
}

/// The embedding of the tokens and its table.
fn embedding(graph: &Graph) -> Option<(NodeId, WeightId)> {
    let (id, node) = graph.nodes().find(|(_, n)| matches!(n.op, Op::Embedding(_)))?;
    Some((id, graph.as_weight(*node.inputs.get(1)?)?))
}

/// The projection to the vocabulary, weight first, then the bias if it has one: what yields the graph's only result,
/// gathered or not.
fn head(graph: &Graph) -> Option<(NodeId, Vec<WeightId>)> {
    let &[result] = graph.outputs() else { return None };
    let mut id = graph.producer(result)?;
    while matches!(graph.op(id), Op::GatherRows(_)) {
        id = graph.producer(graph.input_of(id, 0))?;
    }
    match graph.op(id) {
        Op::Linear(_) => {
            Some((id, graph.node(id).inputs[1..].iter().filter_map(|&v| graph.as_weight(v)).collect()))
        }
        _ => None,
    }
}

/// Checkpoint tensors for the interpreter, and selected rows of weights under names of their own.
struct Parts<'a> {
    graph: &'a Graph,
    source: &'a dyn TensorSource,
    rows: HashMap<String, Tensor>,
    threads: usize,
    /// Memory of a large tensor that the interpreter gave back: fresh pages cost as much as reading into them.
    spare: Mutex<Vec<f32>>,
}

impl Parts<'_> {
    fn rows_of(&mut self, name: &str, weight: WeightId, rows: &[u32]) -> Result<StandIn> {
        let stream = Rows::of_weight(self.graph, weight, self.source)?;
        let mut data = Vec::with_capacity(rows.len() * stream.row_len);
        for &row in rows {
            let mut one = vec![0.0; stream.row_len];
            widened(&stream, self.source, row as usize..row as usize + 1, &mut one)?;
            data.extend(one);
        }
        let mut shape = self.graph.weight_facts(weight).fixed_shape().unwrap_or_default();
        if let Some(first) = shape.first_mut() {
            *first = rows.len();
        }
        let facts = Facts::fixed(stream.dtype, &shape);
        self.rows.insert(name.into(), Tensor::float(stream.dtype, shape, data));
        Ok(StandIn { name: name.into(), facts })
    }
}

impl WeightSource for Parts<'_> {
    fn tensor(&self, name: &str) -> Result<Tensor, String> {
        if let Some(rows) = self.rows.get(name) {
            return Ok(rows.clone());
        }
        let info = self.source.info(name).ok_or("it is absent")?;
        Ok(Tensor { shape: info.shape.clone(), ..self.rows(name, 0..info.rows())? })
    }

    fn rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor, String> {
        let stream = Rows::tensor(self.source, name).map_err(|e| e.to_string())?;
        if rows.end > stream.rows {
            return Err(format!("rows {rows:?} are wanted, it has {}", stream.rows));
        }
        let shape = match self.source.info(name) {
            Some(info) if info.shape.len() > 1 => vec![rows.len(), stream.row_len],
            _ => vec![rows.len()],
        };
        let len = rows.len() * stream.row_len;
        let mut data = Vec::new();
        if len >= LARGE {
            data = std::mem::take(&mut *self.spare.lock().unwrap_or_else(PoisonError::into_inner));
        }
        if data.capacity() > 2 * len {
            data = Vec::new();
        }
        data.resize(len, 0.0);
        let threads = if len < LARGE { 1 } else { self.threads };
        shared_out(&stream, self.source, rows, &mut data, threads).map_err(|e| e.to_string())?;
        // Every stored value is representable in its own type: nothing is left to round.
        Ok(Tensor { dtype: stream.dtype, shape, data: Data::Float(data) })
    }

    fn recycle(&self, tensor: Tensor) {
        if let Data::Float(data) = tensor.data {
            let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            if data.capacity() > spare.capacity() {
                *spare = data;
            }
        }
    }
}

/// Widens rows, each thread its share.
fn shared_out(
    stream: &Rows,
    source: &dyn TensorSource,
    rows: Range<usize>,
    out: &mut [f32],
    threads: usize,
) -> Result<()> {
    if threads == 1 {
        return widened(stream, source, rows, out);
    }
    let share = rows.len().div_ceil(threads);
    let end = rows.end;
    let parts = rows.step_by(share).zip(out.chunks_mut(share * stream.row_len));
    let read = |(start, out)| widened(stream, source, start..(start + share).min(end), out);
    std::thread::scope(|scope| {
        let readers: Vec<_> = parts.map(|part| scope.spawn(move || read(part))).collect();
        let panicked = |_| Err(CompileError::Bug("a reader of weights panicked".into()));
        readers.into_iter().try_for_each(|reader| reader.join().unwrap_or_else(panicked))
    })
}

/// Widens rows block by block.
fn widened(stream: &Rows, source: &dyn TensorSource, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
    let step = ((256 << 10) / stream.row_bytes().max(1)).max(1);
    let mut block = Vec::new();
    let starts = rows.clone().step_by(step);
    for (start, out) in starts.zip(out.chunks_mut((step * stream.row_len).max(1))) {
        let end = (start + step).min(rows.end);
        block.resize((end - start) * stream.row_bytes(), 0);
        stream.read(source, start..end, &mut block)?;
        widen(&block, stream.dtype, out);
    }
    Ok(())
}

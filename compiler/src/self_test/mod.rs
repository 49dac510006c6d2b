//! A question with its answer for `TEST`: the reference interpreter's logits for a few tokens.
//!
//! The arithmetic is the interpreter's, so the answer is the same on every machine. Only the rows of the embedding and
//! of the head that the question needs are read, so that no vocabulary-sized tensor is ever held.

pub mod excerpt;

use std::collections::HashMap;

use lathe_ir::entity::{NodeId, WeightId};
use lathe_ir::ops::Op;
use lathe_ir::{Batch, BatchSequence, Facts, Graph, Interpreter, KvState, Tensor, WeightSource};
use lathe_numerics::DType;
use lathe_plan::schema::SelfTest;

use crate::checkpoint::TensorSource;
use crate::emit::rows::{Rows, widen};
use crate::error::{CompileError, Result};
use excerpt::{Excerpt, StandIn};

/// Parameters above which only the first and the last layer are tested, by a program of their own. The interpreter takes
/// some 3 ns per parameter, writing the plan some 5 (two cores, 2026-11): a whole test stays below a second, and two
/// layers of sixteen within a tenth of the compilation.
pub const WHOLE_MODEL_LIMIT: u64 = 250_000_000;

/// Name of the program that the test runs where the decoder is too large.
pub const PROGRAM: &str = "self_test";

/// Tokens of the question.
const N_TOKENS: u32 = 4;
/// Columns of the logits that are compared at each position.
const N_IDS: u32 = 64;

/// Largest difference that an engine may show, as a part of the largest logit: what the published goldens allow for
/// f32; for the short types the roundings of every layer add up, at half an ulp each.
pub fn tolerance(dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => 0.05,
        DType::F16 => 0.01,
        DType::F32 | DType::I32 | DType::U32 => 2e-4,
    }
}

/// Asks `graph`, an imported graph or an excerpt of one.
///
/// # Errors
/// A tensor that cannot be read, or a graph that the interpreter cannot run.
pub fn ask(graph: &Graph, source: &dyn TensorSource, vocab_size: u32, dtype: DType) -> Result<SelfTest> {
    let spread = |n: u32| -> Vec<u32> {
        let n = n.min(vocab_size);
        (0..n).map(|i| (u64::from(i) * u64::from(vocab_size) / u64::from(n)) as u32).collect()
    };
    let (token_ids, ids) = (spread(N_TOKENS), spread(N_IDS));
    let positions: Vec<u32> = (0..token_ids.len() as u32).collect();
    let mut parts = Parts { graph, source, rows: HashMap::new() };
    let mut stand_ins = HashMap::new();
    let mut tokens: Vec<i32> = token_ids.iter().map(|&t| t as i32).collect();
    let mut columns: Vec<usize> = ids.iter().map(|&i| i as usize).collect();
    if let Some((node, table)) = embedding(graph) {
        stand_ins.insert((node, 1), parts.rows_of("self_test.embedding", table, &token_ids)?);
        tokens = (0..tokens.len() as i32).collect();
    }
    if let Some((node, weights)) = head(graph) {
        for (at, &weight) in weights.iter().enumerate() {
            let name = if at == 0 { "self_test.head" } else { "self_test.head_bias" };
            stand_ins.insert((node, at + 1), parts.rows_of(name, weight, &ids)?);
        }
        columns = (0..ids.len()).collect();
    }
    let nodes = graph.nodes().map(|(id, _)| id).collect();
    let question = Excerpt { graph, nodes, alias: HashMap::new(), stand_ins }.build()?;

    let interpreter = Interpreter::new(&question, &parts)?.streaming();
    let rows = (0..tokens.len()).collect();
    let batch = Batch::new(vec![BatchSequence { slot: 0, start: 0, tokens, rows }]);
    let outputs = interpreter.run(&batch, &mut KvState::new(question.cache()))?;
    let bug = |what: &str| CompileError::Bug(format!("self-test: {what}"));
    let (_, answer) = outputs.tensors.first().ok_or_else(|| bug("the graph returns no tensor"))?;
    let (all, width) = (answer.floats().map_err(|e| bug(&e))?, answer.row_len().max(1));
    let logits: Vec<f32> =
        all.chunks(width).flat_map(|row| columns.iter().filter_map(|&c| row.get(c))).copied().collect();
    if logits.len() != positions.len() * ids.len() {
        return Err(bug("the result has other rows or columns than the vocabulary says"));
    }
    if let Some(at) = logits.iter().position(|x| !x.is_finite()) {
        let why = format!("the reference logit of id {} is {}", ids[at % ids.len()], logits[at]);
        return Err(CompileError::input("weights", why).remedy("look for nan or infinity in the checkpoint"));
    }
    let largest = logits.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    // A model of zeros answers zeros; its engine may still be asked whether it is within something.
    let tolerance = (tolerance(dtype) * largest).max(f32::EPSILON);
    Ok(SelfTest { token_ids, positions, ids, logits, tolerance })
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
}

impl Parts<'_> {
    fn rows_of(&mut self, name: &str, weight: WeightId, rows: &[u32]) -> Result<StandIn> {
        let stream = Rows::of_weight(self.graph, weight, self.source)?;
        let mut data = Vec::with_capacity(rows.len() * stream.row_len);
        for &row in rows {
            data.extend(floats(&stream, self.source, row as usize..row as usize + 1)?);
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
        let stream = Rows::tensor(self.source, name).map_err(|e| e.to_string())?;
        let data = floats(&stream, self.source, 0..stream.rows).map_err(|e| e.to_string())?;
        // Every stored value is representable in its own type: nothing is left to round.
        Ok(Tensor { dtype: info.dtype, shape: info.shape, data: lathe_ir::Data::Float(data) })
    }
}

/// Rows as f32, widened block by block.
fn floats(stream: &Rows, source: &dyn TensorSource, rows: std::ops::Range<usize>) -> Result<Vec<f32>> {
    let mut out = vec![0.0; rows.len() * stream.row_len];
    let step = ((256 << 10) / stream.row_bytes().max(1)).max(1);
    let mut block = Vec::new();
    let starts = rows.clone().step_by(step);
    for (start, out) in starts.zip(out.chunks_mut((step * stream.row_len).max(1))) {
        let end = (start + step).min(rows.end);
        block.resize((end - start) * stream.row_bytes(), 0);
        stream.read(source, start..end, &mut block)?;
        widen(&block, stream.dtype, out);
    }
    Ok(out)
}

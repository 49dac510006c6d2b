//! The engine's launches against the interpreter, each on the engine's own inputs.
//!
//! The engine runs a step and everything that its launches wrote is copied. The interpreter then evaluates the fused graph
//! node by node, and goes on from what the engine had instead of from its own result: errors do not add up from layer
//! to layer, a launch is held to the tolerance of its kernel, and one that is off is not blamed on those behind it.

use std::collections::HashMap;

use lathe_api::{
    Engine, EngineError, SampleRow, SamplingParams, SeqStep, Slot, SlotState, StepOutput, StepPlan,
    TokenSource, Wanted,
};
use lathe_cpu::{CpuEngine, Observed};
use lathe_ir::entity::NodeId;
use lathe_ir::{Data, Graph, KvState, Tensor};
use lathe_kernels::tolerance::{self, Tolerance};
use lathe_numerics::DType;
use lathe_plan::schema::{Place, Program};

use super::choices::Choices;
use crate::emit::rows::widen;
use crate::error::{CompileError, Result};
use crate::self_test::question::Question;

/// Tokens whose launches are held at once: several steps of the engine are one of the interpreter, which reads every weight
/// for each of its own.
const HELD_TOKENS: usize = 128;

/// What one launch was held to.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct LaunchCheck {
    /// The value that it computes.
    pub value: String,
    /// Kernel family.
    pub kernel: String,
    /// Weights that it reads.
    pub weights: Vec<String>,
    /// Type of the value.
    pub dtype: String,
    /// Largest error over the largest magnitude.
    pub max_error: f32,
    /// Bound of it.
    pub max_bound: f32,
    /// L2 norm of the error over that of the value.
    pub global_error: f32,
    /// Bound of it.
    pub global_bound: f32,
}

impl LaunchCheck {
    /// Whether it kept its tolerance; NaN never does.
    pub fn passes(&self) -> bool {
        self.max_error <= self.max_bound && self.global_error <= self.global_bound
    }

    /// How far it is from its bound: 1 is at it.
    pub fn ratio(&self) -> f32 {
        let of = |error: f32, bound: f32| if error.is_nan() { f32::INFINITY } else { error / bound };
        of(self.max_error, self.max_bound).max(of(self.global_error, self.global_bound))
    }

    fn worse(&mut self, other: LaunchCheck) {
        if other.ratio() > self.ratio() {
            *self = other;
        }
    }
}

/// The engine's tokens and what came of them.
pub struct Asked<'a> {
    /// The engine over the plan.
    pub engine: &'a mut CpuEngine,
    /// The plan's program that it runs.
    pub program: &'a Program,
    /// Names of the plan's weights.
    pub weight_names: Vec<&'a str>,
    /// Token ids, one sequence.
    pub token_ids: &'a [u32],
    /// Ids whose logits are compared.
    pub ids: &'a [u32],
}

fn failed(error: EngineError) -> CompileError {
    match error {
        EngineError::Fit { what, why, remedy } => CompileError::Input { what, why, remedy: Some(remedy) },
        EngineError::Plan { .. } => CompileError::input("plan", error.to_string()),
        EngineError::Request(_) | EngineError::Failed(_) => CompileError::Bug(error.to_string()),
    }
}

impl Asked<'_> {
    /// Positions that a step takes when each of them samples.
    fn step_len(&self) -> usize {
        let info = self.engine.info();
        info.max_sample_rows.min(info.max_num_tokens).max(1) as usize
    }

    /// Runs positions `start..end`, all of which sample, and shows what the launches wrote.
    fn step(
        &mut self,
        start: usize,
        end: usize,
        observe: &mut (dyn FnMut(Observed<'_>) + Send + Sync),
    ) -> Result<()> {
        let info = self.engine.info().clone();
        if start == 0 {
            let state = SlotState { prompt: self.token_ids, ..SlotState::default() };
            self.engine.bind(Slot(0), state).map_err(failed)?;
        }
        let row = |position: usize| SampleRow {
            row: (position - start) as u32,
            slot: Slot(0),
            position: position as u32 + 1,
            wanted: Wanted::Logits,
            params: SamplingParams::default(),
            top_logprobs: None,
            suppress_stops: false,
        };
        let (tokens, total) = (end - start, self.token_ids.len());
        let mut step = StepPlan::with_capacity(tokens, 1, tokens, total, info.groups.len());
        step.tokens.extend(self.token_ids[start..end].iter().map(|&id| TokenSource::Literal(id)));
        step.positions.extend(start as u32..end as u32);
        let (blocks_start, blocks_len) = step.push_own_blocks(&info, 0, total as u32, start as u32);
        step.seqs.push(SeqStep {
            slot: Slot(0),
            q_start: 0,
            q_len: tokens as u32,
            kv_len: end as u32,
            blocks_start,
            blocks_len,
            adapter: None,
        });
        step.rows.extend((start..end).map(row));
        let ticket = self.engine.submit_observed(&step, observe).map_err(failed)?;
        self.engine.sample(ticket, None).map_err(failed)?;
        self.engine.collect(ticket, &mut StepOutput::with_capacity(end - start)).map_err(failed)
    }

    /// The engine's logits of `ids` at every position, `[tokens, ids]`, and what its routers said on the way.
    ///
    /// # Errors
    /// The engine refuses the tokens or fails.
    pub fn logits(&mut self, choices: &mut Choices<'_>) -> Result<Vec<f32>> {
        let vocab = (self.engine.info().vocab_size as usize).max(1);
        let mut all = Vec::with_capacity(self.token_ids.len() * self.ids.len());
        let n = self.token_ids.len();
        for start in (0..n).step_by(self.step_len()) {
            let end = (start + self.step_len()).min(n);
            self.step(start, end, &mut |seen| choices.observe(&seen))?;
            for row in self.engine.logits().chunks_exact(vocab) {
                all.extend(self.ids.iter().map(|&id| row[id as usize]));
            }
        }
        Ok(all)
    }

    /// Holds every launch against `question`, which asks the fused graph that the program was selected from.
    ///
    /// # Errors
    /// The program is not the graph's, or either cannot run.
    pub fn compare(&mut self, graph: &Graph, question: &Question<'_>) -> Result<Vec<LaunchCheck>> {
        let nodes = self.nodes(graph)?;
        // Tensors by value name: which launch, and which of its outputs.
        let mut outputs: HashMap<&str, (usize, usize)> = HashMap::new();
        for (launch, &id) in nodes.iter().enumerate() {
            let tensors = graph.node(id).outputs.iter().filter(|v| !graph.facts(**v).is_state());
            outputs.extend(tensors.enumerate().map(|(at, &v)| (graph.value_name(v), (launch, at))));
        }
        let bounds: Vec<Tolerance> = nodes.iter().map(|&id| self.bound(graph, id)).collect();
        let logits = graph.outputs().first().map(|&v| graph.value_name(v)).unwrap_or_default();
        let interpreter = question.interpreter()?;
        let mut kv = KvState::new(question.graph.cache());
        let mut checks: Vec<Option<LaunchCheck>> = vec![None; nodes.len()];
        let (n, step) = (self.token_ids.len(), self.step_len());
        let ids = (question.width() == self.ids.len()).then_some(self.ids);
        let group = step * (HELD_TOKENS / step).max(1);
        for start in (0..n).step_by(group) {
            let end = (start + group).min(n);
            let mut seen: HashMap<(usize, usize), Seen> = HashMap::new();
            for from in (start..end).step_by(step) {
                self.step(from, (from + step).min(end), &mut |o| {
                    let at = (o.launch, o.output);
                    let ids = ids.filter(|_| outputs.get(logits) == Some(&at));
                    seen.entry(at).or_default().push(&o, ids);
                })?;
            }
            let mut mismatch = None;
            interpreter.run_watched(&question.batch(start, end), &mut kv, &mut |name, tensor| {
                let Some(&(launch, output)) = outputs.get(name) else { return };
                let Some(got) = seen.remove(&(launch, output)).map(Seen::tensor) else { return };
                if got.len() != tensor.len() {
                    mismatch
                        .get_or_insert_with(|| format!("%{name}: {:?} and {:?}", got.shape, tensor.shape));
                    return;
                }
                let check = self.check(launch, tensor, &got, bounds[launch]);
                match &mut checks[launch] {
                    Some(before) => before.worse(check),
                    empty => *empty = Some(check),
                }
                replace(tensor, got);
            })?;
            if let Some(what) = mismatch {
                return Err(CompileError::Bug(format!(
                    "a launch writes another shape than its node gives: {what}"
                )));
            }
        }
        Ok(checks.into_iter().flatten().collect())
    }

    /// The graph's nodes in the order of the launches.
    fn nodes(&self, graph: &Graph) -> Result<Vec<NodeId>> {
        let nodes: Vec<NodeId> = graph.nodes().map(|(id, _)| id).collect();
        let values = nodes.iter().map(|&id| graph.value_name(graph.node(id).outputs[0]));
        let launches = &self.program.launches;
        if launches.len() == nodes.len() && launches.iter().zip(values).all(|(l, name)| l.node == name) {
            return Ok(nodes);
        }
        Err(CompileError::input(
            "plan",
            "its launches are not those that this compiler makes of the checkpoint",
        )
        .remedy(
            "compile the checkpoint again with this version, or verify with the version that made the plan",
        ))
    }

    /// The tolerance of a node's kernel. What goes through the cache is rounded there as well.
    fn bound(&self, graph: &Graph, id: NodeId) -> Tolerance {
        let node = graph.node(id);
        let out = node.outputs.iter().find_map(|&v| graph.facts(v).dtype()).unwrap_or(DType::F32);
        let cached = node.op.cache_layer().and_then(|_| graph.cache()).map_or(out, |cache| cache.dtype);
        let (a, b) = (bound_of(out), bound_of(cached));
        Tolerance { max: a.max.max(b.max), global: a.global.max(b.global) }
    }

    fn check(&self, launch: usize, want: &Tensor, got: &Tensor, bound: Tolerance) -> LaunchCheck {
        let errors = tolerance::errors(&numbers(want), &numbers(got));
        let from = &self.program.launches[launch];
        let weights = from.inputs.iter().filter_map(|input| match input.place {
            Place::Weight(index) => self.weight_names.get(index as usize).map(|name| (*name).to_owned()),
            _ => None,
        });
        LaunchCheck {
            value: from.node.clone(),
            kernel: from.kernel.clone(),
            weights: weights.collect(),
            dtype: want.dtype.to_string(),
            max_error: errors.max,
            max_bound: bound.max,
            global_error: errors.global,
            global_bound: bound.global,
        }
    }
}

/// A kernel's tolerance is for a reference that is not rounded. Here it is: where two values are rounded apart, they are a whole
/// unit apart and not half of one.
fn bound_of(dtype: DType) -> Tolerance {
    let tolerance = tolerance::of(dtype);
    if dtype.size() < 4 { Tolerance { max: 2.0 * tolerance.max, ..tolerance } } else { tolerance }
}

/// What one output of a launch was over some steps, as the engine holds it.
#[derive(Default)]
struct Seen {
    of: Option<(DType, usize)>,
    bytes: Vec<u8>,
}

impl Seen {
    /// Appends the rows of a step, of all columns or those of `ids`.
    fn push(&mut self, seen: &Observed<'_>, ids: Option<&[u32]>) {
        let size = seen.dtype.size();
        self.of = Some((seen.dtype, ids.map_or(seen.cols, <[u32]>::len)));
        let Some(ids) = ids else { return self.bytes.extend_from_slice(seen.bytes) };
        for row in seen.bytes.chunks_exact((seen.cols * size).max(1)) {
            let picked = ids.iter().filter_map(|&id| row.get(id as usize * size..(id as usize + 1) * size));
            self.bytes.extend(picked.flatten());
        }
    }

    /// As numbers: indices are whole and small.
    fn tensor(self) -> Tensor {
        let (dtype, cols) = self.of.unwrap_or((DType::F32, 0));
        let mut data = vec![0.0; self.bytes.len() / dtype.size()];
        match dtype {
            DType::I32 | DType::U32 => {
                for (word, to) in self.bytes.as_chunks::<4>().0.iter().zip(&mut data) {
                    *to = i32::from_le_bytes(*word) as f32;
                }
            }
            DType::F32 | DType::F16 | DType::BF16 => widen(&self.bytes, dtype, &mut data),
        }
        let rows = data.len().checked_div(cols).unwrap_or(0);
        Tensor { dtype, shape: vec![rows, cols], data: Data::Float(data) }
    }
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    match &tensor.data {
        Data::Float(data) => data.clone(),
        Data::Int(data) => data.iter().map(|&x| x as f32).collect(),
    }
}

/// Lets the interpreter go on from the engine's value.
fn replace(tensor: &mut Tensor, got: Tensor) {
    match (&mut tensor.data, got.data) {
        (Data::Float(old), Data::Float(new)) => *old = new,
        (Data::Int(old), Data::Float(new)) => *old = new.into_iter().map(|x| x as i32).collect(),
        (_, Data::Int(_)) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_unit_apart_is_rounding_and_two_are_not() {
        for (dtype, unit) in [(DType::BF16, 1.0 / 128.0), (DType::F16, 1.0 / 1024.0)] {
            let error = |units: f32| {
                tolerance::errors(&[1.0; 50], &[[1.0; 49].as_slice(), &[1.0 + units * unit]].concat())
            };
            let bound = bound_of(dtype);
            assert!(error(1.0).max <= bound.max && error(1.0).global <= bound.global, "{dtype}");
            assert!(error(2.0).max > bound.max, "{dtype}");
        }
        assert_eq!(bound_of(DType::F32), tolerance::of(DType::F32));
    }
}

//! A plan against its checkpoint: does the compiled program compute what the checkpoint says?
//!
//! Needs: an imported checkpoint and a plan with a CPU program. Gives: the weights that differ, the logits against the
//! reference interpreter's on the unfused graph, and where asked for every launch against the interpreter on its own
//! inputs. Nothing here knows a model, and no op but the choice of experts. Memory: weights stream; what is held are the interpreter's operands of one
//! node, the engine's activations and, with launches, what they wrote for one step.

mod choices;
mod launches;
mod report;
mod weights;

use std::sync::Arc;

use lathe_api::EngineError;
use lathe_cpu::{CpuEngine, CpuOptions, Isa};
use lathe_kernels::tolerance;
use lathe_plan::Plan;
use lathe_plan::schema::Target;

pub use launches::LaunchCheck;
pub use weights::WeightFault;

use crate::checkpoint::TensorSource;
use crate::error::{CompileError, Result};
use crate::import::Imported;
use crate::options::Options;
use crate::pipeline;
use crate::self_test::question::Question;
use crate::self_test::tolerance as logit_tolerance;
use choices::Choices;
use launches::Asked;

/// Columns of the logits that are compared at most: heads with more rows are sampled evenly, their weights in whole.
const MAX_IDS: u32 = 4096;
/// Tokens unless the caller gives some.
const DEFAULT_TOKENS: u32 = 16;

/// What to compare, and how the engine runs.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Tokens of one sequence; empty takes a few from all over the vocabulary.
    pub token_ids: Vec<u32>,
    /// Compare every launch too.
    pub layers: bool,
    /// Threads of the engine and of what lays weights out; 0 takes as many as the process may use.
    pub threads: usize,
    /// Instruction set of the engine; `None` takes the fastest.
    pub isa: Option<Isa>,
}

/// The logits of the compiled program beside those of the unfused graph.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct LogitCheck {
    /// Positions.
    pub positions: usize,
    /// Ids at each.
    pub ids: usize,
    /// Columns in all.
    pub vocab_size: u32,
    /// Largest difference.
    pub max_difference: f32,
    /// Bound of it.
    pub bound: f32,
    /// L2 norm of the difference over that of the logits.
    pub global_error: f32,
    /// Choices of experts for which the reference was routed by the engine's logits, which were within the bound of its own.
    pub choices: usize,
    /// Choices of experts that each made by its own logits, because they were further apart.
    pub choices_apart: usize,
}

impl LogitCheck {
    /// Whether they are near enough; NaN never is.
    pub fn passes(&self) -> bool {
        self.max_difference <= self.bound
    }
}

/// What was found.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Verification {
    /// Name of the model.
    pub model: String,
    /// The engine's path, e.g. `cpu/avx512`.
    pub path: String,
    /// Weights that were compared.
    pub n_weights: usize,
    /// Weights that differ.
    pub weight_faults: Vec<WeightFault>,
    /// The logits.
    pub logits: LogitCheck,
    /// In execution order; empty unless asked for.
    pub launches: Vec<LaunchCheck>,
}

impl Verification {
    /// Whether the plan is what the checkpoint gives.
    pub fn passes(&self) -> bool {
        self.weight_faults.is_empty() && self.logits.passes() && self.launches.iter().all(LaunchCheck::passes)
    }

    /// The first launch that leaves its tolerance.
    pub fn first_launch(&self) -> Option<&LaunchCheck> {
        self.launches.iter().find(|l| !l.passes())
    }
}

fn load(plan: &Arc<Plan>, request: &Request) -> Result<CpuEngine> {
    let options = CpuOptions { threads: request.threads, isa: request.isa, ..CpuOptions::default() };
    CpuEngine::load(plan.clone(), &options).map_err(|error| match error {
        EngineError::Fit { what, why, remedy } => CompileError::Input { what, why, remedy: Some(remedy) },
        error => CompileError::input("plan", error.to_string()),
    })
}

/// Evenly spread numbers below `below`, at most `n`, in order.
fn spread(n: u32, below: u32) -> Vec<u32> {
    let n = n.min(below);
    (0..n).map(|i| (u64::from(i) * u64::from(below) / u64::from(n)) as u32).collect()
}

/// Compares `plan` with what `imported`, read from `source`, gives under `options`, which are those of the plan.
///
/// # Errors
/// A plan of another checkpoint, without a CPU program or by another compiler; tokens outside of the plan's limits; whatever
/// cannot be read or run.
pub fn verify(
    imported: &Imported,
    source: &dyn TensorSource,
    options: &Options,
    plan: &Arc<Plan>,
    request: &Request,
) -> Result<Verification> {
    let card = plan.card();
    if card.source_hash != imported.card.source_hash {
        return Err(CompileError::input(
            "plan",
            "it was made from another checkpoint: config or tensor shapes differ",
        ));
    }
    let cpu = plan.programs().iter().find(|p| p.name == "decoder" && p.target == Target::Cpu);
    let program = cpu.ok_or_else(|| {
        CompileError::unsupported(
            "plan without a CPU program",
            "the CPU engine is what is compared: add cpu to --target",
        )
    })?;
    let lowered = pipeline::lower(imported, options)?;
    let expected = lowered.stored_weights(source)?;
    let threads = match request.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let weight_faults = weights::compare(plan, &expected, source, threads)?;

    let token_ids = match request.token_ids.is_empty() {
        // Not in order of id, so that neighbours are not alike.
        true => {
            spread(DEFAULT_TOKENS.min(card.limits.max_seq_len), card.vocab_size).into_iter().rev().collect()
        }
        false => request.token_ids.clone(),
    };
    if let Some(id) = token_ids.iter().find(|&&id| id >= card.vocab_size) {
        let why = format!("{id} is not below the vocabulary's {}", card.vocab_size);
        return Err(CompileError::usage("tokens", why));
    }
    if token_ids.len() > card.limits.max_seq_len as usize {
        let why =
            format!("has {} ids, a sequence of the plan holds {}", token_ids.len(), card.limits.max_seq_len);
        return Err(CompileError::usage("tokens", why));
    }
    let ids = spread(MAX_IDS, card.vocab_size);
    let mut engine = load(plan, request)?;
    let path = lathe_api::Engine::info(&engine).path.clone();
    let weight_names = plan.weights().iter().map(|w| w.name.as_str()).collect();
    let mut asked = Asked { engine: &mut engine, program, weight_names, token_ids: &token_ids, ids: &ids };
    let launches = match request.layers {
        true => {
            let graph = lowered.graph(&Target::Cpu)?;
            asked.compare(graph, &Question::new(graph, source, &token_ids, &ids)?.threads(threads))?
        }
        false => Vec::new(),
    };
    let mut choices = Choices::new(&imported.graph, program);
    let got = asked.logits(&mut choices)?;
    let bound = logit_tolerance(imported.dtype);
    let question = Question::new(&imported.graph, source, &token_ids, &ids)?.threads(threads);
    let want =
        question.answer_watched(&mut |start, name, value| choices.follow(name, start, value, bound))?;
    if got.len() != want.len() {
        return Err(CompileError::Bug(format!(
            "{} logits beside {} of the reference",
            got.len(),
            want.len()
        )));
    }
    let largest = want.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let errors = tolerance::errors(&want, &got);
    let logits = LogitCheck {
        positions: token_ids.len(),
        ids: ids.len(),
        vocab_size: card.vocab_size,
        max_difference: errors.max * largest.max(1e-30),
        bound: (bound * largest).max(f32::EPSILON),
        global_error: errors.global,
        choices: choices.counts.0,
        choices_apart: choices.counts.1,
    };
    Ok(Verification {
        model: card.name.clone(),
        path,
        n_weights: expected.len(),
        weight_faults,
        logits,
        launches,
    })
}

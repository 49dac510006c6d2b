//! The pipeline: one function, top to bottom, a phase after the other.

use std::fmt::Write as _;
use std::fs;

use lathe_ir::driver::{Pass, Precision, Rule, drive};
use lathe_ir::{Graph, verify};
use lathe_plan::kv::KvPools;
use lathe_plan::schema::{Limits, ModelCard, Operand, Place, Program, Target};
use lathe_plan::{CodeWriter, MemoryReport, MemoryRequest, Tables};

use crate::checkpoint::TensorSource;
use crate::emit;
use crate::emit::weights::StoredWeight;
use crate::error::{CompileError, Result};
use crate::import::Imported;
use crate::memory;
use crate::options::{Observer, Options, Phase};
use crate::passes::{
    FOLD_CONSTANTS, FUSE_ADD_RMS_NORM, FUSE_COMBINE_ADD, FUSE_LINEAR_ACTIVATION, FUSE_LINEAR_ADD,
    FUSE_LINEAR_GLU, FUSE_NORM_LINEAR, FUSE_NORM_LINEAR_GLU, FUSE_NORM_LINEAR_ROPE_APPEND, FUSE_ROPE_APPEND,
    GATHER_SAMPLED_ROWS, MERGE_GATE_UP, MERGE_QKV, REMOVE_DEAD,
};
use crate::report::{MemoryTotals, Outcome, RuleCount, Serving, WeightTotals};
use crate::select::{DeviceCode, WeightTable, select};
use crate::self_test::{self, excerpt};
use crate::targets;

/// Compiles an imported checkpoint to a plan at `options.output`, or up to `options.to`.
///
/// # Errors
/// What is not supported, what cannot be read or written; bugs of the compiler, found by the verifiers.
pub fn compile(
    imported: Imported,
    source: &dyn TensorSource,
    options: &Options,
    observer: &dyn Observer,
) -> Result<Outcome> {
    let Imported { graph: imported_graph, mut card, text, tokenizer_json, dtype, .. } = imported;
    let mut run = Run { options, observer, outcome: Outcome::default(), numeric: Vec::new() };

    // import: what the checkpoint says, unfused, every rounding point explicit. The caller has done the work and told
    // the observer; what comes in is verified here.
    verify(&imported_graph)?;
    run.graph_after(Phase::Import, &imported_graph)?;
    if options.to == Phase::Import {
        return Ok(run.outcome);
    }

    let mut graph = imported_graph.clone();
    let fused = run.graph_phases(&mut graph)?;
    if options.to < Phase::Select {
        return Ok(run.outcome);
    }

    // select: every node becomes a launch, or the compilation ends with the node's name. The self-test of a large model
    // is a program of its own, made of the same weights by the same phases.
    observer.phase_started(Phase::Select);
    let mut weights = WeightTable::default();
    let question = question(&imported_graph, &card)?;
    let asked = question.as_ref().map(|question| rewrite(question.clone(), options)).transpose()?;
    let (mut programs, code) = select_all(&fused, asked.as_ref(), &card, options, &mut weights)?;
    run.outcome.launches = Some(programs[0].launches.len());
    run.programs_after(Phase::Select, &programs)?;
    observer.phase_ended(Phase::Select);
    if options.to == Phase::Select {
        return Ok(run.outcome);
    }

    // schedule: launches stand in their final order, so lifetimes are known and the arena can be laid out.
    observer.phase_started(Phase::Schedule);
    for program in &mut programs {
        let arena = memory::plan_arena(program)?;
        if program.target == Target::Cpu {
            program.scratch_bytes = memory::scratch_bytes(program);
        }
        tracing::debug!(program = program.name, ?arena, "arena");
    }
    run.outcome.memory = Some(memory_totals(&programs[0], &card.limits));
    run.programs_after(Phase::Schedule, &programs)?;
    observer.phase_ended(Phase::Schedule);
    if options.to == Phase::Schedule {
        return Ok(run.outcome);
    }

    // emit: writing waits for the disk most of the time, so the self-test's answer is computed meanwhile. Neither sees
    // the other: the plan's bytes do not depend on who is faster.
    observer.phase_started(Phase::Emit);
    let mut device_code = CodeWriter::default();
    run.outcome.kernels = emit::kernels::compile(&mut programs, &code, options, &mut device_code)?;
    let writer = emit::create(&weights, tokenizer_json.as_ref().map_or(0, Vec::len), options)?;
    observer.temporary_file(writer.temp_path());
    let answer = || {
        let answer =
            self_test::ask(question.as_ref().unwrap_or(&imported_graph), source, card.vocab_size, dtype);
        tracing::debug!(phase = "emit", "self-test answered");
        answer
    };
    let write = || emit::write_weights(&writer, &graph, &weights, source, options, observer);
    let (self_test, wrote) = match options.threads {
        0 | 1 => (answer()?, write()),
        _ => std::thread::scope(|scope| {
            let answer = scope.spawn(answer);
            let wrote = write();
            let panicked = |_| Err(CompileError::Bug("the self-test panicked".into()));
            answer.join().unwrap_or_else(panicked).map(|self_test| (self_test, wrote))
        })?,
    };
    wrote?;
    if self_test.is_none() {
        tracing::warn!(
            "the plan has no self-test: of no token that was tried do all routers choose their experts clearly"
        );
    }
    run.outcome.self_test_tokens = Some(self_test.as_ref().map_or(0, |test| test.token_ids.len()));
    card.numeric_passes = std::mem::take(&mut run.numeric);
    let tables =
        Tables { card, programs, text, tokenizer: tokenizer_json, self_test, code: device_code.finish() };
    let written = emit::finish(writer, &tables, observer)?;
    run.outcome.weights = Some(WeightTotals {
        count: written.weights.len(),
        bytes: written.weight_bytes,
        duplicated_bytes: weights.duplicated_bytes(),
    });
    run.outcome.plan_bytes = Some(written.file_bytes);
    let request = MemoryRequest { threads: options.threads as u64, kv_tokens: None };
    for decoder in tables.programs.iter().filter(|p| p.name == "decoder") {
        let memory = MemoryReport::of(&tables.card, decoder, &written.weights, request);
        let target = targets::name(&decoder.target).to_owned();
        run.outcome.serving.push(Serving { target, memory });
    }
    observer.phase_ended(Phase::Emit);
    Ok(run.outcome)
}

/// The graph that the self-test asks where the decoder is too large.
fn question(imported: &Graph, card: &ModelCard) -> Result<Option<Graph>> {
    match card.n_parameters > self_test::WHOLE_MODEL_LIMIT {
        true => excerpt::first_and_last_layer(imported),
        false => Ok(None),
    }
}

/// Programs of all targets, the self-test's behind the decoder's, and their device code.
fn select_all(
    fused: &FusedGraphs,
    asked: Option<&FusedGraphs>,
    card: &ModelCard,
    options: &Options,
    weights: &mut WeightTable,
) -> Result<(Vec<Program>, Vec<DeviceCode>)> {
    let (mut programs, mut code) = (Vec::new(), Vec::new());
    for target in &options.targets {
        let self_test = asked.map(|graphs| (self_test::PROGRAM, graphs));
        for (name, graphs) in std::iter::once(("decoder", fused)).chain(self_test) {
            let selected = select(graphs.of(target)?, name, target, card.limits.max_seq_len, weights)?;
            programs.push(selected.program);
            code.push(selected.code);
        }
    }
    Ok((programs, code))
}

/// What a checkpoint is lowered to before anything is written.
pub struct Lowered {
    fused: FusedGraphs,
    weights: WeightTable,
}

impl Lowered {
    /// The decoder's fused graph for `target`: a launch of its program per node, in order.
    ///
    /// # Errors
    /// A target that was not lowered for.
    pub fn graph(&self, target: &Target) -> Result<&Graph> {
        self.fused.of(target)
    }

    /// Every weight of the plan as it is stored there.
    ///
    /// # Errors
    /// A tensor that is absent or differs from its declaration.
    pub fn stored_weights(&self, source: &dyn TensorSource) -> Result<Vec<StoredWeight>> {
        // All kinds have the same weights.
        let graph = self.fused.0.first().map(|(_, graph)| graph);
        let graph = graph.ok_or_else(|| CompileError::Bug("nothing was lowered".into()))?;
        emit::stored_weights(graph, &self.weights, source)
    }
}

/// The phases up to selection, silently: what a plan of `imported` under `options` is made of.
///
/// # Errors
/// As [`compile`].
pub fn lower(imported: &Imported, options: &Options) -> Result<Lowered> {
    let fused = rewrite(imported.graph.clone(), options)?;
    let asked = question(&imported.graph, &imported.card)?;
    let asked = asked.map(|question| rewrite(question, options)).transpose()?;
    let mut weights = WeightTable::default();
    select_all(&fused, asked.as_ref(), &imported.card, options, &mut weights)?;
    Ok(Lowered { fused, weights })
}

/// The graph phases without a watcher.
fn rewrite(mut graph: Graph, options: &Options) -> Result<FusedGraphs> {
    let options = Options { dump_phases: None, to: Phase::Fuse, ..options.clone() };
    let mut run = Run {
        options: &options,
        observer: &crate::options::Silent,
        outcome: Outcome::default(),
        numeric: Vec::new(),
    };
    run.graph_phases(&mut graph)
}

/// What runs a program: kinds differ in what their kernels fuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Cpu,
    Device,
}

impl Kind {
    fn of(target: &Target) -> Self {
        if *target == Target::Cpu { Kind::Cpu } else { Kind::Device }
    }

    const fn name(self) -> &'static str {
        match self {
            Kind::Cpu => "cpu",
            Kind::Device => "device",
        }
    }
}

/// The fused graph of each kind of target. Their weights are the same, by id and recipe.
#[derive(Default)]
struct FusedGraphs(Vec<(Kind, Graph)>);

impl FusedGraphs {
    fn of(&self, target: &Target) -> Result<&Graph> {
        let found = self.0.iter().find(|(kind, _)| *kind == Kind::of(target));
        found.map(|(_, graph)| graph).ok_or_else(|| CompileError::Bug("a target has no graph".into()))
    }
}

/// One compilation under way.
struct Run<'a> {
    options: &'a Options,
    observer: &'a dyn Observer,
    outcome: Outcome,
    /// What the model card says of passes that were not exact.
    numeric: Vec<String>,
}

impl Run<'_> {
    /// The phases whose product is a graph. `graph` ends as what all kinds of targets share.
    fn graph_phases(&mut self, graph: &mut Graph) -> Result<FusedGraphs> {
        // canonical: first what needs no pattern. Constants are folded before anything matches on them; rows are
        // gathered early while every op is still simple, so that the last layer's fusions form on the sampled rows
        // instead of having to be taken apart.
        self.observer.phase_started(Phase::Canonical);
        self.pass(Phase::Canonical, &FOLD_CONSTANTS, graph)?;
        self.rules(Phase::Canonical, &[&GATHER_SAMPLED_ROWS], graph)?;
        self.pass(Phase::Canonical, &REMOVE_DEAD, graph)?;
        self.graph_after(Phase::Canonical, graph)?;
        self.observer.phase_ended(Phase::Canonical);
        if self.options.to == Phase::Canonical {
            return Ok(FusedGraphs::default());
        }

        // quant: number formats change before fusion, which looks at types. `--dtype` and `--kv-cache` are settled at
        // import, where the recipes are made, so there is nothing to do yet.
        self.observer.phase_started(Phase::Quant);
        self.graph_after(Phase::Quant, graph)?;
        self.observer.phase_ended(Phase::Quant);
        if self.options.to == Phase::Quant {
            return Ok(FusedGraphs::default());
        }

        // fuse: merges before fusions, because `fuse-rope-append` wants one projection with adjacent columns and
        // `fuse-linear-glu` the interleaved one. What is left of norms and residuals goes two ways: CPU kernels join
        // the two, device kernels take residuals behind a projection and norms before it, and then the rotation.
        self.observer.phase_started(Phase::Fuse);
        self.rules(Phase::Fuse, &[&MERGE_QKV, &MERGE_GATE_UP], graph)?;
        self.rules(Phase::Fuse, &[&FUSE_ROPE_APPEND, &FUSE_LINEAR_GLU, &FUSE_LINEAR_ACTIVATION], graph)?;
        let mut fused = FusedGraphs::default();
        for kind in self.options.targets.iter().map(Kind::of) {
            if fused.0.iter().any(|(known, _)| *known == kind) {
                continue;
            }
            let mut graph = graph.clone();
            match kind {
                Kind::Cpu => self.rules(Phase::Fuse, &[&FUSE_ADD_RMS_NORM], &mut graph)?,
                Kind::Device => {
                    self.rules(Phase::Fuse, &[&FUSE_LINEAR_ADD, &FUSE_COMBINE_ADD], &mut graph)?;
                    self.rules(Phase::Fuse, &[&FUSE_NORM_LINEAR, &FUSE_NORM_LINEAR_GLU], &mut graph)?;
                    self.rules(Phase::Fuse, &[&FUSE_NORM_LINEAR_ROPE_APPEND], &mut graph)?;
                }
            }
            self.pass(Phase::Fuse, &REMOVE_DEAD, &mut graph)?;
            if fused.0.is_empty() {
                self.graph_after(Phase::Fuse, &graph)?;
            } else {
                self.dump(Phase::Fuse, &format!("{}.ir", kind.name()), &graph.to_string())?;
            }
            fused.0.push((kind, graph));
        }
        self.observer.phase_ended(Phase::Fuse);
        Ok(fused)
    }

    fn rules(&mut self, phase: Phase, rules: &[&Rule], graph: &mut Graph) -> Result<()> {
        // The driver verifies the outcome, and in debug builds every application.
        let report = drive(graph, rules)?;
        for applied in &report.applied {
            tracing::debug!(phase = phase.name(), rule = applied.rule, node = applied.node, precision = %applied.precision);
        }
        for rule in rules {
            let moved =
                report.applied.iter().filter(|a| a.rule == rule.name && a.precision != Precision::Exact);
            let moved: Vec<_> = moved.collect();
            if let Some(first) = moved.first() {
                self.numeric.push(format!("{} {} times, {}", rule.name, moved.len(), first.precision));
            }
            self.count(phase, rule.name, moved.is_empty(), report.count(rule.name));
        }
        Ok(())
    }

    fn pass(&mut self, phase: Phase, pass: &Pass, graph: &mut Graph) -> Result<()> {
        let changes = (pass.run)(graph)?;
        verify(graph)?;
        tracing::debug!(phase = phase.name(), pass = pass.name, changes);
        let exact = pass.precision == Precision::Exact;
        if !exact && changes > 0 {
            self.numeric.push(format!("{} {changes} times, {}", pass.name, pass.precision));
        }
        self.count(phase, pass.name, exact, changes);
        Ok(())
    }

    fn count(&mut self, phase: Phase, rule: &str, exact: bool, applied: usize) {
        let precision = if exact { "exact" } else { "numeric" };
        self.outcome.rules.push(RuleCount { phase: phase.name(), rule: rule.into(), precision, applied });
    }

    fn graph_after(&mut self, phase: Phase, graph: &Graph) -> Result<()> {
        self.outcome.graph_text = graph.to_string();
        self.dump(phase, "ir", &self.outcome.graph_text)
    }

    fn programs_after(&self, phase: Phase, programs: &[Program]) -> Result<()> {
        self.dump(phase, "launches", &programs.iter().map(program_text).collect::<String>())
    }

    /// Writes `DIR/2-canonical.ir` and so on.
    fn dump(&self, phase: Phase, extension: &str, text: &str) -> Result<()> {
        let Some(folder) = &self.options.dump_phases else { return Ok(()) };
        fs::create_dir_all(folder).map_err(|e| CompileError::io(folder, e))?;
        let path = folder.join(format!("{}-{phase}.{extension}", phase as usize + 1));
        fs::write(&path, text).map_err(|e| CompileError::io(&path, e))
    }
}

fn memory_totals(program: &Program, limits: &Limits) -> MemoryTotals {
    let pools = KvPools::for_tokens(&program.cache_groups, limits, limits.kv_tokens);
    MemoryTotals {
        arena_bytes: program.arena_bytes,
        scratch_bytes: program.scratch_bytes,
        kv_bytes_per_token: pools.groups.iter().map(|g| g.block_bytes / pools.block_tokens).sum(),
        kv_bytes: pools.bytes(),
    }
}

/// A program for people, a line per buffer and launch.
fn program_text(program: &Program) -> String {
    let symbols: Vec<&str> = program.symbols.iter().map(|s| s.name.as_str()).collect();
    let expr = |e: &lathe_plan::schema::Expr| {
        let terms = e.terms.iter().map(|&(symbol, n)| {
            let name = symbols.get(symbol as usize).copied().unwrap_or("?");
            if n == 1 { name.to_string() } else { format!("{n}*{name}") }
        });
        let constant = (e.constant != 0 || e.terms.is_empty()).then(|| e.constant.to_string());
        terms.chain(constant).collect::<Vec<_>>().join(" + ")
    };
    let operand = |o: &Operand| match o.place {
        Place::Buffer(index) => format!("%{}", program.buffers[index as usize].name),
        Place::Weight(index) => format!("weight {index}"),
        Place::Input(input) => format!("{input:?}").to_lowercase(),
        Place::Cache { group, layer } => format!("cache {group}.{layer}"),
    };
    let list = |operands: &[Operand]| operands.iter().map(operand).collect::<Vec<_>>().join(", ");
    let mut text =
        format!("program {} arena {} scratch {}\n", program.name, program.arena_bytes, program.scratch_bytes);
    // Writing to a string cannot fail.
    for b in &program.buffers {
        let _ = writeln!(
            text,
            "  buffer %{} : {}[{}, {}] at {}",
            b.name,
            b.dtype,
            expr(&b.rows),
            b.cols,
            b.offset
        );
    }
    for l in &program.launches {
        let params: Vec<String> =
            l.params.iter().map(|(name, value)| format!("{name} = {value:?}")).collect();
        let _ = writeln!(
            text,
            "  {} = {}({}) {{{}}}",
            list(&l.outputs),
            l.kernel,
            list(&l.inputs),
            params.join(", ")
        );
    }
    let _ = writeln!(text, "  logits {}", operand(&program.logits));
    text
}

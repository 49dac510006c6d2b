//! What a compilation did, for people and as JSON.

use std::fmt::{self, Write};
use std::time::Duration;

use lathe_diagnostics::format_bytes;
use lathe_plan::MemoryReport;
use lathe_plan::schema::ModelCard;
use serde::Serialize;

use crate::import::Imported;
use crate::options::Phase;

/// How often a rewrite rule applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleCount {
    /// Phase in which it ran.
    pub phase: &'static str,
    /// The rule's or pass's name.
    pub rule: String,
    /// `exact` or `numeric`.
    pub precision: &'static str,
    /// Applications.
    pub applied: usize,
}

/// Weights of a finished plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WeightTotals {
    /// Stored weights.
    pub count: usize,
    /// Their bytes, layout padding included.
    pub bytes: u64,
    /// Bytes of weights that are stored again in a second layout.
    pub duplicated_bytes: u64,
}

/// What a plan asks of the machine that serves it, beside its weights.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryTotals {
    /// Activations of one step at all bounds.
    pub arena_bytes: u64,
    /// Scratch of each worker thread.
    pub scratch_bytes: u64,
    /// Keys and values of one position over all layers.
    pub kv_bytes_per_token: u64,
    /// Keys and values of `kv_tokens` positions, in whole blocks.
    pub kv_bytes: u64,
}

/// A device kernel of the decoder: what the compiler made of it, and the work of all its launches in one step at the
/// fewest and the most rows that it runs for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelReport {
    /// Architecture.
    pub target: &'static str,
    /// Device whose datasheet gives the roofline.
    pub device: &'static str,
    /// Source and variant.
    pub kernel: String,
    /// `__global__` function.
    pub entry: String,
    /// Launches in the program.
    pub launches: usize,
    /// Threads of a block.
    pub threads: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of spilled registers, stores and loads.
    pub spill_bytes: u32,
    /// Bytes of local memory of a thread.
    pub stack_bytes: u32,
    /// Shared memory of a block, static and dynamic.
    pub shared_bytes: u32,
    /// Fewest and most rows.
    pub rows: (u32, u32),
    /// Bytes that must move, at these rows.
    pub bytes: (u64, u64),
    /// Floating-point operations, at these rows.
    pub flops: (u64, u64),
    /// `memory` or `compute`, whichever takes longer at the datasheet's rates, at these rows.
    pub bound: (&'static str, &'static str),
}

/// Memory that serving takes, on one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Serving {
    /// `cpu` or an architecture.
    pub target: String,
    /// Its lines.
    pub memory: MemoryReport,
}

/// What the pipeline hands back.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Rules that were tried, in pipeline order, those that never applied included.
    pub rules: Vec<RuleCount>,
    /// Weights, once emitted.
    pub weights: Option<WeightTotals>,
    /// Memory, once scheduled.
    pub memory: Option<MemoryTotals>,
    /// What a server of the plan holds itself to, by target, with as many threads as the compilation, once written.
    pub serving: Vec<Serving>,
    /// Device kernels, once compiled.
    pub kernels: Vec<KernelReport>,
    /// Kernel launches of the decoder program, once selected.
    pub launches: Option<usize>,
    /// Tokens of the self-test, once written; 0 where there is none.
    pub self_test_tokens: Option<usize>,
    /// Bytes of the plan file, once written.
    pub plan_bytes: Option<u64>,
    /// The IR's text at the last phase whose product is a graph.
    pub graph_text: String,
}

/// Everything that `compile` prints at its end: a table for people, or one JSON object.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// Its architecture.
    pub architecture: String,
    /// Its parameters.
    pub parameters: u64,
    /// Flags that reproduce the plan.
    pub flags: Vec<String>,
    /// Seconds by phase, in order.
    pub phases: Vec<PhaseTime>,
    /// Rewrite rules.
    pub rules: Vec<RuleCount>,
    /// Kernel launches of a step.
    pub launches: Option<usize>,
    /// Weights.
    pub weights: Option<WeightTotals>,
    /// Memory.
    pub memory: Option<MemoryTotals>,
    /// Tokens of the self-test; 0 where no token was found whose routers all choose their experts clearly.
    pub self_test_tokens: Option<usize>,
    /// The plan's path, if one was written.
    pub plan: Option<String>,
    /// Its bytes.
    pub plan_bytes: Option<u64>,
    /// The last phase that ran.
    pub stopped_after: &'static str,
    /// What a server of the plan holds itself to, with as many threads as this compilation had.
    pub serving: Vec<Serving>,
    /// Device kernels.
    pub kernels: Vec<KernelReport>,
}

/// How long a phase took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PhaseTime {
    /// Its name.
    pub phase: &'static str,
    /// Wall time.
    pub seconds: f64,
}

impl Report {
    /// Puts the parts together. `plan` is the output's path as the user wrote it.
    pub fn new(
        card: &ModelCard,
        outcome: Outcome,
        times: &[(Phase, Duration)],
        to: Phase,
        plan: &str,
    ) -> Self {
        let phases = times.iter().map(|(p, d)| PhaseTime { phase: p.name(), seconds: d.as_secs_f64() });
        Report {
            model: card.name.clone(),
            architecture: card.architecture.clone(),
            parameters: card.n_parameters,
            flags: card.flags.clone(),
            phases: phases.collect(),
            rules: outcome.rules,
            launches: outcome.launches,
            weights: outcome.weights,
            memory: outcome.memory,
            self_test_tokens: outcome.self_test_tokens,
            plan: outcome.plan_bytes.map(|_| plan.to_owned()),
            plan_bytes: outcome.plan_bytes,
            stopped_after: to.name(),
            serving: outcome.serving,
            kernels: outcome.kernels,
        }
    }
}

/// One line that says what will be compiled.
pub fn headline(imported: &Imported) -> String {
    let card = &imported.card;
    format!(
        "{} ({}, {:.3} b parameters) in {}, kv cache {}, max-batch {}, max-seq-len {}, max-num-tokens {}",
        card.name,
        card.architecture,
        card.n_parameters as f64 / 1e9,
        imported.dtype,
        imported.kv_dtype,
        card.limits.max_batch,
        card.limits.max_seq_len,
        card.limits.max_num_tokens,
    )
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: Vec<(String, String)> = Vec::new();
        let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
        row("model", format!("{}, {}, {} parameters", self.model, self.architecture, self.parameters));
        let total: f64 = self.phases.iter().map(|p| p.seconds).sum();
        for phase in &self.phases {
            row(&format!("phase {}", phase.phase), format!("{:.2} s", phase.seconds));
        }
        row("phases in all", format!("{total:.2} s"));
        for rule in self.rules.iter().filter(|r| r.applied > 0) {
            row(&rule.rule, format!("{} times ({}, {})", rule.applied, rule.phase, rule.precision));
        }
        if let Some(launches) = self.launches {
            row("launches of a step", launches.to_string());
        }
        if let Some(w) = &self.weights {
            row("weights", format!("{} in {} tensors", format_bytes(w.bytes), w.count));
            row("stored in two layouts", format_bytes(w.duplicated_bytes));
        }
        if let Some(m) = &self.memory {
            row("arena", format_bytes(m.arena_bytes));
            row("scratch per thread", format_bytes(m.scratch_bytes));
            row("kv per token", format_bytes(m.kv_bytes_per_token));
            row("kv pool by default", format_bytes(m.kv_bytes));
        }
        match self.self_test_tokens {
            Some(0) => row("self-test", "none: no token whose routers all choose clearly".into()),
            Some(n) => row("self-test", format!("{n} tokens")),
            None => {}
        }
        if let (Some(plan), Some(bytes)) = (&self.plan, self.plan_bytes) {
            row("plan", format!("{plan}, {}", format_bytes(bytes)));
        } else {
            row("plan", format!("none: stopped after {}", self.stopped_after));
        }
        let width = rows.iter().map(|(n, _)| n.len()).max().unwrap_or(0);
        let mut text = String::new();
        for (name, value) in &rows {
            writeln!(text, "{name:width$}  {value}")?;
        }
        kernels(&self.kernels, &mut text)?;
        for Serving { target, memory } in &self.serving {
            write!(text, "\nmemory to serve it on {target}\n{memory}")?;
        }
        f.write_str(text.trim_end())
    }
}

/// The kernels as a table per target: work at the most rows, and the roofline at the fewest and the most.
fn kernels(kernels: &[KernelReport], text: &mut String) -> fmt::Result {
    let mut target = "";
    let width = kernels.iter().map(|k| k.kernel.len()).max().unwrap_or(0);
    for k in kernels {
        if k.target != target {
            target = k.target;
            writeln!(
                text,
                "\n{:width$}  {:>6} {:>7} {:>4} {:>5} {:>9} {:>11} {:>10} {:>9}  bound on {}",
                format!("kernels of {target}"),
                "count",
                "threads",
                "regs",
                "spill",
                "shared",
                "rows",
                "bytes",
                "gflop",
                k.device,
                width = width.max(18),
            )?;
        }
        let bound = match k.bound {
            (few, most) if few == most => few.to_owned(),
            (few, most) => format!("{few} to {most}"),
        };
        writeln!(
            text,
            "{:width$}  {:>6} {:>7} {:>4} {:>5} {:>9} {:>11} {:>10} {:>9.2}  {bound}",
            k.kernel,
            k.launches,
            k.threads,
            k.registers,
            k.spill_bytes,
            format_bytes(k.shared_bytes.into()),
            format!("{}..{}", k.rows.0, k.rows.1),
            format_bytes(k.bytes.1),
            k.flops.1 as f64 / 1e9,
            width = width.max(18),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lathe_plan::kv::{KvPool, KvPools};
    use lathe_plan::schema::{GenerationDefaults, Limits};

    fn card() -> ModelCard {
        ModelCard {
            name: "llama-1m".into(),
            architecture: "LlamaForCausalLM".into(),
            n_parameters: 1_234_567,
            vocab_size: 100,
            bos_id: None,
            eos_ids: vec![],
            generation: GenerationDefaults::default(),
            max_position: 128,
            limits: Limits {
                max_batch: 1,
                max_num_tokens: 1,
                max_sample_rows: 1,
                max_seq_len: 1,
                kv_tokens: 1,
            },
            producer: String::new(),
            contract: 1,
            flags: vec!["--dtype".into(), "bf16".into()],
            numeric_passes: vec![],
            source_hash: [0; 32],
        }
    }

    #[test]
    fn the_table_holds_what_ran_and_nothing_else() {
        let rule =
            |rule: &str, applied| RuleCount { phase: "fuse", rule: rule.into(), precision: "exact", applied };
        let serving = MemoryReport {
            weights_mapped: 3 << 20,
            arena: 2048,
            logits_in_arena: 400,
            threads: 2,
            scratch_per_thread: 64,
            pools: KvPools {
                block_tokens: 16,
                tokens: 16,
                groups: vec![KvPool { window: None, blocks: 1, blocks_least: 1, block_bytes: 8192 }],
            },
            kv: 8192,
            sampler: 100,
            device: None,
        };
        let want_serving = serving.to_string();
        let outcome = Outcome {
            rules: vec![rule("merge-qkv", 2), rule("fuse-glu", 0)],
            weights: Some(WeightTotals { count: 9, bytes: 3 << 20, duplicated_bytes: 0 }),
            memory: Some(MemoryTotals {
                arena_bytes: 2048,
                scratch_bytes: 64,
                kv_bytes_per_token: 512,
                kv_bytes: 8192,
            }),
            serving: vec![Serving { target: "cpu".into(), memory: serving }],
            kernels: vec![],
            launches: Some(12),
            self_test_tokens: Some(4),
            plan_bytes: Some(4 << 20),
            graph_text: String::new(),
        };
        let times = [(Phase::Import, Duration::from_millis(250)), (Phase::Emit, Duration::from_millis(1250))];
        let report = Report::new(&card(), outcome, &times, Phase::Emit, "x.plan");
        let want = "\
model                  llama-1m, LlamaForCausalLM, 1234567 parameters
phase import           0.25 s
phase emit             1.25 s
phases in all          1.50 s
merge-qkv              2 times (fuse, exact)
launches of a step     12
weights                3 MiB in 9 tensors
stored in two layouts  0 B
arena                  2 KiB
scratch per thread     64 B
kv per token           512 B
kv pool by default     8 KiB
self-test              4 tokens
plan                   x.plan, 4 MiB

memory to serve it on cpu
";
        assert_eq!(report.to_string(), format!("{want}{}", want_serving.trim_end()));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["rules"][1]["applied"], 0);
        assert_eq!(json["weights"]["bytes"], 3 << 20);
        assert_eq!(json["phases"][0]["phase"], "import");
        assert_eq!((&json["plan"], &json["serving"][0]["memory"]["kv"]), (&"x.plan".into(), &8192.into()));
    }

    #[test]
    fn a_stopped_compilation_says_so() {
        let report = Report::new(&card(), Outcome::default(), &[], Phase::Fuse, "x.plan").to_string();
        assert!(report.ends_with("plan           none: stopped after fuse"), "{report}");
    }
}

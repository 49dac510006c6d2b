//! What a compilation was asked for, and who watches it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use lathe_numerics::DType;
use lathe_plan::schema::Target;

/// Named stages of the pipeline, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// The checkpoint as an unfused graph.
    Import,
    /// One spelling for every pattern; constants folded, dead code removed.
    Canonical,
    /// Changes of number formats.
    Quant,
    /// Merged and fused operations.
    Fuse,
    /// Operations become kernel launches.
    Select,
    /// Memory plan.
    Schedule,
    /// Weights laid out and the plan written.
    Emit,
}

impl Phase {
    /// All phases in order.
    pub const ALL: [Phase; 7] = [
        Phase::Import,
        Phase::Canonical,
        Phase::Quant,
        Phase::Fuse,
        Phase::Select,
        Phase::Schedule,
        Phase::Emit,
    ];

    /// Name as it stands in `--to`, in dumps and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Import => "import",
            Phase::Canonical => "canonical",
            Phase::Quant => "quant",
            Phase::Fuse => "fuse",
            Phase::Select => "select",
            Phase::Schedule => "schedule",
            Phase::Emit => "emit",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Phase {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Phase::ALL.into_iter().find(|p| p.name() == s).ok_or_else(|| {
            let names: Vec<_> = Phase::ALL.iter().map(|p| p.name()).collect();
            format!("phase {s:?} is not one of {}", names.join(", "))
        })
    }
}

/// Everything that decides a plan beside the checkpoint, and where the plan goes.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the plan runs on, one program each; not empty, none twice.
    pub targets: Vec<Target>,
    /// Folder of compiled kernels; `None` compiles all of them anew.
    pub kernel_cache: Option<PathBuf>,
    /// Type of weights and activations; `None` is the checkpoint's.
    pub dtype: Option<DType>,
    /// Type of keys and values; `None` is `dtype`.
    pub kv_dtype: Option<DType>,
    /// Sequences in a step.
    pub max_batch: u32,
    /// Positions of a sequence; `None` is `min(model, 8192)`.
    pub max_seq_len: Option<u32>,
    /// Tokens in a step.
    pub max_num_tokens: u32,
    /// Positions that the KV pool holds unless the load says otherwise; `None` is `min(max_batch * max_seq_len, 65536)`.
    pub kv_tokens: Option<u64>,
    /// Sampling defaults of generation_config.json go into the plan.
    pub generation_defaults: bool,
    /// The plan's path.
    pub output: PathBuf,
    /// Stops after this phase; no plan is written unless it is `Emit`.
    pub to: Phase,
    /// Writes the IR text after each phase into this directory.
    pub dump_phases: Option<PathBuf>,
    /// Threads of the emitter; never changes a byte of the plan.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            targets: vec![Target::Cpu],
            kernel_cache: None,
            dtype: None,
            kv_dtype: None,
            max_batch: 32,
            max_seq_len: None,
            max_num_tokens: 2048,
            kv_tokens: None,
            generation_defaults: true,
            output: PathBuf::from("engine.plan"),
            to: Phase::Emit,
            dump_phases: None,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// Told what a compilation does. Called from one thread, but for `wrote`, which any worker calls.
///
/// The pipeline never reads a clock: who wants times takes them here.
pub trait Observer: Sync {
    /// A phase begins.
    fn phase_started(&self, _phase: Phase) {}
    /// A phase is over.
    fn phase_ended(&self, _phase: Phase) {}
    /// The plan is being written to this temporary file, which is to vanish if the process is interrupted.
    fn temporary_file(&self, _path: &Path) {}
    /// The plan is whole at its final path: nothing is left to remove.
    fn plan_renamed(&self) {}
    /// Bytes of weights that the emitter will write in all.
    fn will_write(&self, _total_bytes: u64) {}
    /// Bytes of weights written since the last call.
    fn wrote(&self, _bytes: u64) {}
}

/// Watches nothing.
pub struct Silent;

impl Observer for Silent {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_parse_as_they_print() {
        for phase in Phase::ALL {
            assert_eq!(phase.to_string().parse::<Phase>().as_ref(), Ok(&phase));
        }
        assert_eq!(
            "fold".parse::<Phase>().unwrap_err(),
            "phase \"fold\" is not one of import, canonical, quant, fuse, select, schedule, emit"
        );
    }
}

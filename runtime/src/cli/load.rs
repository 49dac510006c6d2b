//! Plan, engine and text side from a file, with the engine and the tokenizer loading side by side.

use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use lathe_api::Engine;
use lathe_cpu::Isa;
use lathe_diagnostics::parse_bytes;
use lathe_plan::kv::KvPools;
use lathe_plan::{MemoryReport, MemoryRequest, Plan};
use lathe_text::{TextModel, TokenizerConfig};

use super::device::{self, Device};
use super::faults::{self, Outcome};
use super::settings::Settings;
use crate::model::{Model, Text};
use crate::sampling::SamplingDefaults;

/// What the engine knobs say.
#[derive(Clone, Debug)]
pub struct EngineSettings {
    /// Where it runs.
    pub device: Device,
    /// Worker threads of the CPU; 0 takes as many as the process may use.
    pub threads: usize,
    /// Instruction set of the CPU; `None` takes the fastest.
    pub isa: Option<Isa>,
    /// Size of the KV pool; `None` takes what the plan was compiled for.
    pub kv_bytes: Option<u64>,
    /// Device memory that is left to others.
    pub reserve_bytes: u64,
    /// The driver may compile PTX.
    pub allow_ptx_jit: bool,
    /// Program of the plan to run.
    pub program: &'static str,
    /// Largest prefill chunk.
    pub chunk_limit: Option<u32>,
}

impl EngineSettings {
    /// Reads the knobs of `knobs::ENGINE`.
    ///
    /// # Errors
    /// A value that does not parse.
    pub fn new(settings: &Settings) -> Outcome<Self> {
        let at_least_one = |text: &str| match text.parse::<u32>() {
            Ok(0) => Err("must be at least 1".to_owned()),
            Ok(n) => Ok(n),
            Err(e) => Err(e.to_string()),
        };
        let read = || {
            Ok(EngineSettings {
                device: settings.parse("device")?.unwrap_or_default(),
                threads: settings.read("threads", at_least_one)?.unwrap_or(0) as usize,
                isa: settings.parse::<Isa>("isa")?,
                kv_bytes: settings.read("kv-memory", parse_bytes)?,
                reserve_bytes: settings.read("device-reserve", parse_bytes)?.unwrap_or(0),
                allow_ptx_jit: settings.parse("allow-ptx-jit")?.unwrap_or(false),
                program: "decoder",
                chunk_limit: settings.read("prefill-chunk", at_least_one)?,
            })
        };
        read().map_err(faults::settings)
    }
}

/// Opens and checks a plan.
///
/// # Errors
/// No plan, a damaged one, one of another version.
pub fn plan(path: &Path) -> Outcome<Arc<Plan>> {
    Plan::open(path).map(Arc::new).map_err(faults::plan)
}

/// The tokenizer and templates of a plan, if it has any.
///
/// # Errors
/// A tokenizer or template that does not load.
pub fn text(plan: &Plan) -> Outcome<Text> {
    let Some(json) = plan.tokenizer_json() else {
        tracing::warn!("the plan holds no tokenizer: prompts must be token ids, answers have no text");
        return Ok(Text(None));
    };
    let config = plan.text();
    let config = TokenizerConfig {
        chat_templates: config.chat_templates.iter().cloned().collect(),
        special_tokens: config.special_tokens.iter().cloned().collect(),
    };
    TextModel::load(json, &config).map(|model| Text(Some(model))).map_err(faults::text)
}

/// Loads the engine.
///
/// # Errors
/// The plan does not fit this machine.
pub fn engine(plan: &Arc<Plan>, settings: &EngineSettings) -> Outcome<Box<dyn Engine>> {
    device::load(plan, settings)
}

/// Engine and model, loaded side by side.
///
/// # Errors
/// Either's.
pub fn both(plan: &Arc<Plan>, settings: &EngineSettings, name: String) -> Outcome<(Box<dyn Engine>, Model)> {
    let started = Instant::now();
    let (engine, text) = std::thread::scope(|scope| {
        let text = scope.spawn(|| text(plan));
        let engine = engine(plan, settings);
        let text = text.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (engine, text)
    });
    let (engine, text) = (engine?, text?);
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
    let model = Model {
        name,
        text,
        defaults: SamplingDefaults::from(plan.card()),
        max_seq_len: engine.info().max_seq_len,
        created,
    };
    tracing::info!(
        plan = %plan.path().display(),
        path = engine.info().path,
        threads = engine.info().threads,
        load_ms = started.elapsed().as_millis() as u64,
        "loaded"
    );
    Ok((engine, model))
}

/// The name that a plan is served under: its file stem.
pub fn stem(path: &Path) -> String {
    path.file_stem().map_or_else(|| "engine".to_owned(), |s| s.to_string_lossy().into_owned())
}

/// The whole memory report, before anything of it is taken.
pub fn memory_report(plan: &Plan, settings: &EngineSettings) -> Option<MemoryReport> {
    // An engine that does not find the program says so itself.
    let program = device::program(plan, settings)?;
    let threads = match settings.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let card = plan.card();
    let default = MemoryRequest { threads: threads as u64, kv_tokens: None };
    let within = |bytes| KvPools::within(&program.cache_groups, &card.limits, bytes).tokens;
    let kv_tokens = settings.kv_bytes.map(within);
    Some(MemoryReport::of(card, program, plan.weights(), MemoryRequest { kv_tokens, ..default }))
}

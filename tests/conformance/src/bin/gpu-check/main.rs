//! Everything that only a GPU can show, in one run and one JSON: `tools/gpu-check` builds what travels, this runs there.
//!
//! Parts are independent: one that fails is recorded with its error, the rest goes on, and the file is written after each,
//! so that a run that is cut short keeps what it has. The same parts run on the emulator, whose times mean nothing.

mod cases;
mod ceilings;
mod demo;
mod differential;
mod nodes;
mod requests;
mod shapes;
mod speed;
mod steps;
mod timing;
mod wgmma;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use lathe_conformance::Rig;
use lathe_cuda::{CudaEngine, CudaOptions, GpuDriver};
use lathe_device::{Arch, Driver};
use lathe_emulator::{DeviceModel, Emulator, EmulatorOptions};
use lathe_plan::Plan;
use serde_json::{Map, Value, json};

/// Checks and measures a GPU.
#[derive(Debug, Parser)]
#[command(name = "gpu-check")]
pub struct Args {
    /// Runs on the emulator, on tiny sizes.
    #[arg(long)]
    emulator: bool,
    /// Compiles every kernel of the run into the cache and ends; needs no GPU.
    #[arg(long)]
    prepare: bool,
    /// Where `tools/gpu-check` put test programs (`tests/`) and plans (`plans/`).
    #[arg(long, value_name = "DIR")]
    kit: PathBuf,
    /// The JSON.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Date of the run, for the file.
    #[arg(long, default_value = "")]
    date: String,
    /// Parts to run [default: all].
    #[arg(long, value_delimiter = ',', value_name = "PART,..")]
    only: Vec<String>,
    /// Seconds after which no further part begins.
    #[arg(long, default_value_t = 540)]
    seconds: u64,
}

/// What parts run on.
pub struct Bench {
    /// On the emulator, tiny.
    pub emulator: bool,
    /// Programs and plans.
    pub kit: PathBuf,
    /// When parts must be done.
    pub until: Instant,
}

impl Bench {
    /// A rig for kernels.
    fn rig(&self) -> Result<Rig> {
        match self.emulator {
            true => Rig::emulator(false),
            false => Rig::gpu()?.context("there is no GPU"),
        }
    }

    /// A plan's CUDA program, loaded.
    fn engine(&self, plan: &Path, options: &CudaOptions) -> Result<CudaEngine> {
        let driver: Box<dyn Driver> = match self.emulator {
            true => {
                let device = DeviceModel::of(Arch { major: 9, minor: 0 });
                Box::new(Emulator::new(&EmulatorOptions::new(device))?)
            }
            false => Box::new(GpuDriver::open(0)?),
        };
        let plan = Plan::open(plan).with_context(|| plan.display().to_string())?;
        Ok(CudaEngine::load(plan.into(), driver, options)?)
    }

    fn plan(&self, name: &str) -> PathBuf {
        self.kit.join("plans").join(format!("{name}.plan"))
    }

    /// Time left for loops that measure until they have enough.
    fn out_of_time(&self) -> bool {
        Instant::now() >= self.until
    }
}

type Run = fn(&Bench, &mut Map<String, Value>) -> Result<()>;

/// Name, whether it is about being right, and what it does. The cheap and the important come first.
const PARTS: &[(&str, bool, Run)] = &[
    ("ceilings", false, ceilings::run),
    ("wgmma", false, wgmma::run),
    ("differential", true, differential::run),
    ("demo", true, demo::run),
    ("kernels", false, speed::run),
    ("steps", false, steps::run),
    ("cases", true, cases::run),
];

fn device(bench: &Bench) -> Result<Value> {
    let rig = bench.rig()?;
    let info = rig.info();
    Ok(json!({
        "name": info.name, "arch": info.arch.to_string(), "driver": info.driver, "sm_count": info.sm_count,
        "max_shared_bytes": info.max_shared_bytes, "total_bytes": info.total_bytes, "free_bytes": info.free_bytes,
    }))
}

fn write(path: &Path, report: &Value) -> Result<()> {
    let temporary = path.with_extension("partial");
    std::fs::write(&temporary, serde_json::to_string_pretty(report)? + "\n")?;
    Ok(std::fs::rename(&temporary, path)?)
}

fn run(args: &Args) -> Result<bool> {
    if args.prepare {
        return shapes::prepare().map(|()| true);
    }
    if let Some(unknown) = args.only.iter().find(|name| PARTS.iter().all(|part| part.0 != **name)) {
        bail!("no part {unknown}; there are {:?}", PARTS.iter().map(|part| part.0).collect::<Vec<_>>());
    }
    let until = Instant::now() + Duration::from_secs(args.seconds);
    let bench = Bench { emulator: args.emulator, kit: args.kit.clone(), until };
    let mut report =
        json!({ "date": args.date, "emulator": args.emulator, "device": device(&bench)?, "parts": {} });
    let mut right = true;
    for (name, correctness, part) in PARTS {
        if !args.only.is_empty() && !args.only.iter().any(|only| only == name) {
            continue;
        }
        let started = Instant::now();
        let mut found = Map::new();
        let error = if bench.out_of_time() {
            Some("not begun: the time was up".to_owned())
        } else {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| part(&bench, &mut found)));
            match outcome {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("{error:#}")),
                Err(panic) => Some(panic_text(&*panic)),
            }
        };
        let seconds = started.elapsed().as_secs_f64();
        eprintln!(
            "gpu-check: {name}: {seconds:.1} s{}",
            error.as_ref().map_or(String::new(), |e| format!(": {e}"))
        );
        right &= error.is_none() || !correctness;
        found.insert("part_seconds".into(), json!(seconds));
        found.insert("error".into(), json!(error));
        report["parts"][*name] = Value::Object(found);
        write(&args.out, &report)?;
    }
    Ok(right)
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").to_owned()
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("gpu-check: {error:#}");
            ExitCode::from(2)
        }
    }
}

//! Everything that only a GPU can show, in one run and one JSON: `tools/gpu-check` builds what travels, this runs there.
//!
//! Parts are independent, each a process: one that fails is recorded with its error, the rest goes on, and the file is
//! written after each, so that a run that is cut short keeps what it has. The same parts run on the emulator, whose times mean nothing.

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
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use lathe_conformance::Rig;
use lathe_cuda::{CudaEngine, CudaOptions, GpuDriver};
use lathe_device::{Arch, Driver};
use lathe_emulator::{DeviceModel, Emulator, EmulatorOptions};
use lathe_plan::Plan;
use serde_json::{Map, Value, json};

/// How long a part may go on after the time is up.
const GRACE: Duration = Duration::from_secs(20);

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
    /// Runs one part in this process; how a run starts its parts.
    #[arg(long, hide = true, value_name = "PART")]
    part: Option<String>,
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

/// Name, whether it is about being right, and what it does. The cheap and the important come first; `steps` waits for plans.
const PARTS: &[(&str, bool, Run)] = &[
    ("ceilings", false, ceilings::run),
    ("wgmma", false, wgmma::run),
    ("differential", true, differential::run),
    ("demo", true, demo::run),
    ("cases", true, cases::run),
    ("kernels", false, speed::run),
    ("steps", false, steps::run),
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

/// Runs one part in this process and writes what it found; false if it failed.
fn part(args: &Args, name: &str, bench: &Bench) -> Result<bool> {
    let Some((.., part)) = PARTS.iter().find(|part| part.0 == name) else { bail!("no part {name}") };
    let mut found = Map::new();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| part(bench, &mut found)));
    let error = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(panic) => Some(panic_text(&*panic)),
    };
    found.insert("error".into(), json!(error));
    write(&args.out, &Value::Object(found))?;
    Ok(error.is_none())
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").to_owned()
}

/// Runs one part in a process of its own: a fault leaves a process without its device, and a kernel may hang.
fn child(args: &Args, name: &str, bench: &Bench) -> Result<Value> {
    let out = args.out.with_extension(name);
    let left = bench.until.saturating_duration_since(Instant::now());
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--part", name, "--seconds", &left.as_secs().to_string()]);
    command.arg("--kit").arg(&args.kit).arg("--out").arg(&out);
    if args.emulator {
        command.arg("--emulator");
    }
    let mut child = command.spawn()?;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status.to_string(),
            None if Instant::now() > bench.until + GRACE => {
                child.kill()?;
                child.wait()?;
                break "stopped: it did not end in time".to_owned();
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let Ok(bytes) = std::fs::read(&out) else { bail!("it left nothing behind: {status}") };
    std::fs::remove_file(&out)?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn run(args: &Args) -> Result<bool> {
    if args.prepare {
        return shapes::prepare().map(|()| true);
    }
    let until = Instant::now() + Duration::from_secs(args.seconds);
    let bench = Bench { emulator: args.emulator, kit: args.kit.clone(), until };
    if let Some(name) = &args.part {
        return part(args, name, &bench);
    }
    if let Some(unknown) = args.only.iter().find(|name| PARTS.iter().all(|part| part.0 != **name)) {
        bail!("no part {unknown}; there are {:?}", PARTS.iter().map(|part| part.0).collect::<Vec<_>>());
    }
    let mut report =
        json!({ "date": args.date, "emulator": args.emulator, "device": device(&bench)?, "parts": {} });
    let mut right = true;
    for (name, correctness, _) in PARTS {
        if !args.only.is_empty() && !args.only.iter().any(|only| only == name) {
            continue;
        }
        let started = Instant::now();
        let mut found = match bench.out_of_time() {
            true => json!({ "error": "not begun: the time was up" }),
            false => {
                child(args, name, &bench).unwrap_or_else(|error| json!({ "error": format!("{error:#}") }))
            }
        };
        let seconds = started.elapsed().as_secs_f64();
        let failed = found["error"].as_str();
        eprintln!("gpu-check: {name}: {seconds:.1} s {}", failed.unwrap_or_default());
        right &= failed.is_none() || !correctness;
        found["part_seconds"] = json!(seconds);
        report["parts"][*name] = found;
        write(&args.out, &report)?;
    }
    Ok(right)
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

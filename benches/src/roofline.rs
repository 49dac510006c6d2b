//! Decode of one sequence against reading what it multiplies: steps and plain readings of memory take turns.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use lathe_kernels::Isa;
use lathe_plan::Plan;
use lathe_plan::schema::{Launch, Param, Place};
use serde::Serialize;

use crate::cases::ROOFLINE;
use crate::machine::{Machine, Others, QUIET, wait_quiet};
use crate::peer::Peer;
use crate::results;
use crate::stats::Spread;

/// What to hold to the bandwidth of memory.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Plan
    plan: PathBuf,
    /// Worker threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Instruction set instead of the fastest: avx512, avx2, scalar
    #[arg(long)]
    isa: Option<Isa>,
    /// Rounds on a quiet machine to gather
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Rounds after which to stop, quiet or not
    #[arg(long, default_value_t = 12)]
    max_rounds: usize,
    /// Seconds to wait for a quiet machine, all waits together
    #[arg(long, default_value_t = 300)]
    wait: u64,
    /// Where to write the numbers; results/DATE-roofline-PLAN.json unless set
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Both rates of the same moments.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Round {
    /// The fastest way to read memory.
    pub read_gb_s: f64,
    /// Weights that steps multiplied.
    pub lathe_gb_s: f64,
    /// Cores that others used meanwhile.
    pub others: f64,
}

/// All rounds, and the share of the quiet ones.
#[derive(Debug, Serialize)]
pub struct Roofline {
    /// Bytes of weights that a step of one token multiplies.
    pub bytes_per_token: u64,
    read_gb_s: Spread,
    lathe_gb_s: Spread,
    /// Lathe's rate over that of reading, by rounds.
    pub share: Spread,
    quiet_rounds: usize,
    /// True when fewer quiet rounds were had than asked for: no claim.
    loaded: bool,
    rounds: Vec<Round>,
}

impl Round {
    /// One round on an idle machine, if it comes within `wait`. `worker` is ours, `processes` are not others.
    pub fn run(worker: &mut Peer, bytes: u64, processes: &[u32], wait: &mut Duration) -> Result<Self> {
        wait_quiet(processes, wait)?;
        let others = Others::start(processes)?;
        let timing = worker.run(&ROOFLINE)?;
        let read_gb_s = timing.read_gb_s.context("the worker gave no read bandwidth")?;
        let lathe_gb_s = bytes as f64 * f64::from(ROOFLINE.new) / timing.decode_s / 1e9;
        Ok(Round { read_gb_s, lathe_gb_s, others: others.cores()? })
    }
}

/// Whether enough of them are quiet.
pub fn enough(rounds: &[Round], want: usize) -> bool {
    rounds.iter().filter(|r| r.others < QUIET).count() >= want
}

impl Roofline {
    /// Out of rounds, of which `want` should be quiet.
    pub fn of(rounds: Vec<Round>, bytes_per_token: u64, want: usize) -> Result<Self> {
        let loaded = !enough(&rounds, want);
        let used = || rounds.iter().filter(|r| loaded || r.others < QUIET);
        let spread = |f: fn(&Round) -> f64| Spread::of(used().map(f)).context("no round was run");
        Ok(Roofline {
            bytes_per_token,
            read_gb_s: spread(|r| r.read_gb_s)?,
            lathe_gb_s: spread(|r| r.lathe_gb_s)?,
            share: spread(|r| r.lathe_gb_s / r.read_gb_s)?,
            quiet_rounds: rounds.iter().filter(|r| r.others < QUIET).count(),
            loaded,
            rounds,
        })
    }

    /// The line of the table.
    pub fn print(&self) {
        println!(
            "decode of 1 sequence beside plain reads, by turns: {} of {} GB/s, {:.3} GB of weights a token, share {}, {} of {} rounds quiet{}",
            self.lathe_gb_s.text(1),
            self.read_gb_s.text(1),
            self.bytes_per_token as f64 / 1e9,
            self.share.text(2),
            self.quiet_rounds,
            self.rounds.len(),
            if self.loaded { " LOADED, no claim" } else { "" }
        );
    }
}

/// Matrices of the plan's decoder that a step of one row multiplies, with the bytes of them that it reads: all of a
/// projection, of experts those that the row chose.
fn multiplied(plan: &Plan) -> Result<Vec<(usize, u64)>> {
    let program = plan.program("decoder").context("plan: it holds no decoder")?;
    let mut read = vec![];
    for launch in &program.launches {
        let Some((chosen, of)) = part(launch) else { continue };
        for input in &launch.inputs {
            if let Place::Weight(w) = input.place {
                let index = w as usize;
                read.push((index, plan.weights()[index].bytes * chosen / of));
            }
        }
    }
    Ok(read)
}

/// Chosen experts of all, where the launch multiplies.
fn part(launch: &Launch) -> Option<(u64, u64)> {
    match launch.kernel.as_str() {
        "gemm" => Some((1, 1)),
        "expert_gemm" => {
            // x, then the choices of each row, then where each expert's begin.
            let chosen = launch.inputs.get(1)?.cols;
            launch.params.iter().find_map(|(name, value)| match value {
                Param::Int(experts) if name == "experts" => Some((chosen, *experts)),
                _ => None,
            })
        }
        _ => None,
    }
}

/// Bytes of weights that one step of one row multiplies, each matrix counted once.
pub fn bytes_per_step(plan: &Plan) -> Result<u64> {
    let mut read = multiplied(plan)?;
    read.sort_unstable();
    read.dedup();
    Ok(read.iter().map(|(_, bytes)| bytes).sum())
}

/// Bytes of the matrix that makes logits: one row a prompt is multiplied by it.
pub fn head_bytes(plan: &Plan) -> Result<u64> {
    Ok(multiplied(plan)?.last().context("plan: it multiplies nothing")?.1)
}

#[derive(Debug, Serialize)]
struct Report {
    date: String,
    commit: String,
    machine: Machine,
    threads: usize,
    plan: String,
    plan_bytes: u64,
    roofline: Roofline,
}

/// Measures, prints and writes.
pub fn run(args: &Args) -> Result<()> {
    let plan = Plan::open(&args.plan)?;
    let bytes = bytes_per_step(&plan)?;
    let mut worker = Peer::start(ours(&args.plan, args.threads, args.isa)?)?;
    let processes = [worker.id()];
    let mut wait = Duration::from_secs(args.wait);
    // Fills the file cache and takes pages.
    worker.run(&ROOFLINE)?;
    let mut rounds = vec![];
    while rounds.len() < args.max_rounds && !enough(&rounds, args.rounds) {
        rounds.push(Round::run(&mut worker, bytes, &processes, &mut wait)?);
    }
    let stem = args.plan.file_stem().map_or("plan".into(), |s| s.to_string_lossy().into_owned());
    let report = Report {
        date: results::date(),
        commit: results::commit(),
        machine: Machine::detect()?,
        threads: args.threads,
        plan: stem.clone(),
        plan_bytes: std::fs::metadata(&args.plan)?.len(),
        roofline: Roofline::of(rounds, bytes, args.rounds)?,
    };
    println!("{stem}, {:.2} GB, {} threads", report.plan_bytes as f64 / 1e9, args.threads);
    report.roofline.print();
    results::write(args.out.as_deref(), &format!("{}-roofline-{stem}.json", report.date), &report)
}

/// Our engine as a process that runs cases.
pub fn ours(plan: &std::path::Path, threads: usize, isa: Option<Isa>) -> Result<Command> {
    let mut c = Command::new(std::env::current_exe()?);
    c.arg("worker").arg(plan).args(["--threads", &threads.to_string()]);
    if let Some(isa) = isa {
        c.args(["--isa", isa.name()]);
    }
    Ok(c)
}

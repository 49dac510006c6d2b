//! Throughput beside another busy process: it should fall by the share of the machine that is gone, and no further.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::cases::{CASES, Case, EIGHT, ONE};
use crate::machine::{Machine, Others, QUIET, wait_quiet};
use crate::peer::{Hello, Peer};
use crate::stats::Spread;
use crate::{cache, results};

/// What to disturb.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Our plan
    plan: PathBuf,
    /// llama.cpp's file of the same shape, to be disturbed as well
    #[arg(long)]
    gguf: Option<PathBuf>,
    /// Threads of each engine
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Pairs of runs, alone and beside the busy process
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds to wait for a quiet machine, all waits together
    #[arg(long, default_value_t = 300)]
    wait: u64,
    /// Where to write the numbers; results/DATE-contention-cpu.json unless set
    #[arg(long)]
    out: Option<PathBuf>,
}

/// A case of an engine.
#[derive(Debug, Serialize)]
struct Row {
    engine: String,
    case: &'static str,
    /// Tokens per second after the first ones, nobody else there.
    alone: Spread,
    /// The same beside a process that keeps one core busy.
    beside: Spread,
    /// By pairs.
    ratio: Spread,
    /// What the machine has left of what the engine used, by time slices.
    fair: f64,
    /// True when others disturbed a run too: no claim.
    loaded: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    date: String,
    commit: String,
    machine: Machine,
    threads: usize,
    engines: Vec<Hello>,
    rows: Vec<Row>,
}

/// Part of the fair share that still counts as proportion: caches and memory are shared as well.
const PROPORTION: f64 = 0.9;

/// A process that keeps the first core busy until this value goes.
struct Busy(Child);

impl Busy {
    fn start() -> Result<Self> {
        let child = Command::new(std::env::current_exe()?).arg("burn").stdin(Stdio::null()).spawn()?;
        Ok(Busy(child))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Keeps the first core busy until this process is ended.
pub fn burn() -> Result<()> {
    // SAFETY: a set of plain bits, whose size is passed.
    let pinned = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    ensure!(pinned == 0, "cannot be tied to core 0: {}", std::io::Error::last_os_error());
    loop {
        std::hint::spin_loop();
    }
}

/// Share of `threads` threads' full speed that is left on `cores` cores when one thread more wants to run, tied to one
/// core: it takes half of that core, unless a core is free.
fn fair(threads: usize, cores: usize) -> f64 {
    let used = threads.min(cores) as f64;
    if threads < cores { 1.0 } else { (used - 0.5) / used }
}

fn rate(peer: &mut Peer, case: &Case) -> Result<f64> {
    let timing = peer.run(case)?;
    Ok(f64::from(case.sequences * case.new) / timing.decode_s)
}

/// Measures, prints and writes.
pub fn run(args: &Args) -> Result<()> {
    let threads = args.threads.to_string();
    let mut ours = Command::new(std::env::current_exe()?);
    ours.arg("worker").arg(&args.plan).args(["--threads", &threads]);
    let mut engines = vec![Peer::start(ours)?];
    if let Some(gguf) = &args.gguf {
        let mut llama = Command::new(cache::python("llama")?);
        llama.arg(cache::script("llama.py")).arg(gguf).arg(&threads);
        engines.push(Peer::start(llama)?);
    }
    let machine = Machine::detect()?;
    let fair = fair(args.threads, machine.cores);
    let mut wait = Duration::from_secs(args.wait);
    let mut rows = vec![];
    println!("| engine, case | alone, tok/s | beside a busy process | ratio | fair share |");
    println!("|---|---|---|---|---|");
    for engine in &mut engines {
        for case in CASES.iter().filter(|c| [ONE, EIGHT].contains(&c.name)) {
            rate(engine, case)?;
            let (mut pairs, mut loaded) = (vec![], false);
            for _ in 0..args.rounds {
                wait_quiet(&[engine.id()], &mut wait)?;
                let processes = [engine.id()];
                let others = Others::start(&processes)?;
                let alone = rate(engine, case)?;
                loaded |= others.cores()? >= QUIET;
                let busy = Busy::start()?;
                let processes = [engine.id(), busy.0.id()];
                let others = Others::start(&processes)?;
                let beside = rate(engine, case)?;
                loaded |= others.cores()? >= QUIET;
                pairs.push((alone, beside));
            }
            let spread = |f: fn(&(f64, f64)) -> f64| Spread::of(pairs.iter().map(f)).context("no rounds");
            let row = Row {
                engine: engine.hello.name.clone(),
                case: case.name,
                alone: spread(|p| p.0)?,
                beside: spread(|p| p.1)?,
                ratio: spread(|p| p.1 / p.0)?,
                fair,
                loaded,
            };
            println!(
                "| {}, {} | {} | {} | {} | {fair:.2} {}{} |",
                row.engine,
                row.case,
                row.alone.text(1),
                row.beside.text(1),
                row.ratio.text(2),
                if row.ratio.median >= PROPORTION * fair { "held" } else { "MISSED" },
                if loaded { " LOADED, no claim" } else { "" }
            );
            rows.push(row);
        }
    }
    let report = Report {
        date: results::date(),
        commit: results::commit(),
        machine,
        threads: args.threads,
        engines: engines.iter().map(|e| e.hello.clone()).collect(),
        rows,
    };
    results::write(args.out.as_deref(), &format!("{}-contention-cpu.json", report.date), &report)
}

#[cfg(test)]
mod tests {
    use super::fair;

    #[test]
    fn a_busy_core_takes_its_half() {
        for (threads, cores, want) in [(2, 2, 0.75), (1, 2, 1.0), (4, 2, 0.75), (1, 1, 0.5), (8, 8, 0.9375)] {
            assert_eq!(fair(threads, cores), want, "{threads} threads, {cores} cores");
        }
    }
}

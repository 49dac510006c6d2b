//! Throughput beside another busy process: it should fall by the share of the machine that this one takes, and no further.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

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
    /// Cores that the busy process got.
    taken: Spread,
    /// By pairs, what it left of the cores that the engine uses.
    left: Spread,
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

/// Part of the share that is left which still counts as proportion: caches and memory are shared as well.
const PROPORTION: f64 = 0.9;

/// A process that keeps the first core busy until this value goes.
struct Busy(Child);

impl Busy {
    fn start() -> Result<Self> {
        let child = Command::new(std::env::current_exe()?).arg("burn").stdin(Stdio::null()).spawn()?;
        Ok(Busy(child))
    }
}

impl Busy {
    /// CPU time that it has had.
    fn cpu_time(&self) -> Result<Duration> {
        // SAFETY: both calls fill what they are given; a process that is gone is an error.
        let time = unsafe {
            let (mut clock, mut time) = (0, std::mem::zeroed());
            let found = libc::clock_getcpuclockid(self.0.id() as libc::pid_t, &mut clock) == 0;
            (found && libc::clock_gettime(clock, &mut time) == 0).then_some(time)
        };
        let time = time.context("the busy process ended")?;
        Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
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

/// Share that is left of what `threads` threads use of `cores` cores, when somebody else has taken some.
fn left(threads: usize, cores: usize, taken: f64) -> f64 {
    ((cores as f64 - taken) / threads.min(cores) as f64).min(1.0)
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
    let left = |taken| left(args.threads, machine.cores, taken);
    let mut wait = Duration::from_secs(args.wait);
    let mut rows = vec![];
    println!(
        "| engine, case | alone, tok/s | beside a busy process | ratio | cores that it got | share left |"
    );
    println!("|---|---|---|---|---|---|");
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
                let (start, before) = (Instant::now(), busy.cpu_time()?);
                let beside = rate(engine, case)?;
                let taken = (busy.cpu_time()? - before).as_secs_f64() / start.elapsed().as_secs_f64();
                loaded |= others.cores()? >= QUIET;
                pairs.push((alone, beside, taken));
            }
            let spread =
                |f: &dyn Fn(&(f64, f64, f64)) -> f64| Spread::of(pairs.iter().map(f)).context("no rounds");
            let row = Row {
                engine: engine.hello.name.clone(),
                case: case.name,
                alone: spread(&|p| p.0)?,
                beside: spread(&|p| p.1)?,
                ratio: spread(&|p| p.1 / p.0)?,
                taken: spread(&|p| p.2)?,
                left: spread(&|p| left(p.2))?,
                loaded,
            };
            println!(
                "| {}, {} | {} | {} | {} | {} | {} {}{} |",
                row.engine,
                row.case,
                row.alone.text(1),
                row.beside.text(1),
                row.ratio.text(2),
                row.taken.text(2),
                row.left.text(2),
                if row.ratio.median >= PROPORTION * row.left.median { "held" } else { "MISSED" },
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
    use super::left;

    #[test]
    fn what_is_left_is_of_the_cores_that_are_used() {
        for (threads, cores, taken, want) in
            [(2, 2, 0.5, 0.75), (1, 2, 1.0, 1.0), (4, 2, 0.5, 0.75), (1, 1, 0.5, 0.5), (8, 8, 0.5, 0.9375)]
        {
            assert_eq!(left(threads, cores, taken), want, "{threads} threads, {cores} cores");
        }
    }
}

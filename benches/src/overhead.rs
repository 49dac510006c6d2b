//! What serving costs beside computing: CPU time of the server's threads while clients stream answers.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::machine::{Machine, wait_quiet};
use crate::server::Server;
use crate::stats::Spread;
use crate::{cache, results};

/// What to serve, and to how many.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Plan, with a tokenizer in it
    plan: PathBuf,
    /// Clients that stream at the same time
    #[arg(long, default_value_t = 32)]
    streams: u32,
    /// Requests of each run
    #[arg(long, default_value_t = 64)]
    requests: u32,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 64)]
    input: u32,
    /// Tokens of each answer
    #[arg(long, default_value_t = 64)]
    output: u32,
    /// Runs
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Seconds to wait for a quiet machine, all waits together
    #[arg(long, default_value_t = 120)]
    wait: u64,
    /// Where to write the numbers; results/DATE-overhead-PLAN.json unless set
    #[arg(long)]
    out: Option<PathBuf>,
}

/// CPU seconds of the server while one run's requests were under way.
#[derive(Clone, Copy, Debug, Serialize)]
struct Run {
    /// Threads that run steps.
    engine_s: f64,
    /// HTTP, JSON, tokenizer, and everybody else.
    rest_s: f64,
    /// The machine was left alone before it.
    quiet: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    date: String,
    commit: String,
    machine: Machine,
    plan: String,
    streams: u32,
    /// Part of the process's CPU time outside of the engine's threads.
    share: Spread,
    /// True when the machine was not quiet before a run: no claim.
    loaded: bool,
    runs: Vec<Run>,
}

/// CPU seconds so far of the engine's threads and of the others.
fn cpu(pid: u32) -> Result<(f64, f64)> {
    // SAFETY: a plain query.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    let (mut engine, mut rest) = (0.0, 0.0);
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end meanwhile.
        let Ok(stat) = std::fs::read_to_string(task?.path().join("stat")) else { continue };
        let (open, close) = (stat.find('(').context("no name")?, stat.rfind(')').context("no name")?);
        let fields: Vec<&str> = stat[close + 2..].split(' ').collect();
        // utime and stime are fields 14 and 15; these begin with field 3.
        let used: f64 = fields[11..13].iter().filter_map(|f| f.parse::<f64>().ok()).sum::<f64>() / ticks;
        let name = &stat[open + 1..close];
        if name == "engine" || name.starts_with("lathe-worker") { engine += used } else { rest += used }
    }
    Ok((engine, rest))
}

fn once(args: &Args, program: &std::path::Path, server: u32, url: &str, wait: &mut Duration) -> Result<Run> {
    let quiet = wait_quiet(&[server], wait)?;
    let before = cpu(server)?;
    let status = Command::new(program)
        .args(["bench", "--url", url, "--concurrency", &args.streams.to_string()])
        .args(["--requests", &args.requests.to_string(), "--warmup", "0"])
        .args(["--input-len", &args.input.to_string(), "--output-len", &args.output.to_string()])
        .stdout(Stdio::null())
        .status()?;
    ensure!(status.success(), "runtime bench --url {url}: {status}");
    let after = cpu(server)?;
    Ok(Run { engine_s: after.0 - before.0, rest_s: after.1 - before.1, quiet })
}

/// Measures, prints and writes.
pub fn run(args: &Args) -> Result<()> {
    let program = cache::program("runtime")?;
    let mut server = Server::start(&program, &args.plan)?;
    let (pid, url) = (server.id(), &format!("http://{}", server.address()?));
    let mut wait = Duration::from_secs(args.wait);
    // Takes pages, fills caches.
    once(args, &program, pid, url, &mut wait)?;
    let runs =
        (0..args.runs).map(|_| once(args, &program, pid, url, &mut wait)).collect::<Result<Vec<Run>>>()?;
    let stem = args.plan.file_stem().map_or("plan".into(), |s| s.to_string_lossy().into_owned());
    let report = Report {
        date: results::date(),
        commit: results::commit(),
        machine: Machine::detect()?,
        plan: stem.clone(),
        streams: args.streams,
        share: Spread::of(runs.iter().map(|r| r.rest_s / (r.engine_s + r.rest_s)))
            .context("--runs: at least 1")?,
        loaded: runs.iter().any(|r| !r.quiet),
        runs,
    };
    println!(
        "{stem}, {} streams: {} of the CPU time is outside of the engine's threads{}",
        args.streams,
        report.share.text(4),
        if report.loaded { " LOADED, no claim" } else { "" }
    );
    for r in &report.runs {
        println!("  engine {:.2} s, rest {:.2} s", r.engine_s, r.rest_s);
    }
    results::write(args.out.as_deref(), &format!("{}-overhead-{stem}.json", report.date), &report)
}

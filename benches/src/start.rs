//! How soon a server is there: exec to /ready, exec to the first token, and what it holds then.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::cache;
use crate::machine::{Machine, Others, QUIET, wait_quiet};
use crate::results::{self, Rss};
use crate::server::Server;
use crate::stats::Spread;

/// What to start.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Plan, with a tokenizer in it
    plan: PathBuf,
    /// Starts; one more comes first, to fill the file cache
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Ids of the prompt
    #[arg(long, default_value_t = 16)]
    prompt: u32,
    /// Seconds to wait for a quiet machine, all waits together
    #[arg(long, default_value_t = 120)]
    wait: u64,
    /// Where to write the numbers; results/DATE-start-PLAN.json unless set
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Run {
    /// Exec until /ready answers 200.
    ready_s: f64,
    /// Exec until the answer with one token is there.
    first_token_s: f64,
    /// Cores that others used meanwhile.
    others: f64,
    /// When ready.
    ready: Rss,
    /// After the first token.
    first_token: Rss,
}

#[derive(Debug, Serialize)]
struct Report {
    date: String,
    commit: String,
    machine: Machine,
    plan: String,
    plan_bytes: u64,
    prompt: u32,
    ready_s: Spread,
    first_token_s: Spread,
    /// True when a run was disturbed by others: no claim.
    loaded: bool,
    runs: Vec<Run>,
}

/// One request on a connection of its own; the status and the body.
fn request(address: &str, head: &str, body: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    let text = format!(
        "{head} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no HTTP answer")?;
    Ok((status, answer))
}

fn once(args: &Args, program: &Path, wait: &mut Duration) -> Result<Run> {
    wait_quiet(&[], wait)?;
    let ids: Vec<String> = (0..args.prompt).map(|i| (i * 7 % 300 + 3).to_string()).collect();
    let body =
        format!(r#"{{"prompt":[{}],"max_tokens":1,"temperature":0,"ignore_eos":true}}"#, ids.join(","));
    let start = Instant::now();
    let mut server = Server::start(program, &args.plan)?;
    let pid = server.id();
    let processes = [pid];
    let others = Others::start(&processes)?;
    let address = &server.address()?;
    while request(address, "GET /ready", "")?.0 != 200 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let ready_s = start.elapsed().as_secs_f64();
    let ready = Rss::of(pid)?;
    let (status, answer) = request(address, "POST /v1/completions", &body)?;
    let first_token_s = start.elapsed().as_secs_f64();
    ensure!(status == 200, "/v1/completions: {answer}");
    Ok(Run { ready_s, first_token_s, others: others.cores()?, ready, first_token: Rss::of(pid)? })
}

/// Starts the server again and again.
pub fn run(args: &Args) -> Result<()> {
    let program = cache::program("runtime")?;
    let mut wait = Duration::from_secs(args.wait);
    once(args, &program, &mut wait)?;
    let runs = (0..args.runs).map(|_| once(args, &program, &mut wait)).collect::<Result<Vec<Run>>>()?;
    let spread = |f: fn(&Run) -> f64| Spread::of(runs.iter().map(f)).context("--runs: at least 1");
    let stem = args.plan.file_stem().map_or("plan".into(), |s| s.to_string_lossy().into_owned());
    let report = Report {
        date: results::date(),
        commit: results::commit(),
        machine: Machine::detect()?,
        plan: stem.clone(),
        plan_bytes: std::fs::metadata(&args.plan)?.len(),
        prompt: args.prompt,
        ready_s: spread(|r| r.ready_s)?,
        first_token_s: spread(|r| r.first_token_s)?,
        loaded: runs.iter().any(|r| r.others >= QUIET),
        runs,
    };
    let busiest = report.runs.iter().map(|r| r.others).fold(0.0, f64::max);
    let mark = if report.loaded { " LOADED, no claim" } else { "" };
    println!(
        "{stem}, {:.2} GB, {} starts, others at most {busiest:.2} cores{mark}",
        report.plan_bytes as f64 / 1e9,
        args.runs
    );
    println!("exec to /ready        {} ms", scale(&report.ready_s).text(0));
    println!(
        "exec to first token   {} ms, prompt of {} ids",
        scale(&report.first_token_s).text(0),
        args.prompt
    );
    if let Some(r) = report.runs.last() {
        println!("when ready            RssAnon {} MiB, RssFile {} MiB", r.ready.anon_mib, r.ready.file_mib);
        println!(
            "after the first token RssAnon {} MiB, RssFile {} MiB",
            r.first_token.anon_mib, r.first_token.file_mib
        );
    }
    results::write(args.out.as_deref(), &format!("{}-start-{stem}.json", report.date), &report)
}

fn scale(s: &Spread) -> Spread {
    Spread { median: s.median * 1e3, min: s.min * 1e3, max: s.max * 1e3, n: s.n }
}

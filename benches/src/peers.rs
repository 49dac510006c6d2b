//! Lathe and llama.cpp side by side: the same cases in turn, in pairs, with the machine's bounds measured between.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use lathe_plan::Plan;
use serde::Serialize;

use crate::cases::{CASES, Case, ROOFLINE};
use crate::machine::{Machine, Others, QUIET, multiply_rate, wait_quiet};
use crate::peer::{Hello, Peer, Timing};
use crate::stats::Spread;
use crate::{cache, results, worker};

/// What to compare.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Shape by its name in shapes/
    #[arg(long, default_value = "1b")]
    shape: String,
    /// Threads of each engine
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Pairs on a quiet machine to gather for each case
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Rounds after which to stop, quiet or not
    #[arg(long, default_value_t = 12)]
    max_rounds: usize,
    /// Seconds to wait for a quiet machine, all waits together
    #[arg(long, default_value_t = 600)]
    wait: u64,
    /// Our plan of the shape, instead of compiling one
    #[arg(long)]
    plan: Option<PathBuf>,
    /// Where to write the numbers; results/DATE-peers-cpu.json unless set
    #[arg(long)]
    out: Option<PathBuf>,
}

/// One engine's run of a case.
#[derive(Clone, Copy, Debug, Serialize)]
struct Half {
    prefill_s: f64,
    decode_s: f64,
    /// Cores that others used meanwhile.
    others: f64,
}

/// Both engines' runs of a case, one right after the other.
#[derive(Clone, Debug, Serialize)]
struct Pair {
    case: &'static str,
    lathe_first: bool,
    lathe: Half,
    llama: Half,
}

impl Pair {
    fn quiet(&self) -> bool {
        self.lathe.others < QUIET && self.llama.others < QUIET
    }
}

/// A rate out of a half.
#[derive(Clone, Copy)]
enum Rate {
    /// Prompt ids per second.
    Prefill,
    /// Tokens per second after the first ones.
    Decode,
    /// Tokens per second from the prompts' arrival on.
    Whole,
}

impl Rate {
    fn of(self, case: &Case, half: &Half) -> f64 {
        let n = f64::from(case.sequences);
        match self {
            Rate::Prefill => n * f64::from(case.prompt) / half.prefill_s,
            Rate::Decode => n * f64::from(case.new) / half.decode_s,
            Rate::Whole => n * f64::from(case.new + 1) / (half.prefill_s + half.decode_s),
        }
    }
}

/// A line of the table.
#[derive(Debug, Serialize)]
struct Line {
    what: String,
    /// Tokens per second.
    lathe: Spread,
    llama: Spread,
    /// Lathe / llama.cpp, by pairs.
    ratio: Spread,
    /// Least ratio that Lathe is held to.
    asked: Option<f64>,
    quiet_pairs: usize,
    /// True when fewer quiet pairs were had than asked for: the numbers are of all pairs, and no claims.
    loaded: bool,
}

/// Decode of one sequence against reading its weights: steps and plain readings of memory take turns.
#[derive(Debug, Serialize)]
struct Roofline {
    bytes_per_token: u64,
    read_gb_s: Spread,
    lathe_gb_s: Spread,
    share: Spread,
    asked: f64,
    quiet_rounds: usize,
    loaded: bool,
    rounds: Vec<Round>,
}

/// What the machine could do and did in a round.
#[derive(Clone, Copy, Debug, Serialize)]
struct Round {
    read_gb_s: f64,
    lathe_gb_s: f64,
    /// `vdpbf16ps` on registers; NaN on a machine without it.
    bf16_gflop_s: f64,
    others: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    date: String,
    commit: String,
    shape: String,
    threads: usize,
    machine: Machine,
    lathe: Hello,
    llama: Hello,
    lathe_memory: results::Rss,
    llama_memory: results::Rss,
    roofline: Roofline,
    bf16_gflop_s: Option<Spread>,
    lines: Vec<Line>,
    pairs: Vec<Pair>,
}

const LINES: [(&str, usize, Rate, Option<f64>); 6] = [
    ("prefill 512", 0, Rate::Prefill, Some(0.8)),
    ("decode, 1 sequence", 0, Rate::Decode, None),
    ("decode, 8 sequences", 1, Rate::Decode, None),
    ("whole, 8 sequences", 1, Rate::Whole, None),
    ("decode, 32 sequences", 2, Rate::Decode, Some(1.0)),
    ("whole, 32 sequences", 2, Rate::Whole, Some(1.0)),
];
/// Share of the read roofline that decoding one sequence is held to.
const DECODE_SHARE: f64 = 0.75;

fn half(peer: &mut Peer, case: &Case, processes: &[u32], wait: &mut Duration) -> Result<Half> {
    wait_quiet(processes, wait)?;
    let others = Others::start(processes)?;
    let Timing { prefill_s, decode_s, .. } = peer.run(case)?;
    Ok(Half { prefill_s, decode_s, others: others.cores()? })
}

/// Runs the comparison, prints the table, writes the numbers.
pub fn run(args: &Args) -> Result<()> {
    let python = cache::python()?;
    let gguf = cache::gguf(&args.shape, &python)?;
    let plan = match &args.plan {
        Some(plan) => plan.clone(),
        None => cache::plan(&args.shape)?,
    };
    let bytes_per_token = worker::bytes_per_step(&Plan::open(&plan)?)?;
    let mut lathe = Peer::start(ours(&plan, args.threads)?)?;
    let mut llama = Peer::start({
        let mut c = Command::new(&python);
        c.arg(cache::llama_script()).arg(&gguf).arg(args.threads.to_string());
        c
    })?;
    let processes = [lathe.id(), llama.id()];
    for case in CASES {
        let short = Case { new: 2, ..case };
        lathe.run(&short)?;
        llama.run(&short)?;
    }

    let mut wait = Duration::from_secs(args.wait);
    let (mut pairs, mut rounds): (Vec<Pair>, Vec<Round>) = (vec![], vec![]);
    let quiet =
        |pairs: &[Pair], case: &Case| pairs.iter().filter(|p| p.case == case.name && p.quiet()).count();
    for round in 0..args.max_rounds {
        let enough = CASES.iter().all(|c| quiet(&pairs, c) >= args.pairs);
        if enough && rounds.iter().filter(|r| r.others < QUIET).count() >= args.pairs {
            break;
        }
        rounds.push(roofline(&mut lathe, bytes_per_token, args.threads, &processes, &mut wait)?);
        for case in &CASES {
            let lathe_first = round % 2 == 0;
            let mut ours = None;
            if lathe_first {
                ours = Some(half(&mut lathe, case, &processes, &mut wait)?);
            }
            let theirs = half(&mut llama, case, &processes, &mut wait)?;
            let ours = match ours {
                Some(half) => half,
                None => half(&mut lathe, case, &processes, &mut wait)?,
            };
            let rate = |h: &Half| (Rate::Prefill.of(case, h), Rate::Decode.of(case, h));
            let (a, b) = (rate(&ours), rate(&theirs));
            eprintln!(
                "round {round}, {:12}: prefill {:.1} : {:.1}, decode {:.2} : {:.2} tok/s, others {:.2} : {:.2} cores",
                case.name, a.0, b.0, a.1, b.1, ours.others, theirs.others
            );
            pairs.push(Pair { case: case.name, lathe_first, lathe: ours, llama: theirs });
        }
    }

    let lines = LINES.iter().map(|l| line(*l, &pairs, args.pairs)).collect::<Result<Vec<Line>>>()?;
    let report = Report {
        date: results::date(),
        commit: results::commit(),
        shape: args.shape.clone(),
        threads: args.threads,
        machine: Machine::detect()?,
        lathe_memory: results::Rss::of(lathe.id())?,
        llama_memory: results::Rss::of(llama.id())?,
        lathe: lathe.hello.clone(),
        llama: llama.hello.clone(),
        bf16_gflop_s: Spread::of(rounds.iter().map(|r| r.bf16_gflop_s).filter(|r| r.is_finite())),
        roofline: share(rounds, bytes_per_token, args.pairs)?,
        lines,
        pairs,
    };
    print(&report);
    let suffix = if args.shape == "1b" { String::new() } else { format!("-{}", args.shape) };
    let name = format!("{}-peers-cpu{suffix}.json", report.date);
    results::write(args.out.as_deref(), &name, &report)
}

fn roofline(
    lathe: &mut Peer,
    bytes_per_token: u64,
    threads: usize,
    processes: &[u32],
    wait: &mut Duration,
) -> Result<Round> {
    wait_quiet(processes, wait)?;
    let others = Others::start(processes)?;
    let timing = lathe.run(&ROOFLINE)?;
    let read_gb_s = timing.read_gb_s.context("the worker gave no read bandwidth")?;
    let lathe_gb_s = bytes_per_token as f64 * f64::from(ROOFLINE.new) / timing.decode_s / 1e9;
    let round =
        Round { read_gb_s, lathe_gb_s, bf16_gflop_s: multiply_rate(threads), others: others.cores()? };
    eprintln!("{round:?}");
    Ok(round)
}

fn share(rounds: Vec<Round>, bytes_per_token: u64, want: usize) -> Result<Roofline> {
    let quiet_rounds = rounds.iter().filter(|r| r.others < QUIET).count();
    let loaded = quiet_rounds < want;
    let used = || rounds.iter().filter(|r| loaded || r.others < QUIET);
    let spread = |f: fn(&Round) -> f64| Spread::of(used().map(f)).context("no round was run");
    Ok(Roofline {
        bytes_per_token,
        read_gb_s: spread(|r| r.read_gb_s)?,
        lathe_gb_s: spread(|r| r.lathe_gb_s)?,
        share: spread(|r| r.lathe_gb_s / r.read_gb_s)?,
        asked: DECODE_SHARE,
        quiet_rounds,
        loaded,
        rounds,
    })
}

fn line(
    (what, case, rate, asked): (&str, usize, Rate, Option<f64>),
    pairs: &[Pair],
    want: usize,
) -> Result<Line> {
    let case = &CASES[case];
    let all = || pairs.iter().filter(|p| p.case == case.name);
    let quiet_pairs = all().filter(|p| p.quiet()).count();
    let loaded = quiet_pairs < want;
    let rates: Vec<(f64, f64)> = all()
        .filter(|p| loaded || p.quiet())
        .map(|p| (rate.of(case, &p.lathe), rate.of(case, &p.llama)))
        .collect();
    let spread = |f: fn(&(f64, f64)) -> f64| Spread::of(rates.iter().map(f)).context("no pair was run");
    Ok(Line {
        what: what.into(),
        lathe: spread(|r| r.0)?,
        llama: spread(|r| r.1)?,
        ratio: spread(|r| r.0 / r.1)?,
        asked,
        quiet_pairs,
        loaded,
    })
}

fn ours(plan: &Path, threads: usize) -> Result<Command> {
    let mut c = Command::new(std::env::current_exe()?);
    c.arg("worker").arg(plan).args(["--threads", &threads.to_string()]);
    Ok(c)
}

fn print(r: &Report) {
    println!("{} {}, {} threads, {}, {}", r.shape, r.date, r.threads, r.machine.cpu, r.commit);
    println!(
        "lathe {} {} | {} {} | {}",
        r.lathe.version, r.lathe.build, r.llama.name, r.llama.version, r.llama.build
    );
    println!(
        "\n| tok/s, median (min..max) | Lathe | llama.cpp | Lathe / llama.cpp | asked | pairs, quiet of all |"
    );
    println!("|---|---|---|---|---|---|");
    for l in &r.lines {
        let all = r.pairs.len() / CASES.len();
        let asked = l.asked.map_or("-".into(), |a| format!("{a:.2} {}", verdict(l.ratio.median >= a)));
        let mark = if l.loaded { " LOADED, no claim" } else { "" };
        println!(
            "| {} | {} | {} | {} | {asked} | {} of {all}{mark} |",
            l.what,
            l.lathe.text(1),
            l.llama.text(1),
            l.ratio.text(2),
            l.quiet_pairs
        );
    }
    let f = &r.roofline;
    println!(
        "\ndecode of 1 sequence beside plain reads, by turns: {} of {} GB/s, {:.3} GB of weights a token",
        f.lathe_gb_s.text(1),
        f.read_gb_s.text(1),
        f.bytes_per_token as f64 / 1e9
    );
    println!(
        "share of the roofline {}, asked {:.2} {}, {} of {} rounds quiet{}",
        f.share.text(2),
        f.asked,
        verdict(f.share.median >= f.asked),
        f.quiet_rounds,
        f.rounds.len(),
        if f.loaded { " LOADED, no claim" } else { "" }
    );
    if let Some(bf16) = &r.bf16_gflop_s {
        println!("vdpbf16ps on registers {} GFLOP/s", bf16.text(0));
    }
    for (name, m, hello) in [("Lathe", &r.lathe_memory, &r.lathe), ("llama.cpp", &r.llama_memory, &r.llama)] {
        println!(
            "{name}: loaded in {:.2} s, RssAnon {} MiB, RssFile {} MiB",
            hello.load_s, m.anon_mib, m.file_mib
        );
    }
}

fn verdict(held: bool) -> &'static str {
    if held { "held" } else { "MISSED" }
}

//! Lathe, llama.cpp and vLLM side by side: the same cases in turn, with the machine's bounds measured between.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lathe_kernels::Isa;
use lathe_plan::Plan;
use serde::Serialize;

use crate::cases::{CASES, Case, EIGHT, Extra, LONG, MANY, MANY_LONG, ONE};
use crate::machine::{Machine, Others, QUIET, multiply_rate, wait_quiet};
use crate::peer::{Hello, Peer, Timing};
use crate::roofline::{self, Roofline, ours};
use crate::stats::Spread;
use crate::{cache, results};

/// What to compare.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Shape by its name in shapes/
    #[arg(long, default_value = "1b")]
    shape: String,
    /// Threads of each engine
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Our instruction set instead of the fastest: avx512, avx2, neon, scalar
    #[arg(long)]
    isa: Option<Isa>,
    /// Whom to compare with, of llama, vllm (compiled, its default) and vllm-eager
    #[arg(long, value_delimiter = ',', default_value = "llama,vllm")]
    peers: Vec<String>,
    /// Cases to run, all unless named: "1 sequence", "8 sequences", "32 sequences", "1 long", "32 long"
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Rounds on a quiet machine to gather for each case
    #[arg(long, default_value_t = 5)]
    rounds: usize,
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

/// All engines' runs of a case, one right after the other; by engine, ours first, `None` where one does not run it.
#[derive(Clone, Debug, Serialize)]
struct Turn {
    case: &'static str,
    /// Engine that ran first; the others followed in their order.
    first: usize,
    halves: Vec<Option<Half>>,
}

impl Turn {
    fn quiet(&self) -> bool {
        self.halves.iter().flatten().all(|h| h.others < QUIET)
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
    /// Tokens per second of each engine that runs the case.
    rates: BTreeMap<String, Spread>,
    /// Lathe / peer, by turns.
    ratios: BTreeMap<String, Spread>,
    /// Lathe / the peer that was best in the turn.
    of_best: Spread,
    /// What Lathe is held to.
    asked: Option<Asked>,
    quiet_turns: usize,
    turns: usize,
    /// True when fewer quiet turns were had than asked for: the numbers are of all turns, and no claims.
    loaded: bool,
}

/// How fast the machine multiplied in a round, GFLOP/s.
#[derive(Clone, Copy, Debug, Serialize)]
struct Multiplied {
    /// `vdpbf16ps` on registers; NaN on a machine without it.
    bf16_gflop_s: f64,
    /// torch's own bf16 product of two matrices of 2,048 and 4,096; the faster. NaN without vLLM.
    torch_gflop_s: f64,
}

/// An engine and what its process takes.
#[derive(Debug, Serialize)]
struct Engine {
    hello: Hello,
    memory: results::Rss,
}

#[derive(Debug, Serialize)]
struct Report {
    date: String,
    commit: String,
    shape: String,
    threads: usize,
    machine: Machine,
    engines: Vec<Engine>,
    roofline: Roofline,
    multiplied: Vec<Multiplied>,
    bf16_gflop_s: Option<Spread>,
    torch_gflop_s: Option<Spread>,
    /// Prefill of 512 in multiplications of weights, over torch's rate.
    prefill_of_torch: Option<f64>,
    lines: Vec<Line>,
    turns: Vec<Turn>,
}

/// A least ratio, by turns.
#[derive(Clone, Copy, Debug, Serialize)]
struct Asked {
    /// A peer by name; the best of each turn where absent.
    of: Option<&'static str>,
    ratio: f64,
}

/// What is shown, of which case, and what is asked of 1b and of 160m; of the long ones beside llama.cpp alone.
const LINES: [(&str, &str, Rate, Option<[f64; 2]>); 11] = [
    ("prefill 512", ONE, Rate::Prefill, Some([1.1, 1.1])),
    ("decode, 1 sequence", ONE, Rate::Decode, Some([1.0, 1.15])),
    ("prefill, 8 sequences", EIGHT, Rate::Prefill, None),
    ("decode, 8 sequences", EIGHT, Rate::Decode, Some([1.15, 1.15])),
    ("whole, 8 sequences", EIGHT, Rate::Whole, None),
    ("prefill, 32 sequences", MANY, Rate::Prefill, None),
    ("decode, 32 sequences", MANY, Rate::Decode, Some([1.15, 1.2])),
    ("whole, 32 sequences", MANY, Rate::Whole, None),
    ("prefill 4,032", LONG, Rate::Prefill, Some([1.2, 1.2])),
    ("decode after 4,032", LONG, Rate::Decode, Some([1.2, 1.2])),
    ("decode, 32 sequences after 1,024", MANY_LONG, Rate::Decode, Some([1.2, 1.2])),
];
/// Share of the read roofline that decoding one sequence of 1b is held to.
const DECODE_SHARE: f64 = 0.93;
/// Share of torch's rate that prefill of 512 of 1b is held to.
const PREFILL_SHARE: f64 = 0.85;

/// What a line is held to for a shape.
fn asked(case: &Case, ratios: Option<[f64; 2]>, shape: &str) -> Option<Asked> {
    let of = [LONG, MANY_LONG].contains(&case.name).then_some("llama.cpp");
    let ratio = match shape {
        "1b" => ratios?[0],
        "160m" => ratios?[1],
        _ => return None,
    };
    Some(Asked { of, ratio })
}

/// vLLM has no way to decode again after a prompt that was run once.
fn runs(engine: &str, case: &Case) -> bool {
    !engine.starts_with("vLLM") || case.name != MANY_LONG
}

fn half(peer: &mut Peer, case: &Case, processes: &[u32], wait: &mut Duration) -> Result<Half> {
    wait_quiet(processes, wait)?;
    let others = Others::start(processes)?;
    let Timing { prefill_s, decode_s, .. } = peer.run(case)?;
    Ok(Half { prefill_s, decode_s, others: others.cores()? })
}

fn peer(name: &str, args: &Args) -> Result<Peer> {
    let (package, mode) = name.split_once('-').unwrap_or((name, ""));
    let known = matches!((package, mode), ("llama", "") | ("vllm", "" | "eager"));
    ensure!(known, "no peer is called {name}; known are llama, vllm, vllm-eager");
    let python = cache::python(package)?;
    let mut c = Command::new(&python);
    match package {
        "llama" => c.arg(cache::script("llama.py")).arg(cache::gguf(&args.shape, &python)?),
        _ => c.arg(cache::script("vllm_cpu.py")).arg(cache::config_folder(&args.shape)?),
    };
    c.arg(args.threads.to_string()).args(Some(mode).filter(|m| !m.is_empty()));
    Peer::start(c)
}

/// Runs the comparison, prints the table, writes the numbers.
pub fn run(args: &Args) -> Result<()> {
    let plan = match &args.plan {
        Some(plan) => plan.clone(),
        None => cache::plan(&args.shape)?,
    };
    let wanted = |case: &&Case| args.cases.is_empty() || args.cases.iter().any(|c| c == case.name);
    let cases: Vec<Case> = CASES.iter().filter(wanted).copied().collect();
    ensure!(!cases.is_empty(), "no case is called {}", args.cases.join(", "));
    let opened = Plan::open(&plan)?;
    let bytes_per_token = roofline::bytes_per_step(&opened)?;
    let mut engines = vec![Peer::start(ours(&plan, args.threads, args.isa)?)?];
    for name in &args.peers {
        engines.push(peer(name, args)?);
    }
    let processes: Vec<u32> = engines.iter().map(Peer::id).collect();
    for case in &cases {
        for engine in engines.iter_mut().filter(|e| runs(&e.hello.name, case)) {
            // A kept case is itself only in full.
            let new = if case.extra == Extra::Kept { case.new } else { 2 };
            engine.run(&Case { new, ..*case })?;
        }
    }

    let mut wait = Duration::from_secs(args.wait);
    let (mut turns, mut rounds, mut multiplied): (Vec<Turn>, _, _) = (vec![], vec![], vec![]);
    let quiet =
        |turns: &[Turn], case: &Case| turns.iter().filter(|t| t.case == case.name && t.quiet()).count();
    for round in 0..args.max_rounds {
        let enough = cases.iter().all(|c| quiet(&turns, c) >= args.rounds);
        if enough && roofline::enough(&rounds, args.rounds) {
            break;
        }
        let of_memory = roofline::Round::run(&mut engines[0], bytes_per_token, &processes, &mut wait)?;
        rounds.push(of_memory);
        let of_products = multiply(&mut engines, args.threads)?;
        multiplied.push(of_products);
        eprintln!("round {round}: {of_memory:?} {of_products:?}");
        for case in &cases {
            if quiet(&turns, case) >= args.rounds {
                continue;
            }
            let n = engines.len();
            let first = round % n;
            let mut halves = vec![None; n];
            for i in (first..n).chain(0..first) {
                if !runs(&engines[i].hello.name, case) {
                    continue;
                }
                halves[i] = Some(half(&mut engines[i], case, &processes, &mut wait)?);
            }
            let shown: Vec<String> = halves
                .iter()
                .flatten()
                .map(|h| {
                    let d = format!("{:.2} tok/s ({:.2} others)", Rate::Decode.of(case, h), h.others);
                    match case.extra {
                        Extra::Kept => d,
                        _ => format!("{:.1} {d}", Rate::Prefill.of(case, h)),
                    }
                })
                .collect();
            eprintln!("round {round}, {:12}: prefill, decode {}", case.name, shown.join(" : "));
            turns.push(Turn { case: case.name, first, halves });
        }
    }

    let names: Vec<String> = engines.iter().map(|e| e.hello.name.clone()).collect();
    let mut lines = vec![];
    for (what, case, rate, ratios) in LINES {
        if let Some(case) = cases.iter().find(|c| c.name == case) {
            let asked = asked(case, ratios, &args.shape);
            lines.push(line(what, case, rate, asked, &names, &turns, args.rounds)?);
        }
    }
    let torch_gflop_s = Spread::of(multiplied.iter().map(|r| r.torch_gflop_s).filter(|r| r.is_finite()));
    let layers = bytes_per_token - roofline::head_bytes(&opened)?;
    let prefill = lines.iter().find(|l| l.what == "prefill 512").and_then(|l| l.rates.get("lathe"));
    let report = Report {
        date: results::date(),
        commit: results::commit(),
        shape: args.shape.clone(),
        threads: args.threads,
        machine: Machine::detect()?,
        engines: engines
            .iter()
            .map(|e| Ok(Engine { hello: e.hello.clone(), memory: results::Rss::of(e.id())? }))
            .collect::<Result<_>>()?,
        bf16_gflop_s: Spread::of(multiplied.iter().map(|r| r.bf16_gflop_s).filter(|r| r.is_finite())),
        // Two bytes of weight are one multiplication and one addition per id.
        prefill_of_torch: prefill.zip(torch_gflop_s).map(|(p, t)| p.median * layers as f64 / 1e9 / t.median),
        torch_gflop_s,
        roofline: Roofline::of(rounds, bytes_per_token, args.rounds)?,
        multiplied,
        lines,
        turns,
    };
    print(&report);
    let shape = if args.shape == "1b" { String::new() } else { format!("-{}", args.shape) };
    let isa = args.isa.map_or(String::new(), |isa| format!("-{isa}"));
    let name = format!("{}-peers-cpu{shape}{isa}.json", report.date);
    results::write(args.out.as_deref(), &name, &report)
}

fn multiply(engines: &mut [Peer], threads: usize) -> Result<Multiplied> {
    let mut torch_gflop_s = f64::NAN;
    if let Some(vllm) = engines.iter_mut().find(|e| e.hello.name.starts_with("vLLM")) {
        torch_gflop_s = vllm.matmul(2048)?.max(vllm.matmul(4096)?);
    }
    Ok(Multiplied { bf16_gflop_s: multiply_rate(threads), torch_gflop_s })
}

fn line(
    what: &str,
    case: &Case,
    rate: Rate,
    asked: Option<Asked>,
    names: &[String],
    turns: &[Turn],
    want: usize,
) -> Result<Line> {
    let all = || turns.iter().filter(|t| t.case == case.name);
    let quiet_turns = all().filter(|t| t.quiet()).count();
    let loaded = quiet_turns < want;
    // Rates by turn, then by engine.
    let rows: Vec<Vec<Option<f64>>> = all()
        .filter(|t| loaded || t.quiet())
        .map(|t| t.halves.iter().map(|h| h.as_ref().map(|h| rate.of(case, h))).collect())
        .collect();
    let (mut rates, mut ratios) = (BTreeMap::new(), BTreeMap::new());
    for (e, name) in names.iter().enumerate() {
        rates.extend(Spread::of(rows.iter().filter_map(|r| r[e])).map(|s| (name.clone(), s)));
        if e > 0 {
            let ratio = rows.iter().filter_map(|r| Some(r[0]? / r[e]?));
            ratios.extend(Spread::of(ratio).map(|s| (name.clone(), s)));
        }
    }
    let best = rows.iter().filter_map(|r| {
        let best = r[1..].iter().flatten().copied().fold(f64::NAN, f64::max);
        Some(r[0]? / best)
    });
    Ok(Line {
        what: what.into(),
        rates,
        ratios,
        of_best: Spread::of(best).context("no turn was run")?,
        asked,
        quiet_turns,
        turns: all().count(),
        loaded,
    })
}

fn print(r: &Report) {
    println!("{} {}, {} threads, {}, {}", r.shape, r.date, r.threads, r.machine.cpu, r.commit);
    for Engine { hello, memory } in &r.engines {
        println!(
            "{} {} ({}): loaded in {:.2} s, RssAnon {} MiB, RssFile {} MiB",
            hello.name, hello.version, hello.build, hello.load_s, memory.anon_mib, memory.file_mib
        );
    }
    let names: Vec<&str> = r.engines.iter().map(|e| e.hello.name.as_str()).collect();
    let ratios: Vec<String> = names[1..].iter().map(|n| format!("Lathe / {n}")).collect();
    println!(
        "\n| tok/s, median (min..max) | {} | {} | Lathe / best | asked | turns, quiet of all |",
        names.join(" | "),
        ratios.join(" | ")
    );
    println!("|{}", "---|".repeat(2 * names.len() + 3));
    for l in &r.lines {
        let asked = l.asked.and_then(|a| {
            let (of, name) = match a.of {
                Some(name) => (l.ratios.get(name)?, name),
                None => (&l.of_best, "the best"),
            };
            Some(format!("{:.2} of {name}, {}", a.ratio, verdict(of.median >= a.ratio)))
        });
        let asked = asked.unwrap_or("-".into());
        let mark = if l.loaded { " LOADED, no claim" } else { "" };
        let show = |s: Option<&Spread>, digits| s.map_or("-".into(), |s| s.text(digits));
        let rates: Vec<String> = names.iter().map(|n| show(l.rates.get(*n), 1)).collect();
        let ratios: Vec<String> = names[1..].iter().map(|n| show(l.ratios.get(*n), 2)).collect();
        println!(
            "| {} | {} | {} | {} | {asked} | {} of {}{mark} |",
            l.what,
            rates.join(" | "),
            ratios.join(" | "),
            l.of_best.text(2),
            l.quiet_turns,
            l.turns
        );
    }
    println!();
    r.roofline.print();
    let held = |asked: f64, share: f64| match r.shape.as_str() {
        "1b" => format!("asked {asked} {}", verdict(share >= asked)),
        _ => "nothing asked".into(),
    };
    println!("share of the roofline: {}", held(DECODE_SHARE, r.roofline.share.median));
    if let Some(bf16) = &r.bf16_gflop_s {
        println!("vdpbf16ps on registers {} GFLOP/s", bf16.text(0));
    }
    if let (Some(torch), Some(share)) = (&r.torch_gflop_s, r.prefill_of_torch) {
        println!(
            "torch's bf16 matmul {} GFLOP/s; prefill 512 multiplies weights at {share:.2} of it, {}",
            torch.text(0),
            held(PREFILL_SHARE, share)
        );
    }
}

fn verdict(held: bool) -> &'static str {
    if held { "held" } else { "MISSED" }
}

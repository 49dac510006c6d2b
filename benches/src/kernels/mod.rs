//! Each kernel on the shapes of Llama-3.2-1B, beside bounds measured in the same run.

mod attention;
mod gemm;
mod invariance;
mod sampling;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use lathe_kernels::{Isa, IsaPath, Kernel};
use serde::Serialize;

use crate::machine::{Bounds, Machine, Others, QUIET, Roof, wait_quiet};
use crate::results;
use crate::stats::Spread;

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Families; all unless named
    #[arg(value_parser = ["gemm", "attention", "sampling", "invariance"])]
    families: Vec<String>,
    /// Threads; sampling always takes one
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Runs of each problem, at least; quick ones are run for 0.2 s
    #[arg(long, default_value_t = 9)]
    runs: usize,
    /// Seconds to wait for a quiet machine, all waits together
    #[arg(long, default_value_t = 120)]
    wait: u64,
    /// Instruction set: avx512, avx2, neon or scalar; the fastest of this machine unless set
    #[arg(long)]
    isa: Option<String>,
    /// Where to write the numbers; results/DATE-kernels-cpu.json unless set
    #[arg(long)]
    out: Option<PathBuf>,
}

/// A measured problem.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    seconds: Spread,
    /// Bytes that must be read at least, GB/s; of the median time, as are the other rates.
    gb_s: Option<f64>,
    gflop_s: Option<f64>,
    /// The larger of both rates' shares of the machine's bounds.
    of_bound: Option<f64>,
    /// Cores that others used meanwhile.
    others: f64,
}

/// Two ways of the same work.
#[derive(Debug, Serialize)]
struct Ratio {
    name: String,
    /// Time of the first over time of the second, by pairs.
    ratio: Spread,
    /// Cores that others used meanwhile.
    others: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    date: String,
    commit: String,
    machine: Machine,
    threads: usize,
    isa: String,
    bounds: Bounds,
    rows: Vec<Row>,
    ratios: Vec<Ratio>,
}

/// What a family measures with.
struct Cx {
    path: IsaPath,
    threads: usize,
    runs: usize,
    wait: Duration,
    bounds: Bounds,
    rows: Vec<Row>,
    ratios: Vec<Ratio>,
}

/// Shorter measurements are repeated: others' CPU time comes in ticks of 10 ms.
const LEAST: Duration = Duration::from_millis(200);

impl Cx {
    /// Times `f`, which runs `problems` of one size, after one run of warm-up, and prints the row of one problem.
    fn row(
        &mut self,
        name: String,
        bytes: Option<usize>,
        flops: Option<usize>,
        problems: usize,
        mut f: impl FnMut(),
    ) -> Result<()> {
        wait_quiet(&[], &mut self.wait)?;
        f();
        let others = Others::start(&[])?;
        let (begin, mut times) = (Instant::now(), vec![]);
        while times.len() < self.runs || begin.elapsed() < LEAST {
            let start = Instant::now();
            f();
            times.push(start.elapsed().as_secs_f64() / problems as f64);
        }
        let Some(seconds) = Spread::of(times) else { return Ok(()) };
        let others = others.cores()?;
        let rate = |n: Option<usize>| n.map(|n| n as f64 / seconds.median / 1e9);
        let (gb_s, gflop_s) = (rate(bytes), rate(flops));
        let shares = [gb_s.map(|r| r / self.bounds.read), gflop_s.map(|r| r / self.bounds.bf16)];
        let of_bound = shares.into_iter().flatten().filter(|s| s.is_finite()).reduce(f64::max);
        let show = |r: Option<f64>, digits| r.map_or("-".into(), |r| format!("{r:.digits$}"));
        println!(
            "| {name} | {:.3} ({:.3}..{:.3}) | {} | {} | {} | {others:.2}{} |",
            seconds.median * 1e3,
            seconds.min * 1e3,
            seconds.max * 1e3,
            show(gb_s, 1),
            show(gflop_s, 1),
            show(of_bound, 2),
            if others < QUIET { "" } else { " LOADED" }
        );
        self.rows.push(Row { name, seconds, gb_s, gflop_s, of_bound, others });
        Ok(())
    }
}

/// Runs the units of several problems in equal parts on the threads that `scratch` has slices for; threads start once
/// and do not wait for each other between problems, so that starting them weighs little.
fn launch(kernels: &[impl Kernel], scratch: &mut [Vec<f32>]) {
    let n = scratch.len();
    std::thread::scope(|s| {
        for (t, scratch) in scratch.iter_mut().enumerate() {
            s.spawn(move || {
                for kernel in kernels {
                    let units = kernel.units();
                    scratch.resize(kernel.scratch_len(), 0.0);
                    // SAFETY: ranges are disjoint, problems share no output, and all buffers outlive the scope.
                    unsafe { kernel.run(units * t / n..units * (t + 1) / n, scratch) }
                }
            });
        }
    });
}

/// Fills memory with pairs of pairs of bf16 around 0.01: no subnormals, no infinities.
fn noise(words: &mut [u64]) {
    for (i, w) in words.iter_mut().enumerate() {
        *w = 0x3c00_bc10_3b80_bc40 ^ ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) & 0x007f_007f_007f_007f);
    }
}

/// Measures and prints.
pub fn run(args: &Args) -> Result<()> {
    let path = match &args.isa {
        None => IsaPath::detect(),
        Some(name) => IsaPath::force(name.parse::<Isa>()?)?,
    };
    // As large as the largest weight, and larger than any cache.
    let mut roof = Roof::new(128_256 * 2048 * 2);
    let mut wait = Duration::from_secs(args.wait);
    wait_quiet(&[], &mut wait)?;
    let bounds = roof.measure(args.threads);
    println!(
        "{} threads, {}: read {:.1} GB/s, vdpbf16ps on registers {:.0} GFLOP/s\n",
        args.threads,
        path.isa(),
        bounds.read,
        bounds.bf16
    );
    println!(
        "| problem | ms, median (min..max) | GB/s | GFLOP/s | of bound | others, cores |\n|---|---|---|---|---|---|"
    );
    noise(roof.words());
    let mut cx =
        Cx { path, threads: args.threads, runs: args.runs, wait, bounds, rows: vec![], ratios: vec![] };
    let wanted = |family: &str| args.families.is_empty() || args.families.iter().any(|f| f == family);
    if wanted("gemm") {
        gemm::measure(&mut cx, roof.words())?;
    }
    if wanted("attention") {
        attention::measure(&mut cx, roof.words())?;
    }
    if wanted("sampling") {
        sampling::measure(&mut cx)?;
    }
    if wanted("invariance") {
        invariance::measure(&mut cx, roof.words())?;
    }
    let report = Report {
        date: results::date(),
        commit: results::commit(),
        machine: Machine::detect()?,
        threads: args.threads,
        isa: path.isa().to_string(),
        bounds,
        rows: cx.rows,
        ratios: cx.ratios,
    };
    results::write(args.out.as_deref(), &format!("{}-kernels-cpu.json", report.date), &report)
}

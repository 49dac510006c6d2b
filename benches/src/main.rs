//! Benchmarks: kernels, engine, start, peers side by side. README.md says how to run them.

mod cache;
mod cases;
mod contention;
mod kernels;
mod machine;
mod overhead;
mod peer;
mod peers;
mod results;
mod roofline;
mod server;
mod start;
mod stats;
mod trace;
mod worker;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use lathe_kernels::Isa;

/// Measures Lathe
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lathe, llama.cpp and vLLM side by side on the CPU
    Peers(peers::Args),
    /// Each kernel beside the machine's bounds
    Kernels(kernels::Args),
    /// Decode of one sequence beside reading what it multiplies
    Roofline(roofline::Args),
    /// From exec to /ready and to the first token of `runtime serve`
    Start(start::Args),
    /// CPU time of `runtime serve` outside of its engine while clients stream
    Overhead(overhead::Args),
    /// Throughput beside another busy process
    Contention(contention::Args),
    /// Keeps the first core busy until it is ended
    #[command(hide = true)]
    Burn,
    /// Runs the cases of standard input ("SEQUENCES PROMPT NEW" a line) on a plan, times to standard output
    Worker {
        /// Plan
        plan: PathBuf,
        /// Worker threads
        #[arg(long, default_value_t = 2)]
        threads: usize,
        /// Instruction set instead of the fastest: avx512, avx2, neon, scalar
        #[arg(long)]
        isa: Option<Isa>,
        /// Time per kernel and value, to standard error
        #[arg(long)]
        trace: bool,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Peers(args) => peers::run(&args),
        Command::Kernels(args) => kernels::run(&args),
        Command::Roofline(args) => roofline::run(&args),
        Command::Start(args) => start::run(&args),
        Command::Overhead(args) => overhead::run(&args),
        Command::Contention(args) => contention::run(&args),
        Command::Burn => contention::burn(),
        Command::Worker { plan, threads, isa, trace } => {
            let trace = if trace { Some(trace::Trace::install()?) } else { None };
            worker::serve(&plan, threads, isa, trace.as_ref())
        }
    }
}

//! What the fixed order of summation costs: GEMM in the contract's K slices beside the same one in a single sum, by turns.
//! The other rules cost no work of their own: tiles and threads are free, a leaf's fold is part of attention's rows.

use std::time::Instant;

use anyhow::{Context, Result};
use lathe_kernels::gemm::{Gemm, cases::LLAMA_1B};
use lathe_numerics::contract::gemm_slices;

use super::gemm::Problems;
use super::{Cx, launch};
use crate::machine::{Others, QUIET, wait_quiet};
use crate::stats::Spread;

const ROWS: [usize; 4] = [1, 8, 32, 512];
/// Pairs of a shape and row count.
const PAIRS: usize = 15;

/// Weights are taken from `memory`.
pub fn measure(cx: &mut Cx, memory: &[u64]) -> Result<()> {
    let mut scratch = vec![vec![]; cx.threads];
    println!(
        "\n| contract / one sum, time by pairs | ratio, median (min..max) | others, cores |\n|---|---|---|"
    );
    for &(name, n, k) in LLAMA_1B.iter().filter(|(_, n, k)| gemm_slices(*n, *k) > 1) {
        for m in ROWS {
            let (mut sliced, mut whole) = (Problems::new(n, k, m)?, Problems::new(n, k, m)?);
            let whole = whole.gemms(cx.path, memory)?.into_iter().map(Gemm::in_one_sum).collect();
            let sides: [Vec<Gemm>; 2] = [sliced.gemms(cx.path, memory)?, whole];
            let mut time = |side: usize| {
                let start = Instant::now();
                launch(&sides[side], &mut scratch);
                start.elapsed().as_secs_f64()
            };
            wait_quiet(&[], &mut cx.wait)?;
            time(0);
            time(1);
            let others = Others::start(&[])?;
            let ratios: Vec<f64> = (0..PAIRS)
                .map(|i| {
                    let (a, b) = (i % 2, 1 - i % 2);
                    let (first, second) = (time(a), time(b));
                    if a == 0 { first / second } else { second / first }
                })
                .collect();
            let (ratio, others) = (Spread::of(ratios).context("no pairs")?, others.cores()?);
            let mark = if others < QUIET { "" } else { " LOADED" };
            let slices = gemm_slices(n, k);
            let what = format!("gemm {name} {n}x{k} in {slices} slices, {m} rows");
            println!("| {what} | {} | {others:.2}{mark} |", ratio.text(3));
            cx.ratios.push(super::Ratio { name: what, ratio, others });
        }
    }
    Ok(())
}

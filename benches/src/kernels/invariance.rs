//! What the fixed order of summation costs: GEMM in the contract's K slices beside the same one in a single sum, by turns.
//! The other rules cost no work of their own: tiles and threads are free, a leaf's fold is part of attention's rows.

use std::time::Instant;

use anyhow::{Context, Result};
use half::bf16;
use lathe_kernels::Src;
use lathe_kernels::gemm::{Epilogue, Gemm, GemmArgs, cases::LLAMA_1B, packed_len};
use lathe_numerics::DType;
use lathe_numerics::contract::gemm_slices;

use super::{Cx, launch};
use crate::machine::{Others, QUIET, wait_quiet};
use crate::stats::Spread;

const ROWS: [usize; 4] = [1, 8, 32, 512];
/// Pairs of a shape and row count.
const PAIRS: usize = 15;
/// Bytes of weights that one run reads.
const BYTES: usize = 256 << 20;
/// Rows from which on one weight takes long enough.
const MANY: usize = 128;

/// Weights are taken from `memory`.
pub fn measure(cx: &mut Cx, memory: &[u64]) -> Result<()> {
    let mut scratch = vec![vec![]; cx.threads];
    println!(
        "\n| contract / one sum, time by pairs | ratio, median (min..max) | others, cores |\n|---|---|---|"
    );
    for &(name, n, k) in LLAMA_1B.iter().filter(|(_, n, k)| gemm_slices(*n, *k) > 1) {
        let len = packed_len(DType::BF16, n, k)?;
        for m in ROWS {
            let problems = if m >= MANY { 1 } else { (BYTES / (len * 2)).max(1) };
            let x: Vec<bf16> = (0..m * k).map(|i| bf16::from_f32((i % 17) as f32 - 8.0)).collect();
            let mut outs = [vec![vec![0f32; m * n]; problems], vec![vec![0f32; m * n]; problems]];
            let mut sides = vec![];
            for (outs, sliced) in outs.iter_mut().zip([true, false]) {
                let mut gemms = Vec::with_capacity(problems);
                for (out, weight) in outs.iter_mut().zip(memory.chunks_exact(len / 4)) {
                    // SAFETY: the slice's own bytes.
                    let weight = unsafe { std::slice::from_raw_parts(weight.as_ptr().cast::<u8>(), len * 2) };
                    let gemm = Gemm::new(GemmArgs {
                        path: cx.path,
                        x: x.as_slice().into(),
                        x_stride: k,
                        m,
                        n,
                        k,
                        weight: Src::bytes(DType::BF16, weight)?,
                        bias: None,
                        out: out.as_mut_slice().into(),
                        out_stride: n,
                        epilogue: Epilogue::Store,
                    })?;
                    gemms.push(if sliced { gemm } else { gemm.in_one_sum() });
                }
                sides.push(gemms);
            }
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

//! GEMM on a device: `y[m, n] = epilogue(x[m, k] * W[n, k]^T + bias)`.
//!
//! Needs: x dense, row-major, its base a multiple of 16 bytes; W `Mma16` of the stored rows (bf16, f16) or `RowMajor`
//! (f32); bias f32 in stored row order. Any m, n, k: tails are predicated, columns past k count as zero.
//! Order: `numerics::gemm_slices(stored rows, k)` slices of K, each from zero in f32 over ascending k, by `mma.m16n8k16`
//! with features as rows and tokens as columns (f32: by fused multiply-adds); slices folded left; bias; epilogue; one
//! rounding. Which launch does a row, and what stands beside it, does not enter.
//! For few rows what stands before and behind is part of the launch (`few.rs`); the bits are those of separate ones.
//! Device code: `gemm.cuh` has the epilogues, `mma.cu` and `f32.cu` what makes the sums. How weights become fragments is
//! one struct of `mma.cu`.

use lathe_device::{Arg, Extent, Symbol, When};
use lathe_numerics::DType;
use lathe_numerics::contract::gemm_slices;

use super::{Epilogue, even, stored_rows};
use crate::cuda::{Cost, Launches, Source, Stage, activation, element, mma16};
use crate::error::{KernelError, at_least, at_most, product};
use crate::rms_norm;
use crate::view::float;

mod choose;
mod few;
mod fused;
#[cfg(test)]
mod tests;

pub(crate) use choose::grouped_tile;
pub use choose::{Body, Config, MAX_SHARED, Tile, choose};
pub use fused::{Fused, Tail, fused_launches};

const NAME: &str = "gemm";
const MMA: &str = include_str!("mma.cu");
const F32: &str = include_str!("f32.cu");
/// Features of a block of the f32 kernel.
const F32_FEATURES: usize = 64;
/// Token groups of a block of the f32 kernel.
const F32_GROUPS: usize = 4;

/// A GEMM of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Rows.
    pub m: Symbol,
    /// Most rows of a step.
    pub max_m: u32,
    /// Logical features of the weight (`2 * cols` for `Glu`).
    pub n: usize,
    /// Depth.
    pub k: usize,
    /// Of x and W: bf16, f16 or f32.
    pub dtype: DType,
    /// Of the result: bf16, f16 or f32.
    pub out: DType,
    /// What is stored.
    pub epilogue: Epilogue,
    /// True if `Input(2)` is a bias.
    pub bias: bool,
}

/// Inputs x `D[m, k]`, weight, bias `f32[stored rows]` if there is one; output `[m, n]`, for `Glu` `[m, n / 2]`.
///
/// # Errors
/// `Unsupported` for dtypes and an odd `n` with `Glu`; `Shape` for sizes that are zero or past 32-bit grids.
pub fn launches(p: &Problem) -> Result<Launches, KernelError> {
    build(p, &choose(p), false)
}

/// As [`launches`] with configurations of the caller's choice, for tests and measurements; they have the same bits.
///
/// # Errors
/// As [`launches`]; `Unsupported` for a tile that device code does not do.
pub fn launches_of(p: &Problem, configs: &[Config]) -> Result<Launches, KernelError> {
    build(p, configs, false)
}

/// As [`launches`] with one more input, a residual of the output's shape and dtype that is added before the rounding.
/// The output may be the residual's own bytes.
///
/// # Errors
/// As [`launches`]; `Unsupported` for another epilogue than `Store`.
pub fn add_launches(p: &Problem) -> Result<Launches, KernelError> {
    if p.epilogue != Epilogue::Store {
        let what = format!("a residual with epilogue {:?}; there is one for Store", p.epilogue);
        return Err(KernelError::Unsupported { kernel: NAME, what });
    }
    build(p, &choose(p), true)
}

/// The launch of one expert's problem, and the features and tokens of its tiles; what makes it many experts' is up to the
/// caller.
pub(crate) fn grouped_stage(p: &Problem, config: &Config) -> Result<(Stage, usize, usize), KernelError> {
    check(p)?;
    let (features, tokens) = match &config.body {
        Body::Mma(t) => (t.features, t.tokens),
        Body::Fma(per_thread) => (F32_FEATURES, F32_GROUPS * per_thread),
    };
    Ok((stage(p, config, false, 0)?, features, tokens))
}

fn build(p: &Problem, configs: &[Config], residual: bool) -> Result<Launches, KernelError> {
    check(p)?;
    let stages = configs.iter().map(|c| stage(p, c, residual, 0)).collect::<Result<_, _>>()?;
    Ok(Launches { stages, workspaces: vec![] })
}

fn check(p: &Problem) -> Result<(), KernelError> {
    float(NAME, p.dtype)?;
    float(NAME, p.out)?;
    at_least(NAME, "n", 1, p.n)?;
    at_least(NAME, "k", 1, p.k)?;
    at_least(NAME, "rows", 1, p.max_m as usize)?;
    // Device code counts rows, features and columns in 32 bits, with room for a tile past the end.
    for (what, size) in [("n", p.n), ("k", p.k), ("rows", p.max_m as usize)] {
        at_most(NAME, what, (i32::MAX / 4) as usize, size)?;
    }
    product(NAME, "n * k", &[p.n, p.k])?;
    even(p.n, p.epilogue)
}

/// Bytes of `rows` whole rows of x in shared memory, with sums of squares for each warp of the norm's own kernel.
fn held_bytes(p: &Problem, rows: usize) -> usize {
    rows * (p.k * p.dtype.size() + rms_norm::cuda::threads(p.k) / 32 * size_of::<f32>())
}

fn stage(p: &Problem, config: &Config, residual: bool, held_rows: usize) -> Result<Stage, KernelError> {
    let rows = stored_rows(p.n, p.epilogue);
    let epilogue = match (p.epilogue, residual) {
        (Epilogue::Glu(act), _) => format!("Glu<{}>", activation(act)),
        (Epilogue::ClampedSwiglu, _) => "ClampedSwiglu".into(),
        (Epilogue::Act(act), _) => format!("Act<{}>", activation(act)),
        (Epilogue::Store, true) => "AddResidual".into(),
        (Epilogue::Store, false) => "Store".into(),
    };
    let mut defines = vec![
        ("BIAS", u32::from(p.bias).to_string()),
        ("COLUMNS", p.epilogue.columns(p.n).to_string()),
        ("EPILOGUE", format!("lathe::{epilogue}")),
        ("K", p.k.to_string()),
        ("OUT", element(p.out).into()),
        ("ROWS", rows.to_string()),
        ("SLICES", gemm_slices(rows, p.k).to_string()),
    ];
    let (text, features, tokens, threads, shared) = match &config.body {
        Body::Mma(_) if p.dtype == DType::F32 => {
            return Err(KernelError::Unsupported { kernel: NAME, what: "tensor cores for f32".into() });
        }
        Body::Fma(_) if p.dtype != DType::F32 => {
            let what = format!("plain multiply-adds for {}; there are for f32", p.dtype);
            return Err(KernelError::Unsupported { kernel: NAME, what });
        }
        Body::Mma(t) => {
            let shared = match held_rows {
                0 => t.shared_bytes(),
                rows => t.shared_bytes_holding(held_bytes(p, rows)),
            };
            t.check_with(p, shared)?;
            defines.extend([
                ("DEPTH", t.depth.to_string()),
                ("ELEMENT", element(p.dtype).into()),
                ("GROUP", t.group.to_string()),
                ("HELD_ROWS", held_rows.to_string()),
                ("MIN_BLOCKS", t.min_blocks.to_string()),
                ("PASS_TOKENS", t.pass_tokens().to_string()),
                ("PARALLEL", t.parallel.to_string()),
                ("STAGES", t.stages.to_string()),
                ("TILE_FEATURES", t.features.to_string()),
                ("TILE_TOKENS", t.tokens.to_string()),
                ("WARP_FEATURES", t.warp_features.to_string()),
                ("WARP_TOKENS", t.warp_tokens.to_string()),
            ]);
            (MMA, t.features, t.tokens, t.threads(), shared)
        }
        Body::Fma(per_thread) => {
            defines.push(("PER_THREAD", per_thread.to_string()));
            (F32, F32_FEATURES, F32_GROUPS * per_thread, F32_GROUPS * F32_FEATURES, 0)
        }
    };
    let across = rows.div_ceil(features);
    let blocks = product(NAME, "blocks", &[across, (config.max as usize).div_ceil(tokens)])?;
    at_most(NAME, "blocks", i32::MAX as usize, blocks)?;
    let when = match config {
        Config { min: 1, max, .. } if *max == p.max_m => When::Always,
        Config { min, max, .. } => When::Range { symbol: p.m, min: *min, max: *max },
    };
    let residual_at = 2 + u32::from(p.bias);
    Ok(Stage {
        source: Source::new(format!("{NAME}-{}-{rows}x{}-{}", p.dtype, p.k, config.max), text, defines),
        entry: NAME,
        when,
        grid: [Extent::per(p.m, tokens as u32, across as u32), Extent::fixed(1), Extent::fixed(1)],
        block: threads as u32,
        shared_bytes: shared as u32,
        dependent: true,
        args: vec![
            Arg::Input(0),
            Arg::Input(1),
            if p.bias { Arg::Input(2) } else { Arg::U64(0) },
            if residual { Arg::Input(residual_at) } else { Arg::U64(0) },
            Arg::Output(0),
            Arg::Symbol(p.m),
        ],
        cost: cost(p, rows, residual),
    })
}

fn cost(p: &Problem, rows: usize, residual: bool) -> Cost {
    let weight = match p.dtype {
        DType::F32 => 4 * rows * p.k,
        _ => rows.div_ceil(mma16::TILE) * mma16::tile_row_bytes(p.k),
    };
    let bias = if p.bias { 4 * rows } else { 0 };
    let results = if residual { 2 } else { 1 } * p.epilogue.columns(p.n) * p.out.size();
    Cost {
        fixed_bytes: (weight + bias) as u64,
        row_bytes: (p.k * p.dtype.size() + results) as u64,
        row_flops: 2 * (p.n * p.k) as u64,
    }
}

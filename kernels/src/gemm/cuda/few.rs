//! A GEMM of few rows with what stands before and behind it in one launch.
//!
//! With a norm a block holds its rows of x whole in shared memory, behind a ring that only weights go through: they are
//! on their way while the block waits for x, sums squares in the order of the norm's own kernel and writes the normed
//! rows back. With rotation a tile is two runs of features half a head apart, and pairs rotate as sums leave it.

use lathe_device::{Arg, StepTable, Symbol, When};
use lathe_numerics::DType;

use super::choose::{self, Body, Config, MAX_SHARED, MULTIPROCESSORS, RING, Tile};
use super::{Fused, Problem, Tail, held_bytes, stage, stored_rows};
use crate::cuda::{Stage, element};
use crate::error::KernelError;
use crate::{rms_norm, rope_append};

/// Upper ends of the ranges of rows with a kernel of their own.
const ENDS: [u32; 5] = [1, 4, 8, 16, 32];
/// Fewest stages of a ring.
const STAGES: usize = 3;
/// Fewest bytes of weights that a ring of such stages keeps under way; two blocks fit a multiprocessor of a large device.
const UNDER_WAY: usize = 20 * 1024;
/// Stages that are wanted before they get deeper.
const GOOD_STAGES: usize = 4;
/// Runs of eight norm weights that a thread keeps in registers.
const WEIGHT_RUNS: usize = 8;

/// Launches for `1..=` some row count, each with its largest one; none if there is nothing to gain or it does not fit.
///
/// # Errors
/// As [`super::launches`].
pub(super) fn stages(p: &Problem, f: &Fused) -> Result<Vec<(u32, Stage)>, KernelError> {
    let mut made: Vec<(u32, Stage)> = Vec::new();
    if !suits(p, f) {
        return Ok(made);
    }
    for end in ENDS {
        let most = end.min(p.max_m);
        let min = made.last().map_or(1, |(max, _)| max + 1);
        if min > most {
            break;
        }
        // A row alone need not norm others, and four get their own kernel where that frees the room of more stages.
        let roomy = MAX_SHARED.saturating_sub(held_bytes(p, 8)) * 10 >= RING * 9;
        let pays = end >= 8 || f.norm.is_some() && (end == 1 || !roomy);
        if p.max_m > end && !pays {
            continue;
        }
        let held = if f.norm.is_some() { most.next_power_of_two() as usize } else { 0 };
        let Some(tile) = tile(p, f, most as usize, held) else { break };
        let config = Config { min, max: most, body: Body::Mma(tile) };
        made.push((most, one(p, f, &config, held)?));
    }
    Ok(made)
}

/// True if device code does this in one launch for some rows.
fn suits(p: &Problem, f: &Fused) -> bool {
    let norm = f.norm.is_none() || p.k.is_multiple_of(32) && p.k <= rms_norm::cuda::MAX_H;
    let tail = match f.tail {
        Tail::None => f.norm.is_some(),
        // In place, x may be the residual: a block that is done would write what others have yet to norm. Without a norm
        // there is nothing to do here.
        Tail::Add => false,
        Tail::RopeAppend(rope) => {
            let whole = rope.head_dim.is_multiple_of(32) && rope.rotary_dim == rope.head_dim;
            whole && p.m == Symbol::Tokens && p.n == (rope.heads + 2 * rope.kv_heads) * rope.head_dim
        }
    };
    p.dtype != DType::F32 && norm && tail
}

/// The tile for up to `most` rows, `held` of which a block keeps whole.
fn tile(p: &Problem, f: &Fused, most: usize, held: usize) -> Option<Tile> {
    let rows = stored_rows(p.n, p.epilogue);
    let base = choose::tile(p, most);
    let norm_threads = rms_norm::cuda::threads(p.k);
    let weight_runs = |threads: usize| norm_threads.div_ceil(threads) * (p.k / 8).div_ceil(norm_threads);
    let mut features = base.features;
    let mut widest = 128.min(rows.next_power_of_two());
    if let Tail::RopeAppend(rope) = f.tail {
        widest = 1 << rope.head_dim.trailing_zeros().min(7);
        features = features.clamp(32, widest);
    }
    // Every block norms all rows: fewer and larger ones do it less often, and with more warps.
    let many = |features| rows.div_ceil(features) as u64 > 2 * MULTIPROCESSORS;
    let threads = |features| choose::detail(rows, p.k, most, features, base.tokens).threads();
    while held > 0 && features < widest && (many(features) || weight_runs(threads(features)) > WEIGHT_RUNS) {
        features *= 2;
    }
    let mut tile = choose::detail(rows, p.k, most, features, base.tokens);
    if held > 0 {
        let ring = MAX_SHARED.checked_sub(held_bytes(p, held))?.min(RING);
        let Tile { parallel, slices, .. } = tile;
        let stage = |depth: usize| parallel * features * depth * 2;
        let fit = |depth: usize| ring / stage(depth);
        let whole = |depth: &usize| slices == 1 || (p.k / slices).is_multiple_of(*depth);
        let mut depths = [128, 64, 32].into_iter().filter(|d| *d <= p.k.max(32)).filter(whole);
        let depth = depths.clone().find(|d| fit(*d) >= GOOD_STAGES).or_else(|| depths.next_back())?;
        let steps = p.k.div_ceil(parallel * depth);
        tile = Tile { depth, stages: fit(depth).min(steps + 1).clamp(2, 8), ..tile };
        if fit(depth) < STAGES || (fit(depth) - 1) * stage(depth) < UNDER_WAY {
            return None;
        }
        if weight_runs(tile.threads()) > WEIGHT_RUNS {
            return None;
        }
    }
    Some(tile)
}

fn one(p: &Problem, f: &Fused, config: &Config, held: usize) -> Result<Stage, KernelError> {
    let out = match f.tail {
        Tail::RopeAppend(rope) => rope.dtype,
        _ => p.out,
    };
    let mut stage = stage(&Problem { out, ..*p }, config, false, held)?;
    let normed = u32::from(f.norm.is_some());
    for arg in &mut stage.args {
        if let Arg::Input(i @ 1..) = arg {
            *i += normed;
        }
    }
    if let Some(eps) = f.norm {
        stage.source.defines.push(("NORM_THREADS", rms_norm::cuda::threads(p.k).to_string()));
        stage.args.extend([Arg::Input(1), Arg::F32(eps)]);
        stage.cost.fixed_bytes += (p.k * p.dtype.size()) as u64;
        stage.cost.row_flops += 4 * p.k as u64;
    }
    if let Tail::RopeAppend(rope) = f.tail {
        // Sizes, and that there are such launches, are the separate kernel's to judge.
        let separate = rope_append::cuda::launches(&rope)?;
        let behind = 2 + u32::from(p.bias) + normed;
        stage.source.defines.extend([
            ("BLOCK", rope.block.to_string()),
            ("BLOCK_BYTES", format!("{}ull", rope.block_bytes)),
            ("HEADS", rope.heads.to_string()),
            ("HEAD_DIM", rope.head_dim.to_string()),
            ("KV_ELEMENT", element(rope.kv_dtype).into()),
            ("KV_HEADS", rope.kv_heads.to_string()),
            ("ROPE", "1".into()),
        ]);
        stage.args.extend((behind..behind + 3).map(Arg::Input));
        stage.args.extend([StepTable::RowSequence, StepTable::Sequences, StepTable::Blocks].map(Arg::Table));
        // Sums stay here: they are neither written nor read again.
        let sums = (p.n * size_of::<f32>()) as u64;
        let rotated: u64 = separate.stages.iter().map(|s| s.cost.row_bytes - sums).sum();
        stage.cost.row_bytes = stage.cost.row_bytes + rotated - (p.n * out.size()) as u64;
        stage.cost.row_flops += separate.stages.iter().map(|s| s.cost.row_flops).sum::<u64>();
    }
    stage.source.defines.sort();
    let what = match (normed, f.tail) {
        (1, Tail::RopeAppend(_)) => "norm-rope",
        (1, _) => "norm",
        _ => "rope",
    };
    stage.source.name = format!("{}-{what}", stage.source.name);
    stage.when = match config {
        Config { min: 1, max, .. } if *max == p.max_m => When::Always,
        Config { min, max, .. } => When::Range { symbol: p.m, min: *min, max: *max },
    };
    Ok(stage)
}

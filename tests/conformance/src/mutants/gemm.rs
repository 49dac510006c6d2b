//! Cases of the GEMM: a ring of stages with tails everywhere, slices summed side by side and in turn, f32.

use anyhow::Result;
use lathe_device::{Arg, Symbol};
use lathe_kernels::gemm::cuda::{Body, Config, Problem, Tile, add_launches, launches, launches_of};
use lathe_kernels::gemm::{Epilogue, reference};
use lathe_numerics::DType;

use super::{Case, Edit, bits, feed, near, same, step};
use crate::values::uniform;
use crate::{Operands, Rig, bytes};

/// A ring of three stages, four warps; features, tokens and K end within a tile.
pub const RING: Case = Case { name: "gemm: ring", run: ring };
/// The same ring with fewer stages of K than places, the last one a quarter full.
pub const SHALLOW: Case = Case { name: "gemm: shallow ring", run: shallow };
/// Four slices of K, side by side for up to 8 tokens and in turn for more.
pub const SLICES: Case = Case { name: "gemm: slices", run: slices };
/// A residual that the result replaces.
pub const RESIDUAL: Case = Case { name: "gemm: residual", run: residual };
/// Without tensor cores, one or four tokens per thread; a bias.
pub const F32: Case = Case { name: "gemm: f32", run: f32 };

const TILE: Tile = Tile {
    features: 32,
    tokens: 16,
    warp_features: 16,
    warp_tokens: 8,
    slices: 1,
    parallel: 1,
    depth: 32,
    stages: 3,
    group: 1,
    min_blocks: 1,
};

fn problem(n: usize, k: usize, dtype: DType) -> Problem {
    Problem {
        m: Symbol::Tokens,
        max_m: 64,
        n,
        k,
        dtype,
        out: DType::F32,
        epilogue: Epilogue::Store,
        bias: false,
    }
}

fn ring(rig: &mut Rig, edit: &Edit) -> Result<()> {
    let configs = [Config { min: 1, max: 64, body: Body::Mma(TILE) }];
    check(rig, edit, &problem(70, 200, DType::BF16), Some(&configs), 21, (8, 5))
}

fn shallow(rig: &mut Rig, edit: &Edit) -> Result<()> {
    let configs = [Config { min: 1, max: 64, body: Body::Mma(TILE) }];
    check(rig, edit, &problem(20, 40, DType::BF16), Some(&configs), 5, (1, 2))
}

fn residual(rig: &mut Rig, edit: &Edit) -> Result<()> {
    let (m, p) = (5, Problem { out: DType::BF16, ..problem(32, 40, DType::BF16) });
    let (x, w) = (uniform(1, m * p.k, p.dtype), uniform(2, p.n * p.k, p.dtype));
    let residual = uniform(4, m * p.n, p.out);
    let mut launches = edit.apply(add_launches(&p)?)?;
    // In place, as the residual stream is.
    let y = rig.floats("y", p.out, &residual)?;
    let inputs =
        vec![rig.empty("x", x.len() * 2)?, rig.buffer("weight", &bytes::of_weight(p.dtype, &w, p.k)?)?, y];
    let mut operands = Operands { inputs, outputs: vec![y], tables: vec![] };
    feed(rig, &mut launches, &mut operands, Arg::Input(0), &bytes::of(p.dtype, &x))?;
    rig.run(&launches, step(m, 1, 1), &operands)?;
    let sums = reference::gemm(&x, &w, None, m, p.n, p.k);
    let want: Vec<f32> = sums.iter().zip(&residual).map(|(s, r)| s + r).collect();
    near("y", p.out, &want, &rig.read_floats(y, p.out, m * p.n)?)
}

fn slices(rig: &mut Rig, edit: &Edit) -> Result<()> {
    let tile = Tile { features: 16, tokens: 8, slices: 4, stages: 2, ..TILE };
    let side_by_side = Tile { parallel: 4, ..tile };
    let configs = [
        Config { min: 1, max: 8, body: Body::Mma(side_by_side) },
        Config { min: 9, max: 64, body: Body::Mma(tile) },
    ];
    check(rig, edit, &problem(20, 2048, DType::BF16), Some(&configs), 11, (3, 4))
}

fn f32(rig: &mut Rig, edit: &Edit) -> Result<()> {
    check(rig, edit, &Problem { bias: true, ..problem(41, 70, DType::F32) }, None, 7, (2, 3))
}

/// `m` rows against the reference, and some of them on their own against those.
fn check(
    rig: &mut Rig,
    edit: &Edit,
    p: &Problem,
    configs: Option<&[Config]>,
    m: usize,
    (first, n): (usize, usize),
) -> Result<()> {
    let (x, w, bias) =
        (uniform(1, m * p.k, p.dtype), uniform(2, p.n * p.k, p.dtype), uniform(3, p.n, DType::F32));
    let weight = rig.buffer("weight", &bytes::of_weight(p.dtype, &w, p.k)?)?;
    let bias_at = rig.f32s("bias", &bias)?;
    let mut run = |x: &[f32]| {
        let m = x.len() / p.k;
        let mut launches = edit.apply(match configs {
            Some(configs) => launches_of(p, configs)?,
            None => launches(p)?,
        })?;
        let y = rig.empty("y", m * p.n * 4)?;
        let inputs = vec![rig.empty("x", x.len() * p.dtype.size())?, weight, bias_at];
        let mut operands = Operands { inputs, outputs: vec![y], tables: vec![] };
        feed(rig, &mut launches, &mut operands, Arg::Input(0), &bytes::of(p.dtype, x))?;
        rig.run(&launches, step(m, 1, 1), &operands)?;
        rig.read_f32(y, m * p.n)
    };
    let whole = run(&x)?;
    let want = reference::gemm(&x, &w, p.bias.then_some(&bias[..]), m, p.n, p.k);
    near("y", p.out, &want, &whole)?;
    let some = run(&x[first * p.k..(first + n) * p.k])?;
    same("rows alone", &bits(&whole[first * p.n..(first + n) * p.n]), &bits(&some))
}

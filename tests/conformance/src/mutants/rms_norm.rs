//! Cases of the norms: the documented order by bits.

use anyhow::Result;
use lathe_device::{Arg, Symbol};
use lathe_kernels::rms_norm::cuda::{NormProblem, launches};
use lathe_numerics::DType;

use super::{Case, Edit, bits, feed, same, step, values};
use crate::{Operands, Rig, bytes};

/// Three warps, the last of which has no elements for all of its lanes.
pub const NORM: Case = Case { name: "rms_norm", run: norm };

const H: usize = 612;
const ROWS: usize = 6;
/// Added to the mean square.
pub(super) const EPS: f32 = 1e-5;

/// One row in the order that the module documents.
pub(super) fn documented(x: &[f32], w: &[f32], dtype: DType) -> Vec<f32> {
    let threads = x.len().div_ceil(8).next_multiple_of(32).min(512);
    let mut sums = vec![0.0f32; threads];
    for (i, v) in x.iter().enumerate() {
        sums[i / 8 % threads] += v * v;
    }
    let butterfly = |lanes: &[f32]| {
        let mut lanes: Vec<f32> = (0..32).map(|i| lanes.get(i).copied().unwrap_or(0.0)).collect();
        for distance in [16, 8, 4, 2, 1] {
            lanes = (0..32).map(|i| lanes[i] + lanes[i ^ distance]).collect();
        }
        lanes[0]
    };
    let warps: Vec<f32> = sums.chunks(32).map(butterfly).collect();
    let inv = 1.0 / (butterfly(&warps) / x.len() as f32 + EPS).sqrt();
    x.iter().zip(w).map(|(x, w)| dtype.round(x * inv * w)).collect()
}

fn norm(rig: &mut Rig, edit: &Edit) -> Result<()> {
    // f32 shows the order of the sum in most elements.
    for dtype in [DType::BF16, DType::F32] {
        let (x, w) = (values(1, ROWS * H, dtype), values(2, H, dtype));
        let mut launches = edit.apply(launches(&NormProblem::rows(Symbol::Tokens, H, dtype, EPS))?)?;
        let out = rig.empty("out", ROWS * H * dtype.size())?;
        let inputs = vec![rig.empty("x", ROWS * H * dtype.size())?, rig.floats("w", dtype, &w)?];
        let mut operands = Operands { inputs, outputs: vec![out], tables: vec![] };
        feed(rig, &mut launches, &mut operands, Arg::Input(0), &bytes::of(dtype, &x))?;
        rig.run(&launches, step(ROWS, 1, 1), &operands)?;
        let want: Vec<f32> = x.chunks(H).flat_map(|row| documented(row, &w, dtype)).collect();
        same("out", &bits(&want), &bits(&rig.read_floats(out, dtype, ROWS * H)?))?;
    }
    Ok(())
}

//! Cases of the norms: the documented order by bits.

use anyhow::Result;
use lathe_device::{Arg, Symbol};
use lathe_kernels::rms_norm::cuda::{NormProblem, launches};
use lathe_numerics::DType;

use super::{Case, Edit, bits, feed, same, step};
use crate::norms::rms_norm;
use crate::values::uniform;
use crate::{Operands, Rig, bytes};

/// Three warps, the last of which has no elements for all of its lanes.
pub const NORM: Case = Case { name: "rms_norm", run: norm };

const H: usize = 612;
const ROWS: usize = 6;
/// Added to the mean square.
pub(super) const EPS: f32 = 1e-5;

fn norm(rig: &mut Rig, edit: &Edit) -> Result<()> {
    // f32 shows the order of the sum in most elements.
    for dtype in [DType::BF16, DType::F32] {
        let (x, w) = (uniform(1, ROWS * H, dtype), uniform(2, H, dtype));
        let mut launches = edit.apply(launches(&NormProblem::rows(Symbol::Tokens, H, dtype, EPS))?)?;
        let out = rig.empty("out", ROWS * H * dtype.size())?;
        let inputs = vec![rig.empty("x", ROWS * H * dtype.size())?, rig.floats("w", dtype, &w)?];
        let mut operands = Operands { inputs, outputs: vec![out], tables: vec![] };
        feed(rig, &mut launches, &mut operands, Arg::Input(0), &bytes::of(dtype, &x))?;
        rig.run(&launches, step(ROWS, 1, 1), &operands)?;
        let want: Vec<f32> = x.chunks(H).flat_map(|row| rms_norm(row, &w, EPS, dtype)).collect();
        same("out", &bits(&want), &bits(&rig.read_floats(out, dtype, ROWS * H)?))?;
    }
    Ok(())
}

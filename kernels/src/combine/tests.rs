//! `combine` against the formula, and its bits across splits and paths.

use lathe_numerics::exp::sigmoid;

use super::*;
use crate::testing::{Buffer, DTYPES, SPLITS, run, values};

const ROWS: usize = 5;

#[test]
fn sums_follow_the_formula_on_every_path() {
    for dtype in DTYPES {
        for (choices, cols, with_shared) in [(1, 1, false), (2, 63, true), (8, 200, true), (3, 64, false)] {
            let y = Buffer::new(dtype, &values(1, ROWS * choices * cols, dtype));
            let weights = values(2, ROWS * choices, DType::F32);
            let (shared, gate) = (values(3, ROWS * cols, DType::F32), values(4, ROWS, DType::F32));
            let x = y.f32();
            let mut want = Vec::new();
            for r in 0..ROWS {
                for c in 0..cols {
                    let term = |j: usize| x[(r * choices + j) * cols + c] * weights[r * choices + j];
                    let mut sum = (1..choices).fold(term(0), |sum, j| sum + term(j));
                    if with_shared {
                        sum += sigmoid(gate[r]) * shared[r * cols + c];
                    }
                    want.push(sum);
                }
            }
            for out_dtype in [DType::F32, dtype] {
                let want = Buffer::new(out_dtype, &want).bits();
                for path in IsaPath::all() {
                    for split in SPLITS {
                        let mut out = Buffer::zeros(out_dtype, ROWS * cols);
                        let args = CombineArgs {
                            path,
                            y: y.src(),
                            weights: weights.as_slice().into(),
                            shared: with_shared.then(|| (shared.as_slice().into(), gate.as_slice().into())),
                            out: out.dst(),
                            rows: ROWS,
                            choices,
                            cols,
                        };
                        run(&Combine::new(args).unwrap(), split);
                        assert!(
                            out.bits() == want,
                            "{dtype} {out_dtype} {choices} {cols} {path:?} {split:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn shapes_are_checked() {
    let y = [0.0_f32; 12];
    let build = |rows: usize, choices: usize, cols: usize, shared: usize| {
        let mut out = [0.0_f32; 6];
        let shared = (shared > 0).then(|| (y[..shared].into(), y[..2].into()));
        let (y, weights) = (y.as_slice().into(), y[..4].into());
        let path = IsaPath::detect();
        Combine::new(CombineArgs {
            path,
            y,
            weights,
            shared,
            out: out.as_mut_slice().into(),
            rows,
            choices,
            cols,
        })
        .is_ok()
    };
    assert!(build(2, 2, 3, 6) && build(2, 2, 3, 0));
    assert!(
        !build(2, 2, 3, 5)
            && !build(2, 3, 2, 0)
            && !build(2, 2, 4, 0)
            && !build(2, 0, 3, 0)
            && !build(3, 1, 2, 6)
    );
}

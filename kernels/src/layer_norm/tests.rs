//! `layer_norm` against its reference, and its bits against themselves: groups, splits, threads, paths.

use lathe_numerics::DType;

use super::{LayerNorm, reference};
use crate::rms_norm::NormArgs;
use crate::rms_norm::tests::{EPS, args};
use crate::testing::{Buffer, DTYPES, SPLITS, Split, run, values};
use crate::{IsaPath, tolerance};

fn norm(
    path: IsaPath,
    x: &Buffer,
    w: &Buffer,
    bias: Option<&Buffer>,
    shape: (usize, usize, usize),
    split: Split,
) -> Buffer {
    let mut out = Buffer::zeros(x.src().dtype(), shape.0 * shape.1);
    run(&LayerNorm::new(args(path, x, w, &mut out, shape), bias.map(Buffer::src)).unwrap(), split);
    out
}

#[test]
fn close_to_the_reference_and_alike_on_all_paths_and_splits() {
    for (dtype, weight) in DTYPES.into_iter().flat_map(|d| [(d, d), (d, DType::F32)]) {
        for (n, groups) in [(1, 1), (5, 1), (17, 3), (100, 2), (2048, 1), (128, 6)] {
            let (rows, h) = (7, n * groups);
            // Far from zero, so that a mean that is not taken away shows.
            let x: Vec<f32> = values(1, rows * h, dtype).iter().map(|v| dtype.round(v + 2.0)).collect();
            let (w, bias) = (values(2, h, weight), values(3, h, weight));
            for (own, with_bias) in [(true, true), (true, false), (false, true), (false, false)] {
                let len = if own { h } else { n };
                let want: Vec<f32> = x
                    .chunks(n)
                    .enumerate()
                    .flat_map(|(i, x)| {
                        let at = if own { i % groups * n } else { 0 };
                        let bias = if with_bias { &bias[at..at + n] } else { &[] };
                        reference::layer_norm(x, &w[at..at + n], bias, EPS)
                    })
                    .collect();
                let (x, w) = (Buffer::new(dtype, &x), Buffer::new(weight, &w[..len]));
                let bias = with_bias.then(|| Buffer::new(weight, &bias[..len]));
                let shape = (rows, h, groups);
                let first = norm(IsaPath::detect(), &x, &w, bias.as_ref(), shape, Split::Whole);
                tolerance::check(dtype, &want, &first.f32()).unwrap_or_else(|e| panic!("{dtype} {n}: {e}"));
                for (path, split) in IsaPath::all().flat_map(|p| SPLITS.map(|s| (p, s))) {
                    let again = norm(path, &x, &w, bias.as_ref(), shape, split);
                    assert_eq!(first.bits(), again.bits(), "{path:?} {dtype} {n}");
                }
            }
        }
    }
}

#[test]
fn a_constant_row_becomes_the_bias() {
    let (x, w) = (Buffer::new(DType::F32, &[7.0; 20]), Buffer::new(DType::F32, &[2.0; 20]));
    let bias = Buffer::new(DType::F32, &[0.5; 20]);
    for path in IsaPath::all() {
        assert_eq!(norm(path, &x, &w, Some(&bias), (1, 20, 1), Split::Whole).f32(), [0.5; 20]);
    }
}

#[test]
fn wrong_operands_are_refused() {
    let (x, w, half) = ([0f32; 20], [1f32; 10], [half::bf16::ONE; 10]);
    let mut out = [0f32; 20];
    let mut build = |rows: usize, h: usize, groups: usize, weight: usize, bias: crate::Src<'_>| {
        let args = NormArgs {
            path: IsaPath::detect(),
            x: x.as_slice().into(),
            x_stride: h,
            weight: w[..weight].into(),
            eps: EPS,
            out: out.as_mut_slice().into(),
            out_stride: h,
            rows,
            h,
            groups,
        };
        LayerNorm::new(args, Some(bias)).is_ok()
    };
    let bias = || w.as_slice().into();
    assert!(build(2, 10, 1, 10, bias()) && build(2, 10, 2, 5, bias()));
    assert!(!build(2, 10, 1, 9, bias()));
    assert!(!build(2, 10, 3, 10, bias()));
    assert!(!build(2, 10, 0, 10, bias()));
    assert!(!build(3, 10, 1, 10, bias()));
    assert!(!build(2, 10, 1, 10, w[..9].into()));
    assert!(!build(2, 10, 1, 10, half.as_slice().into()));
}

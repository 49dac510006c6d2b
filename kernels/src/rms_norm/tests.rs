//! `rms_norm` against its reference, and its bits against themselves: rows, chunks, splits, threads.

use lathe_numerics::DType;

use super::{AddRmsNorm, AddRmsNormArgs, NormArgs, RmsNorm, reference};
use crate::testing::{Buffer, DTYPES, SPLITS, Split, run, values};
use crate::{IsaPath, tolerance};

const COLS: &[usize] = &[1, 5, 16, 17, 100, 256, 2048];
pub(crate) const EPS: f32 = 1e-5;

fn norm(path: IsaPath, x: &Buffer, w: &Buffer, rows: usize, h: usize, split: Split) -> Buffer {
    grouped(path, x, w, (rows, h, 1), split)
}

fn grouped(
    path: IsaPath,
    x: &Buffer,
    w: &Buffer,
    (rows, h, groups): (usize, usize, usize),
    split: Split,
) -> Buffer {
    let mut out = Buffer::zeros(x.src().dtype(), rows * h);
    run(&RmsNorm::new(args(path, x, w, &mut out, (rows, h, groups))).unwrap(), split);
    out
}

/// Rows one after the other, normed with `EPS`.
pub(crate) fn args<'a>(
    path: IsaPath,
    x: &'a Buffer,
    w: &'a Buffer,
    out: &'a mut Buffer,
    (rows, h, groups): (usize, usize, usize),
) -> NormArgs<'a> {
    let (x, weight, out) = (x.src(), w.src(), out.dst());
    NormArgs { path, x, x_stride: h, weight, eps: EPS, out, out_stride: h, rows, h, groups }
}

#[test]
fn groups_are_rows_of_their_own() {
    for (dtype, weight) in DTYPES.into_iter().flat_map(|d| [(d, d), (d, DType::F32)]) {
        for (rows, n, groups) in [(3, 1, 4), (2, 20, 3), (5, 128, 6)] {
            let x = Buffer::new(dtype, &values(1, rows * groups * n, dtype));
            let w = values(2, groups * n, weight);
            let shared = Buffer::new(weight, &w[..n]);
            let want = norm(IsaPath::detect(), &x, &shared, rows * groups, n, Split::Whole);
            let own = Buffer::new(weight, &w);
            let each: Vec<u32> = (0..rows * groups)
                .flat_map(|r| {
                    let at = r % groups * n;
                    let x = Buffer::new(dtype, &x.f32()[r * n..][..n]);
                    norm(IsaPath::detect(), &x, &Buffer::new(weight, &w[at..at + n]), 1, n, Split::Whole)
                        .bits()
                })
                .collect();
            for (path, split) in IsaPath::all().flat_map(|p| SPLITS.map(|s| (p, s))) {
                let shape = (rows, groups * n, groups);
                assert_eq!(want.bits(), grouped(path, &x, &shared, shape, split).bits());
                assert_eq!(each, grouped(path, &x, &own, shape, split).bits());
            }
        }
    }
}

#[test]
fn close_to_the_reference_and_alike_on_all_paths_and_splits() {
    for (dtype, weight) in DTYPES.into_iter().flat_map(|d| [(d, d), (d, DType::F32)]) {
        for &h in COLS {
            let rows = 9;
            let (x, w) = (values(1, rows * h, dtype), values(2, h, weight));
            let want: Vec<f32> = x.chunks(h).flat_map(|x| reference::rms_norm(x, &w, EPS)).collect();
            let (x, w) = (Buffer::new(dtype, &x), Buffer::new(weight, &w));
            let first = norm(IsaPath::detect(), &x, &w, rows, h, Split::Whole);
            tolerance::check(dtype, &want, &first.f32()).unwrap_or_else(|e| panic!("{dtype} {h}: {e}"));
            for path in IsaPath::all() {
                for split in SPLITS {
                    assert_eq!(
                        first.bits(),
                        norm(path, &x, &w, rows, h, split).bits(),
                        "{path:?} {dtype} {h}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_fused_form_is_add_then_norm_of_the_rounded_sum() {
    for path in IsaPath::all() {
        for (dtype, weight) in DTYPES.into_iter().flat_map(|d| [(d, d), (d, DType::F32)]) {
            for &h in COLS {
                let rows = 6;
                let delta = values(3, rows * h, DType::F32);
                let (res, w) = (values(4, rows * h, dtype), Buffer::new(weight, &values(5, h, weight)));
                let sum: Vec<f32> = res.iter().zip(&delta).map(|(r, d)| r + d).collect();
                let sum = Buffer::new(dtype, &sum);
                let want = norm(path, &sum, &w, rows, h, Split::Whole);
                for split in SPLITS {
                    let (mut residual, mut out) = (Buffer::new(dtype, &res), Buffer::zeros(dtype, rows * h));
                    let args = AddRmsNormArgs {
                        path,
                        delta: delta.as_slice().into(),
                        delta_stride: h,
                        residual: residual.dst(),
                        weight: w.src(),
                        eps: EPS,
                        out: out.dst(),
                        rows,
                        h,
                    };
                    run(&AddRmsNorm::new(args).unwrap(), split);
                    assert_eq!((want.bits(), sum.bits()), (out.bits(), residual.bits()));
                }
            }
        }
    }
}

#[test]
fn nan_stays_in_its_row() {
    for path in IsaPath::all() {
        let mut x = values(1, 60, DType::F32);
        (x[25], x[45]) = (f32::NAN, f32::INFINITY);
        let (x, w) = (Buffer::new(DType::F32, &x), Buffer::new(DType::F32, &[1.0; 20]));
        let y = norm(path, &x, &w, 3, 20, Split::Whole).f32();
        assert!(y[..20].iter().all(|v| v.is_finite()));
        assert!(y[20..40].iter().all(|v| v.is_nan()));
    }
}

#[test]
fn wrong_operands_are_refused() {
    let (x, w) = (vec![0f32; 20], vec![1f32; 10]);
    let mut out = vec![0f32; 20];
    let mut build = |rows: usize, h: usize, x_stride: usize| {
        let args = NormArgs {
            path: IsaPath::detect(),
            x: x.as_slice().into(),
            x_stride,
            weight: w.as_slice().into(),
            eps: EPS,
            out: out.as_mut_slice().into(),
            out_stride: h,
            rows,
            h,
            groups: if h == 9 { 2 } else { 1 },
        };
        RmsNorm::new(args).is_ok()
    };
    assert!(!build(2, 9, 10));
    assert!(build(2, 10, 10));
    assert!(!build(3, 10, 10));
    assert!(!build(2, 11, 11));
    assert!(!build(2, 10, 9));
    assert!(!build(2, 0, 10));
    assert!(!build(usize::MAX, 10, 10));
}

//! `gemm` against its reference, and its bits against themselves: rows, chunks, splits, threads.

use lathe_numerics::contract::PANEL;
use lathe_numerics::{Activation, DType};

use super::cases::{ROWS, WEIGHTS};
use super::{Epilogue, Gemm, GemmArgs, pack_panel, panel_bytes, reference, stored_rows};
use crate::testing::{Buffer, DTYPES, SPLITS, Split, run, values};
use crate::{IsaPath, KernelError, Src, tolerance};

/// An aligned packed weight.
pub(crate) struct Packed {
    words: Vec<u32>,
    dtype: DType,
}

impl Packed {
    /// Packs row-major `[n, k]`; `order[i]` is the row stored at i, `None` a zero row.
    pub(crate) fn new(w: &Buffer, k: usize, order: &[Option<usize>]) -> Self {
        let dtype = w.src().dtype();
        let (bytes, row) = (w.bytes(), k * dtype.size());
        let zero = vec![0u8; row];
        let mut out = Vec::new();
        for rows in order.chunks(PANEL) {
            let rows: Vec<&[u8]> =
                rows.iter().map(|r| r.map_or(&zero[..], |r| &bytes[r * row..(r + 1) * row])).collect();
            let mut panel = vec![0xAA; panel_bytes(dtype, k)];
            pack_panel(dtype, &rows, k, &mut panel).unwrap();
            out.extend(panel);
        }
        let words = out.chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect();
        Packed { words, dtype }
    }

    pub(crate) fn src(&self) -> Src<'_> {
        // SAFETY: the vector's own bytes.
        unsafe { Src::raw(self.dtype, self.words.as_ptr().cast(), self.words.len() * 4) }.unwrap()
    }
}

pub(crate) fn plain_order(n: usize) -> Vec<Option<usize>> {
    (0..n).map(Some).collect()
}

pub(crate) fn interleaved_order(cols: usize) -> Vec<Option<usize>> {
    let padded = cols.next_multiple_of(PANEL);
    (0..padded / PANEL)
        .flat_map(|p| [0, cols].map(|base| (p, base)))
        .flat_map(|(p, base)| (p * PANEL..(p + 1) * PANEL).map(move |c| (c < cols).then_some(base + c)))
        .collect()
}

struct Case {
    path: IsaPath,
    x: Buffer,
    w: Packed,
    bias: Option<Vec<f32>>,
    m: usize,
    n: usize,
    k: usize,
    epilogue: Epilogue,
}

impl Case {
    /// Rows `rows` of x as their own problem.
    fn run(&self, rows: std::ops::Range<usize>, out: DType, split: Split) -> Buffer {
        assert!(rows.end <= self.m);
        let cols = self.epilogue.columns(self.n);
        let x = Buffer::new(self.x.src().dtype(), &self.x.f32()[rows.start * self.k..rows.end * self.k]);
        let mut y = Buffer::zeros(out, rows.len() * cols);
        let gemm = Gemm::new(GemmArgs {
            path: self.path,
            x: x.src(),
            x_stride: self.k,
            m: rows.len(),
            n: self.n,
            k: self.k,
            weight: self.w.src(),
            bias: self.bias.as_deref(),
            out: y.dst(),
            out_stride: cols,
            epilogue: self.epilogue,
        })
        .unwrap();
        run(&gemm, split);
        y
    }
}

fn case(
    path: IsaPath,
    dtype: DType,
    m: usize,
    n: usize,
    k: usize,
    epilogue: Epilogue,
) -> (Case, Vec<f32>, Vec<f32>) {
    let (x, w) = (values(1, m * k, dtype), values(2, n * k, dtype));
    let order = match epilogue {
        Epilogue::Store | Epilogue::Act(_) => plain_order(n),
        Epilogue::Glu(_) | Epilogue::ClampedSwiglu => interleaved_order(n / 2),
    };
    let w_packed = Packed::new(&Buffer::new(dtype, &w), k, &order);
    let x_buf = Buffer::new(dtype, &x);
    (Case { path, x: x_buf, w: w_packed, bias: None, m, n, k, epilogue }, x, w)
}

#[test]
fn every_path_is_close_to_the_reference() {
    for dtype in DTYPES {
        for &(n, k) in WEIGHTS {
            let m = if n * k > 50_000 { 13 } else { 97 };
            let (mut c, x, w) = case(IsaPath::detect(), dtype, m, n, k, Epilogue::Store);
            let bias = values(3, n, DType::F32);
            let want = reference::gemm(&x, &w, None, m, n, k);
            let biased = reference::gemm(&x, &w, Some(&bias), m, n, k);
            for path in IsaPath::all() {
                (c.path, c.bias) = (path, None);
                for out in DTYPES {
                    let got = c.run(0..m, out, Split::Whole).f32();
                    tolerance::check(out, &want, &got)
                        .unwrap_or_else(|e| panic!("{path:?} {dtype} {n}x{k}: {e}"));
                }
                c.bias = Some(bias.clone());
                let got = c.run(0..m, DType::F32, Split::Whole).f32();
                tolerance::check(DType::F32, &biased, &got)
                    .unwrap_or_else(|e| panic!("{path:?} {dtype} {n}x{k} bias: {e}"));
            }
        }
    }
}

#[test]
fn glu_equals_its_parts() {
    for path in IsaPath::all() {
        for (dtype, act) in DTYPES.into_iter().flat_map(|d| Activation::ALL.map(|a| (d, a))) {
            for (cols, k) in [(1, 8), (16, 32), (23, 65), (64, 100), (150, 40)] {
                let m = 20;
                let (c, x, w) = case(path, dtype, m, 2 * cols, k, Epilogue::Glu(act));
                let got = c.run(0..m, DType::F32, Split::Whole);
                let want = reference::glu(act, &reference::gemm(&x, &w, None, m, 2 * cols, k), m, cols);
                tolerance::check(DType::F32, &want, &got.f32())
                    .unwrap_or_else(|e| panic!("{path:?} {dtype} {act} {cols}: {e}"));
                // By bits: the same sums, stored as f32, then function and product in f32.
                let plain = Case {
                    w: Packed::new(&Buffer::new(dtype, &w), k, &plain_order(2 * cols)),
                    epilogue: Epilogue::Store,
                    ..c
                };
                let sums = plain.run(0..m, DType::F32, Split::Whole).f32();
                let want: Vec<u32> = (0..m * cols)
                    .map(|i| {
                        let row = &sums[i / cols * 2 * cols..];
                        (act.apply(row[i % cols]) * row[cols + i % cols]).to_bits()
                    })
                    .collect();
                assert_eq!(want, got.bits());
            }
        }
    }
}

#[test]
fn activations_follow_the_bias_and_are_rounded_once() {
    for path in IsaPath::all() {
        for (dtype, act) in DTYPES.into_iter().flat_map(|d| Activation::ALL.map(|a| (d, a))) {
            for (n, k) in [(1, 8), (37, 65), (200, 40)] {
                let m = 20;
                let (mut c, x, w) = case(path, dtype, m, n, k, Epilogue::Store);
                let bias = values(3, n, DType::F32);
                let want: Vec<f32> = reference::gemm(&x, &w, Some(&bias), m, n, k)
                    .into_iter()
                    .map(|y| reference::activation(act, f64::from(y)) as f32)
                    .collect();
                c.bias = Some(bias);
                let sums = c.run(0..m, DType::F32, Split::Whole).f32();
                c.epilogue = Epilogue::Act(act);
                let got = c.run(0..m, DType::F32, Split::Whole).f32();
                tolerance::check(DType::F32, &want, &got)
                    .unwrap_or_else(|e| panic!("{path:?} {dtype} {act} {n}x{k}: {e}"));
                for out in DTYPES {
                    let want: Vec<f32> = sums.iter().map(|s| out.round(act.apply(*s))).collect();
                    assert_eq!(want, c.run(0..m, out, Split::Whole).f32(), "{path:?} {dtype} {act} {out}");
                }
            }
        }
    }
}

#[test]
fn a_row_has_one_answer() {
    for path in IsaPath::all() {
        for dtype in DTYPES {
            for (n, k, epilogue) in [
                (50, 129, Epilogue::Store),
                (64, 2048, Epilogue::Store),
                (70, 96, Epilogue::Glu(Activation::Gelu)),
                (33, 70, Epilogue::Act(Activation::GeluTanh)),
                (32, 4100, Epilogue::Store),
            ] {
                let m = 100;
                let (c, ..) = case(path, dtype, m, n, k, epilogue);
                let cols = epilogue.columns(n);
                let want = c.run(0..m, dtype, Split::Whole).bits();
                for split in SPLITS {
                    assert_eq!(want, c.run(0..m, dtype, split).bits(), "{path:?} {dtype} {n}x{k} {split:?}");
                }
                for rows in (1..=40).chain([64, 96, 97]) {
                    let got = c.run(3..3 + rows, dtype, Split::Pieces(2)).bits();
                    assert_eq!(
                        want[3 * cols..(3 + rows) * cols],
                        got,
                        "{path:?} {dtype} {n}x{k} rows {rows}"
                    );
                }
                for chunk in [1, 7, 64] {
                    let got: Vec<u32> = (0..m)
                        .step_by(chunk)
                        .flat_map(|r| c.run(r..m.min(r + chunk), dtype, Split::Whole).bits())
                        .collect();
                    assert_eq!(want, got, "{path:?} {dtype} {n}x{k} chunk {chunk}");
                }
            }
        }
    }
}

#[test]
fn rows_too_deep_to_keep_have_the_same_answer() {
    for path in IsaPath::all() {
        for dtype in DTYPES {
            let (m, n, k) = (30, 16, 45_000);
            let (c, ..) = case(path, dtype, m, n, k, Epilogue::Store);
            let want = c.run(0..m, DType::F32, Split::Whole).bits();
            for rows in [0..1, 7..20, 29..30] {
                let got = c.run(rows.clone(), DType::F32, Split::Whole).bits();
                assert_eq!(want[rows.start * n..rows.end * n], got, "{path:?} {dtype} {rows:?}");
            }
        }
    }
}

#[test]
fn slices_are_folded_left() {
    // One row whose four slices sum to 2^24, 1, 1, -2^24: folded left the ones vanish.
    let (n, k) = (64, 2048);
    assert_eq!(lathe_numerics::gemm_slices(n, k), 4);
    for path in IsaPath::all() {
        for dtype in DTYPES {
            let x = vec![1.0; k];
            let mut w = vec![0.0; n * k];
            (w[0], w[512], w[1024], w[1536]) = (16384.0, 1.0, 1.0, -16384.0);
            let mut x = x;
            x[0] = 1024.0;
            x[1536] = 1024.0;
            let c = Case {
                path,
                x: Buffer::new(dtype, &x),
                w: Packed::new(&Buffer::new(dtype, &w), k, &plain_order(n)),
                bias: None,
                m: 1,
                n,
                k,
                epilogue: Epilogue::Store,
            };
            assert_eq!(c.run(0..1, DType::F32, Split::Whole).f32()[0], 0.0);
        }
    }
}

#[test]
fn row_counts_of_every_tile_agree_with_the_reference() {
    for path in IsaPath::all() {
        for &m in ROWS {
            let (c, x, w) = case(path, DType::BF16, m, 49, 70, Epilogue::Store);
            let want = reference::gemm(&x, &w, None, m, 49, 70);
            tolerance::check(DType::F32, &want, &c.run(0..m, DType::F32, Split::Whole).f32()).unwrap();
        }
    }
}

#[test]
fn nan_and_infinity_stay_in_their_rows() {
    for path in IsaPath::all() {
        for dtype in DTYPES {
            let (mut c, mut x, _) = case(path, dtype, 14, 33, 40, Epilogue::Store);
            let want = c.run(0..14, dtype, Split::Whole).f32();
            x[5 * 40 + 3] = f32::NAN;
            x[9 * 40 + 39] = f32::INFINITY;
            c.x = Buffer::new(dtype, &x);
            let got = c.run(0..14, dtype, Split::Whole).f32();
            for (i, (w, g)) in want.iter().zip(&got).enumerate() {
                match i / 33 {
                    5 => assert!(g.is_nan()),
                    9 => assert!(!g.is_finite()),
                    _ => assert_eq!(w, g),
                }
            }
        }
    }
}

#[test]
fn strides_leave_gaps_alone() {
    let path = IsaPath::detect();
    let (c, x, _) = case(path, DType::F32, 9, 20, 24, Epilogue::Store);
    let want = c.run(0..9, DType::F32, Split::Whole).f32();
    let wide: Vec<f32> = x.chunks(24).flat_map(|r| r.iter().copied().chain([f32::NAN; 5])).collect();
    let mut y = vec![7.0f32; 9 * 23];
    let gemm = Gemm::new(GemmArgs {
        path,
        x: wide.as_slice().into(),
        x_stride: 29,
        m: 9,
        n: 20,
        k: 24,
        weight: c.w.src(),
        bias: None,
        out: y.as_mut_slice().into(),
        out_stride: 23,
        epilogue: Epilogue::Store,
    })
    .unwrap();
    run(&gemm, Split::Whole);
    for (r, row) in y.chunks(23).enumerate() {
        assert_eq!(row[..20], want[r * 20..(r + 1) * 20]);
        assert_eq!(row[20..], [7.0; 3]);
    }
}

#[test]
fn wrong_operands_are_refused() {
    let (x, w, bias) = (vec![0.0f32; 64], vec![0.0f32; 16 * 16], vec![0.0f32; 16]);
    let mut y = vec![0.0f32; 64];
    let mut build = |edit: &dyn Fn(&mut GemmArgs)| {
        let mut args = GemmArgs {
            path: IsaPath::detect(),
            x: x.as_slice().into(),
            x_stride: 16,
            m: 4,
            n: 16,
            k: 16,
            weight: w.as_slice().into(),
            bias: Some(&bias),
            out: y.as_mut_slice().into(),
            out_stride: 16,
            epilogue: Epilogue::Store,
        };
        edit(&mut args);
        Gemm::new(args).map(|_| ())
    };
    assert_eq!(build(&|_| ()), Ok(()));
    let half = vec![half::f16::ZERO; 256];
    let edits: &[&dyn Fn(&mut GemmArgs)] = &[
        &|a| a.m = 5,
        &|a| a.m = usize::MAX,
        &|a| a.n = 0,
        &|a| a.n = 17,
        &|a| a.n = usize::MAX,
        &|a| a.k = 0,
        &|a| a.k = 17,
        &|a| a.k = usize::MAX,
        &|a| a.x_stride = 15,
        &|a| a.x_stride = usize::MAX,
        &|a| a.out_stride = 15,
        &|a| a.bias = Some(&[]),
        &|a| a.epilogue = Epilogue::Glu(Activation::Silu),
        &|a| (a.epilogue, a.n) = (Epilogue::Glu(Activation::Silu), 15),
    ];
    for (i, edit) in edits.iter().enumerate() {
        assert!(build(edit).is_err(), "edit {i}");
    }
    let mixed = Src::from(half.as_slice());
    let e = Gemm::new(GemmArgs {
        path: IsaPath::detect(),
        x: x.as_slice().into(),
        x_stride: 16,
        m: 4,
        n: 16,
        k: 16,
        weight: mixed,
        bias: None,
        out: y.as_mut_slice().into(),
        out_stride: 16,
        epilogue: Epilogue::Store,
    })
    .err();
    assert!(matches!(e, Some(KernelError::Unsupported { .. })));
    assert_eq!(stored_rows(14, Epilogue::Glu(Activation::Silu)), 32);
}

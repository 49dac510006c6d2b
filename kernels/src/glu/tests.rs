//! `glu` against the formula, and its bits across splits.

use lathe_numerics::Activation;

use super::{Glu, GluArgs};
use crate::IsaPath;
use crate::testing::{Buffer, DTYPES, SPLITS, Split, run, values};

#[test]
fn bits_are_those_of_the_formula() {
    for path in IsaPath::all() {
        for (act, dtype) in Activation::ALL.into_iter().flat_map(|a| DTYPES.map(|d| (a, d))) {
            for out_dtype in DTYPES {
                for cols in [1, 7, 16, 100] {
                    let both: Vec<f32> =
                        values(1, 5 * 2 * cols, dtype).iter().map(|v| dtype.round(v * 30.0)).collect();
                    let buf = Buffer::new(dtype, &both);
                    let want: Vec<f32> = both
                        .chunks(2 * cols)
                        .flat_map(|r| (0..cols).map(|c| out_dtype.round(act.apply(r[c]) * r[cols + c])))
                        .collect();
                    let up = Buffer::new(dtype, &both[cols..]);
                    for split in SPLITS {
                        let mut out = Buffer::zeros(out_dtype, 5 * cols);
                        let args = GluArgs {
                            path,
                            act,
                            gate: buf.src(),
                            up: up.src(),
                            stride: 2 * cols,
                            out: out.dst(),
                            rows: 5,
                            cols,
                        };
                        run(&Glu::new(args).unwrap(), split);
                        assert_eq!(want, out.f32());
                    }
                }
            }
        }
    }
}

#[test]
fn short_buffers_are_refused() {
    let x = [0f32; 20];
    let mut out = [0f32; 20];
    let mut build = |up: usize, out_len: usize, stride: usize, cols: usize| {
        Glu::new(GluArgs {
            path: IsaPath::detect(),
            act: Activation::Silu,
            gate: x.as_slice().into(),
            up: x[..up].into(),
            stride,
            out: (&mut out[..out_len]).into(),
            rows: 2,
            cols,
        })
        .is_ok()
    };
    assert!(build(19, 18, 10, 9));
    assert!(!build(19, 20, 10, 10));
    assert!(!build(20, 19, 10, 10));
    assert!(!build(20, 20, 9, 10));
}

#[test]
fn ends_are_defined() {
    let x = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -200.0];
    for (path, act) in IsaPath::all().flat_map(|p| Activation::ALL.map(|a| (p, a))) {
        let mut out = vec![0f32; 4];
        let args = GluArgs {
            path,
            act,
            gate: x.as_slice().into(),
            up: [1f32; 4].as_slice().into(),
            stride: 4,
            out: out.as_mut_slice().into(),
            rows: 1,
            cols: 4,
        };
        run(&Glu::new(args).unwrap(), Split::Whole);
        for (x, y) in x.iter().zip(&out) {
            let want = act.apply(*x);
            assert!(want.to_bits() == y.to_bits() || want.is_nan() && y.is_nan(), "{act}({x}) = {y}");
        }
    }
}

//! Elementwise functions against their formulas, by bits, over types, splits and parts of rows.

use lathe_numerics::activation::softcap;
use lathe_numerics::{Activation, DType};

use super::{Binary, BinaryArgs, Elementwise, Unary, UnaryArgs};
use crate::IsaPath;
use crate::testing::{Buffer, DTYPES, SPLITS, Split, run, values};

const UNARY: [Unary; 6] = [
    Unary::Cast,
    Unary::Scale(1.7),
    Unary::Softcap(30.0),
    Unary::Activation(Activation::Silu),
    Unary::Activation(Activation::Gelu),
    Unary::Activation(Activation::GeluTanh),
];

fn formula(function: Unary, x: f32) -> f32 {
    match function {
        Unary::Cast => x,
        Unary::Scale(factor) => x * factor,
        Unary::Softcap(cap) => softcap(x, cap),
        Unary::Activation(act) => act.apply(x),
    }
}

#[test]
fn unary_bits_are_those_of_the_formula() {
    for (path, dtype, out_dtype) in
        IsaPath::all().flat_map(|p| DTYPES.map(|d| DTYPES.map(|o| (p, d, o)))).flatten()
    {
        for function in UNARY {
            // Whole rows, and a part of them.
            for (rows, cols, stride) in [(1, 1, 1), (5, 7, 7), (2, 2100, 2100), (3, 5000, 5003), (4, 16, 40)]
            {
                let x: Vec<f32> =
                    values(1, rows * stride, dtype).iter().map(|v| dtype.round(v * 40.0)).collect();
                let want: Vec<f32> = x
                    .chunks(stride)
                    .flat_map(|row| row[..cols].iter().map(|x| out_dtype.round(formula(function, *x))))
                    .collect();
                let x = Buffer::new(dtype, &x);
                for split in SPLITS {
                    let mut out = Buffer::zeros(out_dtype, rows * cols);
                    let args = UnaryArgs {
                        path,
                        function,
                        x: x.src(),
                        x_stride: stride,
                        out: out.dst(),
                        rows,
                        cols,
                    };
                    run(&Elementwise::unary(args).unwrap(), split);
                    assert_eq!(want, out.f32(), "{function} {dtype} {out_dtype} {rows}x{cols}");
                }
            }
        }
    }
}

#[test]
fn binary_bits_are_those_of_the_formula() {
    let types = DTYPES.map(|a| DTYPES.map(|b| DTYPES.map(|o| (a, b, o))));
    for (a_dtype, b_dtype, out_dtype) in types.into_iter().flatten().flatten() {
        for (function, of) in
            [(Binary::Add, (|a, b| a + b) as fn(f32, f32) -> f32), (Binary::Mul, |a, b| a * b)]
        {
            for len in [1, 300, 9001] {
                let (a, b) = (values(1, len, a_dtype), values(2, len, b_dtype));
                let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| out_dtype.round(of(*a, *b))).collect();
                let (a, b) = (Buffer::new(a_dtype, &a), Buffer::new(b_dtype, &b));
                for (path, split) in IsaPath::all().flat_map(|p| SPLITS.map(|s| (p, s))) {
                    let mut out = Buffer::zeros(out_dtype, len);
                    let args = BinaryArgs { path, function, a: a.src(), b: b.src(), out: out.dst(), len };
                    run(&Elementwise::binary(args).unwrap(), split);
                    assert_eq!(want, out.f32(), "{function} {a_dtype} {b_dtype} {out_dtype} {len}");
                }
            }
        }
    }
}

#[test]
fn nan_stays_in_its_element() {
    let x = Buffer::new(DType::F32, &[f32::NAN, 0.0, 2.0]);
    for function in UNARY {
        let mut out = Buffer::zeros(DType::BF16, 3);
        let args = UnaryArgs {
            path: IsaPath::detect(),
            function,
            x: x.src(),
            x_stride: 3,
            out: out.dst(),
            rows: 1,
            cols: 3,
        };
        run(&Elementwise::unary(args).unwrap(), Split::Whole);
        assert!(
            out.f32()[0].is_nan() && out.f32()[1] == 0.0 && out.f32()[2] > 1.5,
            "{function}: {:?}",
            out.f32()
        );
    }
}

#[test]
fn names_are_read_back() {
    for function in UNARY {
        assert_eq!(Unary::of(function.name(), function.param()), Some(function));
    }
    assert_eq!(Unary::of("scale", None), None);
    assert_eq!(Unary::of("silu", Some(1.0)), None);
    assert_eq!(Unary::of("relu", None), None);
    assert_eq!((Binary::of("mul"), Binary::of("cast")), (Some(Binary::Mul), None));
}

#[test]
fn wrong_operands_are_refused() {
    let x = [0f32; 20];
    let mut out = [0f32; 20];
    let mut unary = |n: usize, rows: usize, cols: usize, stride: usize| {
        Elementwise::unary(UnaryArgs {
            path: IsaPath::detect(),
            function: Unary::Cast,
            x: x[..n].into(),
            x_stride: stride,
            out: (&mut out[..n]).into(),
            rows,
            cols,
        })
        .is_ok()
    };
    assert!(unary(19, 2, 9, 10));
    assert!(!unary(18, 2, 9, 10));
    assert!(!unary(20, 2, 10, 9));
    assert!(!unary(20, usize::MAX, 10, 10));
    let mut binary = |a: usize, b: usize, o: usize| {
        Elementwise::binary(BinaryArgs {
            path: IsaPath::detect(),
            function: Binary::Add,
            a: x[..a].into(),
            b: x[..b].into(),
            out: (&mut out[..o]).into(),
            len: 9,
        })
        .is_ok()
    };
    assert!(binary(9, 9, 9));
    assert!(!binary(8, 9, 9) && !binary(9, 8, 9) && !binary(9, 9, 8));
}

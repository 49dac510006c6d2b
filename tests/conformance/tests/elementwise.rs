//! The device's elementwise functions have the bits of their formulas, which the CPU's have too.

use lathe_conformance::values::wide;
use lathe_conformance::{Operands, Rig};
use lathe_device::{DevicePtr, Symbol, Symbols};
use lathe_kernels::elementwise::cuda::{BinaryProblem, UnaryProblem, binary_launches, unary_launches};
use lathe_kernels::elementwise::{Binary, Unary};
use lathe_numerics::activation::softcap;
use lathe_numerics::{Activation, DType};

const ROWS: usize = 3;
const STEP: Symbols = Symbols { tokens: ROWS as u32, sequences: 1, rows: 1, decode: false, sm_count: 4 };
const DTYPES: [DType; 3] = [DType::BF16, DType::F16, DType::F32];

fn same(what: &str, want: &[f32], got: &[f32]) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
        assert!(same, "{what} element {i}: {got} {want}");
    }
}

#[test]
fn functions_have_the_bits_of_their_formulas() {
    let mut rig = Rig::chosen(true).unwrap();
    let functions = [
        Unary::Cast,
        Unary::Scale(1.7),
        Unary::Softcap(30.0),
        Unary::Activation(Activation::Silu),
        Unary::Activation(Activation::Gelu),
        Unary::Activation(Activation::GeluTanh),
    ];
    let formula = |function, x| match function {
        Unary::Cast => x,
        Unary::Scale(factor) => x * factor,
        Unary::Softcap(cap) => softcap(x, cap),
        Unary::Activation(act) => act.apply(x),
    };
    for (at, function) in functions.into_iter().enumerate() {
        for (i, (dtype, out)) in DTYPES.iter().flat_map(|d| DTYPES.map(|o| (*d, o))).enumerate() {
            // Whole rows, and some columns of wider ones.
            let shapes = [(1, 1, 0), (611, 611, 0), (640, 1280, 640), (1100, 1110, 6), (31, 62, 31)];
            let (cols, stride, start) = shapes[(at + i) % shapes.len()];
            let x = wide(at as u64, ROWS * stride, dtype);
            let want: Vec<f32> = x
                .chunks(stride)
                .flat_map(|row| row[start..start + cols].iter().map(|x| out.round(formula(function, *x))))
                .collect();
            let problem = UnaryProblem { function, m: Symbol::Tokens, cols, stride, start, dtype, out };
            let input = rig.floats("x", dtype, &x).unwrap().add((start * dtype.size()) as u64);
            let output = rig.empty("out", ROWS * cols * out.size()).unwrap();
            let operands = Operands { inputs: vec![input], outputs: vec![output], tables: vec![] };
            rig.run(&unary_launches(&problem).unwrap(), STEP, &operands).unwrap();
            let got = rig.read_floats(output, out, ROWS * cols).unwrap();
            same(&format!("{problem:?}"), &want, &got);
        }
    }
}

#[test]
fn sums_and_products_have_the_bits_of_their_formulas() {
    let mut rig = Rig::chosen(true).unwrap();
    for (function, of) in [(Binary::Add, (|a, b| a + b) as fn(f32, f32) -> f32), (Binary::Mul, |a, b| a * b)]
    {
        for (i, (a, b)) in DTYPES.iter().flat_map(|a| DTYPES.map(|b| (*a, b))).enumerate() {
            let (out, cols) = (DTYPES[i % 3], [1, 31, 640, 1100][i % 4]);
            let (x, y) = (wide(1, ROWS * cols, a), wide(2, ROWS * cols, b));
            let want: Vec<f32> = x.iter().zip(&y).map(|(x, y)| out.round(of(*x, *y))).collect();
            let mut input = |v: &[f32], dtype| -> DevicePtr { rig.floats("input", dtype, v).unwrap() };
            let inputs = vec![input(&x, a), input(&y, b)];
            let output = rig.empty("out", ROWS * cols * out.size()).unwrap();
            let problem = BinaryProblem { function, m: Symbol::Tokens, cols, a, b, out };
            let operands = Operands { inputs, outputs: vec![output], tables: vec![] };
            rig.run(&binary_launches(&problem).unwrap(), STEP, &operands).unwrap();
            let got = rig.read_floats(output, out, ROWS * cols).unwrap();
            same(&format!("{problem:?}"), &want, &got);
        }
    }
}

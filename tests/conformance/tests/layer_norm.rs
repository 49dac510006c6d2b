//! Device layer norms: the documented order by bits, the reference within tolerance.

use lathe_conformance::norms::row_sum;
use lathe_conformance::{Operands, Rig};
use lathe_device::{Symbol, Symbols};
use lathe_kernels::layer_norm::{cuda::launches, reference};
use lathe_kernels::rms_norm::cuda::NormProblem;
use lathe_kernels::tolerance;
use lathe_numerics::{DType, philox};

const EPS: f32 = 1e-5;
const ROWS: usize = 3;

fn values(seed: u64, n: usize, dtype: DType, offset: f32) -> Vec<f32> {
    (0..n).map(|i| dtype.round(philox::uniform(seed, 0, i as u32) * 2.0 - 1.0 + offset)).collect()
}

fn documented(x: &[f32], w: &[f32], bias: &[f32], dtype: DType) -> Vec<f32> {
    let n = x.len() as f32;
    let mean = row_sum(x.iter().copied()) / n;
    let squares = x.iter().map(|v| (v - mean) * (v - mean));
    let inv = 1.0 / (row_sum(squares) / n + EPS).sqrt();
    let scaled = x.iter().zip(w).map(|(x, w)| ((x - mean) * inv) * w);
    match bias {
        [] => scaled.map(|y| dtype.round(y)).collect(),
        bias => scaled.zip(bias).map(|(y, b)| dtype.round(y + b)).collect(),
    }
}

#[test]
fn norms_have_the_documented_bits() {
    let mut rig = Rig::chosen(true).unwrap();
    let types = [(DType::BF16, DType::BF16), (DType::F16, DType::F32), (DType::F32, DType::F32)];
    for (dtype, weight) in types {
        // Columns of a group, groups, rows of weights, and whether there is a bias.
        for (n, groups, weight_rows, bias) in [
            (1, 1, 1, true),
            (31, 1, 1, false),
            (64, 6, 6, true),
            (612, 2, 1, true),
            (768, 1, 1, true),
            (4100, 1, 1, false),
        ] {
            let h = n * groups;
            let x = values(n as u64, ROWS * h, dtype, 2.0);
            let w = values(7, weight_rows * n, weight, 0.0);
            let b = values(8, weight_rows * n, weight, 0.0);
            let problem = NormProblem {
                groups,
                weight,
                weight_len: weight_rows * n,
                ..NormProblem::rows(Symbol::Tokens, h, dtype, EPS)
            };
            let mut inputs = vec![rig.floats("x", dtype, &x).unwrap(), rig.floats("w", weight, &w).unwrap()];
            if bias {
                inputs.push(rig.floats("bias", weight, &b).unwrap());
            }
            let out = rig.empty("out", ROWS * h * dtype.size()).unwrap();
            let step = Symbols { tokens: ROWS as u32, sequences: 1, rows: 1, decode: false, sm_count: 4 };
            let operands = Operands { inputs, outputs: vec![out], tables: vec![] };
            rig.run(&launches(&problem, bias).unwrap(), step, &operands).unwrap();
            let got = rig.read_floats(out, dtype, ROWS * h).unwrap();
            let mut want = Vec::new();
            for (i, (x, got)) in x.chunks(n).zip(got.chunks(n)).enumerate() {
                let at = i % weight_rows * n;
                let (w, b) = (&w[at..at + n], if bias { &b[at..at + n] } else { &[] });
                assert_eq!(got, documented(x, w, b, dtype), "{problem:?} bias {bias} row {i}");
                want.extend(reference::layer_norm(x, w, b, EPS));
            }
            tolerance::check(dtype, &want, &got).unwrap();
        }
    }
}

//! Device norms: the documented order by bits, the reference within tolerance, rows independent of company.

use lathe_conformance::norms::rms_norm;
use lathe_conformance::{Operands, Rig};
use lathe_device::{Symbol, Symbols};
use lathe_kernels::rms_norm::{cuda, reference};
use lathe_kernels::tolerance;
use lathe_numerics::{DType, philox};

const EPS: f32 = 1e-5;
const DTYPES: [DType; 3] = [DType::BF16, DType::F16, DType::F32];
const WIDTHS: [usize; 10] = [1, 7, 31, 64, 256, 611, 2048, 4096, 5120, 16384];

fn values(seed: u64, n: usize, scale: f32) -> Vec<f32> {
    (0..n).map(|i| (philox::uniform(seed, 0, i as u32) * 2.0 - 1.0) * scale).collect()
}

fn rounded(dtype: DType, values: Vec<f32>) -> Vec<f32> {
    values.into_iter().map(|v| dtype.round(v)).collect()
}

fn step(rows: usize) -> Symbols {
    Symbols { tokens: rows as u32, sequences: 1, rows: 1, decode: false, sm_count: 4 }
}

#[test]
fn norms_have_the_documented_bits() {
    let mut rig = Rig::chosen(true).unwrap();
    for dtype in DTYPES {
        for h in WIDTHS {
            let rows = 3;
            let x = rounded(dtype, values(h as u64, rows * h, 3.0));
            let w = rounded(dtype, values(7, h, 2.0));
            let launches = cuda::launches(&cuda::NormProblem::rows(Symbol::Tokens, h, dtype, EPS)).unwrap();
            let inputs = vec![rig.floats("x", dtype, &x).unwrap(), rig.floats("w", dtype, &w).unwrap()];
            let out = rig.empty("out", rows * h * dtype.size()).unwrap();
            let operands = Operands { inputs: inputs.clone(), outputs: vec![out], tables: vec![] };
            rig.run(&launches, step(rows), &operands).unwrap();
            let got = rig.read_floats(out, dtype, rows * h).unwrap();
            let mut want = Vec::new();
            for r in 0..rows {
                let row = &x[r * h..][..h];
                assert_eq!(got[r * h..][..h], rms_norm(row, &w, EPS, dtype), "{dtype} h {h} row {r}");
                want.extend(reference::rms_norm(row, &w, EPS));
            }
            tolerance::check(dtype, &want, &got).unwrap();
            // The last row alone.
            let alone = rig.floats("row", dtype, &x[(rows - 1) * h..]).unwrap();
            let operands = Operands { inputs: vec![alone, inputs[1]], outputs: vec![out], tables: vec![] };
            rig.run(&launches, step(1), &operands).unwrap();
            assert_eq!(rig.read_floats(out, dtype, h).unwrap(), got[(rows - 1) * h..]);
        }
    }
}

#[test]
fn groups_are_rows_of_their_own_and_weights_may_be_f32() {
    let mut rig = Rig::chosen(true).unwrap();
    for (dtype, weight) in [(DType::BF16, DType::F32), (DType::F16, DType::F16), (DType::BF16, DType::BF16)] {
        for (n, groups, weight_rows) in [(128, 6, 1), (20, 3, 3), (612, 2, 2), (2048, 1, 1)] {
            let (rows, h) = (3, n * groups);
            let x = rounded(dtype, values(3, rows * h, 3.0));
            let w = rounded(weight, values(7, weight_rows * n, 2.0));
            let problem = cuda::NormProblem {
                groups,
                weight,
                weight_len: weight_rows * n,
                ..cuda::NormProblem::rows(Symbol::Tokens, h, dtype, EPS)
            };
            let inputs = vec![rig.floats("x", dtype, &x).unwrap(), rig.floats("w", weight, &w).unwrap()];
            let out = rig.empty("out", rows * h * dtype.size()).unwrap();
            let operands = Operands { inputs, outputs: vec![out], tables: vec![] };
            rig.run(&cuda::launches(&problem).unwrap(), step(rows), &operands).unwrap();
            let want: Vec<f32> = x
                .chunks(n)
                .enumerate()
                .flat_map(|(i, x)| rms_norm(x, &w[i % weight_rows * n..][..n], EPS, dtype))
                .collect();
            assert_eq!(rig.read_floats(out, dtype, rows * h).unwrap(), want, "{problem:?}");
        }
    }
}

#[test]
fn the_sum_is_rounded_first_and_may_replace_the_residual() {
    let mut rig = Rig::chosen(true).unwrap();
    for dtype in DTYPES {
        for h in WIDTHS {
            let rows = 2;
            let delta = values(h as u64 + 1, rows * h, 1.0);
            let residual = rounded(dtype, values(h as u64 + 2, rows * h, 4.0));
            // The type of the weights is seen in every second width.
            let weight = if h % 2 == 0 { DType::F32 } else { dtype };
            let w = rounded(weight, values(9, h, 1.5));
            let problem =
                cuda::NormProblem { weight, ..cuda::NormProblem::rows(Symbol::Tokens, h, dtype, EPS) };
            let launches = cuda::add_launches(&problem).unwrap();
            let bytes = rows * h * dtype.size();
            let inputs = vec![
                rig.f32s("delta", &delta).unwrap(),
                rig.floats("residual", dtype, &residual).unwrap(),
                rig.floats("w", weight, &w).unwrap(),
            ];
            let (sum, out) = (rig.empty("sum", bytes).unwrap(), rig.empty("out", bytes).unwrap());
            let sums: Vec<f32> = residual.iter().zip(&delta).map(|(r, d)| dtype.round(r + d)).collect();
            let want: Vec<f32> = sums.chunks(h).flat_map(|row| rms_norm(row, &w, EPS, dtype)).collect();
            for sum in [sum, inputs[1]] {
                let operands = Operands { inputs: inputs.clone(), outputs: vec![sum, out], tables: vec![] };
                rig.run(&launches, step(rows), &operands).unwrap();
                assert_eq!(rig.read_floats(sum, dtype, rows * h).unwrap(), sums, "{dtype} h {h}");
                assert_eq!(rig.read_floats(out, dtype, rows * h).unwrap(), want, "{dtype} h {h}");
            }
        }
    }
}

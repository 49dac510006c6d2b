//! Functions of `lathe.cuh` whose bits are the numeric contract's, and how far those of the special-function unit are off.

use anyhow::Result;
use lathe_conformance::{Operands, Rig};
use lathe_device::{Arg, Extent, Symbols, When};
use lathe_kernels::cuda::{Cost, Launches, Source, Stage};
use lathe_numerics::{activation, exp};

const KERNEL: &str = r#"
#include "lathe.cuh"
using namespace lathe;
extern "C" __global__ void functions(const float* x, float* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
    y[i] = exp_portable(x[i]);
    y[n + i] = tanh_portable(x[i]);
    y[2 * n + i] = softcap_portable(x[i], CAP);
    y[3 * n + i] = softcap_fast(x[i], CAP);
}
"#;
const CAP: f32 = 30.0;

#[test]
fn functions_have_the_contract_bits() -> Result<()> {
    let ends = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, exp::EXP_MIN, exp::EXP_MAX];
    let mut x: Vec<f32> = (0..=u32::MAX).step_by(1_048_583).map(f32::from_bits).collect();
    x.extend(
        ends.iter().flat_map(|e| (-8i32..=8).map(|d| f32::from_bits(e.to_bits().wrapping_add_signed(d)))),
    );
    x.extend((-2000..2000).map(|i| i as f32 * 0.051));
    x.resize(x.len().next_multiple_of(128), 1.0);
    let n = x.len();
    let stage = Stage {
        source: Source::new("portable", KERNEL, vec![("CAP", format!("{CAP:?}f"))]),
        entry: "functions",
        when: When::Always,
        grid: [Extent::fixed((n / 128) as u32), Extent::fixed(1), Extent::fixed(1)],
        block: 128,
        shared_bytes: 0,
        dependent: false,
        args: vec![Arg::Input(0), Arg::Output(0)],
        cost: Cost::default(),
    };
    let mut rig = Rig::chosen(true)?;
    let inputs = vec![rig.f32s("x", &x)?];
    let out = rig.empty("y", 4 * n * 4)?;
    let step = Symbols { tokens: 1, sequences: 1, rows: 1, decode: true, sm_count: 4 };
    let launches = Launches { stages: vec![stage], workspaces: vec![] };
    rig.run(&launches, step, &Operands { inputs, outputs: vec![out], tables: vec![] })?;
    let y = rig.read_f32(out, 4 * n)?;
    let cap = |x| activation::softcap(x, CAP);
    for (i, &x) in x.iter().enumerate() {
        for (row, want) in [exp::exp(x), activation::tanh(x), cap(x)].into_iter().enumerate() {
            let got = y[row * n + i];
            assert!(
                got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()),
                "{row} of {x:e}: {got:e}"
            );
        }
        let (got, want) = (y[3 * n + i], cap(x));
        assert!(
            (got - want).abs() <= 3e-7 * CAP || (got.is_nan() && want.is_nan()),
            "fast {x:e}: {got:e}, {want:e}"
        );
    }
    Ok(())
}

//! The device's gated product has the CPU's bits, for every activation.

use half::{bf16, f16};
use lathe_conformance::values::wide;
use lathe_conformance::{Operands, Rig, bytes};
use lathe_device::{DevicePtr, Symbol, Symbols};
use lathe_kernels::glu::{Glu, GluArgs, cuda};
use lathe_kernels::{Dst, IsaPath, Kernel, Src};
use lathe_numerics::{Activation, DType};

/// The CPU's product of elements of type `T`.
fn cpu<T, const ROWS: usize>(
    act: Activation,
    gate: &[T],
    up: &[T],
    cols: usize,
    stride: usize,
    zero: T,
) -> Vec<T>
where
    T: Copy,
    for<'a> &'a [T]: Into<Src<'a>>,
    for<'a> &'a mut [T]: Into<Dst<'a>>,
{
    let mut out = vec![zero; ROWS * cols];
    let kernel = Glu::new(GluArgs {
        path: IsaPath::detect(),
        act,
        gate: gate.into(),
        up: up.into(),
        stride,
        out: out.as_mut_slice().into(),
        rows: ROWS,
        cols,
    })
    .unwrap();
    // SAFETY: one thread, all units once.
    unsafe { kernel.run(0..ROWS, &mut []) };
    out
}

#[test]
fn products_have_the_bits_of_the_cpu() {
    const ROWS: usize = 3;
    let mut rig = Rig::chosen(true).unwrap();
    let step = Symbols { tokens: ROWS as u32, sequences: 1, rows: 1, decode: false, sm_count: 4 };
    let dtypes = [DType::BF16, DType::F16, DType::F32];
    for (dtype, act) in dtypes.into_iter().flat_map(|d| Activation::ALL.map(|a| (d, a))) {
        for (cols, stride) in [(1, 1), (31, 62), (611, 611), (640, 1280), (1100, 1102)] {
            let n = ROWS * stride;
            let gate: Vec<f32> = wide(1, n, dtype);
            let up: Vec<f32> = wide(2, n, dtype).into_iter().rev().collect();
            let want: Vec<f32> = match dtype {
                DType::BF16 => {
                    let of = |v: &[f32]| v.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>();
                    let out = cpu::<_, ROWS>(act, &of(&gate), &of(&up), cols, stride, bf16::ZERO);
                    out.into_iter().map(f32::from).collect()
                }
                DType::F16 => {
                    let of = |v: &[f32]| v.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>();
                    let out = cpu::<_, ROWS>(act, &of(&gate), &of(&up), cols, stride, f16::ZERO);
                    out.into_iter().map(f32::from).collect()
                }
                _ => cpu::<_, ROWS>(act, &gate, &up, cols, stride, 0.0),
            };
            let mut input =
                |name: &str, v: &[f32]| -> DevicePtr { rig.buffer(name, &bytes::of(dtype, v)).unwrap() };
            let inputs = vec![input("gate", &gate), input("up", &up)];
            let out = rig.empty("out", ROWS * cols * dtype.size()).unwrap();
            let problem = cuda::Problem { act, m: Symbol::Tokens, cols, stride, dtype, out: dtype };
            let operands = Operands { inputs, outputs: vec![out], tables: vec![] };
            rig.run(&cuda::launches(&problem).unwrap(), step, &operands).unwrap();
            let got = rig.read_floats(out, dtype, ROWS * cols).unwrap();
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(same, "{act} {dtype} cols {cols} element {i}: {got} {want}");
            }
        }
    }
}

//! Routing, experts' GEMMs and their sum on a device: choices and sums have the CPU's bits, an expert's rows have the bits of
//! the device's GEMM with that expert's weight.

use lathe_conformance::values::uniform;
use lathe_conformance::{Operands, Rig, bytes};
use lathe_device::{DevicePtr, StepTable, Symbol, Symbols};
use lathe_kernels::gemm::{Epilogue, cuda as gemm, stored_rows};
use lathe_kernels::top_k::{GroupChoices, GroupChoicesArgs, Over, TopK, TopKArgs};
use lathe_kernels::{Dst, IsaPath, Kernel, combine, expert_gemm, top_k};
use lathe_numerics::{Activation, DType};

fn step(tokens: usize) -> Symbols {
    Symbols { tokens: tokens as u32, sequences: 1, rows: tokens as u32, decode: false, sm_count: 4 }
}

fn view(v: &mut [i32]) -> Dst<'_> {
    // SAFETY: the view lives no longer than the borrow, and one kernel uses it.
    unsafe { Dst::raw(DType::I32, v.as_mut_ptr().cast(), v.len() * 4) }.unwrap()
}

/// Ids and weights by the CPU.
fn chosen(logits: &[f32], n: usize, k: usize, over: Over) -> (Vec<i32>, Vec<f32>) {
    let rows = logits.len() / n;
    let (mut ids, mut weights) = (vec![0; rows * k], vec![0.0_f32; rows * k]);
    let args = TopKArgs {
        path: IsaPath::detect(),
        logits: logits.into(),
        rows,
        n,
        k,
        over,
        ids: view(&mut ids),
        weights: weights.as_mut_slice().into(),
    };
    // SAFETY: one thread, all units once.
    unsafe { TopK::new(args).unwrap().run(0..rows, &mut []) };
    (ids, weights)
}

/// Order and starts by the CPU.
fn grouped(ids: &[i32], experts: usize) -> (Vec<i32>, Vec<i32>) {
    let (mut order, mut starts) = (vec![-7; ids.len()], vec![-7; experts + 1]);
    let args = GroupChoicesArgs { ids, experts, order: view(&mut order), starts: view(&mut starts) };
    // SAFETY: one thread, the one unit once.
    unsafe { GroupChoices::new(args).unwrap().run(0..1, &mut []) };
    (order, starts)
}

#[test]
fn choices_and_groups_have_the_bits_of_the_cpu() {
    let mut rig = Rig::chosen(true).unwrap();
    for (n, k, over, m) in [
        (5, 2, Over::Chosen, Symbol::Tokens),
        (32, 32, Over::All, Symbol::Rows),
        (60, 4, Over::All, Symbol::Tokens),
        (130, 33, Over::Chosen, Symbol::Tokens),
    ] {
        const ROWS: usize = 11;
        // Coarse, so that there are ties; one row has none of the usual values.
        let mut logits: Vec<f32> =
            uniform(n as u32, ROWS * n, DType::F32).iter().map(|v| (v * 30.0).round() / 2.0).collect();
        logits[2 * n..][..4].copy_from_slice(&[f32::NAN, f32::NEG_INFINITY, -0.0, 0.0]);
        // Rows 3 and 10 are padding where rows are tokens.
        let padded = |row: usize| m == Symbol::Tokens && (row == 3 || row == 10);
        let (mut ids, mut weights) = chosen(&logits, n, k, over);
        for row in (0..ROWS).filter(|row| padded(*row)) {
            ids[row * k..][..k].fill(-1);
            weights[row * k..][..k].fill(0.0);
        }
        let (order, starts) = grouped(&ids, n);
        let sequence: Vec<i32> = (0..ROWS).map(|row| if padded(row) { -1 } else { 0 }).collect();

        let launches = top_k::cuda::launches(&top_k::cuda::Problem { m, max_m: 64, n, k, over }).unwrap();
        let mut empty = |name, len: usize| rig.empty(name, len * 4).unwrap();
        let outputs = vec![
            empty("ids", ROWS * k),
            empty("weights", ROWS * k),
            empty("order", ROWS * k),
            empty("starts", n + 1),
        ];
        let operands = Operands {
            inputs: vec![rig.f32s("logits", &logits).unwrap()],
            outputs: outputs.clone(),
            tables: vec![(StepTable::RowSequence, rig.i32s("row sequence", &sequence).unwrap())],
        };
        rig.run(&launches, step(ROWS), &operands).unwrap();
        assert_eq!(rig.read_i32(outputs[0], ROWS * k).unwrap(), ids, "{n} {k}");
        let got = rig.read_f32(outputs[1], ROWS * k).unwrap();
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        assert!(got.iter().zip(&weights).all(same), "{n} {k}: {got:?} {weights:?}");
        assert_eq!(rig.read_i32(outputs[3], n + 1).unwrap(), starts);
        let end = starts[n] as usize;
        assert_eq!(rig.read_i32(outputs[2], end).unwrap(), order[..end]);
    }
}

struct Case {
    experts: usize,
    choices: usize,
    share: usize,
    n: usize,
    k: usize,
    epilogue: Epilogue,
    bias: bool,
    /// Each choice's expert; -1 for padding.
    ids: Vec<i32>,
}

impl Case {
    fn check(&self, rig: &mut Rig, dtype: DType) {
        let Case { experts, choices, share, n, k, epilogue, bias, ref ids } = *self;
        let (tokens, rows) = (ids.len() / choices, stored_rows(n, epilogue));
        let columns = epilogue.columns(n);
        let x = uniform(1, ids.len() / share * k, dtype);
        let w = uniform(2, experts * rows * k, dtype);
        let biases = uniform(3, experts * rows, DType::F32);
        let (order, starts) = grouped(ids, experts);
        let label = format!("{dtype} {experts} experts {n}x{k} {epilogue:?} {tokens} rows");

        let problem = expert_gemm::cuda::Problem {
            m: Symbol::Tokens,
            max_m: 512,
            experts,
            choices,
            share,
            n,
            k,
            dtype,
            out: dtype,
            epilogue,
            bias,
        };
        let mut inputs = vec![
            rig.floats("x", dtype, &x).unwrap(),
            rig.i32s("order", &order).unwrap(),
            rig.i32s("starts", &starts).unwrap(),
            rig.buffer("weights", &bytes::of_weight(dtype, &w, k).unwrap()).unwrap(),
        ];
        inputs.extend(bias.then(|| rig.f32s("bias", &biases).unwrap()));
        // What belongs to padding stays as it is.
        let untouched = vec![5.0; ids.len() * columns];
        let out = rig.floats("y", dtype, &untouched).unwrap();
        let operands = Operands { inputs, outputs: vec![out], tables: vec![] };
        rig.run(&expert_gemm::cuda::launches(&problem).unwrap(), step(tokens), &operands).unwrap();
        let got = rig.read_floats(out, dtype, ids.len() * columns).unwrap();

        let mut want = untouched;
        for e in 0..experts {
            let mine = &order[starts[e] as usize..starts[e + 1] as usize];
            if mine.is_empty() {
                continue;
            }
            let of = |choice: &i32| x[*choice as usize / share * k..][..k].to_vec();
            let rows_of_x: Vec<f32> = mine.iter().flat_map(of).collect();
            let one =
                gemm::Problem { m: Symbol::Tokens, max_m: 512, n, k, dtype, out: dtype, epilogue, bias };
            let mut inputs: Vec<DevicePtr> = vec![
                rig.floats("x", dtype, &rows_of_x).unwrap(),
                rig.buffer("weight", &bytes::of_weight(dtype, &w[e * rows * k..][..rows * k], k).unwrap())
                    .unwrap(),
            ];
            inputs.extend(bias.then(|| rig.f32s("bias", &biases[e * rows..][..rows]).unwrap()));
            let out = rig.empty("y", mine.len() * columns * dtype.size()).unwrap();
            let operands = Operands { inputs, outputs: vec![out], tables: vec![] };
            rig.run(&gemm::launches(&one).unwrap(), step(mine.len()), &operands).unwrap();
            let y = rig.read_floats(out, dtype, mine.len() * columns).unwrap();
            for (choice, row) in mine.iter().zip(y.chunks(columns)) {
                want[*choice as usize * columns..][..columns].copy_from_slice(row);
            }
        }
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(got.to_bits(), want.to_bits(), "{label}: element {i}: {got} {want}");
        }
    }
}

/// Ids that differ within a row and crowd at low experts; the last row is padding.
fn crowded(tokens: usize, choices: usize, experts: usize) -> Vec<i32> {
    let row = |t: usize| {
        let first = (t * t) % experts.min(3 + t);
        (0..choices).map(move |c| if t + 1 == tokens { -1 } else { ((first + c) % experts) as i32 })
    };
    (0..tokens).flat_map(row).collect()
}

#[test]
fn rows_have_the_bits_of_their_experts_gemm() {
    let mut rig = Rig::chosen(true).unwrap();
    let glu = Epilogue::Glu(Activation::Silu);
    let cases = [
        Case {
            experts: 4,
            choices: 2,
            share: 2,
            n: 64,
            k: 96,
            epilogue: glu,
            bias: false,
            ids: crowded(3, 2, 4),
        },
        Case {
            experts: 40,
            choices: 3,
            share: 1,
            n: 48,
            k: 33,
            epilogue: Epilogue::Store,
            bias: true,
            ids: crowded(13, 3, 40),
        },
        Case {
            experts: 3,
            choices: 1,
            share: 1,
            n: 16,
            k: 1024,
            epilogue: Epilogue::Store,
            bias: false,
            ids: crowded(40, 1, 3),
        },
        Case {
            experts: 6,
            choices: 2,
            share: 2,
            n: 44,
            k: 64,
            epilogue: Epilogue::ClampedSwiglu,
            bias: true,
            ids: crowded(70, 2, 6),
        },
    ];
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        cases.iter().for_each(|c| c.check(&mut rig, dtype));
    }
}

#[test]
fn sums_have_the_bits_of_the_cpu() {
    const ROWS: usize = 3;
    let mut rig = Rig::chosen(true).unwrap();
    for (dtype, choices, cols, shared, residual) in [
        (DType::BF16, 8, 256, false, true),
        (DType::F16, 2, 60, true, true),
        (DType::F32, 1, 37, true, false),
        (DType::BF16, 5, 516, false, false),
    ] {
        let n = ROWS * cols;
        let (y, w) = (uniform(1, n * choices, dtype), uniform(2, ROWS * choices, DType::F32));
        let (extra, gate, base) =
            (uniform(3, n, DType::F32), uniform(4, ROWS, DType::F32), uniform(5, n, dtype));
        // The sum in f32 by the CPU; residual and rounding as the IR says.
        let mut sum = vec![0.0_f32; n];
        let y32: Vec<f32> = y.clone();
        let args = combine::CombineArgs {
            path: IsaPath::detect(),
            y: y32.as_slice().into(),
            weights: w.as_slice().into(),
            shared: shared.then(|| (extra.as_slice().into(), gate.as_slice().into())),
            out: sum.as_mut_slice().into(),
            rows: ROWS,
            choices,
            cols,
        };
        // SAFETY: one thread, all units once.
        unsafe { combine::Combine::new(args).unwrap().run(0..ROWS, &mut []) };
        let want: Vec<f32> =
            sum.iter().zip(&base).map(|(s, r)| dtype.round(if residual { s + r } else { *s })).collect();

        let mut inputs = vec![rig.floats("y", dtype, &y).unwrap(), rig.f32s("weights", &w).unwrap()];
        if residual {
            inputs.push(rig.floats("residual", dtype, &base).unwrap());
        }
        if shared {
            inputs.extend([rig.f32s("shared", &extra).unwrap(), rig.f32s("gate", &gate).unwrap()]);
        }
        let out = rig.empty("out", n * dtype.size()).unwrap();
        let problem =
            combine::cuda::Problem { m: Symbol::Tokens, cols, choices, dtype, out: dtype, shared, residual };
        let operands = Operands { inputs, outputs: vec![out], tables: vec![] };
        rig.run(&combine::cuda::launches(&problem).unwrap(), step(ROWS), &operands).unwrap();
        let got = rig.read_floats(out, dtype, n).unwrap();
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(got.to_bits(), want.to_bits(), "{dtype} {choices}x{cols} element {i}: {got} {want}");
        }
    }
}

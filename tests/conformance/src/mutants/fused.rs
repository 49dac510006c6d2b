//! Cases of what a projection does beside its sums: activations behind them, a norm in front, rotation behind; and the
//! gated product by itself. And their faults.

use anyhow::Result;
use lathe_device::{Arg, Extent, Symbol};
use lathe_kernels::cuda::Launches;
use lathe_kernels::gemm::cuda::{Fused, Problem, Tail, fused_launches, launches};
use lathe_kernels::gemm::{Epilogue, reference, stored_rows};
use lathe_kernels::glu;
use lathe_numerics::{Activation, DType};

use super::list::{define, host, text};
use super::rms_norm::EPS;
use super::rows::PROJECTED;
use super::{Case, Class, Edit, Mutant, bits, feed, near, same, step};
use crate::norms::rms_norm;
use crate::values::uniform;
use crate::{Operands, Rig, bytes};

/// `gelu(gate) * up` behind a projection with a bias; columns that end within a tile.
pub const GATED: Case = Case { name: "gemm: glu", run: gated };
/// The tanh form of GELU behind a projection with a bias.
pub const ACTIVATED: Case = Case { name: "gemm: activation", run: activated };
/// Rows that two warps norm and hold, a row of which is padding; two slices side by side.
pub const HELD: Case = Case { name: "gemm: held norm", run: held };
/// The product of separate gate and up, by bits; vectors of two, and a thread past the last.
pub const GLU: Case = Case { name: "glu", run: product };

fn problem(n: usize, k: usize, epilogue: Epilogue) -> Problem {
    let (m, dtype) = (Symbol::Tokens, DType::BF16);
    Problem { m, max_m: 4, n, k, dtype, out: DType::F32, epilogue, bias: true }
}

fn gated(rig: &mut Rig, edit: &Edit) -> Result<()> {
    let (m, cols, k) = (3, 20, 40);
    let p = problem(2 * cols, k, Epilogue::Glu(Activation::Gelu));
    let sums = project(rig, edit, &p, m, launches(&p)?)?;
    // Stored rows alternate by 16: the reference wants gates, then ups.
    let stored = stored_rows(p.n, p.epilogue);
    let place = |col: usize| col / 16 * 32 + col % 16;
    let order = (0..cols).map(place).chain((0..cols).map(|col| place(col) + 16));
    let by_part: Vec<usize> = order.collect();
    let y: Vec<f32> = sums.want.chunks(stored).flat_map(|row| by_part.iter().map(|at| row[*at])).collect();
    near("y", p.out, &reference::glu(Activation::Gelu, &y, m, cols), &sums.got)
}

fn activated(rig: &mut Rig, edit: &Edit) -> Result<()> {
    let act = Activation::GeluTanh;
    let p = problem(36, 40, Epilogue::Act(act));
    let sums = project(rig, edit, &p, 3, launches(&p)?)?;
    let want: Vec<f32> = sums.want.iter().map(|y| reference::activation(act, f64::from(*y)) as f32).collect();
    near("y", p.out, &want, &sums.got)
}

fn held(rig: &mut Rig, edit: &Edit) -> Result<()> {
    let p = problem(50, 1024, Epilogue::Store);
    let launches = fused_launches(&p, &Fused { norm: Some(EPS), tail: Tail::None })?;
    let sums = project(rig, edit, &p, 3, launches)?;
    near("y", p.out, &sums.want, &sums.got)
}

/// What a projection gave, and its sums with bias, in stored order, after the norm if the launches take a weight for one.
struct Sums {
    want: Vec<f32>,
    got: Vec<f32>,
}

fn project(rig: &mut Rig, edit: &Edit, p: &Problem, m: usize, launches: Launches) -> Result<Sums> {
    let stored = stored_rows(p.n, p.epilogue);
    let (x, w) = (uniform(1, m * p.k, p.dtype), uniform(2, stored * p.k, p.dtype));
    let (bias, norm) = (uniform(3, stored, DType::F32), uniform(4, p.k, p.dtype));
    let normed = launches.stages.iter().any(|s| s.args.contains(&Arg::F32(EPS)));
    let mut launches = edit.apply(launches)?;
    let len = m * p.epilogue.columns(p.n);
    let y = rig.empty("y", 4 * len)?;
    let mut inputs = vec![rig.empty("x", 2 * x.len())?];
    if normed {
        inputs.push(rig.floats("norm", p.dtype, &norm)?);
    }
    inputs.push(rig.buffer("weight", &bytes::of_weight(p.dtype, &w, p.k)?)?);
    inputs.push(rig.f32s("bias", &bias)?);
    let mut operands = Operands { inputs, outputs: vec![y], tables: vec![] };
    feed(rig, &mut launches, &mut operands, Arg::Input(0), &bytes::of(p.dtype, &x))?;
    rig.run(&launches, step(m, 1, 1), &operands)?;
    let rows = match normed {
        true => x.chunks(p.k).flat_map(|row| rms_norm(row, &norm, EPS, p.dtype)).collect(),
        false => x,
    };
    let want = reference::gemm(&rows, &w, Some(&bias), m, stored, p.k);
    Ok(Sums { want, got: rig.read_f32(y, len)? })
}

fn product(rig: &mut Rig, edit: &Edit) -> Result<()> {
    let (rows, cols, act) = (3, 530, Activation::Gelu);
    let wide = |seed| uniform(seed, rows * cols, DType::F32).into_iter().map(|v| 6.0 * v).collect::<Vec<_>>();
    let (gate, up) = (wide(1), wide(2));
    let (dtype, m) = (DType::F32, Symbol::Tokens);
    let problem = glu::cuda::Problem { act, m, cols, stride: cols, dtype, out: dtype };
    let mut launches = edit.apply(glu::cuda::launches(&problem)?)?;
    let out = rig.empty("out", 4 * rows * cols)?;
    let inputs = vec![rig.empty("gate", 4 * gate.len())?, rig.f32s("up", &up)?];
    let mut operands = Operands { inputs, outputs: vec![out], tables: vec![] };
    feed(rig, &mut launches, &mut operands, Arg::Input(0), &bytes::of_f32(&gate))?;
    rig.run(&launches, step(rows, 1, 1), &operands)?;
    let want: Vec<f32> = gate.iter().zip(&up).map(|(g, u)| act.apply(*g) * u).collect();
    same("out", &bits(&want), &bits(&rig.read_f32(out, rows * cols)?))
}

/// Their faults.
pub(super) const FUSED: &[Mutant] = &[
    text(
        &GATED,
        Class::Epilogue,
        "the function is of up",
        &[("return mul(F(gate), up);", "return mul(gate, F(up));")],
    ),
    host(&GATED, Class::Epilogue, "the tanh form of GELU for the other", |l| {
        define(l, "EPILOGUE", "lathe::Glu<lathe::gelu_tanh_portable>", |_| true);
    }),
    text(
        &GATED,
        Class::Fragment,
        "up is eight features from gate",
        &[("row, gate + 16, first, bias);", "row, gate + 8, first, bias);")],
    ),
    text(
        &GATED,
        Class::Fragment,
        "gate and up alternate by 8",
        &[("column / 16 * 32 + column % 16;", "column / 8 * 16 + column % 8;")],
    ),
    text(
        &ACTIVATED,
        Class::Epilogue,
        "the function comes before the bias",
        &[(
            "y[i] = F(y[i]);",
            "y[i] = add(F(add(y[i], -bias[first + column + i])), bias[first + column + i]);",
        )],
    ),
    text(&ACTIVATED, Class::Epilogue, "sums are left as they are", &[("y[i] = F(y[i]);", ";")]),
    text(
        &HELD,
        Class::Barrier,
        "no barrier between warps' sums of squares and their use",
        &[(
            "        __syncthreads();\n#pragma unroll 1\n        for (int first = 0; first < HELD_ROWS; first += TOGETHER) {\n            float inverse",
            "#pragma unroll 1\n        for (int first = 0; first < HELD_ROWS; first += TOGETHER) {\n            float inverse",
        )],
    ),
    text(
        &HELD,
        Class::Barrier,
        "no barrier between the norm and the products",
        &[("cp_async_wait<STAGES - 2>();\n            __syncthreads();", "cp_async_wait<STAGES - 2>();")],
    ),
    text(
        &HELD,
        Class::CopyWait,
        "rows are normed before they are there",
        &[("    cp_async_wait<0>();\n    Rows::norm(", "    Rows::norm(")],
    ),
    text(
        &HELD,
        Class::Predicate,
        "a row past the end is held",
        &[("chunk * 8, row < left);", "chunk * 8, row <= left);")],
    ),
    text(
        &HELD,
        Class::Undefined,
        "the last warp's sum of squares is missing",
        &[("lane == 0 && warp_of(turn) < ROW_WARPS)", "lane == 0 && warp_of(turn) < ROW_WARPS - 1)")],
    ),
    text(
        &HELD,
        Class::Fold,
        "the first warp's sum of squares stands for the row",
        &[("= lane < ROW_WARPS ? partial", "= lane < 1 ? partial")],
    ),
    text(
        &HELD,
        Class::Fragment,
        "weights of the norm are the first turn's",
        &[("weight[turn][run].at[j])", "weight[0][run].at[j])")],
    ),
    text(
        &HELD,
        Class::Fragment,
        "ldmatrix takes held rows by quads",
        &[("(first + t * 8 + lane % 8) % HELD_ROWS", "(first + t * 8 + lane / 4) % HELD_ROWS")],
    ),
    text(
        &HELD,
        Class::Dependent,
        "rows are held before the launch that makes them has ended",
        &[(
            "    wait_for_previous();\n#endif\n#pragma unroll\n    for (int i = 0; i < STAGES - 1; ++i) {",
            "#endif\n#pragma unroll\n    for (int i = 0; i < STAGES - 1; ++i) {",
        )],
    ),
    host(&HELD, Class::SharedBounds, "shared memory lacks the sums of squares", |l| {
        l.stages.iter_mut().for_each(|s| s.shared_bytes -= 64);
    }),
    host(&HELD, Class::Launch, "weight and norm swap", |l| {
        for stage in &mut l.stages {
            let norm = stage.args.len() - 2;
            stage.args.swap(1, norm);
        }
    }),
    text(
        &PROJECTED,
        Class::Head,
        "keys are not rotated",
        &[("if (head < HEADS + KV_HEADS) {", "if (head < HEADS) {")],
    ),
    text(
        &PROJECTED,
        Class::Fragment,
        "pairs are of neighbouring runs",
        &[("WIDTH + column, first + HALF - WIDTH, bias", "WIDTH + (column ^ 4), first + HALF - WIDTH, bias")],
    ),
    text(
        &PROJECTED,
        Class::Fragment,
        "the second half of a tile follows the first",
        &[("tile / (TILES / 2) * (HEAD_DIM / 32)", "tile / (TILES / 2) * (TILES / 2)")],
    ),
    text(
        &PROJECTED,
        Class::Fragment,
        "the second of a pair is stored behind the first",
        &[("store4(q + HALF, z);", "store4(q + 4, z);")],
    ),
    text(
        &PROJECTED,
        Class::Predicate,
        "a row more is stored",
        &[("if (row >= m) continue;", "if (row > m) continue;")],
    ),
    text(
        &PROJECTED,
        Class::Padding,
        "padding rows write the first sequence's keys and values",
        &[("if (index < 0) return;", "if (index < 0) index = 0;")],
    ),
    host(&PROJECTED, Class::Launch, "positions and sequences of rows swap", |l| {
        for stage in &mut l.stages {
            let n = stage.args.len();
            stage.args.swap(n - 6, n - 3);
        }
    }),
    text(
        &GLU,
        Class::Dependent,
        "gate is not waited for",
        &[("    wait_for_previous();\n    u64 from", "    u64 from")],
    ),
    text(
        &GLU,
        Class::Bounds,
        "a thread past the last has a share",
        &[("if (start >= COLS) return;", "if (start > COLS) return;")],
    ),
    text(
        &GLU,
        Class::Order,
        "a product and a sum are one operation",
        &[("add(mul(p, t), 0.2548296f)", "__fmaf_rn(p, t, 0.2548296f)")],
    ),
    text(
        &GLU,
        Class::Epilogue,
        "the tail of a positive gate is that of a negative one",
        &[("x < 0.0f ? -low : add(x, -low)", "-low")],
    ),
    host(&GLU, Class::Launch, "gate and up swap", |l| l.stages[0].args.swap(0, 1)),
    host(&GLU, Class::Launch, "a column of blocks is missing", |l| l.stages[0].grid[1] = Extent::fixed(1)),
];

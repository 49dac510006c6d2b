//! Cases of experts: a router's choice with padding, a grouped GEMM over more experts than lanes, the sum.

use anyhow::Result;
use lathe_device::{Arg, Extent, StepTable, Symbol};
use lathe_kernels::gemm::{Epilogue, reference};
use lathe_kernels::top_k::Over;
use lathe_kernels::{combine, expert_gemm, top_k};
use lathe_numerics::DType;
use lathe_numerics::exp::{exp, sigmoid};

use super::list::{host, text};
use super::{Case, Class, Edit, Mutant, bits, feed, near, same, step};
use crate::values::uniform;
use crate::{Operands, Rig, bytes};

/// Six rows, one of them padding; logits with ties; weights normalised over all.
pub const ROUTE: Case = Case { name: "top_k", run: route };
/// Experts on both sides of a warp's 32, one with more choices than a tile holds; features and K end within a tile.
pub const EXPERTS: Case = Case { name: "expert_gemm", run: tensor_cores };
/// The same without tensor cores.
pub const EXPERTS_F32: Case = Case { name: "expert_gemm: f32", run: plain };
/// Three choices, a shared expert and a residual.
pub const COMBINE: Case = Case { name: "combine", run: sum };

fn route(rig: &mut Rig, edit: &Edit) -> Result<()> {
    const N: usize = 40;
    const K: usize = 3;
    let logits: Vec<f32> = uniform(3, 6 * N, DType::F32).iter().map(|v| (v * 12.0).round()).collect();
    let sequence = [0, 0, 1, -1, 1, 1];
    let mut launches = edit.apply(top_k::cuda::launches(&top_k::cuda::Problem {
        m: Symbol::Tokens,
        max_m: 64,
        n: N,
        k: K,
        over: Over::All,
    })?)?;
    let sizes = [6 * K, 6 * K, 6 * K, N + 1];
    let outputs = sizes.iter().map(|n| rig.empty("out", 4 * n)).collect::<Result<Vec<_>>>()?;
    let mut operands = Operands {
        inputs: vec![rig.empty("logits", 4 * logits.len())?],
        outputs: outputs.clone(),
        tables: vec![(StepTable::RowSequence, rig.i32s("row sequence", &sequence)?)],
    };
    feed(rig, &mut launches, &mut operands, Arg::Input(0), &bytes::of_f32(&logits))?;
    rig.run(&launches, step(6, 2, 1), &operands)?;

    let (mut ids, mut weights) = (Vec::new(), Vec::new());
    for (row, sequence) in logits.chunks(N).zip(sequence) {
        if sequence < 0 {
            ids.extend([-1; K]);
            weights.extend([0.0; K]);
            continue;
        }
        let mut ranked: Vec<usize> = (0..N).collect();
        ranked.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        let max = row[ranked[0]];
        let total: f64 = row.iter().map(|l| f64::from(exp(l - max))).sum();
        ids.extend(ranked[..K].iter().map(|i| *i as i32));
        weights.extend(ranked[..K].iter().map(|i| (f64::from(exp(row[*i] - max)) / total) as f32));
    }
    let mut order: Vec<i32> = (0..ids.len() as i32).filter(|c| ids[*c as usize] >= 0).collect();
    order.sort_by_key(|c| ids[*c as usize]);
    let starts: Vec<i32> =
        (0..=N as i32).map(|e| ids.iter().filter(|id| **id >= 0 && **id < e).count() as i32).collect();
    same("ids", &ids, &rig.read_i32(outputs[0], ids.len())?)?;
    near("weights", DType::F32, &weights, &rig.read_f32(outputs[1], ids.len())?)?;
    same("starts", &starts, &rig.read_i32(outputs[3], starts.len())?)?;
    same("order", &order, &rig.read_i32(outputs[2], order.len())?)
}

fn tensor_cores(rig: &mut Rig, edit: &Edit) -> Result<()> {
    experts(rig, edit, DType::BF16)
}

fn plain(rig: &mut Rig, edit: &Edit) -> Result<()> {
    experts(rig, edit, DType::F32)
}

fn experts(rig: &mut Rig, edit: &Edit, dtype: DType) -> Result<()> {
    const TOKENS: usize = 11;
    const CHOICES: usize = 2;
    let (count, n, k) = (40, 48, 72);
    // Expert 37 is everyone's first choice; the last token is padding.
    let ids: Vec<usize> = (0..TOKENS - 1).flat_map(|t| [37, [0, 5, 31, 32, 39][t % 5]]).collect();
    let mut order: Vec<i32> = (0..ids.len() as i32).collect();
    order.sort_by_key(|c| ids[*c as usize]);
    let starts: Vec<i32> = (0..=count).map(|e| ids.iter().filter(|id| **id < e).count() as i32).collect();
    order.resize(TOKENS * CHOICES, i32::MAX);

    let (x, w) = (uniform(1, TOKENS * k, dtype), uniform(2, count * n * k, dtype));
    let bias = uniform(3, count * n, DType::F32);
    let stored = bytes::of_weight(dtype, &w, k)?;
    let problem = expert_gemm::cuda::Problem {
        m: Symbol::Tokens,
        max_m: 16,
        experts: count,
        choices: CHOICES,
        share: CHOICES,
        n,
        k,
        dtype,
        out: DType::F32,
        epilogue: Epilogue::Store,
        bias: true,
    };
    let mut launches = edit.apply(expert_gemm::cuda::launches(&problem)?)?;
    let rows = ids.len();
    let out = rig.f32s("y", &vec![7.0; TOKENS * CHOICES * n])?;
    let mut operands = Operands {
        inputs: vec![
            rig.floats("x", dtype, &x)?,
            rig.i32s("order", &order)?,
            rig.empty("starts", 4 * starts.len())?,
            rig.buffer("weights", &stored)?,
            rig.f32s("bias", &bias)?,
        ],
        outputs: vec![out],
        tables: vec![],
    };
    feed(rig, &mut launches, &mut operands, Arg::Input(2), &bytes::of_i32(&starts))?;
    rig.run(&launches, step(TOKENS, 1, 1), &operands)?;

    let mut want = Vec::new();
    for (choice, &e) in ids.iter().enumerate() {
        let row = &x[choice / CHOICES * k..][..k];
        want.extend(reference::gemm(row, &w[e * n * k..][..n * k], Some(&bias[e * n..][..n]), 1, n, k));
    }
    let got = rig.read_f32(out, TOKENS * CHOICES * n)?;
    near("y", DType::F32, &want, &got[..rows * n])?;
    same("padding", &vec![7.0_f32; (TOKENS * CHOICES - rows) * n], &got[rows * n..])
}

fn sum(rig: &mut Rig, edit: &Edit) -> Result<()> {
    const ROWS: usize = 2;
    let (cols, choices, dtype) = (520, 3, DType::BF16);
    let n = ROWS * cols;
    let (y, w) = (uniform(1, n * choices, dtype), uniform(2, ROWS * choices, DType::F32));
    let (shared, gate) = (uniform(3, n, DType::F32), uniform(4, ROWS, DType::F32));
    let residual = uniform(5, n, dtype);
    let mut launches = edit.apply(combine::cuda::launches(&combine::cuda::Problem {
        m: Symbol::Tokens,
        cols,
        choices,
        dtype,
        out: dtype,
        shared: true,
        residual: true,
    })?)?;
    let out = rig.empty("out", 2 * n)?;
    let mut operands = Operands {
        inputs: vec![
            rig.empty("y", 2 * y.len())?,
            rig.f32s("weights", &w)?,
            rig.floats("residual", dtype, &residual)?,
            rig.f32s("shared", &shared)?,
            rig.f32s("gate", &gate)?,
        ],
        outputs: vec![out],
        tables: vec![],
    };
    feed(rig, &mut launches, &mut operands, Arg::Input(0), &bytes::of(dtype, &y))?;
    rig.run(&launches, step(ROWS, 1, 1), &operands)?;
    let value = |i: usize| {
        let (r, c) = (i / cols, i % cols);
        let term = |j: usize| y[(r * choices + j) * cols + c] * w[r * choices + j];
        let sum = (1..choices).fold(term(0), |sum, j| sum + term(j));
        dtype.round(sum + sigmoid(gate[r]) * shared[i] + residual[i])
    };
    let want: Vec<f32> = (0..n).map(value).collect();
    same("out", &bits(&want), &bits(&rig.read_floats(out, dtype, n)?))
}

/// The faults.
pub(super) const EXPERT: &[Mutant] = &[
    text(
        &ROUTE,
        Class::Padding,
        "padding chooses experts",
        &[("row_sequence[row] < 0)", "row_sequence[row] < -1)")],
    ),
    text(
        &ROUTE,
        Class::Order,
        "the higher of equal logits comes first",
        &[
            ("u64(ordered) << 32 | (0xffffffffu - u32(id))", "u64(ordered) << 32 | u32(id)"),
            ("int(0xffffffffu - u32(below))", "int(u32(below))"),
        ],
    ),
    text(
        &ROUTE,
        Class::Fold,
        "weights are normalised over half of the logits",
        &[("            if (i * 32 + lane + 16 < EXPERTS) sum = add(sum, high);\n", "")],
    ),
    text(
        &ROUTE,
        Class::Predicate,
        "logits past the last are chosen from",
        &[
            ("if (i * 32 + lane < EXPERTS && k < below", "if (k < below"),
            ("? logits[i * 32 + lane] : 0.0f;", "? logits[i * 32 + lane] : 99.0f;"),
        ],
    ),
    text(
        &ROUTE,
        Class::Slot,
        "a choice leaves a gap before it",
        &[("((1u << lane) - 1)", "((2u << lane) - 1)")],
    ),
    text(
        &ROUTE,
        Class::Bounds,
        "a warp more writes a start",
        &[("if (expert > EXPERTS) return;", "if (expert > EXPERTS + 1) return;")],
    ),
    text(
        &EXPERTS,
        Class::Dependent,
        "the grouping is not waited for",
        &[("    wait_for_previous();\n    Group group", "    Group group")],
    ),
    text(
        &EXPERTS,
        Class::Head,
        "tiles of the second 32 experts are counted from the first",
        &[("        index -= __shfl_sync(~0u, end, 31);\n", "")],
    ),
    text(
        &EXPERTS,
        Class::Slot,
        "rows are taken by choice",
        &[("u64(order[at] / SHARE) * K", "u64(order[at]) * K")],
    ),
    text(
        &EXPERTS,
        Class::Slot,
        "results go where the order has them",
        &[("return u64(order[token]) * COLUMNS;", "return u64(token) * COLUMNS;")],
    ),
    text(
        &EXPERTS,
        Class::Head,
        "every expert has the first one's bias",
        &[("if (BIAS) bias += group.expert * ROWS;", "")],
    ),
    text(
        &EXPERTS,
        Class::Bounds,
        "a choice more than the expert has",
        &[("m = group.count;", "m = group.count + 1;")],
    ),
    text(
        &EXPERTS,
        Class::Mask,
        "a second tile begins with the first",
        &[("int token = (index - end + tiles) * TOKENS;", "int token = 0;")],
    ),
    host(&EXPERTS, Class::Launch, "a tile for each expert but the last", |l| {
        if let Extent::Sum { constant, terms } = &mut l.stages[0].grid[1] {
            (*constant, *terms) = (5, vec![]);
        }
    }),
    text(
        &EXPERTS_F32,
        Class::Slot,
        "rows are taken by choice",
        &[("return out.order[token] / SHARE;", "return out.order[token] % SHARE;")],
    ),
    text(
        &EXPERTS_F32,
        Class::Head,
        "weights of the expert before",
        &[(
            "weight += u64(group.expert) * ROWS * K;",
            "weight += u64(group.expert ? group.expert - 1 : 0) * ROWS * K;",
        )],
    ),
    text(
        &COMBINE,
        Class::Fold,
        "the first choice alone is weighed",
        &[("add(sum[i], term)", "add(sum[i], to_f32(part.at[i]))")],
    ),
    text(
        &COMBINE,
        Class::Head,
        "every choice has the first one's weight",
        &[("weights[row * CHOICES + j]", "weights[row * CHOICES]")],
    ),
    text(
        &COMBINE,
        Class::Bounds,
        "columns past the last are summed",
        &[("if (start >= COLS) return;", "if (start > COLS) return;")],
    ),
    text(
        &COMBINE,
        Class::Dependent,
        "nothing is waited for",
        &[("    wait_for_previous();\n    u64 row = blockIdx.x, at", "    u64 row = blockIdx.x, at")],
    ),
];

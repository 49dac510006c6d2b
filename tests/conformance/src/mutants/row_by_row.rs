//! Cases of what works row by row: layer norms, norms of query and key before they rotate, columns of a matrix.

use anyhow::Result;
use lathe_device::{Arg, Sequence, StepTable, Symbol};
use lathe_kernels::elementwise::Unary;
use lathe_kernels::elementwise::cuda::{UnaryProblem, unary_launches};
use lathe_kernels::layer_norm;
use lathe_kernels::rms_norm::cuda::NormProblem;
use lathe_kernels::rms_norm::reference::rms_norm;
use lathe_kernels::rope_append::{self, NormOver};
use lathe_numerics::DType;

use super::{Case, Edit, Wrong, feed, near, same, step};
use crate::values::uniform;
use crate::{Operands, Rig, bytes};

/// Two groups of three warps each, the last of which has no elements for all of its lanes, with weights and biases each.
pub const LAYER_NORM: Case = Case { name: "layer_norm", run: layer };
/// Norms of each head.
pub const HEAD_NORM: Case = Case { name: "norm_rope_append over heads", run: head_norm };
/// Norms of all heads of a row.
pub const ROW_NORM: Case = Case { name: "norm_rope_append over rows", run: row_norm };
/// Columns from the middle of wider rows.
pub const COLUMNS: Case = Case { name: "unary", run: columns };

const EPS: f32 = 1e-5;

fn layer(rig: &mut Rig, edit: &Edit) -> Result<()> {
    const N: usize = 612;
    const ROWS: usize = 3;
    let dtype = DType::F32;
    let x: Vec<f32> = uniform(1, ROWS * 2 * N, dtype).iter().map(|v| v + 2.0).collect();
    let (w, b) = (uniform(2, 2 * N, dtype), uniform(3, 2 * N, dtype));
    let problem = NormProblem { groups: 2, ..NormProblem::rows(Symbol::Tokens, 2 * N, dtype, EPS) };
    let mut launches = edit.apply(layer_norm::cuda::launches(&problem, true)?)?;
    let out = rig.empty("out", x.len() * 4)?;
    let inputs = vec![rig.empty("x", x.len() * 4)?, rig.f32s("w", &w)?, rig.f32s("bias", &b)?];
    let mut operands = Operands { inputs, outputs: vec![out], tables: vec![] };
    feed(rig, &mut launches, &mut operands, Arg::Input(0), &bytes::of_f32(&x))?;
    rig.run(&launches, step(ROWS, 1, 1), &operands)?;
    let want: Vec<f32> = x
        .chunks(N)
        .enumerate()
        .flat_map(|(i, x)| {
            let at = i % 2 * N;
            layer_norm::reference::layer_norm(x, &w[at..at + N], &b[at..at + N], EPS)
        })
        .collect();
    near("out", dtype, &want, &rig.read_f32(out, x.len())?)
}

fn head_norm(rig: &mut Rig, edit: &Edit) -> Result<()> {
    qk_norm(rig, edit, NormOver::Head)
}

fn row_norm(rig: &mut Rig, edit: &Edit) -> Result<()> {
    qk_norm(rig, edit, NormOver::Row)
}

fn qk_norm(rig: &mut Rig, edit: &Edit, over: NormOver) -> Result<()> {
    const BLOCK: usize = 16;
    const ROWS: usize = 4;
    // Rows that several warps share.
    let (heads, kv_heads, head_dim, rotary) = (9, 3, 32, 16);
    let dtype = DType::F32;
    let p = rope_append::cuda::Problem {
        heads,
        kv_heads,
        head_dim,
        rotary_dim: rotary,
        norm: Some((over, EPS)),
        dtype,
        kv_dtype: dtype,
        block: BLOCK,
        block_bytes: (2 * kv_heads * head_dim * BLOCK * 4) as u64,
    };
    // One sequence in the second block, then a row of padding.
    let sequences = [Sequence { q_start: 0, q_len: 3, kv_len: 8, blocks_start: 0 }];
    let (row_sequence, positions) = ([0, 0, 0, -1], [5, 6, 7, 0]);
    let cols = (heads + 2 * kv_heads) * head_dim;
    let qkv = uniform(4, ROWS * cols, dtype);
    let table = uniform(6, 8 * rotary, dtype);
    let (q_len, k_len) = match over {
        NormOver::Head => (head_dim, head_dim),
        NormOver::Row => (heads * head_dim, kv_heads * head_dim),
    };
    let (q_norm, k_norm) = (uniform(7, q_len, dtype), uniform(8, k_len, dtype));

    let mut launches = edit.apply(rope_append::cuda::launches(&p)?)?;
    let image = vec![0xff; 2 * p.block_bytes as usize];
    let (cache, q) = (rig.buffer("cache", &image)?, rig.empty("q", ROWS * heads * head_dim * 4)?);
    let inputs = vec![
        rig.empty("qkv", qkv.len() * 4)?,
        rig.i32s("positions", &positions)?,
        rig.f32s("table", &table)?,
        cache,
        rig.f32s("q_norm", &q_norm)?,
        rig.f32s("k_norm", &k_norm)?,
    ];
    let tables = vec![
        (StepTable::RowSequence, rig.i32s("row sequence", &row_sequence)?),
        (StepTable::Sequences, rig.sequences("sequences", &sequences)?),
        (StepTable::Blocks, rig.i32s("blocks", &[1])?),
    ];
    let mut operands = Operands { inputs, outputs: vec![q], tables };
    feed(rig, &mut launches, &mut operands, Arg::Input(0), &bytes::of_f32(&qkv))?;
    rig.run(&launches, step(ROWS, 1, 1), &operands)?;

    let got_q = rig.read_f32(q, 3 * heads * head_dim)?;
    let mut cache = rig.read_f32(cache, image.len() / 4)?;
    let (mut want_q, mut want_kv, mut got_kv) = (vec![], vec![], vec![]);
    for (row, position) in qkv.chunks(cols).zip(positions).take(3) {
        let turns = &table[position as usize * rotary..][..rotary];
        let part = |x: &[f32], w: &[f32]| -> Vec<f32> {
            let normed: Vec<f32> = x.chunks(w.len()).flat_map(|x| rms_norm(x, w, EPS)).collect();
            normed.chunks(head_dim).flat_map(|x| rope_append::reference::rope(x, turns)).collect()
        };
        let (q_cols, kv_cols) = (heads * head_dim, kv_heads * head_dim);
        want_q.extend(part(&row[..q_cols], &q_norm));
        want_kv.extend(part(&row[q_cols..q_cols + kv_cols], &k_norm));
        want_kv.extend_from_slice(&row[q_cols + kv_cols..]);
        for head in 0..2 * kv_heads {
            let at = p.block_bytes as usize / 4 + (head * BLOCK + position as usize) * head_dim;
            got_kv.extend_from_slice(&cache[at..at + head_dim]);
            cache[at..at + head_dim].fill(f32::NAN);
        }
    }
    near("q", dtype, &want_q, &got_q)?;
    near("cache", dtype, &want_kv, &got_kv)?;
    if let Some(at) = cache.iter().position(|x| !x.is_nan()) {
        return Err(Wrong(format!("cache: element {at} was written")).into());
    }
    Ok(())
}

fn columns(rig: &mut Rig, edit: &Edit) -> Result<()> {
    const ROWS: usize = 3;
    let (cols, stride, start) = (40, 100, 20);
    let (dtype, out_dtype) = (DType::F32, DType::BF16);
    let x = uniform(1, ROWS * stride, dtype);
    let problem = UnaryProblem {
        function: Unary::Scale(1.5),
        m: Symbol::Tokens,
        cols,
        stride,
        start,
        dtype,
        out: out_dtype,
    };
    let mut launches = edit.apply(unary_launches(&problem)?)?;
    let whole = rig.empty("x", x.len() * 4)?;
    let out = rig.empty("out", ROWS * cols * 2)?;
    let inputs = vec![whole.add(4 * start as u64), whole];
    let mut operands = Operands { inputs, outputs: vec![out], tables: vec![] };
    feed(rig, &mut launches, &mut operands, Arg::Input(1), &bytes::of_f32(&x))?;
    rig.run(&launches, step(ROWS, 1, 1), &operands)?;
    let want: Vec<f32> = x
        .chunks(stride)
        .flat_map(|r| r[start..start + cols].iter().map(|x| out_dtype.round(x * 1.5)))
        .collect();
    same("out", &want, &rig.read_floats(out, out_dtype, ROWS * cols)?)
}

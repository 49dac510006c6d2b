//! Cases of attention: split and whole decode, chunks, heads that warps share, the kernel without tensor cores.

use anyhow::Result;
use lathe_device::Arg;
use lathe_kernels::attention::cuda::{Problem, launches};
use lathe_numerics::DType;

use super::{Case, Edit, near, same};
use crate::attention::{Part, Step, Tokens, expected};
use crate::{Rig, bytes};

/// A chunk over a leaf's border among decodes, and its last row again as a decode of its own.
pub const MIXED: Case = Case { name: "attention: chunk and decode", run: mixed };
/// A chunk of heads whose rows two warps share.
pub const WIDE: Case = Case { name: "attention: wide heads", run: wide };
/// A window over a leaf's border, a soft cap and sinks, for a chunk, decodes, and a row again as a decode.
pub const FEATURED: Case = Case { name: "attention: window, cap and sinks", run: featured };
/// The same in f32.
pub const PLAIN_FEATURED: Case =
    Case { name: "attention: window, cap and sinks in f32", run: plain_featured };
/// f32.
pub const PLAIN: Case = Case { name: "attention: f32", run: plain };

fn problem(heads: usize, kv_heads: usize, head_dim: usize, dtype: DType) -> Problem {
    let block = 32;
    Problem {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        dtype,
        kv_dtype: dtype,
        block,
        block_bytes: 2 * (2 * kv_heads * head_dim * block * dtype.size()) as u64,
        max_seq_len: 512,
        max_seqs: 8,
        max_tokens: 64,
        window: None,
        softcap: None,
        sinks: false,
    }
}

fn mixed(rig: &mut Rig, edit: &Edit) -> Result<()> {
    ragged(rig, edit, problem(4, 2, 64, DType::BF16))
}

fn featured(rig: &mut Rig, edit: &Edit) -> Result<()> {
    let p = problem(4, 2, 64, DType::BF16);
    ragged(rig, edit, Problem { window: Some(20), softcap: Some(1.5), sinks: true, ..p })
}

fn plain_featured(rig: &mut Rig, edit: &Edit) -> Result<()> {
    let p = problem(2, 1, 20, DType::F32);
    let p = Problem { window: Some(20), softcap: Some(1.5), sinks: true, ..p };
    check(rig, edit, &p, &[Part(&Tokens::new(&p, 5, 140), 130, 2)]).map(|_| ())
}

fn ragged(rig: &mut Rig, edit: &Edit, p: Problem) -> Result<()> {
    let (a, b) = (Tokens::new(&p, 5, 140), Tokens::new(&p, 50, 300));
    let chunk = check(rig, edit, &p, &[Part(&a, 107, 33), Part(&b, 126, 1), Part(&b, 299, 1)])?;
    let alone = check(rig, edit, &p, &[Part(&a, 139, 1)])?;
    let width = p.heads * p.head_dim;
    same("row alone", &chunk[32 * width..][..width], &alone)
}

fn wide(rig: &mut Rig, edit: &Edit) -> Result<()> {
    let p = problem(2, 1, 256, DType::BF16);
    check(rig, edit, &p, &[Part(&Tokens::new(&p, 5, 140), 120, 13)]).map(|_| ())
}

fn plain(rig: &mut Rig, edit: &Edit) -> Result<()> {
    let p = problem(2, 1, 20, DType::F32);
    check(rig, edit, &p, &[Part(&Tokens::new(&p, 5, 140), 130, 2)]).map(|_| ())
}

/// A step with a row and a sequence of padding against the reference; q comes from the launch before. Gives the rows' bits.
fn check(rig: &mut Rig, edit: &Edit, p: &Problem, parts: &[Part]) -> Result<Vec<u32>> {
    let step = Step::new(p, parts, 1, 1);
    let mut launches = edit.apply(launches(p)?)?;
    let q = rig.empty("q", step.q.len() * p.dtype.size())?;
    let mut operands = step.operands(rig, p, q)?;
    let out = operands.outputs[0];
    super::feed(rig, &mut launches, &mut operands, Arg::Input(0), &bytes::of(p.dtype, &step.q))?;
    rig.run(&launches, step.symbols(4), &operands)?;
    let rows = parts.iter().flat_map(|&Part(t, done, now)| (done..done + now).map(move |row| (t, row)));
    let want: Vec<f32> =
        rows.flat_map(|(t, row)| (0..p.heads).flat_map(move |head| expected(p, t, row, head))).collect();
    let got = rig.read_floats(out, p.dtype, want.len())?;
    near("out", p.dtype, &want, &got)?;
    Ok(super::bits(&got))
}

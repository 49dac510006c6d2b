//! Cases of attention: split and whole decode, chunks, heads that warps share, the kernel without tensor cores.

use anyhow::Result;
use lathe_device::{Arg, Sequence, StepTable};
use lathe_kernels::attention::cuda::{Problem, launches};
use lathe_kernels::attention::reference;
use lathe_numerics::DType;

use super::{Case, Edit, near, same, step as symbols, values};
use crate::{Operands, Rig, bytes};

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

/// A sequence's projections after their roundings.
struct Tokens {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn tokens(p: &Problem, seed: u32, len: usize) -> Tokens {
    let kv = len * p.kv_heads * p.head_dim;
    let mut k = values(seed + 1, kv, DType::F32);
    k.iter_mut().for_each(|k| *k = p.dtype.round(*k * 3.0));
    Tokens { q: values(seed, len * p.heads * p.head_dim, p.dtype), k, v: values(seed + 2, kv, p.dtype) }
}

/// What one sequence does in a step: its tokens, rows done before, rows now.
#[derive(Clone, Copy)]
struct Part<'a>(&'a Tokens, usize, usize);

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
    check(rig, edit, &p, &[Part(&tokens(&p, 5, 140), 130, 2)]).map(|_| ())
}

fn ragged(rig: &mut Rig, edit: &Edit, p: Problem) -> Result<()> {
    let (a, b) = (tokens(&p, 5, 140), tokens(&p, 50, 300));
    let chunk = check(rig, edit, &p, &[Part(&a, 107, 33), Part(&b, 126, 1), Part(&b, 299, 1)])?;
    let alone = check(rig, edit, &p, &[Part(&a, 139, 1)])?;
    let width = p.heads * p.head_dim;
    same("row alone", &chunk[32 * width..][..width], &alone)
}

fn wide(rig: &mut Rig, edit: &Edit) -> Result<()> {
    let p = problem(2, 1, 256, DType::BF16);
    check(rig, edit, &p, &[Part(&tokens(&p, 5, 140), 120, 13)]).map(|_| ())
}

fn plain(rig: &mut Rig, edit: &Edit) -> Result<()> {
    let p = problem(2, 1, 20, DType::F32);
    check(rig, edit, &p, &[Part(&tokens(&p, 5, 140), 130, 2)]).map(|_| ())
}

/// Sinks about as large as the largest scores, other for every head.
fn sinks(p: &Problem) -> Option<Vec<f32>> {
    p.sinks.then(|| (0..p.heads).map(|h| 1.5 - h as f32 * 0.8).collect())
}

fn expected(p: &Problem, t: &Tokens, row: usize, head: usize) -> Vec<f32> {
    let kv_head = head * p.kv_heads / p.heads;
    let pick = |x: &[f32]| -> Vec<f32> {
        let rows = (0..=row).map(|i| &x[(i * p.kv_heads + kv_head) * p.head_dim..][..p.head_dim]);
        rows.flatten().copied().collect()
    };
    let q = &t.q[(row * p.heads + head) * p.head_dim..][..p.head_dim];
    reference::attention(q, &pick(&t.k), &pick(&t.v), p.scale, p.window, p.softcap, sinks(p).map(|s| s[head]))
}

/// A step with a row and a sequence of padding against the reference, over a cache that is NaN but for what the
/// sequences have written; q comes from the launch before. Gives the rows' bits.
fn check(rig: &mut Rig, edit: &Edit, p: &Problem, parts: &[Part]) -> Result<Vec<u32>> {
    let (width, kv_width, size) = (p.heads * p.head_dim, p.kv_heads * p.head_dim, p.dtype.size());
    let layer = p.block_bytes as usize / 2;
    let pages: usize = parts.iter().map(|Part(_, done, now)| (done + now).div_ceil(p.block)).sum();
    let mut cache = vec![0xff; (pages + 1) * p.block_bytes as usize];
    let (mut sequences, mut blocks, mut row_sequence) = (vec![], vec![], vec![]);
    let (mut q, mut want) = (vec![], vec![]);
    for (i, Part(t, done, now)) in parts.iter().enumerate() {
        let kv_len = done + now;
        sequences.push(Sequence {
            q_start: row_sequence.len() as i32,
            q_len: *now as i32,
            kv_len: kv_len as i32,
            blocks_start: blocks.len() as i32,
        });
        let first = blocks.len();
        // Pages from the last to the first.
        blocks.extend((0..kv_len.div_ceil(p.block)).map(|b| (pages - first - b) as i32));
        row_sequence.extend(std::iter::repeat_n(i as i32, *now));
        q.extend_from_slice(&t.q[done * width..kv_len * width]);
        want.extend((*done..kv_len).flat_map(|row| (0..p.heads).flat_map(move |h| expected(p, t, row, h))));
        for position in 0..kv_len {
            let page = blocks[first + position / p.block] as usize * p.block_bytes as usize + layer;
            for (part, x) in [&t.k, &t.v].into_iter().enumerate() {
                for h in 0..p.kv_heads {
                    let row = &x[position * kv_width + h * p.head_dim..][..p.head_dim];
                    let at = ((part * p.kv_heads + h) * p.block + position % p.block) * p.head_dim * size;
                    cache[page + at..][..p.head_dim * size].copy_from_slice(&bytes::of(p.dtype, row));
                }
            }
        }
    }
    let rows = row_sequence.len();
    row_sequence.push(-1);
    q.extend(std::iter::repeat_n(f32::NAN, width));
    sequences.push(Sequence::default());

    let mut launches = edit.apply(launches(p)?)?;
    let q_at = rig.empty("q", q.len() * size)?;
    let out = rig.empty("out", q.len() * size)?;
    let tables = vec![
        (StepTable::RowSequence, rig.i32s("row sequence", &row_sequence)?),
        (StepTable::Sequences, rig.sequences("sequences", &sequences)?),
        (StepTable::Blocks, rig.i32s("blocks", &blocks)?),
    ];
    let cache = rig.buffer("cache", &cache)?;
    // The second of two layers.
    let sinks = sinks(p).map(|s| rig.f32s("sinks", &s)).transpose()?;
    let inputs = [q_at, cache.add(layer as u64)].into_iter().chain(sinks).collect();
    let mut operands = Operands { inputs, outputs: vec![out], tables };
    super::feed(rig, &mut launches, &mut operands, Arg::Input(0), &bytes::of(p.dtype, &q))?;
    let mut step = symbols(row_sequence.len(), sequences.len(), 1);
    step.decode = parts.iter().all(|part| part.2 == 1);
    rig.run(&launches, step, &operands)?;
    let got = rig.read_floats(out, p.dtype, rows * width)?;
    near("out", p.dtype, &want, &got)?;
    Ok(super::bits(&got))
}

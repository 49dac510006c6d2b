//! Device `rope_append`: the bits of the CPU's kernel, the slots of the device's cache, and nothing else written.

use anyhow::{Result, ensure};
use lathe_conformance::values::uniform;
use lathe_conformance::{Operands, Rig, bytes, norms};
use lathe_device::{Sequence, StepTable, Symbols};
use lathe_kernels::paged::{Batch, KvCache, KvLayout, Sequence as CpuSequence};
use lathe_kernels::rope_append::cuda::{
    KvAppendProblem, Problem, RopeProblem, kv_append_launches, launches, rope_launches,
};
use lathe_kernels::rope_append::{NormOver, RopeAppend, RopeAppendArgs, reference};
use lathe_kernels::{Dst, Isa, IsaPath, Kernel, tolerance};
use lathe_numerics::DType;

const BLOCKS: usize = 7;
const MAX_POS: usize = 64;

fn table(rotary: usize) -> Vec<f32> {
    let angle = |p: usize, i: usize| p as f64 * 100f64.powf(-2.0 * i as f64 / rotary.max(1) as f64);
    (0..MAX_POS)
        .flat_map(|p| {
            let cos = (0..rotary / 2).map(move |i| angle(p, i).cos() as f32);
            cos.chain((0..rotary / 2).map(move |i| angle(p, i).sin() as f32))
        })
        .collect()
}

/// A chunk of 3 rows, a decode, a chunk of 4 over a block's border, then two rows of padding.
struct Step {
    sequences: Vec<Sequence>,
    blocks: Vec<i32>,
    row_sequence: Vec<i32>,
    positions: Vec<i32>,
}

fn step() -> Step {
    let sequences = vec![
        Sequence { q_start: 0, q_len: 3, kv_len: 8, blocks_start: 0 },
        Sequence { q_start: 3, q_len: 1, kv_len: 40, blocks_start: 1 },
        Sequence { q_start: 4, q_len: 4, kv_len: 34, blocks_start: 4 },
        Sequence::default(),
    ];
    Step {
        sequences,
        blocks: vec![2, 0, 3, 5, 6, 1, 4],
        row_sequence: vec![0, 0, 0, 1, 2, 2, 2, 2, -1, -1],
        positions: vec![5, 6, 7, 39, 30, 31, 32, 33, 0, 0],
    }
}

/// The rows of the step that are no padding.
const ROWS: usize = 8;

/// q and the cache as the CPU's kernel leaves them.
fn cpu(p: &Problem, step: &Step, qkv: &[f32], table: &[f32]) -> Result<(Vec<u8>, KvLayout, Vec<u8>)> {
    let layout = KvLayout::new(p.kv_dtype, p.kv_heads, p.head_dim, p.block)?;
    let sequences: Vec<CpuSequence> = step.sequences[..3]
        .iter()
        .map(|s| CpuSequence {
            q_start: s.q_start as usize,
            q_len: s.q_len as usize,
            kv_len: s.kv_len as usize,
            blocks_start: s.blocks_start as usize,
        })
        .collect();
    let ids: Vec<u32> = step.blocks.iter().map(|b| *b as u32).collect();
    let positions: Vec<u32> = step.positions.iter().map(|p| *p as u32).collect();
    let cols = (p.heads + 2 * p.kv_heads) * p.head_dim;
    let mut q = vec![0u64; (ROWS * p.heads * p.head_dim * p.dtype.size()).div_ceil(8)];
    let mut cache = vec![u64::MAX; BLOCKS * layout.block_bytes() / 8];
    let q_len = ROWS * p.heads * p.head_dim * p.dtype.size();
    // SAFETY: the vectors' own bytes, alive and untouched while the kernel runs.
    let (q_out, memory) = unsafe {
        (
            Dst::raw(p.dtype, q.as_mut_ptr().cast(), q_len)?,
            std::slice::from_raw_parts_mut(cache.as_mut_ptr().cast::<u8>(), cache.len() * 8),
        )
    };
    let kernel = RopeAppend::new(RopeAppendArgs {
        path: IsaPath::force(Isa::Scalar)?,
        qkv: qkv[..ROWS * cols].into(),
        qkv_stride: cols,
        positions: &positions,
        norm: None,
        table: table.into(),
        max_pos: MAX_POS,
        rotary_dim: p.rotary_dim,
        heads: p.heads,
        q_out,
        cache: KvCache::new(layout, memory, 0, layout.block_bytes(), BLOCKS)?,
        batch: Batch::new(&sequences, &ids, p.block, BLOCKS)?,
    })?;
    // SAFETY: one thread runs every unit once.
    unsafe { kernel.run(0..kernel.units(), &mut []) };
    let flat = |words: &[u64], len: usize| words.iter().flat_map(|w| w.to_le_bytes()).take(len).collect();
    Ok((flat(&q, q_len), layout, flat(&cache, cache.len() * 8)))
}

/// `x` after the norm in the order that the module documents, for teams of `threads`.
fn normed(x: &[f32], w: &[f32], eps: f32, threads: usize, vec: usize) -> Vec<f32> {
    let sum = norms::sum(x.iter().map(|v| v * v), threads, vec);
    let inv = 1.0 / (sum / x.len() as f32 + eps).sqrt();
    x.iter().zip(w).map(|(x, w)| (x * inv) * w).collect()
}

/// The projections as they are when the norms are done, and the norms' weights.
fn after_norms(p: &Problem, qkv: &[f32]) -> (Vec<f32>, Vec<Vec<f32>>) {
    let Some((over, eps)) = p.norm else { return (qkv.to_vec(), vec![]) };
    let vec = 1 << (p.head_dim | p.rotary_dim).trailing_zeros().saturating_sub(1).min(2);
    let (q, kv) = (p.heads * p.head_dim, p.kv_heads * p.head_dim);
    let (lens, threads) = match over {
        NormOver::Head => ([p.head_dim; 2], 32),
        NormOver::Row => ([q, kv], 256),
    };
    let weights = vec![uniform(11, lens[0], DType::F32), uniform(12, lens[1], DType::F32)];
    let mut out = Vec::new();
    for row in qkv.chunks(q + 2 * kv) {
        for (part, w) in [&row[..q], &row[q..q + kv]].into_iter().zip(&weights) {
            out.extend(part.chunks(w.len()).flat_map(|x| normed(x, w, eps, threads, vec)));
        }
        out.extend_from_slice(&row[q + kv..]);
    }
    (out, weights)
}

fn check(rig: &mut Rig, p: &Problem, layer: u64, parts: bool) -> Result<()> {
    let step = step();
    let cols = (p.heads + 2 * p.kv_heads) * p.head_dim;
    let (given, table) = (uniform(4, step.positions.len() * cols, DType::F32), table(p.rotary_dim));
    let (qkv, norms) = after_norms(p, &given);
    let (want_q, layout, want_cache) = cpu(&Problem { norm: None, ..*p }, &step, &qkv, &table)?;

    let image = vec![0xff; BLOCKS * p.block_bytes as usize];
    let q_bytes = step.positions.len() * p.heads * p.head_dim * p.dtype.size();
    let cache = rig.buffer("cache", &image)?;
    let q = rig.empty("q", q_bytes)?;
    let positions = rig.i32s("positions", &step.positions)?;
    let table_at = rig.f32s("table", &table)?;
    let tables = vec![
        (StepTable::RowSequence, rig.i32s("row sequence", &step.row_sequence)?),
        (StepTable::Sequences, rig.sequences("sequences", &step.sequences)?),
        (StepTable::Blocks, rig.i32s("blocks", &step.blocks)?),
    ];
    let symbols = Symbols { tokens: 10, sequences: 4, rows: 3, decode: false, sm_count: 2 };
    if parts {
        let (q_cols, kv_cols) = (p.heads * p.head_dim, p.kv_heads * p.head_dim);
        let mut columns = |from: usize, n: usize| {
            let part: Vec<f32> = given.chunks(cols).flat_map(|row| row[from..from + n].to_vec()).collect();
            rig.f32s("columns", &part)
        };
        let (q_in, k_in) = (columns(0, q_cols)?, columns(q_cols, kv_cols)?);
        let v = columns(q_cols + kv_cols, kv_cols)?;
        let k = rig.empty("k", step.positions.len() * kv_cols * 4)?;
        for (x, heads, dtype, out) in [(q_in, p.heads, p.dtype, q), (k_in, p.kv_heads, DType::F32, k)] {
            let (head_dim, rotary_dim) = (p.head_dim, p.rotary_dim);
            let problem = RopeProblem { heads, head_dim, rotary_dim, dtype: DType::F32, out: dtype };
            let inputs = vec![x, positions, table_at];
            let operands = Operands { inputs, outputs: vec![out], tables: vec![] };
            rig.run(&rope_launches(&problem)?, symbols, &operands)?;
        }
        let problem = KvAppendProblem {
            kv_heads: p.kv_heads,
            head_dim: p.head_dim,
            k: DType::F32,
            v: DType::F32,
            kv_dtype: p.kv_dtype,
            block: p.block,
            block_bytes: p.block_bytes,
        };
        let operands = Operands { inputs: vec![k, v, cache.add(layer)], outputs: vec![], tables };
        rig.run(&kv_append_launches(&problem)?, symbols, &operands)?;
    } else {
        let mut inputs = vec![rig.f32s("qkv", &given)?, positions];
        inputs.extend((p.rotary_dim > 0).then_some(table_at));
        inputs.push(cache.add(layer));
        for weight in &norms {
            inputs.push(rig.f32s("norm", weight)?);
        }
        rig.run(&launches(p)?, symbols, &Operands { inputs, outputs: vec![q], tables })?;
    }

    let got_q = rig.read(q, q_bytes)?;
    ensure!(got_q[..want_q.len()] == want_q[..], "q differs");
    let q_cols = p.heads * p.head_dim;
    for (row, position) in step.positions[..ROWS].iter().enumerate() {
        let t = &table[*position as usize * p.rotary_dim..][..p.rotary_dim];
        let heads = qkv[row * cols..][..q_cols].chunks_exact(p.head_dim);
        let want: Vec<f32> = heads.flat_map(|x| reference::rope(x, t)).collect();
        let bytes = &got_q[row * q_cols * p.dtype.size()..][..q_cols * p.dtype.size()];
        tolerance::check(p.dtype, &want, &bytes::to(p.dtype, bytes)).map_err(anyhow::Error::msg)?;
    }

    // The cache that should be: the CPU's elements in the device's order, in every other byte what was there.
    let mut want = image;
    let size = p.kv_dtype.size();
    let (n, half) = (layout.block_bytes() / size, layout.block_bytes() / 2 / size);
    for block in 0..BLOCKS {
        let mut put = |to: usize, from: usize| {
            let from = &want_cache[(block * n + from) * size..][..size];
            want[block * p.block_bytes as usize + layer as usize + to * size..][..size].copy_from_slice(from);
        };
        for (h, at) in (0..p.kv_heads).flat_map(|h| (0..p.block).map(move |at| (h, at))) {
            for d in 0..p.head_dim {
                let to = (h * p.block + at) * p.head_dim + d;
                put(to, layout.k_index(h, at, d));
                put(half + to, layout.v_index(h, at, d));
            }
        }
    }
    ensure!(rig.read(cache, want.len())? == want, "cache differs");
    Ok(())
}

#[test]
fn queries_and_cache_have_the_bits_of_the_cpu() -> Result<()> {
    let mut rig = Rig::chosen(true)?;
    let (b, h, f) = (DType::BF16, DType::F16, DType::F32);
    for (heads, kv_heads, head_dim, rotary_dim, dtype, kv_dtype) in [
        (4, 2, 64, 64, b, b),
        (3, 3, 80, 80, h, h),
        (8, 1, 128, 128, b, b),
        (7, 1, 80, 32, b, h),
        (2, 2, 18, 18, f, f),
        (5, 1, 20, 8, f, b),
        (2, 1, 256, 0, h, f),
    ] {
        let layer = (2 * kv_heads * head_dim * 16 * kv_dtype.size()) as u64;
        // Three layers; the middle one is this one.
        let p = Problem {
            heads,
            kv_heads,
            head_dim,
            rotary_dim,
            norm: None,
            dtype,
            kv_dtype,
            block: 16,
            block_bytes: 3 * layer,
        };
        for over in [NormOver::Head, NormOver::Row] {
            let p = Problem { norm: Some((over, 1e-5)), ..p };
            check(&mut rig, &p, layer, false).map_err(|e| e.context(format!("{p:?}")))?;
        }
        for parts in [false, rotary_dim > 0] {
            check(&mut rig, &p, layer, parts).map_err(|e| e.context(format!("{p:?} in parts: {parts}")))?;
        }
    }
    Ok(())
}

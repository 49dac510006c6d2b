//! Device `rope_append`: the bits of the CPU's kernel, the slots of the device's cache, and nothing else written.

use anyhow::{Result, ensure};
use lathe_conformance::{Operands, Rig, bytes};
use lathe_device::{Sequence, StepTable, Symbols};
use lathe_kernels::paged::{Batch, KvCache, KvLayout, Sequence as CpuSequence};
use lathe_kernels::rope_append::cuda::{Problem, launches};
use lathe_kernels::rope_append::{RopeAppend, RopeAppendArgs, reference};
use lathe_kernels::{Dst, Isa, IsaPath, Kernel, tolerance};
use lathe_numerics::DType;
use lathe_numerics::philox::philox4x32;

const BLOCKS: usize = 7;
const MAX_POS: usize = 64;

fn values(seed: u32, n: usize) -> Vec<f32> {
    (0..n.div_ceil(4))
        .flat_map(|i| philox4x32([i as u32, 0, 0, 0], [seed, 7]))
        .map(|w| (w >> 8) as f32 / 8_388_608.0 - 1.0)
        .take(n)
        .collect()
}

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

fn check(rig: &mut Rig, p: &Problem, layer: u64) -> Result<()> {
    let step = step();
    let cols = (p.heads + 2 * p.kv_heads) * p.head_dim;
    let (qkv, table) = (values(4, step.positions.len() * cols), table(p.rotary_dim));
    let (want_q, layout, want_cache) = cpu(p, &step, &qkv, &table)?;

    let image = vec![0xff; BLOCKS * p.block_bytes as usize];
    let q_bytes = step.positions.len() * p.heads * p.head_dim * p.dtype.size();
    let cache = rig.buffer("cache", &image)?;
    let q = rig.empty("q", q_bytes)?;
    let inputs = vec![
        rig.f32s("qkv", &qkv)?,
        rig.i32s("positions", &step.positions)?,
        rig.f32s("table", &table)?,
        cache.add(layer),
    ];
    let tables = vec![
        (StepTable::RowSequence, rig.i32s("row sequence", &step.row_sequence)?),
        (StepTable::Sequences, rig.sequences("sequences", &step.sequences)?),
        (StepTable::Blocks, rig.i32s("blocks", &step.blocks)?),
    ];
    let symbols = Symbols { tokens: 10, sequences: 4, rows: 3, decode: false, sm_count: 2 };
    rig.run(&launches(p)?, symbols, &Operands { inputs, outputs: vec![q], tables })?;

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
        check(&mut rig, &p, layer).map_err(|e| e.context(format!("{p:?}")))?;
    }
    Ok(())
}

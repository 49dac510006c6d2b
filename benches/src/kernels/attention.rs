//! Attention of one layer: decode of one and many sequences, prefill.

use anyhow::Result;
use half::bf16;
use lathe_kernels::attention::{Attention, AttentionArgs};
use lathe_kernels::paged::{Batch, KvCache, KvLayout, Sequence};
use lathe_numerics::DType;

use super::{Cx, launch};

const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 64;
/// Positions per cache block. Blocks are scattered as after a while of serving: 7 has no factor in `N_BLOCKS`.
const BLOCK: usize = 32;
const N_BLOCKS: usize = 2048;
/// (sequences, rows of each, positions of each).
const BATCHES: [(usize, usize, usize); 6] =
    [(1, 1, 512), (1, 1, 4096), (32, 1, 512), (32, 1, 2048), (1, 512, 512), (1, 512, 4096)];

/// `memory` serves as the cache and must be no shorter.
pub fn measure(cx: &mut Cx, memory: &mut [u64]) -> Result<()> {
    let (path, mut scratch) = (cx.path, vec![vec![]; cx.threads]);
    let layout = KvLayout::new(DType::BF16, KV_HEADS, HEAD_DIM, BLOCK)?;
    for (n_seqs, q_len, kv_len) in BATCHES {
        let per = kv_len.div_ceil(BLOCK);
        let seqs: Vec<Sequence> = (0..n_seqs)
            .map(|i| Sequence { q_start: i * q_len, q_len, kv_len, blocks_start: i * per })
            .collect();
        let q = vec![bf16::from_f32(0.5); n_seqs * q_len * HEADS * HEAD_DIM];
        // Decoding one sequence is short beside the start of the threads; each problem has blocks and rows of its own.
        let problems = if n_seqs * q_len == 1 { N_BLOCKS / per } else { 1 };
        let tables: Vec<Vec<u32>> = (0..problems)
            .map(|p| (0..n_seqs * per).map(|i| ((p * per + i) * 7 % N_BLOCKS) as u32).collect())
            .collect();
        let mut outs = vec![q.clone(); problems];
        let (ptr, len) = (memory.as_mut_ptr().cast(), std::mem::size_of_val(memory));
        let mut attentions = Vec::with_capacity(problems);
        for (out, blocks) in outs.iter_mut().zip(&tables) {
            // SAFETY: exactly the slice's bytes, borrowed for longer than the problems live; they only read them.
            let cache = unsafe { KvCache::raw(layout, ptr, len, 0, layout.block_bytes(), N_BLOCKS) }?;
            attentions.push(Attention::new(AttentionArgs {
                path,
                q: q.as_slice().into(),
                heads: HEADS,
                scale: 0.125,
                window: None,
                softcap: None,
                sinks: None,
                cache,
                batch: Batch::new(&seqs, blocks, BLOCK, N_BLOCKS)?,
                out: out.as_mut_slice().into(),
            })?);
        }
        let bytes = n_seqs * kv_len * KV_HEADS * HEAD_DIM * 4;
        let seen: usize = (kv_len - q_len + 1..=kv_len).sum();
        let flops = n_seqs * seen * HEADS * HEAD_DIM * 4;
        cx.row(
            format!("attention {n_seqs} sequences, {q_len} rows, {kv_len} positions"),
            Some(bytes),
            Some(flops),
            attentions.len(),
            || launch(&attentions, &mut scratch),
        )?;
    }
    Ok(())
}

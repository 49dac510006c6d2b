//! Attention of one layer: decode of one and many sequences, prefill.

use anyhow::Result;
use half::bf16;
use lathe_kernels::KernelError;
use lathe_kernels::attention::{Attention, AttentionArgs};
use lathe_kernels::paged::{Batch, KvCache, KvLayout, Sequence};
use lathe_numerics::DType;

use super::{Cx, launch};

const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 64;
/// Positions per cache block.
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
        // Scattered as after a while of serving; 7 and the number of blocks have no common factor.
        let blocks: Vec<u32> = (0..n_seqs * per).map(|i| (i * 7 % N_BLOCKS) as u32).collect();
        let q = vec![bf16::from_f32(0.5); n_seqs * q_len * HEADS * HEAD_DIM];
        let mut out = q.clone();
        let mut problem = || -> Result<(), KernelError> {
            let (ptr, len) = (memory.as_mut_ptr().cast(), std::mem::size_of_val(memory));
            // SAFETY: exactly the slice's bytes, borrowed for as long.
            let cache = unsafe { KvCache::raw(layout, ptr, len, 0, layout.block_bytes(), N_BLOCKS) }?;
            let attention = Attention::new(AttentionArgs {
                path,
                q: q.as_slice().into(),
                heads: HEADS,
                scale: 0.125,
                cache,
                batch: Batch::new(&seqs, &blocks, BLOCK, N_BLOCKS)?,
                out: out.as_mut_slice().into(),
            })?;
            launch(&attention, &mut scratch);
            Ok(())
        };
        let bytes = n_seqs * kv_len * KV_HEADS * HEAD_DIM * 4;
        let seen: usize = (kv_len - q_len + 1..=kv_len).sum();
        let flops = n_seqs * seen * HEADS * HEAD_DIM * 4;
        let mut fault = Ok(());
        cx.row(
            format!("attention {n_seqs} sequences, {q_len} rows, {kv_len} positions"),
            Some(bytes),
            Some(flops),
            || {
                if let Err(e) = problem() {
                    fault = Err(e);
                }
            },
        )?;
        fault?;
    }
    Ok(())
}

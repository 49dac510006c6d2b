//! Rotary embedding and KV append on a device: a block per token and 128 of its vectors; with norms of query and key a
//! warp per head, or three blocks per token.
//!
//! The arithmetic of the CPU's kernel, bit for bit: unfused f32, one rounding. The slot of a row in the cache is
//! `kv_len - q_len + (row - q_start)` of its sequence; one layer of a block is K, then V, each
//! `[kv_heads][block][head_dim]`. Rows whose sequence is -1 write no KV.
//!
//! Order of a norm's sum, a function of head counts and sizes alone: runs of [`vector`] elements are dealt to 32 threads
//! (256 over a row) by turns; a thread adds its squares by ascending index; then warps as in `rms_norm/cuda`.

use lathe_device::{Arg, Extent, StepTable, Symbol, When};
use lathe_numerics::DType;

use crate::cuda::{Cost, Launches, Source, Stage, element};
use crate::error::{KernelError, at_least, at_most};
use crate::rope_append::NormOver;
use crate::view::float;

mod parts;

pub use parts::{KvAppendProblem, RopeProblem, kv_append_launches, rope_launches};

const NAME: &str = "rope_append";
const THREADS: usize = 128;
/// Threads of a block that normalises a row.
const ROW_THREADS: usize = 256;

/// A rotary embedding with append.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Problem {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Elements per head, even.
    pub head_dim: usize,
    /// Leading elements of a head that rotate, even; 0 without a table.
    pub rotary_dim: usize,
    /// What is normalised before it rotates, and what is added to the mean square.
    pub norm: Option<(NormOver, f32)>,
    /// Of q as it goes out.
    pub dtype: DType,
    /// Of keys and values in the cache.
    pub kv_dtype: DType,
    /// Positions per block of the cache.
    pub block: usize,
    /// Bytes from one block to the next, all layers.
    pub block_bytes: u64,
}

/// Inputs qkv `f32[t, (heads + 2 kv_heads) head_dim]`, positions `i32[t]`, table `f32[positions, rotary_dim]` (cosines,
/// then sines) if anything rotates, cache (the layer in block 0), with a norm its weights for q and k in f32; output q
/// `D[t, heads head_dim]`.
///
/// # Errors
/// `Unsupported` for dtypes and odd dimensions, `Shape` for sizes of zero and a `rotary_dim` above `head_dim`.
pub fn launches(p: &Problem) -> Result<Launches, KernelError> {
    float(NAME, p.dtype)?;
    float(NAME, p.kv_dtype)?;
    at_least(NAME, "heads", 1, p.heads)?;
    at_least(NAME, "kv_heads", 1, p.kv_heads)?;
    at_least(NAME, "block", 1, p.block)?;
    let vec = vector(NAME, p.head_dim, p.rotary_dim)?;
    let all = p.heads + 2 * p.kv_heads;
    let mut defines = vec![
        ("ELEMENT", element(p.dtype).into()),
        ("KV_ELEMENT", element(p.kv_dtype).into()),
        ("HEADS", p.heads.to_string()),
        ("KV_HEADS", p.kv_heads.to_string()),
        ("HEAD_DIM", p.head_dim.to_string()),
        ("ROTARY", p.rotary_dim.to_string()),
        ("BLOCK", p.block.to_string()),
        ("BLOCK_BYTES", format!("{}ull", p.block_bytes)),
        ("VEC", vec.to_string()),
    ];
    let (entry, text, threads, blocks) = match p.norm {
        None => {
            let blocks = (all * p.head_dim / (2 * vec)).div_ceil(THREADS);
            (NAME, include_str!("kernel.cu"), THREADS, blocks)
        }
        Some((over, _)) => {
            let (threads, blocks) = match over {
                NormOver::Head => (THREADS, all.div_ceil(THREADS / 32)),
                NormOver::Row => (ROW_THREADS, 3),
            };
            defines.push(("OVER_ROW", u8::from(over == NormOver::Row).to_string()));
            ("norm_rope_append", include_str!("norm.cu"), threads, blocks)
        }
    };
    defines.push(("THREADS", threads.to_string()));
    let source = Source::new(format!("{entry}-{}-{}x{}", p.dtype, all, p.head_dim), text, defines);
    let rotates = p.rotary_dim > 0;
    // Without a table nothing reads one.
    let table = if rotates { Arg::Input(2) } else { Arg::U64(0) };
    let cache = 2 + u32::from(rotates);
    let mut args = vec![Arg::Input(0), Arg::Input(1), table, Arg::Input(cache)];
    if p.norm.is_some() {
        args.extend([Arg::Input(cache + 1), Arg::Input(cache + 2)]);
    }
    args.extend([
        Arg::Output(0),
        Arg::Table(StepTable::RowSequence),
        Arg::Table(StepTable::Sequences),
        Arg::Table(StepTable::Blocks),
    ]);
    args.extend(p.norm.map(|(_, eps)| Arg::F32(eps)));
    let elements = (all * p.head_dim) as u64;
    let out = p.heads * p.dtype.size() + 2 * p.kv_heads * p.kv_dtype.size();
    let stage = Stage {
        source,
        entry,
        when: When::Always,
        grid: [Extent::per(Symbol::Tokens, 1, 1), Extent::fixed(blocks as u32), Extent::fixed(1)],
        block: threads as u32,
        shared_bytes: 0,
        dependent: true,
        args,
        cost: Cost {
            fixed_bytes: 0,
            row_bytes: 4 * (elements + p.rotary_dim as u64) + (out * p.head_dim) as u64,
            row_flops: 3 * ((p.heads + p.kv_heads) * p.rotary_dim) as u64,
        },
    };
    Ok(Launches { stages: vec![stage], workspaces: vec![] })
}

/// Elements of a run, of which a thread takes two: 16-byte loads of f32 where the sizes allow them.
fn vector(kernel: &'static str, head_dim: usize, rotary_dim: usize) -> Result<usize, KernelError> {
    at_least(kernel, "head_dim", 2, head_dim)?;
    at_most(kernel, "rotary_dim", head_dim, rotary_dim)?;
    if head_dim % 2 == 1 || rotary_dim % 2 == 1 {
        let what = format!("head_dim {head_dim}, rotary_dim {rotary_dim}; both must be even");
        return Err(KernelError::Unsupported { kernel, what });
    }
    Ok(1 << (head_dim | rotary_dim).trailing_zeros().saturating_sub(1).min(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(head_dim: usize, rotary_dim: usize) -> Problem {
        Problem {
            heads: 32,
            kv_heads: 8,
            head_dim,
            rotary_dim,
            norm: None,
            dtype: DType::BF16,
            kv_dtype: DType::BF16,
            block: 32,
            block_bytes: 1 << 22,
        }
    }

    #[test]
    fn every_vector_of_a_token_has_a_thread() {
        for (head_dim, rotary_dim, vec) in
            [(128, 128, 4), (80, 80, 4), (80, 32, 4), (20, 8, 2), (18, 18, 1), (64, 0, 4)]
        {
            let l = launches(&problem(head_dim, rotary_dim)).unwrap();
            let stage = &l.stages[0];
            assert!(stage.source.defines.contains(&("VEC", vec.to_string())), "{head_dim} {rotary_dim}");
            let Extent::Sum { constant, .. } = stage.grid[1] else { unreachable!() };
            let (threads, vectors) = (constant as usize * THREADS, 48 * head_dim / (2 * vec));
            assert!(threads >= vectors && threads - vectors < THREADS);
        }
    }

    #[test]
    fn cost_is_what_must_move() {
        let cost = launches(&problem(128, 128)).unwrap().stages[0].cost;
        assert_eq!(cost.row_bytes, 48 * 128 * 6 + 4 * 128);
        assert_eq!(cost.row_flops, 3 * 40 * 128);
    }

    #[test]
    fn norms_have_a_warp_per_head_or_a_block_per_part() {
        let grid = |over| {
            let p = Problem { norm: Some((over, 1e-6)), ..problem(128, 128) };
            let stage = launches(&p).unwrap().stages.remove(0);
            (stage.block, stage.grid[1].clone(), stage.args.len())
        };
        assert_eq!(grid(NormOver::Head), (128, Extent::fixed(12), 11));
        assert_eq!(grid(NormOver::Row), (256, Extent::fixed(3), 11));
    }

    #[test]
    fn without_a_table_the_cache_is_the_third_operand() {
        let args = |rotary| launches(&problem(64, rotary)).unwrap().stages.remove(0).args;
        assert_eq!(args(0)[2..4], [Arg::U64(0), Arg::Input(2)]);
        assert_eq!(args(64)[2..4], [Arg::Input(2), Arg::Input(3)]);
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        let e = launches(&problem(18, 5)).unwrap_err().to_string();
        assert_eq!(e, "rope_append: unsupported: head_dim 18, rotary_dim 5; both must be even");
        assert!(launches(&problem(64, 66)).is_err());
        assert!(launches(&problem(0, 0)).is_err());
        assert!(launches(&Problem { kv_dtype: DType::I32, ..problem(64, 64) }).is_err());
        assert!(launches(&Problem { kv_heads: 0, ..problem(64, 64) }).is_err());
    }
}

//! Rotary embedding and KV append on a device: a block per token and 128 of its vectors.
//!
//! The arithmetic of the CPU's kernel, bit for bit: unfused f32, one rounding. The slot of a row in the cache is
//! `kv_len - q_len + (row - q_start)` of its sequence; one layer of a block is K, then V, each
//! `[kv_heads][block][head_dim]`. Rows whose sequence is -1 write no KV.

use lathe_device::{Arg, Extent, StepTable, Symbol, When};
use lathe_numerics::DType;

use crate::cuda::{Cost, Launches, Source, Stage, element};
use crate::error::{KernelError, at_least, at_most};
use crate::view::float;

const NAME: &str = "rope_append";
const TEXT: &str = include_str!("kernel.cu");
const THREADS: usize = 128;

/// A rotary embedding with append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Elements per head, even.
    pub head_dim: usize,
    /// Leading elements of a head that rotate, even.
    pub rotary_dim: usize,
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
/// then sines), cache (the layer in block 0); output q `D[t, heads head_dim]`.
///
/// # Errors
/// `Unsupported` for dtypes and odd dimensions, `Shape` for sizes of zero and a `rotary_dim` above `head_dim`.
pub fn launches(p: &Problem) -> Result<Launches, KernelError> {
    float(NAME, p.dtype)?;
    float(NAME, p.kv_dtype)?;
    at_least(NAME, "heads", 1, p.heads)?;
    at_least(NAME, "kv_heads", 1, p.kv_heads)?;
    at_least(NAME, "head_dim", 2, p.head_dim)?;
    at_most(NAME, "rotary_dim", p.head_dim, p.rotary_dim)?;
    at_least(NAME, "block", 1, p.block)?;
    if p.head_dim % 2 == 1 || p.rotary_dim % 2 == 1 {
        let what = format!("head_dim {}, rotary_dim {}; both must be even", p.head_dim, p.rotary_dim);
        return Err(KernelError::Unsupported { kernel: NAME, what });
    }
    // Two runs of `vec` elements per thread; 16-byte loads where the shapes allow them.
    let vec = 1 << (p.head_dim | p.rotary_dim).trailing_zeros().saturating_sub(1).min(2);
    let all = p.heads + 2 * p.kv_heads;
    let source = Source::new(
        format!("{NAME}-{}-{}x{}", p.dtype, all, p.head_dim),
        TEXT,
        vec![
            ("ELEMENT", element(p.dtype).into()),
            ("KV_ELEMENT", element(p.kv_dtype).into()),
            ("HEADS", p.heads.to_string()),
            ("KV_HEADS", p.kv_heads.to_string()),
            ("HEAD_DIM", p.head_dim.to_string()),
            ("ROTARY", p.rotary_dim.to_string()),
            ("BLOCK", p.block.to_string()),
            ("BLOCK_BYTES", format!("{}ull", p.block_bytes)),
            ("VEC", vec.to_string()),
        ],
    );
    let elements = (all * p.head_dim) as u64;
    let out = p.heads * p.dtype.size() + 2 * p.kv_heads * p.kv_dtype.size();
    let blocks = (all * p.head_dim / (2 * vec)).div_ceil(THREADS);
    let stage = Stage {
        source,
        entry: NAME,
        when: When::Always,
        grid: [Extent::per(Symbol::Tokens, 1, 1), Extent::fixed(blocks as u32), Extent::fixed(1)],
        block: THREADS as u32,
        shared_bytes: 0,
        dependent: true,
        args: vec![
            Arg::Input(0),
            Arg::Input(1),
            Arg::Input(2),
            Arg::Input(3),
            Arg::Output(0),
            Arg::Table(StepTable::RowSequence),
            Arg::Table(StepTable::Sequences),
            Arg::Table(StepTable::Blocks),
        ],
        cost: Cost {
            fixed_bytes: 0,
            row_bytes: 4 * (elements + p.rotary_dim as u64) + (out * p.head_dim) as u64,
            row_flops: 3 * ((p.heads + p.kv_heads) * p.rotary_dim) as u64,
        },
    };
    Ok(Launches { stages: vec![stage], workspaces: vec![] })
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
    fn refusals_name_what_is_wrong() {
        let e = launches(&problem(18, 5)).unwrap_err().to_string();
        assert_eq!(e, "rope_append: unsupported: head_dim 18, rotary_dim 5; both must be even");
        assert!(launches(&problem(64, 66)).is_err());
        assert!(launches(&problem(0, 0)).is_err());
        assert!(launches(&Problem { kv_dtype: DType::I32, ..problem(64, 64) }).is_err());
        assert!(launches(&Problem { kv_heads: 0, ..problem(64, 64) }).is_err());
    }
}

//! The rotation and the append by themselves on a device.

use lathe_device::{Arg, Extent, StepTable, Symbol, When};
use lathe_numerics::DType;

use super::{THREADS, vector};
use crate::cuda::{Cost, Launches, Source, Stage, element};
use crate::error::{KernelError, at_least};
use crate::view::float;

/// A rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeProblem {
    /// Heads.
    pub heads: usize,
    /// Elements per head, even.
    pub head_dim: usize,
    /// Leading elements of a head that rotate, even.
    pub rotary_dim: usize,
    /// Of x.
    pub dtype: DType,
    /// Of the result.
    pub out: DType,
}

/// Inputs x `[t, heads head_dim]`, positions `i32[t]`, table `f32[positions, rotary_dim]` (cosines, then sines); output
/// `[t, heads head_dim]`.
///
/// # Errors
/// `Unsupported` for dtypes and odd dimensions, `Shape` for sizes of zero and a `rotary_dim` above `head_dim`.
pub fn rope_launches(p: &RopeProblem) -> Result<Launches, KernelError> {
    const NAME: &str = "rope";
    float(NAME, p.dtype)?;
    float(NAME, p.out)?;
    at_least(NAME, "heads", 1, p.heads)?;
    at_least(NAME, "rotary_dim", 2, p.rotary_dim)?;
    let vec = vector(NAME, p.head_dim, p.rotary_dim)?;
    let source = Source::new(
        format!("{NAME}-{}-{}-{}x{}", p.dtype, p.out, p.heads, p.head_dim),
        include_str!("rope.cu"),
        vec![
            ("IN", element(p.dtype).into()),
            ("OUT", element(p.out).into()),
            ("HEADS", p.heads.to_string()),
            ("HEAD_DIM", p.head_dim.to_string()),
            ("ROTARY", p.rotary_dim.to_string()),
            ("VEC", vec.to_string()),
            ("THREADS", THREADS.to_string()),
        ],
    );
    let args = vec![Arg::Input(0), Arg::Input(1), Arg::Input(2), Arg::Output(0)];
    let elements = p.heads * p.head_dim;
    let cost = Cost {
        fixed_bytes: 0,
        row_bytes: (elements * (p.dtype.size() + p.out.size()) + 4 * p.rotary_dim) as u64,
        row_flops: 3 * (p.heads * p.rotary_dim) as u64,
    };
    Ok(stage(source, NAME, elements / (2 * vec), args, cost))
}

/// An append to the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvAppendProblem {
    /// Key-value heads.
    pub kv_heads: usize,
    /// Elements per head, even.
    pub head_dim: usize,
    /// Of k.
    pub k: DType,
    /// Of v.
    pub v: DType,
    /// Of keys and values in the cache.
    pub kv_dtype: DType,
    /// Positions per block of the cache.
    pub block: usize,
    /// Bytes from one block to the next, all layers.
    pub block_bytes: u64,
}

/// Inputs k and v `[t, kv_heads head_dim]`, cache (the layer in block 0); no output.
///
/// # Errors
/// `Unsupported` for dtypes and odd dimensions, `Shape` for sizes of zero.
pub fn kv_append_launches(p: &KvAppendProblem) -> Result<Launches, KernelError> {
    const NAME: &str = "kv_append";
    [p.k, p.v, p.kv_dtype].into_iter().try_for_each(|t| float(NAME, t))?;
    at_least(NAME, "kv_heads", 1, p.kv_heads)?;
    at_least(NAME, "block", 1, p.block)?;
    let vec = vector(NAME, p.head_dim, 0)?;
    let source = Source::new(
        format!("{NAME}-{}-{}-{}x{}", p.k, p.v, p.kv_heads, p.head_dim),
        include_str!("kv_append.cu"),
        vec![
            ("K", element(p.k).into()),
            ("V", element(p.v).into()),
            ("KV_ELEMENT", element(p.kv_dtype).into()),
            ("HEADS", "0".into()),
            ("KV_HEADS", p.kv_heads.to_string()),
            ("HEAD_DIM", p.head_dim.to_string()),
            ("BLOCK", p.block.to_string()),
            ("BLOCK_BYTES", format!("{}ull", p.block_bytes)),
            ("VEC", vec.to_string()),
            ("THREADS", THREADS.to_string()),
        ],
    );
    let args = vec![
        Arg::Input(0),
        Arg::Input(1),
        Arg::Input(2),
        Arg::Table(StepTable::RowSequence),
        Arg::Table(StepTable::Sequences),
        Arg::Table(StepTable::Blocks),
    ];
    let width = p.kv_heads * p.head_dim;
    let row_bytes = (width * (p.k.size() + p.v.size() + 2 * p.kv_dtype.size())) as u64;
    let cost = Cost { fixed_bytes: 0, row_bytes, row_flops: 0 };
    Ok(stage(source, NAME, 2 * width / (2 * vec), args, cost))
}

/// One launch with a block per token and `THREADS` of its `units`.
fn stage(source: Source, entry: &'static str, units: usize, args: Vec<Arg>, cost: Cost) -> Launches {
    let blocks = units.div_ceil(THREADS) as u32;
    let stage = Stage {
        source,
        entry,
        when: When::Always,
        grid: [Extent::per(Symbol::Tokens, 1, 1), Extent::fixed(blocks), Extent::fixed(1)],
        block: THREADS as u32,
        shared_bytes: 0,
        dependent: true,
        args,
        cost,
    };
    Launches { stages: vec![stage], workspaces: vec![] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_has_a_thread() {
        let p = RopeProblem { heads: 9, head_dim: 128, rotary_dim: 64, dtype: DType::BF16, out: DType::F32 };
        assert_eq!(rope_launches(&p).unwrap().stages[0].grid[1], Extent::fixed(2));
        let p = KvAppendProblem {
            kv_heads: 8,
            head_dim: 128,
            k: DType::F32,
            v: DType::BF16,
            kv_dtype: DType::BF16,
            block: 32,
            block_bytes: 1 << 20,
        };
        let stage = &kv_append_launches(&p).unwrap().stages[0];
        assert_eq!((stage.grid[1].clone(), stage.cost.row_bytes), (Extent::fixed(2), 1024 * 10));
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        let p = RopeProblem { heads: 2, head_dim: 8, rotary_dim: 0, dtype: DType::F32, out: DType::F32 };
        assert!(rope_launches(&p).is_err());
        assert!(rope_launches(&RopeProblem { rotary_dim: 3, ..p }).is_err());
        assert!(rope_launches(&RopeProblem { rotary_dim: 8, out: DType::I32, ..p }).is_err());
    }
}

//! Attention on a device: flash attention over the paged cache, with one order of summation for every way to run it.
//!
//! The row at position `i` sees positions `max(0, i - window + 1)..=i` of its sequence, `kernel.cu` (16-bit) or `plain.cu`
//! (the rest) doing the same to it whatever the rest of the step:
//! - leaves of 128 absolute positions; scores are `mma.m16n8k16` over ascending d, times `scale`, then capped by the
//!   special-function unit (`softcap_fast`); what a row does not see is minus infinity; the leaf's own maximum;
//!   `exp(s - max)` by the special-function unit, rounded to `D`;
//! - `o` sums weights x values by `mma` from zero over ascending positions, a leaf at a time; the sum of the rounded
//!   weights is one more column of the same product, of ones;
//! - leaves are folded left in f32: `m = max(a, b)`, `fa = exp(a - m)`, `fb = exp(b - m)`, `acc = acc_a fa + acc_b fb`
//!   unfused, from a state of maximum minus infinity and zeros; a leaf of which a row sees nothing is left out; a sink is
//!   one more leaf, folded last, of maximum `sinks[head]`, sum 1 and no value; `o (fa (1 / sum))` is rounded once, `fa`
//!   being the sink's, or 1.
//!
//! A product of zeros adds nothing, so rows of other positions and of other queries share the tiles. Positions that no
//! row of a tile sees read as zeros, whatever the cache holds there; where a leaf that is cut for some row gives an
//! infinity or NaN, its values are summed again for each row by itself. So nothing that a row does not see reaches it.
//!
//! `plain.cu` multiplies and adds fused in f32 over the same leaves, caps as `numerics::activation` does, sums weights by a
//! butterfly over the leaf, and divides.

use lathe_device::{Arg, Extent, StepTable, Symbol, When};
use lathe_numerics::{ATTENTION_LEAF, DType};

use crate::cuda::{Cost, Launches, Source, Stage, Workspace, element};
use crate::error::{KernelError, at_least};
use crate::view::float;

const NAME: &str = "attention";
const TEXT: &str = include_str!("kernel.cu");
const PLAIN: &str = include_str!("plain.cu");
const THREADS: usize = 128;
/// Stages of the ring of keys and values.
const STAGES: usize = 3;
/// Widest head of which one warp holds 16 rows; two share them beyond.
const ONE_WARP_HEAD_DIM: usize = 128;
/// Rows of a tile of decode.
const DECODE_ROWS: usize = 16;
/// Blocks of decode that a multiprocessor holds.
const DECODE_PER_SM: u32 = 3;
/// From this many pairs of sequence and key-value head on, there is a block for every place on the largest devices.
const FULL: usize = 512;
/// Leaves that a block does whole among many sequences, and the blocks that share a longer sequence.
const WHOLE: usize = 16;
const SHARES: u32 = 4;
/// Widest head of the tensor-core kernels: accumulators of 16 rows fill the registers.
const MAX_HEAD_DIM: usize = 256;

/// An attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Problem {
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Of q and the output.
    pub dtype: DType,
    /// Of keys and values in the cache.
    pub kv_dtype: DType,
    /// Positions per block of the cache.
    pub block: usize,
    /// Bytes from one block to the next, all layers.
    pub block_bytes: u64,
    /// Longest sequence.
    pub max_seq_len: usize,
    /// Most sequences of a step.
    pub max_seqs: usize,
    /// Most rows of a step.
    pub max_tokens: usize,
    /// Positions that a row sees, itself included; all where absent.
    pub window: Option<u32>,
    /// Bound that scaled scores are squashed into; none where absent.
    pub softcap: Option<f32>,
    /// There is a third input, the scores of attention sinks.
    pub sinks: bool,
}

/// Inputs q `D[t, heads head_dim]`, cache (the layer in block 0), sinks `f32[heads]` if there are any; output `D[t, heads head_dim]`. 16-byte alignment. A
/// workspace of `f32[s, ..]` where leaves of a sequence may go to several blocks.
///
/// # Errors
/// `Unsupported` for dtypes, for heads that are no multiple of kv_heads and for a cap that is not a finite number above 0,
/// `Shape` for sizes of zero.
pub fn launches(p: &Problem) -> Result<Launches, KernelError> {
    float(NAME, p.dtype)?;
    float(NAME, p.kv_dtype)?;
    at_least(NAME, "kv_heads", 1, p.kv_heads)?;
    at_least(NAME, "heads", p.kv_heads, p.heads)?;
    at_least(NAME, "head_dim", 1, p.head_dim)?;
    at_least(NAME, "block", 1, p.block)?;
    at_least(NAME, "max_seq_len", 1, p.max_seq_len)?;
    at_least(NAME, "window", 1, p.window.map_or(1, |w| w as usize))?;
    if !p.heads.is_multiple_of(p.kv_heads) {
        let what = format!("{} heads on {} kv_heads; they must divide", p.heads, p.kv_heads);
        return Err(KernelError::Unsupported { kernel: NAME, what });
    }
    if let Some(cap) = p.softcap.filter(|cap| !cap.is_finite() || *cap <= 0.0) {
        let what = format!("a soft cap of {cap}; it must be a finite number above 0");
        return Err(KernelError::Unsupported { kernel: NAME, what });
    }
    let tensor_cores = p.dtype != DType::F32
        && p.kv_dtype == p.dtype
        && p.head_dim.is_multiple_of(16)
        && p.head_dim <= MAX_HEAD_DIM
        && p.block.is_multiple_of(16)
        && ATTENTION_LEAF.is_multiple_of(p.block)
        && p.block_bytes.is_multiple_of(16);
    Ok(if tensor_cores { by_tensor_cores(p) } else { plain(p) })
}

/// Query heads per key-value head.
const fn group(p: &Problem) -> usize {
    p.heads / p.kv_heads
}

/// Tiles of 16 rows that decode takes of a sequence under a key-value head.
const fn decode_tiles(p: &Problem) -> usize {
    group(p).div_ceil(DECODE_ROWS)
}

/// Leaves of which a row may see something.
fn leaves(p: &Problem) -> usize {
    let all = p.max_seq_len.div_ceil(ATTENTION_LEAF);
    p.window.map_or(all, |w| all.min((w as usize - 1).div_ceil(ATTENTION_LEAF) + 1))
}

/// Columns of a stage: about 64, so that a stage of 128 positions is about 16 KiB.
fn stage_columns(head_dim: usize) -> usize {
    let best = (16..=112).step_by(16).filter(|c| head_dim.is_multiple_of(*c));
    best.min_by_key(|c| c.abs_diff(64)).unwrap_or(16)
}

/// Bytes from one shared row to the next: an odd number of 16-byte pieces.
const fn pitch(columns: usize) -> usize {
    16 * ((columns / 8) | 1)
}

fn ring_bytes(p: &Problem) -> usize {
    STAGES * ATTENTION_LEAF * pitch(stage_columns(p.head_dim))
}

fn decode_bytes(p: &Problem) -> usize {
    let maxima = 4 * DECODE_ROWS * (THREADS / 32);
    ring_bytes(p) + DECODE_ROWS * (pitch(p.head_dim) + pitch(ATTENTION_LEAF)) + maxima
}

/// Rows of a tile of prefill.
const fn prefill_rows(p: &Problem) -> usize {
    if p.head_dim > ONE_WARP_HEAD_DIM { 32 } else { 64 }
}

fn prefill_bytes(p: &Problem) -> usize {
    let exchange = match p.head_dim > ONE_WARP_HEAD_DIM {
        true => prefill_rows(p) * (pitch(ATTENTION_LEAF) + 2 * 4),
        false => 0,
    };
    ring_bytes(p) + prefill_rows(p) * pitch(p.head_dim) + exchange
}

/// What is known before a step: activations and the row's own key and value. The rest follows the sequences.
fn cost(p: &Problem) -> Cost {
    let bytes = p.head_dim * 2 * (p.heads * p.dtype.size() + p.kv_heads * p.kv_dtype.size());
    Cost { fixed_bytes: 0, row_bytes: bytes as u64, row_flops: 4 * (p.heads * p.head_dim) as u64 }
}

fn macros(p: &Problem) -> Vec<(&'static str, String)> {
    vec![
        ("ELEMENT", element(p.dtype).into()),
        ("HEADS", p.heads.to_string()),
        ("KV_HEADS", p.kv_heads.to_string()),
        ("HEAD_DIM", p.head_dim.to_string()),
        ("BLOCK", p.block.to_string()),
        ("BLOCK_BYTES", format!("{}ull", p.block_bytes)),
        ("WINDOW", p.window.unwrap_or(0).to_string()),
        ("SOFTCAP", format!("{:?}f", p.softcap.unwrap_or(0.0))),
        ("SINKS", u32::from(p.sinks).to_string()),
    ]
}

/// The last argument of kernels that write rows.
fn sinks(p: &Problem) -> &'static [Arg] {
    if p.sinks { &[Arg::Input(2)] } else { &[] }
}

fn by_tensor_cores(p: &Problem) -> Launches {
    let mut defines = macros(p);
    defines.push(("COLS", stage_columns(p.head_dim).to_string()));
    defines.push(("MAX_LEAVES", leaves(p).to_string()));
    let name = format!("{NAME}-{}-{}x{}x{}", p.dtype, p.heads, p.kv_heads, p.head_dim);
    let source = Source::new(name, TEXT, defines);
    let stage = |entry, when, grid, block: usize, shared: usize, args| Stage {
        source: source.clone(),
        entry,
        when,
        grid,
        block: block as u32,
        shared_bytes: shared as u32,
        dependent: true,
        args,
        cost: cost(p),
    };
    let sequences = || Extent::per(Symbol::Sequences, 1, 1);
    let tiles = || Extent::fixed((p.kv_heads * decode_tiles(p)) as u32);
    let tables = [Arg::Table(StepTable::Sequences), Arg::Table(StepTable::Blocks)];
    let operands = || [&[Arg::Input(0), Arg::Input(1), Arg::Output(0)][..], &tables].concat();
    let args = |more: &[Arg]| [&operands()[..], more, &[Arg::F32(p.scale)], sinks(p)].concat();

    // Few sequences leave the device idle unless several blocks share one. Many fill it; then a long one among them
    // must not be the work of one block.
    let full = FULL.div_ceil(p.kv_heads * decode_tiles(p)) as u32;
    let few = When::Range { symbol: Symbol::Sequences, min: 1, max: full - 1 };
    let many = When::Range { symbol: Symbol::Sequences, min: full, max: u32::MAX };
    let mut stages = vec![];
    let mut split = |when, shares, whole: usize| {
        let whole = Arg::U32(whole as u32);
        let grid = [sequences(), tiles(), shares];
        let with = args(&[Arg::Output(1), whole]);
        stages.push(stage("attention_split", when, grid, THREADS, decode_bytes(p), with));
        let grid = [sequences(), Extent::fixed(p.heads as u32), Extent::fixed(1)];
        let with = [Arg::Output(1), Arg::Output(0), Arg::Table(StepTable::Sequences), whole];
        let with = [&with, sinks(p)].concat();
        let fold = stage("attention_fold", when, grid, p.head_dim.next_multiple_of(32), 0, with);
        stages.push(Stage { cost: Cost::default(), ..fold });
    };
    let splits_few = full > 1 && leaves(p) > 1;
    let splits_many = p.max_seqs >= full as usize && leaves(p) > WHOLE;
    if splits_few {
        split(few, Extent::Fill { per_sm: DECODE_PER_SM, most: leaves(p) as u32 }, 1);
    }
    if splits_many {
        split(many, Extent::fixed(SHARES), WHOLE);
    }
    let alone = match (splits_few, splits_many) {
        (false, false) => Some(When::Always),
        (true, false) => Some(many).filter(|_| p.max_seqs >= full as usize),
        (false, true) => Some(few).filter(|_| full > 1),
        (true, true) => None,
    };
    if let Some(when) = alone {
        let grid = [sequences(), tiles(), Extent::fixed(1)];
        stages.push(stage("attention_decode", when, grid, THREADS, decode_bytes(p), args(&[])));
    }
    let workspaces = match splits_few || splits_many {
        true => {
            let floats = (p.heads * leaves(p) * (p.head_dim + 4)) as u64;
            vec![Workspace { symbol: Symbol::Sequences, floats }]
        }
        false => vec![],
    };
    if p.max_tokens * group(p) > DECODE_ROWS * decode_tiles(p) {
        // Every sequence has at most one tile that is not full.
        let rows = lathe_device::Term {
            symbol: Symbol::Tokens,
            per: prefill_rows(p) as u32,
            times: group(p) as u32,
        };
        let rest = lathe_device::Term { symbol: Symbol::Sequences, per: 1, times: 1 };
        let grid = [
            Extent::Sum { constant: 0, terms: vec![rows, rest] },
            Extent::fixed(p.kv_heads as u32),
            Extent::fixed(1),
        ];
        let with = args(&[Arg::Symbol(Symbol::Sequences)]);
        stages.push(stage("attention_prefill", When::Mixed, grid, THREADS, prefill_bytes(p), with));
    }
    Launches { stages, workspaces }
}

fn plain(p: &Problem) -> Launches {
    let mut defines = macros(p);
    defines.push(("KV_ELEMENT", element(p.kv_dtype).into()));
    let name = format!("{NAME}-plain-{}-{}-{}x{}x{}", p.dtype, p.kv_dtype, p.heads, p.kv_heads, p.head_dim);
    let mut args = vec![
        Arg::Input(0),
        Arg::Input(1),
        Arg::Output(0),
        Arg::Table(StepTable::RowSequence),
        Arg::Table(StepTable::Sequences),
        Arg::Table(StepTable::Blocks),
        Arg::F32(p.scale),
    ];
    args.extend(sinks(p));
    let stage = Stage {
        source: Source::new(name, PLAIN, defines),
        entry: "attention_plain",
        when: When::Always,
        grid: [Extent::per(Symbol::Tokens, 1, 1), Extent::fixed(p.heads as u32), Extent::fixed(1)],
        block: ATTENTION_LEAF as u32,
        shared_bytes: 0,
        dependent: true,
        args,
        cost: cost(p),
    };
    Launches { stages: vec![stage], workspaces: vec![] }
}

#[cfg(test)]
mod tests;

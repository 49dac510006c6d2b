//! Steps of attention: what sequences hold, tables and cache of a step over parts of them, what the reference says.

use anyhow::Result;
use lathe_device::{DevicePtr, Sequence, StepTable, Symbols};
use lathe_kernels::attention::cuda::Problem;
use lathe_kernels::attention::reference;
use lathe_numerics::DType;

use crate::values::uniform;
use crate::{Operands, Rig, bytes};

/// A sequence's projections after their roundings.
pub struct Tokens {
    /// Queries of every head, by position.
    pub q: Vec<f32>,
    /// Keys of every key-value head.
    pub k: Vec<f32>,
    /// Values.
    pub v: Vec<f32>,
}

impl Tokens {
    /// `len` positions.
    pub fn new(p: &Problem, seed: u32, len: usize) -> Self {
        let kv = len * p.kv_heads * p.head_dim;
        let mut k = uniform(seed + 1, kv, DType::F32);
        k.iter_mut().for_each(|k| *k = p.kv_dtype.round(*k * 3.0));
        let q = uniform(seed, len * p.heads * p.head_dim, p.dtype);
        Tokens { q, k, v: uniform(seed + 2, kv, p.kv_dtype) }
    }
}

/// What one sequence does in a step: its tokens, rows done before, rows now.
#[derive(Clone, Copy)]
pub struct Part<'a>(pub &'a Tokens, pub usize, pub usize);

/// A step on the host.
pub struct Step {
    /// Queries of all rows, padding included.
    pub q: Vec<f32>,
    /// Rows without padding.
    pub rows: usize,
    /// True if every part is one row.
    decode: bool,
    /// Blocks of two layers, NaN but for what the sequences have written to the second.
    cache: Vec<u8>,
    sequences: Vec<Sequence>,
    blocks: Vec<i32>,
    row_sequence: Vec<i32>,
}

/// Bytes of a block that are one layer's; `Problem::block_bytes` is of two.
pub fn layer_bytes(p: &Problem) -> usize {
    2 * p.kv_heads * p.head_dim * p.block * p.kv_dtype.size()
}

impl Step {
    /// A step of `parts`, then of padding.
    pub fn new(p: &Problem, parts: &[Part], padding_rows: usize, padding_sequences: usize) -> Self {
        let (width, kv_width, size) = (p.heads * p.head_dim, p.kv_heads * p.head_dim, p.kv_dtype.size());
        let pages: usize = parts.iter().map(|Part(_, done, now)| (done + now).div_ceil(p.block)).sum();
        let mut cache = vec![0xff; (pages + 1) * p.block_bytes as usize];
        let (mut sequences, mut blocks, mut row_sequence, mut q) = (vec![], vec![], vec![], vec![]);
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
            for position in 0..kv_len {
                let page = blocks[first + position / p.block] as usize * p.block_bytes as usize;
                let layer = page + layer_bytes(p);
                for (part, x) in [&t.k, &t.v].into_iter().enumerate() {
                    for h in 0..p.kv_heads {
                        let row = &x[position * kv_width + h * p.head_dim..][..p.head_dim];
                        let at = ((part * p.kv_heads + h) * p.block + position % p.block) * p.head_dim * size;
                        let to = &mut cache[layer + at..][..p.head_dim * size];
                        to.copy_from_slice(&bytes::of(p.kv_dtype, row));
                    }
                }
            }
        }
        let rows = row_sequence.len();
        row_sequence.extend(std::iter::repeat_n(-1, padding_rows));
        q.extend(std::iter::repeat_n(f32::NAN, padding_rows * width));
        sequences.extend(std::iter::repeat_n(Sequence::default(), padding_sequences));
        let decode = parts.iter().all(|part| part.2 == 1);
        Step { q, rows, decode, cache, sequences, blocks, row_sequence }
    }

    /// Its sizes.
    pub fn symbols(&self, sm_count: u32) -> Symbols {
        let (tokens, sequences) = (self.row_sequence.len() as u32, self.sequences.len() as u32);
        Symbols { tokens, sequences, rows: 1, decode: self.decode, sm_count }
    }

    /// The step on the device, with queries at `q`: inputs are queries, the second layer and, if any, sinks.
    ///
    /// # Errors
    /// The driver's.
    pub fn operands(&self, rig: &mut Rig, p: &Problem, q: DevicePtr) -> Result<Operands> {
        let cache = rig.buffer("cache", &self.cache)?.add(layer_bytes(p) as u64);
        let sinks = sinks(p).map(|s| rig.f32s("sinks", &s)).transpose()?;
        Ok(Operands {
            inputs: [q, cache].into_iter().chain(sinks).collect(),
            outputs: vec![rig.empty("out", self.q.len() * p.dtype.size())?],
            tables: vec![
                (StepTable::RowSequence, rig.i32s("row sequence", &self.row_sequence)?),
                (StepTable::Sequences, rig.sequences("sequences", &self.sequences)?),
                (StepTable::Blocks, rig.i32s("blocks", &self.blocks)?),
            ],
        })
    }

    /// Gives the memory of all operands back, queries included.
    ///
    /// # Errors
    /// The driver's.
    pub fn free(&self, rig: &mut Rig, p: &Problem, operands: &Operands) -> Result<()> {
        let mut inputs = operands.inputs.clone();
        inputs[1].0 -= layer_bytes(p) as u64;
        let tables = operands.tables.iter().map(|(_, at)| *at);
        inputs.into_iter().chain(operands.outputs.clone()).chain(tables).try_for_each(|at| rig.free(at))
    }
}

/// Sinks about as large as the largest scores, other for every head.
fn sinks(p: &Problem) -> Option<Vec<f32>> {
    p.sinks.then(|| (0..p.heads).map(|h| 1.5 - h as f32 * 0.8).collect())
}

/// What the reference says of a position's head.
pub fn expected(p: &Problem, t: &Tokens, row: usize, head: usize) -> Vec<f32> {
    let kv_head = head * p.kv_heads / p.heads;
    let pick = |x: &[f32]| -> Vec<f32> {
        let rows = (0..=row).map(|i| &x[(i * p.kv_heads + kv_head) * p.head_dim..][..p.head_dim]);
        rows.flatten().copied().collect()
    };
    let q = &t.q[(row * p.heads + head) * p.head_dim..][..p.head_dim];
    reference::attention(q, &pick(&t.k), &pick(&t.v), p.scale, p.window, p.softcap, sinks(p).map(|s| s[head]))
}

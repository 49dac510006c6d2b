//! Cases of the kernels that move rows: look-up, gather, rotary embedding with its way into the cache.

use anyhow::Result;
use lathe_device::{Arg, Sequence, StepTable, Symbol};
use lathe_kernels::gemm::Epilogue;
use lathe_kernels::gemm::cuda::{Fused, Problem, Tail, fused_launches};
use lathe_kernels::rope_append::reference;
use lathe_kernels::{embedding, gather_rows, gemm, rope_append};
use lathe_numerics::DType;

use super::{Case, Edit, Wrong, feed, near, same, step};
use crate::values::uniform;
use crate::{Operands, Rig, bytes};

/// A table in fragment order whose rows end within a tile; ids that the step before drew.
pub const EMBEDDING: Case = Case { name: "embedding", run: look_up };
/// Rows of two blocks.
pub const GATHER: Case = Case { name: "gather_rows", run: gather };
/// Three sequences and two rows of padding, the middle one of three layers.
pub const ROPE: Case = Case { name: "rope_append", run: rope };
/// The same behind a projection, in one launch; a tile's halves are half a head apart.
pub const PROJECTED: Case = Case { name: "gemm: rope_append", run: projected };

fn look_up(rig: &mut Rig, edit: &Edit) -> Result<()> {
    const VOCAB: usize = 37;
    const H: usize = 72;
    let dtype = DType::BF16;
    let table = bytes::of(dtype, &uniform(5, VOCAB * H, dtype));
    let rows: Vec<&[u8]> = table.chunks(2 * H).collect();
    let stored = bytes::in_fragments(&rows, H)?;
    // -1 is row 0 of the step before, -3 row 2; row 1 drew nothing.
    let (tokens, drawn, ids) = ([0, 36, -1, -3, -2, 17], [31, -1, 5], [0, 36, 31, 5, 0, 17]);
    let problem =
        embedding::cuda::Problem { vocab: VOCAB, h: H, dtype, layout: embedding::cuda::TableLayout::Mma16 };
    let mut launches = edit.apply(embedding::cuda::launches(&problem)?)?;
    let out = rig.empty("out", ids.len() * 2 * H)?;
    let mut operands = Operands {
        inputs: vec![rig.i32s("tokens", &tokens)?, rig.buffer("table", &stored)?],
        outputs: vec![out],
        tables: vec![(StepTable::Drawn, rig.empty("drawn", 12)?)],
    };
    feed(rig, &mut launches, &mut operands, Arg::Table(StepTable::Drawn), &bytes::of_i32(&drawn))?;
    rig.run(&launches, step(ids.len(), 1, 1), &operands)?;
    let want: Vec<u8> = ids.iter().flat_map(|id| rows[*id]).copied().collect();
    same("out", &want, &rig.read(out, ids.len() * 2 * H)?)
}

fn gather(rig: &mut Rig, edit: &Edit) -> Result<()> {
    const COLS: usize = 131;
    let picked = [4, 0, 2, 2];
    let x = uniform(1, 5 * COLS, DType::F32);
    let problem = gather_rows::cuda::Problem { cols: COLS, dtype: DType::F32 };
    let mut launches = edit.apply(gather_rows::cuda::launches(&problem)?)?;
    let out = rig.empty("out", picked.len() * COLS * 4)?;
    let inputs = vec![rig.empty("x", 4 * x.len())?, rig.i32s("rows", &picked)?];
    let mut operands = Operands { inputs, outputs: vec![out], tables: vec![] };
    feed(rig, &mut launches, &mut operands, Arg::Input(0), &bytes::of_f32(&x))?;
    rig.run(&launches, step(5, 1, picked.len()), &operands)?;
    let want: Vec<f32> = picked.iter().flat_map(|row| &x[*row as usize * COLS..][..COLS]).copied().collect();
    same("out", &want, &rig.read_f32(out, picked.len() * COLS)?)
}

fn rope(rig: &mut Rig, edit: &Edit) -> Result<()> {
    rotate(rig, edit, (4, 2, 32, 16), None)
}

fn projected(rig: &mut Rig, edit: &Edit) -> Result<()> {
    rotate(rig, edit, (2, 1, 64, 64), Some(40))
}

/// `depth` is the projection's, where there is one.
fn rotate(
    rig: &mut Rig,
    edit: &Edit,
    (heads, kv_heads, head_dim, rotary): (usize, usize, usize, usize),
    depth: Option<usize>,
) -> Result<()> {
    const BLOCKS: usize = 7;
    let block = 16;
    let dtype = DType::BF16;
    let layer = 2 * kv_heads * head_dim * block * 2;
    let p = rope_append::cuda::Problem {
        heads,
        kv_heads,
        head_dim,
        rotary_dim: rotary,
        norm: None,
        dtype,
        kv_dtype: dtype,
        block,
        block_bytes: 3 * layer as u64,
    };
    // A chunk of 3 rows, a decode, a chunk of 4 over a block's border, then two rows of padding.
    let sequences = [
        Sequence { q_start: 0, q_len: 3, kv_len: 8, blocks_start: 0 },
        Sequence { q_start: 3, q_len: 1, kv_len: 40, blocks_start: 1 },
        Sequence { q_start: 4, q_len: 4, kv_len: 34, blocks_start: 4 },
        Sequence::default(),
    ];
    let blocks = [2, 0, 3, 5, 6, 1, 4];
    let row_sequence = [0, 0, 0, 1, 2, 2, 2, 2, -1, -1];
    let positions = [5, 6, 7, 39, 30, 31, 32, 33, 0, 0];
    let n_rows = 8;
    let cols = (heads + 2 * kv_heads) * head_dim;
    // Any table will do: cosines, then sines.
    let table = uniform(6, 40 * rotary, DType::F32);

    let (x, w, qkv, launches) = match depth {
        None => {
            let qkv = uniform(4, positions.len() * cols, DType::F32);
            (bytes::of_f32(&qkv), None, qkv, rope_append::cuda::launches(&p)?)
        }
        Some(k) => {
            let gemm = Problem {
                m: Symbol::Tokens,
                max_m: positions.len() as u32,
                n: cols,
                k,
                dtype,
                out: dtype,
                epilogue: Epilogue::Store,
                bias: false,
            };
            let (x, w) = (uniform(4, positions.len() * k, dtype), uniform(7, cols * k, dtype));
            let qkv = gemm::reference::gemm(&x, &w, None, positions.len(), cols, k);
            let fused = Fused { norm: None, tail: Tail::RopeAppend(p) };
            (bytes::of(dtype, &x), Some(bytes::of_weight(dtype, &w, k)?), qkv, fused_launches(&gemm, &fused)?)
        }
    };
    let mut launches = edit.apply(launches)?;
    let image = vec![0xff; BLOCKS * 3 * layer];
    let cache = rig.buffer("cache", &image)?;
    let q = rig.empty("q", positions.len() * heads * head_dim * 2)?;
    let mut inputs = vec![rig.empty("x or qkv", x.len())?];
    if let Some(w) = w {
        inputs.push(rig.buffer("weight", &w)?);
    }
    inputs.extend([rig.i32s("positions", &positions)?, rig.f32s("table", &table)?, cache.add(layer as u64)]);
    let tables = vec![
        (StepTable::RowSequence, rig.i32s("row sequence", &row_sequence)?),
        (StepTable::Sequences, rig.sequences("sequences", &sequences)?),
        (StepTable::Blocks, rig.i32s("blocks", &blocks)?),
    ];
    let mut operands = Operands { inputs, outputs: vec![q], tables };
    feed(rig, &mut launches, &mut operands, Arg::Input(0), &x)?;
    rig.run(&launches, step(positions.len(), 4, 3), &operands)?;

    let got_q = rig.read_floats(q, dtype, n_rows * heads * head_dim)?;
    let mut cache = rig.read_floats(cache, dtype, image.len() / 2)?;
    let (mut want_q, mut want_kv, mut got_kv) = (vec![], vec![], vec![]);
    for row in 0..n_rows {
        let position = positions[row] as usize;
        let turns = &table[position * rotary..][..rotary];
        for (head, x) in qkv[row * cols..][..cols].chunks(head_dim).enumerate() {
            let y = if head < heads + kv_heads { reference::rope(x, turns) } else { x.to_vec() };
            if head < heads {
                want_q.extend(y);
                continue;
            }
            want_kv.extend(y);
            let start = sequences[row_sequence[row] as usize].blocks_start as usize;
            let page = blocks[start + position / block] as usize * 3 * layer + layer;
            let at = page / 2 + ((head - heads) * block + position % block) * head_dim;
            let slot = &mut cache[at..at + head_dim];
            got_kv.extend_from_slice(slot);
            slot.fill(f32::NAN);
        }
    }
    near("q", dtype, &want_q, &got_q)?;
    near("cache", dtype, &want_kv, &got_kv)?;
    if let Some(at) = cache.iter().position(|x| !x.is_nan()) {
        return Err(Wrong(format!("cache: element {at} was written")).into());
    }
    Ok(())
}

//! Projections with their norm, residual or rotation in one launch: the bits of separate launches, for few rows and many.

use anyhow::{Context, Result, ensure};
use lathe_conformance::values::uniform;
use lathe_conformance::{Operands, Rig, bytes};
use lathe_device::{DevicePtr, Sequence, StepTable, Symbol, Symbols};
use lathe_kernels::cuda::{Launches, mma16};
use lathe_kernels::gemm::cuda::{Fused, Problem, Tail, add_launches, fused_launches, launches};
use lathe_kernels::gemm::{Epilogue, stored_rows};
use lathe_kernels::rms_norm::cuda::NormProblem;
use lathe_kernels::{rms_norm, rope_append};
use lathe_numerics::{Activation, DType};

const EPS: f32 = 1e-5;
const ROWS: [usize; 6] = [1, 3, 8, 9, 17, 65];
/// Positions per block of the cache, and of the rotation's table.
const BLOCK: usize = 16;
const POSITIONS: usize = 96;
/// Blocks of each of the two sequences.
const BLOCKS: usize = POSITIONS / BLOCK;

fn problem(n: usize, k: usize, dtype: DType) -> Problem {
    Problem { m: Symbol::Tokens, max_m: 512, n, k, dtype, out: dtype, epilogue: Epilogue::Store, bias: false }
}

fn rope(
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rotary_dim: usize,
    dtype: DType,
) -> rope_append::cuda::Problem {
    let layer = (2 * kv_heads * BLOCK * head_dim * dtype.size()) as u64;
    rope_append::cuda::Problem {
        heads,
        kv_heads,
        head_dim,
        rotary_dim,
        norm: None,
        dtype,
        kv_dtype: dtype,
        block: BLOCK,
        block_bytes: 2 * layer,
    }
}

/// A projection of the model, and on a device all that it reads in any step.
struct Case {
    p: Problem,
    f: Fused,
    norm: DevicePtr,
    weight: DevicePtr,
    bias: DevicePtr,
    table: DevicePtr,
}

impl Case {
    fn new(rig: &mut Rig, p: Problem, f: Fused) -> Result<Case> {
        let rows = stored_rows(p.n, p.epilogue);
        let elements = rows.div_ceil(mma16::TILE) * mma16::tile_row_bytes(p.k) / 2;
        let rotary = if let Tail::RopeAppend(rope) = f.tail { rope.rotary_dim } else { 0 };
        Ok(Case {
            p,
            f,
            norm: rig.floats("norm", p.dtype, &uniform(1, p.k, DType::F32))?,
            weight: match p.dtype {
                DType::F32 => rig.f32s("weight", &uniform(2, rows * p.k, DType::F32))?,
                // Which element is where does not matter here.
                _ => rig.floats("weight", p.dtype, &uniform(2, elements, DType::F32))?,
            },
            bias: rig.f32s("bias", &uniform(3, rows, DType::F32))?,
            table: rig.f32s("table", &uniform(4, POSITIONS * rotary, DType::F32))?,
        })
    }

    fn columns(&self) -> usize {
        match (self.f.tail, self.p.epilogue) {
            (Tail::RopeAppend(rope), _) => rope.heads * rope.head_dim,
            (_, epilogue) => epilogue.columns(self.p.n),
        }
    }

    /// Results of `m` rows by one node and by separate ones: the output, then the cache. How many launches the node was.
    fn run(&self, rig: &mut Rig, m: usize) -> Result<usize> {
        let Case { p, f, .. } = *self;
        let size = if let Tail::RopeAppend(rope) = f.tail { rope.dtype } else { p.out }.size();
        let len = m * self.columns() * size;
        let step = Step::new(rig, m)?;
        let x = rig.floats(
            "x",
            p.dtype,
            &uniform(5, m * p.k, DType::F32).iter().map(|v| 3.0 * v).collect::<Vec<_>>(),
        )?;
        let residual = uniform(6, m * self.columns(), DType::F32);
        let mut results = Vec::new();
        for fused in [false, true] {
            let y = match f.tail {
                // In place, as the residual stream is.
                Tail::Add => rig.floats("y", p.out, &residual)?,
                _ => rig.empty("y", len)?,
            };
            let cache_len = match f.tail {
                Tail::RopeAppend(rope) => 2 * BLOCKS * rope.block_bytes as usize,
                _ => 0,
            };
            let cache = rig.buffer("cache", &vec![0xff; cache_len])?;
            let behind = match f.tail {
                Tail::None => vec![],
                Tail::Add => vec![y],
                Tail::RopeAppend(rope) => vec![step.positions, self.table, cache.add(rope.block_bytes / 2)],
            };
            if fused {
                let norm = f.norm.map(|_| self.norm);
                self.node(rig, &step, &fused_launches(&p, &f)?, x, norm, behind, y)?;
            } else {
                self.separate(rig, &step, x, behind, y)?;
            }
            results.push((rig.read(y, len)?, rig.read(cache, cache_len)?));
            rig.free(y)?;
            rig.free(cache)?;
        }
        rig.free(x)?;
        ensure!(results[0].0 == results[1].0, "the output differs");
        ensure!(results[0].1 == results[1].1, "the cache differs");
        if matches!(f.tail, Tail::RopeAppend(_)) {
            ensure!(results[0].1.iter().any(|b| *b != 0xff), "nothing was appended");
        }
        Ok(rig.launched().len())
    }

    fn node(
        &self,
        rig: &mut Rig,
        step: &Step,
        launches: &Launches,
        x: DevicePtr,
        norm: Option<DevicePtr>,
        behind: Vec<DevicePtr>,
        y: DevicePtr,
    ) -> Result<()> {
        let mut inputs = vec![x];
        inputs.extend(norm);
        inputs.push(self.weight);
        inputs.extend(self.p.bias.then_some(self.bias));
        inputs.extend(behind);
        rig.run(launches, step.symbols, &Operands { inputs, outputs: vec![y], tables: step.tables.clone() })
    }

    fn separate(
        &self,
        rig: &mut Rig,
        step: &Step,
        mut x: DevicePtr,
        behind: Vec<DevicePtr>,
        y: DevicePtr,
    ) -> Result<()> {
        let (p, m) = (self.p, step.symbols.tokens as usize);
        if let Some(eps) = self.f.norm {
            let norm = NormProblem::rows(p.m, p.k, p.dtype, eps);
            let normed = rig.empty("normed", m * p.k * p.dtype.size())?;
            let operands = Operands { inputs: vec![x, self.norm], outputs: vec![normed], tables: vec![] };
            rig.run(&rms_norm::cuda::launches(&norm)?, step.symbols, &operands)?;
            x = normed;
        }
        match self.f.tail {
            Tail::None => self.node(rig, step, &launches(&p)?, x, None, behind, y),
            Tail::Add => self.node(rig, step, &add_launches(&p)?, x, None, behind, y),
            Tail::RopeAppend(rope) => {
                let qkv = rig.empty("qkv", m * p.n * 4)?;
                self.node(rig, step, &launches(&Problem { out: DType::F32, ..p })?, x, None, vec![], qkv)?;
                let inputs = [vec![qkv], behind].concat();
                let operands = Operands { inputs, outputs: vec![y], tables: step.tables.clone() };
                rig.run(&rope_append::cuda::launches(&rope)?, step.symbols, &operands)
            }
        }
    }
}

/// A decode, a chunk over borders of blocks and, where there is room, a row of padding.
struct Step {
    symbols: Symbols,
    positions: DevicePtr,
    tables: Vec<(StepTable, DevicePtr)>,
}

impl Step {
    fn new(rig: &mut Rig, m: usize) -> Result<Step> {
        let chunk = m.saturating_sub(2) as i32;
        let sequences = [
            Sequence { q_start: 0, q_len: 1, kv_len: 34, blocks_start: 0 },
            Sequence { q_start: 1, q_len: chunk, kv_len: 13 + chunk, blocks_start: BLOCKS as i32 },
        ];
        let row = |i: i32| match i {
            0 => (0, 33),
            i if i <= chunk => (1, 12 + i),
            _ => (-1, 0),
        };
        let (owners, positions): (Vec<i32>, Vec<i32>) = (0..m as i32).map(row).unzip();
        let blocks: Vec<i32> = (0..2 * BLOCKS as i32).map(|b| (b * 5 + 3) % (2 * BLOCKS as i32)).collect();
        Ok(Step {
            symbols: Symbols { tokens: m as u32, sequences: 2, rows: 2, decode: false, sm_count: 4 },
            positions: rig.i32s("positions", &positions)?,
            tables: vec![
                (StepTable::RowSequence, rig.i32s("row sequence", &owners)?),
                (StepTable::Sequences, rig.buffer("sequences", &bytes::of_sequences(&sequences))?),
                (StepTable::Blocks, rig.i32s("blocks", &blocks)?),
            ],
        })
    }
}

/// Runs a projection at all row counts; up to `few` rows it is one launch, above it is `many`.
fn check(rig: &mut Rig, p: Problem, f: Fused, few: usize, many: usize, rows: &[usize]) -> Result<()> {
    let case = Case::new(rig, p, f)?;
    for &m in rows {
        let launched = case.run(rig, m).with_context(|| format!("{p:?} {f:?}: {m} rows"))?;
        let want = if m <= few { 1 } else { many };
        ensure!(launched == want, "{p:?} {f:?}: {launched} launches at {m} rows, want {want}");
    }
    Ok(())
}

const NORM: Fused = Fused { norm: Some(EPS), tail: Tail::None };

#[test]
fn a_norm_before_a_projection() -> Result<()> {
    let mut rig = Rig::chosen(true)?;
    for dtype in [DType::BF16, DType::F16] {
        // Rows that share banks in every way, a last stage that is not full, results of another dtype, a bias.
        check(&mut rig, problem(48, 64, dtype), NORM, 32, 2, &ROWS)?;
        check(
            &mut rig,
            Problem { bias: true, out: DType::F32, ..problem(37, 160, dtype) },
            NORM,
            32,
            2,
            &ROWS,
        )?;
    }
    // So many features that blocks are as wide as they get.
    check(&mut rig, problem(4300, 64, DType::BF16), NORM, 32, 2, &[1, 3, 17])?;
    // Slices summed by different warps; rows that are longer than a block of the norm's kernel is wide.
    check(&mut rig, problem(50, 1024, DType::BF16), NORM, 32, 2, &[1, 9, 17, 33])?;
    check(&mut rig, problem(64, 4608, DType::BF16), NORM, 4, 2, &[1, 3])?;
    // A depth that has no whole fragments, and no tensor cores.
    check(&mut rig, problem(48, 40, DType::F16), NORM, 0, 2, &[1, 9])?;
    check(&mut rig, problem(48, 64, DType::F32), NORM, 0, 2, &[1, 9])
}

#[test]
fn a_norm_before_activations() -> Result<()> {
    let mut rig = Rig::chosen(true)?;
    for (act, cols, k, dtype, rows) in [
        (Activation::Silu, 40, 96, DType::BF16, &ROWS[..]),
        (Activation::Gelu, 32, 256, DType::F16, &[1, 5, 33]),
        (Activation::GeluTanh, 40, 96, DType::BF16, &[1, 5, 33]),
    ] {
        let p = problem(2 * cols, k, dtype);
        check(&mut rig, Problem { epilogue: Epilogue::Glu(act), ..p }, NORM, 32, 2, rows)?;
        let plain = Problem { epilogue: Epilogue::Act(act), bias: true, ..p };
        check(&mut rig, plain, NORM, 32, 2, &[1, 5, 33])?;
    }
    Ok(())
}

#[test]
fn a_residual_behind_a_projection() -> Result<()> {
    let mut rig = Rig::chosen(true)?;
    for dtype in [DType::BF16, DType::F16] {
        let add = Fused { norm: None, tail: Tail::Add };
        check(&mut rig, problem(48, 64, dtype), add, 512, 1, &ROWS)?;
        // With a norm x may be the residual, which other blocks have yet to read.
        check(&mut rig, problem(48, 64, dtype), Fused { norm: Some(EPS), tail: Tail::Add }, 0, 2, &[1, 9])?;
    }
    Ok(())
}

#[test]
fn rotation_and_append_behind_a_projection() -> Result<()> {
    let mut rig = Rig::chosen(true)?;
    for (heads, kv_heads, head_dim, k, dtype, bias) in [
        (4, 2, 32, 64, DType::BF16, false),
        (3, 1, 64, 160, DType::F16, true),
        (2, 2, 96, 128, DType::BF16, true),
        (2, 1, 128, 96, DType::F16, false),
    ] {
        let tail = Tail::RopeAppend(rope(heads, kv_heads, head_dim, head_dim, dtype));
        let p = Problem { bias, ..problem((heads + 2 * kv_heads) * head_dim, k, dtype) };
        check(&mut rig, p, Fused { norm: Some(EPS), tail }, 32, 3, &ROWS)?;
        check(&mut rig, p, Fused { norm: None, tail }, 32, 2, &[3, 17, 65])?;
    }
    // Slices, and keys and values of another dtype than queries.
    let other = rope_append::cuda::Problem { dtype: DType::F32, ..rope(1, 1, 32, 32, DType::F16) };
    let tail = Tail::RopeAppend(other);
    check(&mut rig, problem(96, 1024, DType::BF16), Fused { norm: Some(EPS), tail }, 32, 3, &[1, 9, 17, 33])
}

#[test]
fn partial_rotation_is_launched_apart() -> Result<()> {
    let mut rig = Rig::chosen(true)?;
    for (head_dim, rotary) in [(64, 32), (80, 80), (32, 8)] {
        let tail = Tail::RopeAppend(rope(2, 1, head_dim, rotary, DType::BF16));
        let p = problem(4 * head_dim, 64, DType::BF16);
        check(&mut rig, p, Fused { norm: Some(EPS), tail }, 0, 3, &[1, 9])?;
    }
    Ok(())
}

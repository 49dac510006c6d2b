//! Runs a bound program's calls over one step.

use std::time::Instant;

use lathe_api::EngineError;
use lathe_kernels::attention::{Attention, AttentionArgs};
use lathe_kernels::elementwise::{BinaryArgs, Elementwise, UnaryArgs};
use lathe_kernels::embedding::{Embedding, EmbeddingArgs, TableLayout};
use lathe_kernels::gather_rows::{GatherRows, GatherRowsArgs};
use lathe_kernels::gemm::{Epilogue, Gemm, GemmArgs};
use lathe_kernels::layer_norm::LayerNorm;
use lathe_kernels::paged::{Batch, KvCache, KvLayout};
use lathe_kernels::rms_norm::{AddRmsNorm, AddRmsNormArgs, NormArgs, RmsNorm};
use lathe_kernels::rope_append::{self, KvAppend, KvAppendArgs, Rope, RopeAppend, RopeAppendArgs, RopeArgs};
use lathe_kernels::{Dst, IsaPath, KernelError, Src};
use lathe_plan::Plan;
use lathe_plan::schema::MAX_CACHE_GROUPS;

use crate::pool::{Claims, Launch, Launches, Pool, Stream};
use crate::program::{Bound, BoundCall, Call, Heads, Ids, Norm, QkNorm, Region, Rows, View, WeightRef};
use crate::region::Memory;

mod experts;
mod prepared;

use prepared::Prepared;

/// Target of the trace event of every kernel call, with fields `kernel`, `node` and `nanos`; costs nothing unless a
/// subscriber asks for it.
pub const LAUNCH_EVENTS: &str = "lathe_cpu::launch";

/// Per-thread working memory of the kernels, one cache-line-aligned slice per worker.
pub struct Scratch {
    memory: Memory,
    /// f32 elements per worker, a multiple of 16.
    len: usize,
}

impl Scratch {
    /// `bytes` for each of `threads` workers.
    ///
    /// # Errors
    /// The system's error.
    pub fn new(threads: usize, bytes: usize) -> std::io::Result<Self> {
        let len = bytes.div_ceil(64) * 16;
        Ok(Scratch { memory: Memory::new(threads * len * 4)?, len })
    }

    /// Takes the pages now.
    ///
    /// # Errors
    /// The system's error.
    pub fn populate(&self) -> std::io::Result<()> {
        self.memory.populate()
    }

    /// The slice of one worker.
    ///
    /// # Safety
    /// No other reference to this worker's slice lives; [`Pool::run`] never calls for a worker twice at a time.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn of(&self, worker: usize) -> &mut [f32] {
        debug_assert!((worker + 1) * self.len * 4 <= self.memory.len());
        // SAFETY: within the mapping, aligned to 64 bytes, exclusive by the caller's promise.
        unsafe {
            std::slice::from_raw_parts_mut(self.memory.ptr().cast::<f32>().add(worker * self.len), self.len)
        }
    }
}

/// What a step's calls read beside the plan.
pub struct StepData<'a> {
    /// `[t]` ids, below the number of embeddings.
    pub ids: &'a [u32],
    /// `[t]`.
    pub positions: &'a [u32],
    /// `[r]` rows whose logits are wanted.
    pub rows: &'a [u32],
    /// Sequences and their blocks, by cache group.
    pub batches: [Option<Batch<'a>>; MAX_CACHE_GROUPS],
}

/// One cache group's part of the KV memory.
#[derive(Clone, Copy, Debug)]
pub struct GroupMemory {
    /// Byte offset of block 0.
    pub offset: usize,
    /// Blocks.
    pub n_blocks: usize,
    /// Bytes of a block over all layers of the group.
    pub block_bytes: usize,
    /// Positions that a row sees; `None` is all.
    pub window: Option<u32>,
}

/// Memory and threads that the calls run on.
pub struct Machine<'a> {
    /// Instruction set path.
    pub path: IsaPath,
    /// Weights.
    pub plan: &'a Plan,
    /// Activations.
    pub arena: &'a Memory,
    /// KV blocks of all cache groups.
    pub kv: &'a Memory,
    /// Where each group's lie.
    pub groups: &'a [GroupMemory],
    /// Working memory.
    pub scratch: &'a Scratch,
}

impl Machine<'_> {
    fn rows(&self, step: &StepData<'_>, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => step.ids.len(),
            Rows::Samples => step.rows.len(),
        }
    }

    /// A region's rows of this step, for reading.
    fn src(&self, region: Region, rows: usize) -> Result<Src<'_>, KernelError> {
        // SAFETY: the plan's verifier proved that the region lies within the arena at the largest step, and steps are
        // checked against the limits; calls run one after the other, and a call's outputs never overlap its inputs.
        unsafe {
            let at = self.arena.ptr().add(region.offset);
            Src::raw(region.dtype, at, rows * region.cols * region.dtype.size())
        }
    }

    /// A view's rows of this step, for reading.
    fn view(&self, view: View, rows: usize) -> Result<Src<'_>, KernelError> {
        let elements = if rows == 0 { 0 } else { (rows - 1) * view.stride + view.cols };
        // SAFETY: as in `src`; the last row ends with the view's columns, within the buffer.
        unsafe {
            let at = self.arena.ptr().add(view.offset);
            Src::raw(view.dtype, at, elements * view.dtype.size())
        }
    }

    /// A region's rows of this step, for writing.
    fn dst(&self, region: Region, rows: usize) -> Result<Dst<'_>, KernelError> {
        // SAFETY: as in `src`; workers write disjoint units.
        unsafe {
            let at = self.arena.ptr().add(region.offset);
            Dst::raw(region.dtype, at, rows * region.cols * region.dtype.size())
        }
    }

    fn norm(
        &self,
        step: &StepData<'_>,
        x: Region,
        norm: Norm,
        out: Region,
    ) -> Result<NormArgs<'_>, KernelError> {
        let rows = self.rows(step, x.rows);
        Ok(NormArgs {
            path: self.path,
            x: self.src(x, rows)?,
            x_stride: x.cols,
            weight: self.weight(norm.weight)?,
            eps: norm.eps,
            out: self.dst(out, rows)?,
            out_stride: out.cols,
            rows,
            h: x.cols,
            groups: norm.groups,
        })
    }

    fn weight(&self, weight: WeightRef) -> Result<Src<'_>, KernelError> {
        Src::bytes(weight.dtype, self.plan.weight_bytes(weight.index))
    }

    fn cache(&self, bound: &Bound, heads: Heads) -> Result<KvCache<'_>, KernelError> {
        let layout = KvLayout::new(heads.cache_dtype, heads.kv_heads, heads.head_dim, bound.block)?;
        let group = self.groups.get(heads.group).ok_or_else(|| no_group(heads.group, self.groups.len()))?;
        let bytes = group.n_blocks * group.block_bytes;
        let kv = self.kv.len().saturating_sub(group.offset).min(bytes);
        // SAFETY: these bytes of the KV memory are the engine's own and this group's alone; calls run one after the
        // other.
        unsafe {
            KvCache::raw(
                layout,
                self.kv.ptr().wrapping_add(group.offset),
                kv,
                heads.cache_offset,
                group.block_bytes,
                group.n_blocks,
            )
        }
    }

    /// Runs all calls and tells `ran` of each launch of the plan by its index, on any thread. `step` was checked against the
    /// limits; ids and blocks are checked again by the kernels.
    ///
    /// # Errors
    /// `Failed` with the value that was being computed: a checked plan and step cannot cause it.
    pub fn run(
        &self,
        pool: &mut Pool,
        bound: &Bound,
        step: &StepData<'_>,
        ran: impl FnMut(usize) + Send + Sync,
    ) -> Result<(), EngineError> {
        let mut walk = Walk {
            machine: self,
            bound,
            step,
            begun: 0,
            problem: None,
            since: tracing::enabled!(target: LAUNCH_EVENTS, tracing::Level::TRACE).then(Instant::now),
            ran,
            outcome: Ok(()),
        };
        pool.run(&mut walk);
        walk.outcome
    }

    /// The problem that a call poses in this step.
    fn prepare<'s>(
        &'s self,
        bound: &'s Bound,
        step: &'s StepData<'s>,
        call: &Call,
    ) -> Result<Prepared<'s>, KernelError> {
        let path = self.path;
        Ok(match *call {
            Call::Embedding { ids, table, out } => {
                let ids = match ids {
                    Ids::Tokens => step.ids,
                    Ids::Positions => step.positions,
                };
                let layout = if table.panels { TableLayout::Panel16 } else { TableLayout::RowMajor };
                Embedding::new(EmbeddingArgs {
                    path,
                    ids,
                    table: self.weight(table)?,
                    layout,
                    vocab: table.n,
                    h: table.k,
                    out: self.dst(out, step.ids.len())?,
                })?
                .into()
            }
            Call::Unary { function, x, out } => {
                let rows = self.rows(step, x.rows);
                Elementwise::unary(UnaryArgs {
                    path,
                    function,
                    x: self.view(x, rows)?,
                    x_stride: x.stride,
                    out: self.dst(out, rows)?,
                    rows,
                    cols: x.cols,
                })?
                .into()
            }
            Call::Binary { function, a, b, out } => {
                let rows = self.rows(step, a.rows);
                Elementwise::binary(BinaryArgs {
                    path,
                    function,
                    a: self.src(a, rows)?,
                    b: self.src(b, rows)?,
                    out: self.dst(out, rows)?,
                    len: rows * out.cols,
                })?
                .into()
            }
            Call::RmsNorm { x, norm, out } => RmsNorm::new(self.norm(step, x, norm, out)?)?.into(),
            Call::LayerNorm { x, norm, bias, out } => {
                let bias = bias.map(|b| self.weight(b)).transpose()?;
                LayerNorm::new(self.norm(step, x, norm, out)?, bias)?.into()
            }
            Call::AddRmsNorm { delta, residual, weight, sum, out, eps } => {
                let rows = self.rows(step, delta.rows);
                if sum.offset != residual.offset {
                    let bytes = rows * sum.cols * sum.dtype.size();
                    // SAFETY: both lie within the arena and do not overlap: the verifier allows a launch to write over
                    // an input only when the two are the same buffer.
                    unsafe {
                        let base = self.arena.ptr();
                        std::ptr::copy_nonoverlapping(base.add(residual.offset), base.add(sum.offset), bytes);
                    }
                }
                AddRmsNorm::new(AddRmsNormArgs {
                    path,
                    delta: self.src(delta, rows)?,
                    delta_stride: delta.cols,
                    residual: self.dst(sum, rows)?,
                    weight: self.weight(weight)?,
                    eps,
                    out: self.dst(out, rows)?,
                    rows,
                    h: sum.cols,
                })?
                .into()
            }
            Call::Gemm { x, weight, bias, out, epilogue } => {
                let m = self.rows(step, x.rows);
                let bias = match bias {
                    Some(b) => Some(f32_slice(self.plan.weight_bytes(b.index), b.n)?),
                    None => None,
                };
                let n = match epilogue {
                    Epilogue::Store | Epilogue::Act(_) => weight.n,
                    Epilogue::Glu(_) | Epilogue::ClampedSwiglu => 2 * out.cols,
                };
                Gemm::new(GemmArgs {
                    path,
                    x: self.src(x, m)?,
                    x_stride: x.cols,
                    m,
                    n,
                    k: weight.k,
                    weight: self.weight(weight)?,
                    bias,
                    out: self.dst(out, m)?,
                    out_stride: out.cols,
                    epilogue,
                })?
                .into()
            }
            Call::RopeAppend { qkv, table, norm, q, heads } => {
                let rows = step.ids.len();
                let (max_pos, rotary_dim) = table.map_or((0, 0), |t| (t.n, t.k));
                let norm = match norm {
                    None => None,
                    Some(QkNorm { over, q, k, eps }) => {
                        Some(rope_append::QkNorm { over, q: self.weight(q)?, k: self.weight(k)?, eps })
                    }
                };
                RopeAppend::new(RopeAppendArgs {
                    path,
                    qkv: self.src(qkv, rows)?,
                    qkv_stride: qkv.cols,
                    positions: step.positions,
                    norm,
                    table: table.map_or(Ok((&[] as &[f32]).into()), |t| self.weight(t))?,
                    max_pos,
                    rotary_dim,
                    heads: heads.heads,
                    q_out: self.dst(q, rows)?,
                    cache: self.cache(bound, heads)?,
                    batch: step.batch(heads.group)?,
                })?
                .into()
            }
            Call::Rope { x, table, out, heads, head_dim } => {
                let rows = step.ids.len();
                Rope::new(RopeArgs {
                    path,
                    x: self.src(x, rows)?,
                    positions: step.positions,
                    table: self.weight(table)?,
                    max_pos: table.n,
                    rotary_dim: table.k,
                    heads,
                    head_dim,
                    out: self.dst(out, rows)?,
                    rows,
                })?
                .into()
            }
            Call::KvAppend { k, v, heads } => {
                let rows = step.ids.len();
                KvAppend::new(KvAppendArgs {
                    path,
                    k: self.src(k, rows)?,
                    v: self.src(v, rows)?,
                    cache: self.cache(bound, heads)?,
                    batch: step.batch(heads.group)?,
                })?
                .into()
            }
            Call::Attention { q, out, heads, score, sinks } => {
                let rows = step.ids.len();
                let sinks = sinks.map(|s| f32_slice(self.plan.weight_bytes(s.index), s.n)).transpose()?;
                Attention::new(AttentionArgs {
                    path,
                    q: self.src(q, rows)?,
                    heads: heads.heads,
                    scale: score.scale,
                    window: score.window,
                    softcap: score.softcap,
                    sinks,
                    cache: self.cache(bound, heads)?,
                    batch: step.batch(heads.group)?,
                    out: self.dst(out, rows)?,
                })?
                .into()
            }
            Call::TopK(ref call) => self.top_k(step, call)?.into(),
            Call::GroupChoices(call) => self.group_choices(step, call)?.into(),
            Call::ExpertGemm(ref call) => self.expert_gemm(step, call)?.into(),
            Call::Combine(ref call) => self.combine(step, call)?.into(),
            Call::GatherRows { x, out } => {
                let n = step.ids.len();
                GatherRows::new(GatherRowsArgs {
                    x: self.src(x, n)?,
                    x_stride: x.cols,
                    n,
                    cols: x.cols,
                    rows: step.rows,
                    out: self.dst(out, step.rows.len())?,
                })?
                .into()
            }
        })
    }
}

/// The calls of a step, one after the other.
struct Walk<'a, F> {
    machine: &'a Machine<'a>,
    bound: &'a Bound,
    step: &'a StepData<'a>,
    /// Calls that were begun.
    begun: usize,
    /// What the last of them does.
    problem: Option<Prepared<'a>>,
    /// When it began, if anybody asks.
    since: Option<Instant>,
    /// Told of each launch that is done.
    ran: F,
    outcome: Result<(), EngineError>,
}

impl<F: FnMut(usize)> Walk<'_, F> {
    /// The last call that was begun is done.
    fn ended(&mut self) {
        let (before, after) = self.bound.calls.split_at(self.begun);
        let Some(BoundCall { node, launch, call, .. }) = before.last() else { return };
        if let Some(since) = &mut self.since {
            let nanos = since.elapsed().as_nanos() as u64;
            tracing::trace!(target: LAUNCH_EVENTS, kernel = call.kernel(), node = node.as_str(), nanos);
            *since = Instant::now();
        }
        if after.first().is_none_or(|next| next.launch != *launch) {
            (self.ran)(*launch);
        }
    }
}

impl<F: FnMut(usize) + Send + Sync> Launches for Walk<'_, F> {
    fn next(&mut self) -> Option<Launch> {
        self.ended();
        // Its views of memory end before somebody writes there.
        self.problem = None;
        let BoundCall { node, call, next_gemm, .. } = self.bound.calls.get(self.begun)?;
        self.begun += 1;
        match self.machine.prepare(self.bound, self.step, call) {
            Ok(problem) => {
                let units = problem.kernel().units();
                self.problem = Some(problem);
                let weight = next_gemm.map(|weight| Stream::of(self.machine.plan.weight_bytes(weight)));
                Some(Launch { units, ahead: weight.unwrap_or(Stream::NONE) })
            }
            Err(e) => {
                self.outcome = Err(EngineError::Failed(format!("computing {node}: {e}")));
                None
            }
        }
    }

    fn work(&self, worker: usize, ranges: &mut Claims<'_>) {
        let Some(problem) = &self.problem else { return };
        // SAFETY: the pool hands every unit out once, never calls for a worker twice at a time, and joins a launch before
        // the next one.
        unsafe { problem.kernel().run_all(ranges, self.machine.scratch.of(worker)) }
    }
}

impl<'a> StepData<'a> {
    fn batch(&self, group: usize) -> Result<Batch<'a>, KernelError> {
        let known = self.batches.iter().flatten().count();
        self.batches.get(group).copied().flatten().ok_or_else(|| no_group(group, known))
    }
}

fn no_group(group: usize, known: usize) -> KernelError {
    KernelError::Shape { kernel: "paged", what: "cache groups", bound: group + 1, got: known }
}

fn f32_slice(bytes: &[u8], len: usize) -> Result<&[f32], KernelError> {
    let short = KernelError::Shape { kernel: "f32 vector", what: "bytes", bound: len * 4, got: bytes.len() };
    // SAFETY: every bit pattern is an f32; `align_to` finds the aligned middle.
    let (head, middle, _) = unsafe { bytes.align_to::<f32>() };
    if !head.is_empty() { Err(short) } else { middle.get(..len).ok_or(short) }
}

/// Elements of scratch that the calls need per worker at the largest step.
pub fn scratch_len(path: IsaPath, bound: &Bound, max_tokens: usize, max_rows: usize) -> usize {
    let rows = |r| match r {
        Rows::Tokens => max_tokens,
        Rows::Samples => max_rows,
    };
    let need = |call: &Call| match *call {
        Call::Gemm { x, weight, .. } => {
            lathe_kernels::gemm::max_scratch_len(path, x.dtype, rows(x.rows), weight.k)
        }
        Call::ExpertGemm(ref call) => {
            // An expert is chosen by each row once at most.
            let (x, k) = (call.x, call.weight.k);
            lathe_kernels::gemm::max_scratch_len(path, x.dtype, rows(x.rows), k)
        }
        Call::Attention { heads, .. } => {
            lathe_kernels::attention::max_scratch_len(heads.heads, heads.kv_heads, heads.head_dim)
        }
        Call::RopeAppend { norm: Some(_), heads: Heads { head_dim, .. }, .. }
        | Call::Rope { head_dim, .. } => rope_append::max_scratch_len(head_dim),
        _ => 0,
    };
    bound.calls.iter().map(|bound| need(&bound.call)).max().unwrap_or(0)
}

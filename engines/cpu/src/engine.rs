//! The engine: memory fixed at load, steps checked before they run, answers by row.

use std::sync::Arc;

use lathe_api::{
    BlockGroup, Engine, EngineError, EngineInfo, Memory as MemoryReport, MemoryLine, Slot, SlotState,
    StepCheck, StepLimits, StepOutput, StepPlan, Ticket, TokenMasks, TokenSource,
};
use lathe_kernels::paged::{Batch, Sequence};
use lathe_kernels::{Isa, IsaPath};
use lathe_numerics::DType;
use lathe_plan::Plan;
use lathe_plan::kv::{KvError, KvPools};
use lathe_plan::memory::{MAX_LOGIT_BIAS, MAX_STOP_IDS, MemoryReport as PlannedMemory, MemoryRequest};
use lathe_plan::schema::{MAX_CACHE_GROUPS, Place, Program, Target};

use crate::execute::{GroupMemory, Machine, Scratch, StepData, scratch_len};
use crate::pages::{self, Pages};
use crate::pool::Pool;
use crate::program::{Bound, bind};
use crate::region::{self, Memory};
use crate::sampler::Sampler;

/// How to load a plan.
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Worker threads, the calling one included; 0 takes as many as the process may use.
    pub threads: usize,
    /// Instruction set; `None` takes the fastest of this machine.
    pub isa: Option<Isa>,
    /// Size of the KV pool; `None` takes what the plan was compiled for.
    pub kv_bytes: Option<u64>,
    /// Program of the plan to run; `None` is `decoder`.
    pub program: Option<String>,
    /// Most bytes to allocate, mapped weights left out; `None` takes what the system says is available.
    pub memory_limit: Option<u64>,
}

/// What a launch wrote: rows of this step, dense.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// Index of the launch in the program.
    pub launch: usize,
    /// Index of the output among the launch's.
    pub output: usize,
    /// Element type.
    pub dtype: DType,
    /// Rows: tokens of the step, or rows that sample.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// `dtype[rows, cols]`, row after row.
    pub bytes: &'a [u8],
}

/// Where the engine is between `submit` and `collect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Submitted,
    Sampled,
}

/// Runs a plan's CPU program.
pub struct CpuEngine {
    plan: Arc<Plan>,
    /// Name of the plan's program that it runs.
    program: String,
    bound: Bound,
    path: IsaPath,
    pool: Pool,
    arena: Memory,
    kv: Arc<Memory>,
    /// Where each cache group's blocks lie in `kv`.
    groups: Vec<GroupMemory>,
    /// What takes the pages of `kv` and of the weights before they are needed.
    pages: Arc<Pages>,
    scratch: Scratch,
    sampler: Sampler,
    info: EngineInfo,
    phase: Phase,
    ticket: u64,
    // The step's data in the kernels' terms; sized at load.
    ids: Vec<u32>,
    positions: Vec<u32>,
    rows: Vec<u32>,
    seqs: Vec<Sequence>,
    /// By cache group.
    blocks: Vec<Vec<u32>>,
    check: StepCheck,
}

fn fit(what: &str, why: String, remedy: &str) -> EngineError {
    EngineError::Fit { what: what.into(), why, remedy: remedy.into() }
}

fn system(what: &'static str) -> impl Fn(std::io::Error) -> EngineError {
    move |e| fit(what, e.to_string(), "free memory or lower --kv-memory or --threads")
}

fn find_program<'a>(plan: &'a Plan, name: &str) -> Result<&'a Program, EngineError> {
    let on_cpu = |p: &&Program| p.target == Target::Cpu && p.rank == 0 && p.n_ranks == 1;
    plan.programs().iter().filter(|p| p.name == name).find(on_cpu).ok_or_else(|| {
        let held: Vec<String> =
            plan.programs().iter().map(|p| format!("{} for {:?}", p.name, p.target)).collect();
        fit(
            "plan",
            format!("it holds no program {name:?} for the cpu, only {}", held.join(", ")),
            "compile the model with --target cpu",
        )
    })
}

fn pool_error(error: &KvError) -> EngineError {
    match error {
        KvError::Groups { why } => EngineError::Plan { what: "cache groups".into(), why: (*why).into() },
        KvError::TooSmall { .. } | KvError::TooMany { .. } => {
            fit("KV pool", error.to_string(), error.remedy())
        }
    }
}

/// Where the blocks of each group lie, one group after the other; and the bytes of all.
fn place(pools: &KvPools) -> Result<(Vec<GroupMemory>, usize), EngineError> {
    let mut bytes = 0usize;
    let mut groups = Vec::with_capacity(pools.groups.len());
    for pool in &pools.groups {
        let group = GroupMemory {
            offset: bytes,
            n_blocks: pool.blocks as usize,
            block_bytes: pool.block_bytes as usize,
            window: pool.window,
        };
        let end = group.n_blocks.checked_mul(group.block_bytes).and_then(|b| b.checked_add(bytes));
        bytes = end.ok_or_else(|| {
            fit("KV pool", "its bytes do not fit the address space".into(), "lower --kv-memory")
        })?;
        groups.push(group);
    }
    Ok((groups, bytes))
}

impl CpuEngine {
    /// Checks the plan's program against the kernels and this machine, then takes all memory.
    ///
    /// # Errors
    /// `Plan` when the program breaks a rule of LAUNCHES.md, `Fit` when this machine lacks instructions or memory.
    pub fn load(plan: Arc<Plan>, options: &CpuOptions) -> Result<Self, EngineError> {
        let path = match options.isa {
            None => IsaPath::detect(),
            Some(isa) => IsaPath::force(isa)
                .map_err(|e| fit("--isa", e.to_string(), "leave --isa out or name another"))?,
        };
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n.min(1024),
        };
        let limits = plan.card().limits;
        let vocab = plan.card().vocab_size as usize;
        let name = options.program.as_deref().unwrap_or("decoder");
        let program = find_program(&plan, name)?;
        let bound = bind(program, plan.weights(), limits.max_seq_len as usize, vocab)?;
        let pools = KvPools::of(program, &limits, options.kv_bytes).map_err(|e| pool_error(&e))?;
        let (groups, kv_bytes) = place(&pools)?;

        let max_t = limits.max_num_tokens as usize;
        let max_s = limits.max_batch as usize;
        let max_r = limits.max_sample_rows as usize;
        let max_len = limits.max_seq_len as usize;
        let scratch_bytes = program.scratch_bytes as usize;
        let needed = scratch_len(path, &bound, max_t, max_r) * 4;
        if needed > scratch_bytes {
            return Err(EngineError::Plan {
                what: "scratch".into(),
                why: format!("kernels need {needed} bytes per thread, the plan reserves {scratch_bytes}"),
            });
        }
        // The plan's own sum, so that what compile printed is what holds here.
        let request = MemoryRequest { threads: threads as u64, kv_tokens: Some(pools.tokens) };
        let planned = PlannedMemory::new(plan.card(), program, plan.data_bytes(), request);
        let line = |(name, bytes, mapped)| MemoryLine { name, bytes, mapped, measured: false };
        let report = MemoryReport { lines: planned.lines().map(line).to_vec() };
        if let Some(available) = options.memory_limit.or_else(region::available)
            && report.allocated() > available
        {
            return Err(fit(
                "memory",
                format!("{} bytes are needed, {available} are available", report.allocated()),
                "lower --kv-memory, or compile with smaller --max-batch, --max-num-tokens or --kv-tokens",
            ));
        }
        pages::map_weights(&plan).map_err(system("worker threads"))?;
        let arena = Memory::new(program.arena_bytes as usize).map_err(system("activations"))?;
        arena.populate().map_err(system("activations"))?;
        let scratch = Scratch::new(threads, scratch_bytes).map_err(system("kernel scratch"))?;
        scratch.populate().map_err(system("kernel scratch"))?;
        let kv = Arc::new(Memory::new(kv_bytes).map_err(system("KV pool"))?);
        let pool = Pool::new(threads).map_err(system("worker threads"))?;
        let sampler = Sampler::new(max_s, max_r, vocab, threads, max_len);
        let max_blocks = max_s * max_len.div_ceil(bound.block);
        let info = EngineInfo {
            path: format!("cpu/{path}", path = path.isa()),
            threads,
            steps_ahead: 0,
            vocab_size: plan.card().vocab_size,
            max_batch: limits.max_batch,
            max_num_tokens: limits.max_num_tokens,
            max_sample_rows: limits.max_sample_rows,
            max_seq_len: limits.max_seq_len,
            groups: groups
                .iter()
                .map(|g| BlockGroup { n_blocks: g.n_blocks as u32, window: g.window })
                .collect(),
            block_tokens: bound.block as u32,
            memory: report,
        };
        let check = StepCheck::new(StepLimits {
            n_embeddings: u32::try_from(bound.n_embeddings).unwrap_or(u32::MAX),
            vocab_size: info.vocab_size,
            max_batch: info.max_batch,
            max_num_tokens: info.max_num_tokens,
            max_sample_rows: info.max_sample_rows,
            max_seq_len: info.max_seq_len,
            groups: info.groups.clone(),
            block_tokens: info.block_tokens,
            max_logit_bias: MAX_LOGIT_BIAS,
            max_stop_ids: MAX_STOP_IDS,
        });
        Ok(CpuEngine {
            program: name.to_owned(),
            plan,
            bound,
            path,
            pool,
            arena,
            kv,
            pages: Arc::default(),
            scratch,
            sampler,
            info,
            phase: Phase::Idle,
            ticket: 0,
            ids: Vec::with_capacity(max_t),
            positions: Vec::with_capacity(max_t),
            rows: Vec::with_capacity(max_r),
            seqs: Vec::with_capacity(max_s),
            blocks: groups.iter().map(|_| Vec::with_capacity(max_blocks)).collect(),
            groups,
            check,
        })
    }

    /// The bytes of a KV block of a cache group, for tests of the numeric contract.
    pub fn block(&self, group: usize, block: u32) -> Option<&[u8]> {
        let group = self.groups.get(group).filter(|g| (block as usize) < g.n_blocks)?;
        let start = group.offset + block as usize * group.block_bytes;
        // SAFETY: block ids below n_blocks lie within the group's part; steps need `&mut self`, so nobody writes now.
        Some(unsafe { std::slice::from_raw_parts(self.kv.ptr().add(start), group.block_bytes) })
    }

    /// Checks a step and turns it into the kernels' terms.
    fn prepare(&mut self, step: &StepPlan) -> Result<(), EngineError> {
        let sampler = &self.sampler;
        self.check.step(step, |row| sampler.last_token(row as usize).is_some())?;
        self.sampler.prepare(&step.rows).map_err(EngineError::Request)?;
        self.seqs.clear();
        self.blocks.iter_mut().for_each(Vec::clear);
        for s in &step.seqs {
            self.seqs.push(Sequence {
                q_start: s.q_start as usize,
                q_len: s.q_len as usize,
                kv_len: s.kv_len as usize,
                blocks_start: self.blocks.first().map_or(0, Vec::len),
            });
            for (own, given) in self.blocks.iter_mut().zip(&step.blocks) {
                let table = &given[s.blocks_start as usize..][..self.check.limits().blocks_of(s.kv_len)];
                own.extend_from_slice(table);
            }
        }
        self.ids.clear();
        for token in &step.tokens {
            self.ids.push(match *token {
                TokenSource::Literal(id) => id,
                // The check has seen that it was drawn.
                TokenSource::Row(row) => self.sampler.last_token(row as usize).unwrap_or_default(),
            });
        }
        self.positions.clear();
        self.positions.extend_from_slice(&step.positions);
        self.rows.clear();
        self.rows.extend(step.rows.iter().map(|row| row.row));
        Ok(())
    }

    /// Runs a step and tells `ran` of each launch by its index, as soon as it has run.
    fn run(
        &mut self,
        step: &StepPlan,
        mut ran: impl FnMut(&Memory, usize) + Send + Sync,
    ) -> Result<Ticket, EngineError> {
        if self.phase == Phase::Submitted {
            return Err(EngineError::Request("the step before was not sampled".into()));
        }
        if let Some(why) = self.pages.starved() {
            return Err(EngineError::Failed(format!("no pages for the KV pool: {why}")));
        }
        self.prepare(step)?;
        let mut batches = [None; MAX_CACHE_GROUPS];
        for ((batch, blocks), group) in batches.iter_mut().zip(&self.blocks).zip(&self.groups) {
            let of_group =
                Batch::windowed(&self.seqs, blocks, self.bound.block, group.n_blocks, group.window);
            *batch = Some(of_group.map_err(|e| EngineError::Request(e.to_string()))?);
        }
        let data = StepData { ids: &self.ids, positions: &self.positions, rows: &self.rows, batches };
        let machine = Machine {
            path: self.path,
            plan: &self.plan,
            arena: &self.arena,
            kv: &self.kv,
            groups: &self.groups,
            scratch: &self.scratch,
        };
        let arena = &self.arena;
        self.pages.during_step(|| machine.run(&mut self.pool, &self.bound, &data, |at| ran(arena, at)))?;
        self.ticket += 1;
        self.phase = Phase::Submitted;
        Ok(Ticket(self.ticket))
    }

    /// As `submit`, and shows what each launch wrote before the next one runs: for checks, layer by layer.
    ///
    /// # Errors
    /// As `submit`.
    pub fn submit_observed(
        &mut self,
        step: &StepPlan,
        observe: &mut (dyn FnMut(Observed<'_>) + Send + Sync),
    ) -> Result<Ticket, EngineError> {
        let (plan, name) = (self.plan.clone(), self.program.clone());
        let program = find_program(&plan, &name)?;
        let extents = [step.tokens.len(), step.seqs.len(), step.rows.len()].map(|n| n as u64);
        self.run(step, |arena, launch| {
            for (output, operand) in program.launches[launch].outputs.iter().enumerate() {
                let Place::Buffer(index) = operand.place else { continue };
                let Some(buffer) = program.buffers.get(index as usize) else { continue };
                let rows = operand.rows.eval(&extents).unwrap_or(0) as usize;
                let cols = operand.cols as usize;
                let len = rows * cols * operand.dtype.size();
                // SAFETY: the plan's verifier proved that the buffer lies within the arena at the largest step, steps are
                // checked against the limits, and no launch runs now.
                let bytes =
                    unsafe { std::slice::from_raw_parts(arena.ptr().add(buffer.offset as usize), len) };
                observe(Observed { launch, output, dtype: operand.dtype, rows, cols, bytes });
            }
        })
    }

    fn expect(&self, ticket: Ticket, phase: Phase) -> Result<(), EngineError> {
        if ticket.0 == self.ticket && self.phase == phase {
            return Ok(());
        }
        Err(EngineError::Request(format!("ticket {} is not the step in phase {phase:?}", ticket.0)))
    }

    fn logits_ptr(&self) -> *const f32 {
        self.arena.ptr().wrapping_add(self.bound.logits.offset).cast()
    }
}

impl Engine for CpuEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// Takes the KV pool's pages from the system: gigabytes of fresh pages can take seconds. A lack of them fails the next
    /// `submit`.
    fn warm(&self) -> Result<(), EngineError> {
        pages::take(&self.pages, &self.kv).map_err(system("worker threads"))
    }

    fn bind(&mut self, slot: Slot, state: SlotState<'_>) -> Result<(), EngineError> {
        self.check.slot(slot, &state)?;
        self.sampler.bind(slot, state);
        Ok(())
    }

    fn submit(&mut self, step: &StepPlan) -> Result<Ticket, EngineError> {
        self.run(step, |_, _| {})
    }

    fn sample(&mut self, ticket: Ticket, masks: Option<TokenMasks<'_>>) -> Result<(), EngineError> {
        self.expect(ticket, Phase::Submitted)?;
        if let Some(masks) = &masks {
            self.check.masks(masks, self.rows.len())?;
        }
        let len = self.rows.len() * self.info.vocab_size as usize;
        // SAFETY: the logits buffer holds `max_sample_rows` rows and nothing writes it until the next `submit`.
        let logits = unsafe { std::slice::from_raw_parts(self.logits_ptr(), len) };
        self.sampler.run(&mut self.pool, self.path, logits, masks);
        self.phase = Phase::Sampled;
        Ok(())
    }

    fn collect(&mut self, ticket: Ticket, out: &mut StepOutput) -> Result<(), EngineError> {
        self.expect(ticket, Phase::Sampled)?;
        self.sampler.collect(out);
        self.phase = Phase::Idle;
        Ok(())
    }

    fn logits(&self) -> &[f32] {
        let len = self.rows.len() * self.info.vocab_size as usize;
        // SAFETY: as in `sample`; `submit` needs `&mut self`.
        unsafe { std::slice::from_raw_parts(self.logits_ptr(), len) }
    }
}

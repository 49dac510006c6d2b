//! From a plan and a driver to an engine that is ready for its first step.

use std::sync::Arc;
use std::time::Instant;

use lathe_api::{BlockGroup, EngineError, EngineInfo, Memory, MemoryLine, SampleRow, StepCheck, StepLimits};
use lathe_device::{
    Answer, DevicePtr, DrawParams, Driver, DriverError, Graph, MAX_LOGIT_BIAS, MAX_STOP_IDS, StepTable,
    Symbols,
};
use lathe_numerics::DType;
use lathe_plan::Plan;
use lathe_plan::memory::{MemoryReport, step_table_bytes};
use lathe_plan::schema::{Place, Program};

use crate::buckets;
use crate::engine::{CudaEngine, Lane, Phase};
use crate::launches::{Addresses, Binder, Bound, Code, load_error};
use crate::memory::{self, check_fit, take_all};
use crate::slots::{SlotTables, Slots};
use crate::tables::TableLayout;
use crate::target::{choose, is_emulated};
use crate::transfer::{Ring, settle};

/// Device memory that stays untouched unless the user says otherwise: what the driver takes for graphs and for code
/// that it loads late.
pub const DEFAULT_RESERVE: u64 = 256 << 20;

/// How to load a plan.
#[derive(Clone, Debug)]
pub struct CudaOptions {
    /// Size of the KV pool; `None` takes what the plan was compiled for.
    pub kv_bytes: Option<u64>,
    /// Free device memory that is left alone.
    pub reserve_bytes: u64,
    /// Program of the plan to run; `None` is `decoder`.
    pub program: Option<String>,
    /// Most bytes of device memory to take; `None` takes what is free.
    pub memory_limit: Option<u64>,
    /// True if the driver may compile a plan's `compute_` PTX where it holds no machine code for the device.
    pub allow_ptx_jit: bool,
    /// True if decode steps run as captured graphs.
    pub graphs: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        CudaOptions {
            kv_bytes: None,
            reserve_bytes: DEFAULT_RESERVE,
            program: None,
            memory_limit: None,
            allow_ptx_jit: false,
            graphs: true,
        }
    }
}

/// Ids that the program's look-up tables hold; the engine follows launches, but this it must know to check ids.
fn embeddings(plan: &Plan, program: &Program, vocab_size: u32) -> Result<u32, EngineError> {
    let lookups = program.launches.iter().filter(|l| l.kernel == "embedding");
    let tables = lookups.flat_map(|l| &l.inputs).filter_map(|o| match o.place {
        Place::Weight(index) => plan.weights().get(index as usize)?.shape.first().copied(),
        Place::Buffer(_) | Place::Input(_) | Place::Cache { .. } => None,
    });
    let rows = tables.min().unwrap_or(u64::from(vocab_size));
    if rows < u64::from(vocab_size) {
        return Err(EngineError::Plan {
            what: "embedding".into(),
            why: "its table has fewer rows than there are ids to draw".into(),
        });
    }
    Ok(u32::try_from(rows).unwrap_or(u32::MAX))
}

/// Where the logits lie.
fn logits_at(program: &Program, addresses: &Addresses) -> Result<DevicePtr, EngineError> {
    let o = &program.logits;
    if let Place::Buffer(index) = o.place
        && let Some(buffer) = program.buffers.get(index as usize)
        && o.dtype == DType::F32
        && o.row_stride == o.cols
    {
        return Ok(addresses.arena.add(buffer.offset + o.col_offset * 4));
    }
    Err(EngineError::Plan { what: "logits".into(), why: "they are not a dense f32 buffer".into() })
}

/// One graph per decode size.
fn capture(
    driver: &mut dyn Driver,
    nodes: &mut [Bound],
    limit: u32,
    sm_count: u32,
) -> Result<Vec<(u32, Graph)>, EngineError> {
    let mut graphs = Vec::new();
    for size in buckets::sizes(limit) {
        driver.begin_capture().map_err(load_error)?;
        let symbols = Symbols { tokens: size, sequences: size, rows: size, decode: true, sm_count };
        for node in &mut *nodes {
            node.submit(driver, &symbols).map_err(|e| EngineError::Failed(e.to_string()))?;
        }
        graphs.push((size, driver.end_capture().map_err(load_error)?));
    }
    Ok(graphs)
}

impl CudaEngine {
    /// Finds the plan's program for the driver's device, takes all memory, copies the weights and captures the decode
    /// steps.
    ///
    /// # Errors
    /// `Plan` when the program contradicts itself, `Fit` when the device cannot run or hold it, `Failed` when the
    /// device fails.
    pub fn load(
        plan: Arc<Plan>,
        mut driver: Box<dyn Driver>,
        options: &CudaOptions,
    ) -> Result<Self, EngineError> {
        let device = driver.info().clone();
        let name = options.program.as_deref().unwrap_or("decoder");
        let choice = choose(&plan, name, &device, options.allow_ptx_jit)?;
        let program = choice.program;
        let (limits, vocab_size) = (plan.card().limits, plan.card().vocab_size);
        let pools = memory::pools(program, &limits, options.kv_bytes)?;
        let block = pools.block_tokens as u32;
        let n_embeddings = embeddings(&plan, program, vocab_size)?;
        let Some(layout) = TableLayout::new(&limits, vocab_size, block, pools.groups.len()) else {
            return Err(EngineError::Plan { what: "limits".into(), why: "step tables have no size".into() });
        };
        plan.prefetch_weights();

        let free = |driver: &dyn Driver| driver.free_bytes().map_err(load_error);
        let before_code = free(&*driver)?;
        let code = Code::load(&mut *driver, &plan, program, choice.arch, choice.jit)?;
        let after_code = free(&*driver)?;
        let report = MemoryReport::on_device(plan.card(), program, plan.weights(), Some(pools.tokens));
        let available = options.memory_limit.map_or(after_code, |limit| limit.min(after_code));
        check_fit(&report, program, &limits, available, options.reserve_bytes)?;

        let started = Instant::now();
        let logits_len = limits.max_sample_rows as usize * vocab_size as usize;
        let weights = plan.weights().iter().map(|w| w.bytes);
        let blocks = pools.groups.iter().map(|g| g.block_bytes);
        let largest = weights.chain(blocks).chain([logits_len as u64 * 4]).max().unwrap_or(1);
        let mut ring = Ring::new(&mut *driver, largest).map_err(load_error)?;
        let taken = take_all(&mut *driver, &plan, program, &pools, &layout, &mut ring);
        let (addresses, mut lines) = match taken {
            Ok(taken) => taken,
            Err(e) => {
                settle(&mut *driver);
                return Err(e);
            }
        };
        ring.shrink();
        let copied = started.elapsed();

        let binder = Binder::new(program, &code, &addresses);
        let mut nodes = binder.nodes(&mut *driver)?;
        let sampling = binder.sampling(&mut *driver)?;
        let started = Instant::now();
        let before_graphs = free(&*driver)?;
        let graphs = if options.graphs {
            let limit = limits.max_batch.min(limits.max_num_tokens).min(limits.max_sample_rows);
            capture(&mut *driver, &mut nodes, limit, device.sm_count)?
        } else {
            Vec::new()
        };
        let after_graphs = free(&*driver)?;
        let measured = before_code.saturating_sub(after_code) + before_graphs.saturating_sub(after_graphs);
        lines.push(MemoryLine { name: "code and graphs", bytes: measured, mapped: false, measured: true });

        let none = Symbols { tokens: 0, sequences: 0, rows: 0, decode: true, sm_count: device.sm_count };
        let mut lane = || -> Result<Lane, DriverError> {
            let bytes = |table| step_table_bytes(table, &limits, vocab_size, block) as usize;
            Ok(Lane {
                tables: driver.host_buffer(layout.bytes)?,
                params: driver.host_buffer(limits.max_sample_rows as usize * size_of::<DrawParams>())?,
                masks: driver.host_buffer(bytes(StepTable::Masks))?,
                answers: driver.host_buffer(limits.max_sample_rows as usize * size_of::<Answer>())?,
                rows: Vec::<SampleRow>::with_capacity(limits.max_sample_rows as usize),
                drawn: Vec::with_capacity(limits.max_sample_rows as usize),
                symbols: none,
                launched: none,
                phase: Phase::Idle,
            })
        };
        let lanes = [lane().map_err(load_error)?, lane().map_err(load_error)?];
        let tables = SlotTables {
            counts: addresses.table(StepTable::Counts),
            bias: addresses.table(StepTable::Bias),
            stops: addresses.table(StepTable::Stops),
        };
        let slots = Slots::new(&mut *driver, tables, limits.max_batch as usize, vocab_size as usize)
            .map_err(load_error)?;
        settle(&mut *driver);
        tracing::info!(
            target = choice.target,
            device = device.name,
            jit = choice.jit,
            weights_ms = copied.as_millis() as u64,
            graphs = graphs.len(),
            graphs_ms = started.elapsed().as_millis() as u64,
            "plan is on the device"
        );

        let family = if is_emulated(&device) { "emulator" } else { "cuda" };
        let info = EngineInfo {
            path: format!("{family}/{}", choice.target),
            threads: 1,
            steps_ahead: 1,
            vocab_size,
            max_batch: limits.max_batch,
            max_num_tokens: limits.max_num_tokens,
            max_sample_rows: limits.max_sample_rows,
            max_seq_len: limits.max_seq_len,
            groups: pools
                .groups
                .iter()
                .map(|g| BlockGroup { n_blocks: g.blocks as u32, window: g.window })
                .collect(),
            block_tokens: block,
            memory: Memory { lines },
        };
        let check = StepCheck::new(StepLimits {
            n_embeddings,
            vocab_size,
            max_batch: limits.max_batch,
            max_num_tokens: limits.max_num_tokens,
            max_sample_rows: limits.max_sample_rows,
            max_seq_len: limits.max_seq_len,
            groups: info.groups.clone(),
            block_tokens: block,
            max_logit_bias: MAX_LOGIT_BIAS,
            max_stop_ids: MAX_STOP_IDS,
        });
        Ok(CudaEngine {
            info,
            check,
            nodes,
            sampling,
            graphs,
            layout,
            lanes,
            slots,
            ring,
            logits_at: logits_at(program, &addresses)?,
            // Pages come with the first step that wants them.
            logits: vec![0.0; logits_len],
            logits_rows: 0,
            addresses,
            block_bytes: pools.groups.iter().map(|g| g.block_bytes).collect(),
            submitted: 0,
            collected: 0,
            failed: None,
            driver,
        })
    }
}

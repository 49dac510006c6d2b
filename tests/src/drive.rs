//! Runs requests through the real scheduler and engine on one thread, as the server does, without HTTP.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use lathe_api::{
    Engine, SampleRow, SamplingParams, SeqStep, Slot, SlotState, StepOutput, StepPlan, TokenSource, Wanted,
};
use lathe_cpu::{CpuEngine, CpuOptions, Isa};
use lathe_cuda::{CudaEngine, CudaOptions};
use lathe_emulator::{CheckOptions, DeviceModel, Emulator, EmulatorOptions};
use lathe_plan::Plan;
use lathe_plan::schema::Target;
use lathe_scheduler::{GroupLimits, Limits, NewSequence, Scheduler, SeqId, Step};

/// What a client asks for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Prompt ids.
    pub prompt: Vec<u32>,
    /// Tokens to draw.
    pub max_new: u32,
    /// How to draw.
    pub params: SamplingParams,
    /// Alternatives per token.
    pub top_logprobs: Option<u8>,
    /// Report the logprob of every prompt token but the first.
    pub score_prompt: bool,
}

/// Everything that a client could see, in bits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Drawn ids.
    pub tokens: Vec<u32>,
    /// One per drawn token.
    pub logprobs: Vec<TokenBits>,
    /// Logprob bits per scored prompt position.
    pub prompt: Vec<u32>,
}

/// What is reported of a drawn token, floats as bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBits {
    /// Log probability.
    pub logprob: u32,
    /// Rank among all ids.
    pub rank: u32,
    /// Alternatives with their log probabilities.
    pub top: Vec<(u32, u32)>,
}

/// How requests are put through.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// Largest prefill chunk.
    pub chunk: Option<u32>,
    /// Blocks that the scheduler may use of each cache group; fewer than the engine's force preemption.
    pub n_blocks: Option<u32>,
    /// Requests that arrive per step; 0 is all at once.
    pub arrivals_per_step: usize,
    /// Tokens per step; 0 is the plan's.
    pub token_budget: u32,
}

/// Compiles with the built `compile`.
///
/// # Errors
/// When it exits non-zero, with what it printed.
pub fn compile(args: &[&str], out: &Path) -> Result<()> {
    let output = Command::new(crate::program("compile")).args(args).arg("-o").arg(out).output()?;
    ensure!(output.status.success(), "compile {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Loads a plan.
///
/// # Errors
/// When plan or engine refuse.
pub fn load(plan: &Path, threads: usize, isa: Option<Isa>) -> Result<CpuEngine> {
    let plan = Arc::new(Plan::open(plan)?);
    Ok(CpuEngine::load(plan, &CpuOptions { threads, isa, ..CpuOptions::default() })?)
}

/// How the emulator runs a plan's CUDA program.
#[derive(Clone, Copy, Debug, Default)]
pub struct Emulation {
    /// Every access is checked.
    pub checked: bool,
    /// Blocks and warps run in an order drawn from this.
    pub seed: Option<u64>,
    /// Decode steps are launched one kernel at a time.
    pub without_graphs: bool,
    /// Multiprocessors; 0 is the device's own number.
    pub sm_count: u32,
}

/// Loads a plan's CUDA program on the emulator.
///
/// # Errors
/// When plan, engine or emulator refuse.
pub fn emulate(plan: &Path, how: Emulation) -> Result<CudaEngine> {
    let plan = Arc::new(Plan::open(plan)?);
    let arch = plan.programs().iter().find_map(|p| match &p.target {
        Target::Cuda { arch } => lathe_cuda::arch_of(arch),
        Target::Cpu => None,
    });
    let mut device = DeviceModel::of(arch.context("the plan has no CUDA program")?);
    if how.sm_count > 0 {
        device.sm_count = how.sm_count;
    }
    let options = EmulatorOptions {
        check: how.checked.then(CheckOptions::default),
        seed: how.seed,
        ..EmulatorOptions::new(device)
    };
    let options_of_engine = CudaOptions { graphs: !how.without_graphs, ..CudaOptions::default() };
    let driver = Box::new(Emulator::new(&options)?);
    Ok(CudaEngine::load(plan, driver, &options_of_engine)?)
}

/// Logits of every position, `f32[ids, vocab]`, as many positions a step as fit.
///
/// # Panics
/// When the engine refuses a step.
pub fn logits(engine: &mut dyn Engine, ids: &[u32]) -> Vec<f32> {
    let info = engine.info().clone();
    let chunk = info.max_sample_rows.min(info.max_num_tokens) as usize;
    let (mut all, mut out) = (Vec::new(), StepOutput::default());
    for start in (0..ids.len()).step_by(chunk) {
        let len = chunk.min(ids.len() - start);
        let row = |row: usize| SampleRow {
            row: row as u32,
            slot: Slot(0),
            position: (start + row + 1) as u32,
            wanted: Wanted::Logits,
            params: SamplingParams::default(),
            top_logprobs: None,
            suppress_stops: false,
        };
        let mut step = StepPlan::with_capacity(len, 1, len, ids.len(), info.groups.len());
        step.tokens.extend(ids[start..start + len].iter().map(|id| TokenSource::Literal(*id)));
        step.positions.extend(start as u32..(start + len) as u32);
        step.rows.extend((0..len).map(row));
        let (blocks_start, blocks_len) = step.push_own_blocks(&info, 0, ids.len() as u32, start as u32);
        step.seqs.push(SeqStep {
            slot: Slot(0),
            q_start: 0,
            q_len: len as u32,
            kv_len: (start + len) as u32,
            blocks_start,
            blocks_len,
            adapter: None,
        });
        let ticket = engine.submit(&step).unwrap();
        engine.sample(ticket, None).unwrap();
        engine.collect(ticket, &mut out).unwrap();
        all.extend_from_slice(engine.logits());
    }
    all
}

struct Live<'a> {
    request: &'a Request,
    ids: Vec<u32>,
    answer: Answer,
}

/// A fast hash of nothing but the index: prompts that look random and never change.
pub fn token(i: u64, vocab: u32) -> u32 {
    let mut x = i.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    ((x ^ (x >> 29)) % u64::from(vocab)) as u32
}

/// Runs `requests` in the order of `order`; answers come back by request index, with the number of preemptions.
///
/// # Errors
/// When scheduler or engine refuse anything.
pub fn run(
    engine: &mut dyn Engine,
    requests: &[Request],
    order: &[usize],
    conditions: &Conditions,
) -> Result<(Vec<Answer>, u64)> {
    let info = engine.info().clone();
    let mut scheduler = Scheduler::new(Limits {
        max_batch: info.max_batch,
        max_num_tokens: if conditions.token_budget == 0 {
            info.max_num_tokens
        } else {
            conditions.token_budget
        },
        max_sample_rows: info.max_sample_rows,
        max_seq_len: info.max_seq_len,
        groups: info
            .groups
            .iter()
            .map(|g| GroupLimits {
                n_blocks: conditions.n_blocks.map_or(g.n_blocks, |n| n.min(g.n_blocks)),
                window: g.window,
            })
            .collect(),
        block_tokens: info.block_tokens,
        chunk_limit: conditions.chunk,
        max_queue: requests.len() + 1,
    })?;
    let mut live: BTreeMap<u64, (usize, Live<'_>)> = BTreeMap::new();
    let mut answers = vec![Answer::default(); requests.len()];
    let mut step = Step::with_capacity(info.max_batch);
    let mut plan = StepPlan::with_capacity(0, 0, 0, 0, info.groups.len());
    let mut out = StepOutput::default();
    let mut arrivals = order.iter().enumerate();
    let mut arriving = true;
    while arriving || !scheduler.is_idle() {
        let batch = if conditions.arrivals_per_step == 0 { usize::MAX } else { conditions.arrivals_per_step };
        for _ in 0..batch {
            let Some((arrival, index)) = arrivals.next() else {
                arriving = false;
                break;
            };
            let request = &requests[*index];
            scheduler.add(NewSequence {
                id: SeqId(arrival as u64),
                prompt_len: request.prompt.len() as u32,
                max_new_tokens: request.max_new,
                score_prompt: request.score_prompt,
                share_prefix_of: None,
            })?;
            let state = Live { request, ids: request.prompt.clone(), answer: Answer::default() };
            live.insert(arrival as u64, (*index, state));
        }
        scheduler.schedule(&mut step);
        if step.sequences.is_empty() {
            ensure!(arriving, "the scheduler makes no progress");
            continue;
        }
        fill(engine, &scheduler, &step, &live, &mut plan)?;
        let ticket = engine.submit(&plan)?;
        engine.sample(ticket, None)?;
        engine.collect(ticket, &mut out)?;
        let mut rows = plan.rows.iter().zip(&out.rows);
        for s in &step.sequences {
            let (_, state) = live.get_mut(&s.id.0).context("a sequence that never came")?;
            for position in s.sample_rows.clone() {
                let (want, row) = rows.next().context("too few rows")?;
                let top = &out.top[row.top_start as usize..(row.top_start + row.top_len) as usize];
                match want.wanted {
                    Wanted::Score(_) => state.answer.prompt.push(row.token.logprob.to_bits()),
                    Wanted::Sample => {
                        ensure!(position + 1 == state.ids.len() as u32, "row of another position");
                        state.ids.push(row.token.id);
                        state.answer.tokens.push(row.token.id);
                        let top = top.iter().map(|t| (t.id, t.logprob.to_bits())).collect();
                        let (logprob, rank) = (row.token.logprob.to_bits(), row.token.rank);
                        state.answer.logprobs.push(TokenBits { logprob, rank, top });
                    }
                    Wanted::Logits => {}
                }
            }
            let done = state.answer.tokens.len() as u32 == state.request.max_new;
            scheduler.commit(s.id, u32::from(s.samples))?;
            let computed = s.start + s.len;
            if (s.samples || state.request.max_new == 0 && computed == state.request.prompt.len() as u32)
                && done
            {
                scheduler.finish(s.id)?;
                if let Some((index, state)) = live.remove(&s.id.0) {
                    answers[index] = state.answer;
                }
            }
        }
    }
    ensure!(live.is_empty(), "{} requests never ended", live.len());
    Ok((answers, scheduler.stats().n_preemptions))
}

fn fill(
    engine: &mut dyn Engine,
    scheduler: &Scheduler,
    step: &Step,
    live: &BTreeMap<u64, (usize, Live<'_>)>,
    plan: &mut StepPlan,
) -> Result<()> {
    plan.clear();
    for s in &step.sequences {
        let (_, state) = live.get(&s.id.0).context("a sequence that never came")?;
        let slot = Slot(s.slot.0);
        if s.newly_admitted {
            let (prompt, output) = state.ids.split_at(state.request.prompt.len());
            engine.bind(slot, SlotState { prompt, output, ..SlotState::default() })?;
        }
        let q_start = plan.tokens.len() as u32;
        let blocks_start = plan.blocks[0].len() as u32;
        let n_blocks = (s.start + s.len).div_ceil(engine.info().block_tokens) as usize;
        for (group, blocks) in plan.blocks.iter_mut().enumerate() {
            let table = scheduler.block_table(group, s.slot);
            blocks.extend(table[..n_blocks].iter().map(|b| b.0));
        }
        for position in s.start..s.start + s.len {
            plan.tokens.push(TokenSource::Literal(state.ids[position as usize]));
            plan.positions.push(position);
        }
        plan.seqs.push(SeqStep {
            slot,
            q_start,
            q_len: s.len,
            kv_len: s.start + s.len,
            blocks_start,
            blocks_len: n_blocks as u32,
            adapter: None,
        });
        for position in s.sample_rows.clone() {
            let last = position + 1 == s.start + s.len;
            let wanted = if last && s.samples {
                Wanted::Sample
            } else {
                state.ids.get(position as usize + 1).map_or(Wanted::Logits, |id| Wanted::Score(*id))
            };
            plan.rows.push(SampleRow {
                row: q_start + position - s.start,
                slot,
                position: position + 1,
                wanted,
                params: state.request.params,
                top_logprobs: state.request.top_logprobs.or(state.request.score_prompt.then_some(0)),
                suppress_stops: false,
            });
        }
    }
    Ok(())
}

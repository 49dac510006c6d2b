//! Steps: checked, staged, submitted, drawn, collected. At most two are under way.

use std::fmt::Display;

use lathe_api::{
    Engine, EngineError, EngineInfo, NO_TOKEN, SampleRow, Slot, SlotState, StepCheck, StepOutput, StepPlan,
    Ticket, TokenMasks, Wanted,
};
use lathe_device::{Answer, DevicePtr, DrawParams, Driver, Event, Graph, HostBuffer, StepTable, Symbols};

use crate::buckets;
use crate::draw;
use crate::launches::{Addresses, Bound};
use crate::plain::{bytes_of, get, put, put_words};
use crate::slots::Slots;
use crate::tables::TableLayout;
use crate::transfer::{Ring, settle};

/// Where a step is between `submit` and `collect`.
#[derive(Debug)]
pub(crate) enum Phase {
    Idle,
    Submitted,
    /// The event says that the answers are on the host.
    Sampled(Event),
}

/// Host memory of one step under way; steps alternate between two.
pub(crate) struct Lane {
    pub(crate) tables: Box<dyn HostBuffer>,
    pub(crate) params: Box<dyn HostBuffer>,
    pub(crate) masks: Box<dyn HostBuffer>,
    pub(crate) answers: Box<dyn HostBuffer>,
    pub(crate) rows: Vec<SampleRow>,
    /// By row: it draws a token, or has drawn one.
    pub(crate) drawn: Vec<bool>,
    /// Of the step itself.
    pub(crate) symbols: Symbols,
    /// Of its launches, padding of a graph included.
    pub(crate) launched: Symbols,
    pub(crate) phase: Phase,
}

impl Lane {
    fn wants_logits(&self) -> bool {
        self.rows.iter().any(|row| row.wanted == Wanted::Logits)
    }
}

/// Runs a plan's CUDA program on a device behind a driver.
///
/// `submit` of a step may come before `collect` of the one before, once that was sampled; not if that one has rows
/// that want logits, for they would be written over.
pub struct CudaEngine {
    pub(crate) info: EngineInfo,
    pub(crate) check: StepCheck,
    pub(crate) nodes: Vec<Bound>,
    pub(crate) sampling: Vec<Bound>,
    /// Decode steps by size, ascending.
    pub(crate) graphs: Vec<(u32, Graph)>,
    pub(crate) addresses: Addresses,
    pub(crate) layout: TableLayout,
    pub(crate) lanes: [Lane; 2],
    pub(crate) slots: Slots,
    pub(crate) ring: Ring,
    pub(crate) logits_at: DevicePtr,
    pub(crate) logits: Vec<f32>,
    pub(crate) logits_rows: usize,
    /// By cache group.
    pub(crate) block_bytes: Vec<u64>,
    /// Ticket of the step that was submitted last.
    pub(crate) submitted: u64,
    /// Ticket of the step that was collected last.
    pub(crate) collected: u64,
    pub(crate) failed: Option<String>,
    pub(crate) driver: Box<dyn Driver>,
}

fn request(why: impl Into<String>) -> EngineError {
    EngineError::Request(why.into())
}

fn lane_of(ticket: u64) -> usize {
    (ticket % 2) as usize
}

impl CudaEngine {
    /// The device as its driver describes it.
    pub fn device(&self) -> &lathe_device::DeviceInfo {
        self.driver.info()
    }

    /// Device memory that is free now.
    ///
    /// # Errors
    /// `Failed` when the device fails.
    pub fn free_bytes(&self) -> Result<u64, EngineError> {
        self.driver.free_bytes().map_err(|e| EngineError::Failed(e.to_string()))
    }

    /// The bytes of a KV block of a cache group, for tests of the numeric contract; waits for the device.
    ///
    /// # Errors
    /// `Request` for a block that does not exist, `Failed` when the device fails.
    pub fn block(&mut self, group: usize, block: u32) -> Result<Vec<u8>, EngineError> {
        self.alive()?;
        let n_blocks = self.info.groups.get(group).map_or(0, |g| g.n_blocks);
        if block >= n_blocks {
            return Err(request(format!("block {block}; the pool of group {group} has {n_blocks}")));
        }
        let bytes_each = self.block_bytes[group];
        let mut bytes = vec![0; bytes_each as usize];
        let at = self.addresses.groups[group].kv.add(u64::from(block) * bytes_each);
        let read = self.ring.download(&mut *self.driver, at, &mut bytes);
        read.map_err(|e| self.fail(self.submitted, e))?;
        Ok(bytes)
    }

    fn alive(&self) -> Result<(), EngineError> {
        match &self.failed {
            None => Ok(()),
            Some(why) => Err(EngineError::Failed(why.clone())),
        }
    }

    /// Ends the engine: the device's state is unknown from now on.
    fn fail(&mut self, ticket: u64, why: impl Display) -> EngineError {
        let Symbols { tokens, sequences, rows, .. } = self.lanes[lane_of(ticket)].symbols;
        let why = format!("step {ticket} of {tokens} tokens, {sequences} sequences, {rows} rows: {why}");
        tracing::error!(why, "the device has failed");
        self.failed = Some(why.clone());
        EngineError::Failed(why)
    }

    /// Stages a checked step and submits its launches.
    fn enqueue(&mut self, step: &StepPlan) -> Result<(), String> {
        let lane = &mut self.lanes[lane_of(self.submitted)];
        let (t, s, r) = (step.tokens.len() as u32, step.seqs.len() as u32, step.rows.len() as u32);
        let decode = t == s;
        let sm_count = lane.symbols.sm_count;
        lane.symbols = Symbols { tokens: t, sequences: s, rows: r, decode, sm_count };
        let bucket = (decode && r == t)
            .then(|| buckets::index_of(self.graphs.iter().map(|(size, _)| *size), t))
            .flatten();
        let mut symbols = lane.symbols;
        if let Some((size, _)) = bucket.map(|at| self.graphs[at]) {
            (symbols.tokens, symbols.sequences, symbols.rows) = (size, size, size);
        }
        lane.launched = symbols;
        let pieces = self.layout.fill(lane.tables.bytes_mut(), step, self.check.limits(), &symbols);
        let driver = &mut *self.driver;
        let to = self.addresses.table(StepTable::Sequences);
        for (start, len) in pieces.iter() {
            // SAFETY: the lane's buffers are written again by the step after next, which is refused until this one was
            // collected, and `collect` waits.
            unsafe { driver.copy_to_device(to.add(start as u64), &*lane.tables, start, len) }
                .map_err(|e| format!("copying step tables: {e}"))?;
        }
        match bucket {
            Some(at) => {
                let (size, graph) = self.graphs[at];
                // SAFETY: the graph holds launches alone; what holds for each of them holds here.
                unsafe { driver.launch_graph(graph) }
                    .map_err(|e| format!("the captured decode step of {size} sequences: {e}"))?;
            }
            None => {
                for node in &mut self.nodes {
                    node.submit(driver, &symbols).map_err(|e| e.to_string())?;
                }
            }
        }
        Ok(())
    }

    /// Submits the drawing of the last step's rows and the copy of their answers.
    fn draw(&mut self, masks: Option<TokenMasks<'_>>) -> Result<Event, String> {
        let lane = &mut self.lanes[lane_of(self.submitted)];
        let driver = &mut *self.driver;
        if !lane.rows.is_empty() && !self.sampling.is_empty() {
            let params = lane.params.bytes_mut();
            for (i, row) in lane.rows.iter().enumerate() {
                let lists = self.slots.lists(row.slot);
                put(params, i, &draw::params(row, lists, masks.is_some()));
            }
            let len = lane.rows.len() * size_of::<DrawParams>();
            let to = self.addresses.table(StepTable::DrawParams);
            // SAFETY: as in `enqueue`.
            unsafe { driver.copy_to_device(to, &*lane.params, 0, len) }
                .map_err(|e| format!("copying what to draw: {e}"))?;
            if let Some(masks) = masks {
                let words = self.info.vocab_size.div_ceil(32) as usize;
                let staged = lane.masks.bytes_mut();
                for (i, row) in masks.words.chunks(masks.words_per_row).take(lane.rows.len()).enumerate() {
                    put_words(&mut staged[i * words * 4..][..words * 4], row.iter().copied());
                }
                let to = self.addresses.table(StepTable::Masks);
                // SAFETY: as in `enqueue`.
                unsafe { driver.copy_to_device(to, &*lane.masks, 0, lane.rows.len() * words * 4) }
                    .map_err(|e| format!("copying masks: {e}"))?;
            }
            for launch in &mut self.sampling {
                launch.submit(driver, &lane.symbols).map_err(|e| e.to_string())?;
            }
            let (from, len) =
                (self.addresses.table(StepTable::Answers), lane.rows.len() * size_of::<Answer>());
            // SAFETY: `collect` waits before it reads the buffer.
            unsafe { driver.copy_to_host(&mut *lane.answers, 0, from, len) }
                .map_err(|e| format!("copying answers: {e}"))?;
        }
        driver.record().map_err(|e| e.to_string())
    }

    /// Reads the answers of a step that is done.
    fn answers(&mut self, ticket: u64, out: &mut StepOutput) -> Result<(), String> {
        let lane = &mut self.lanes[lane_of(ticket)];
        out.rows.clear();
        out.top.clear();
        for (i, row) in lane.rows.iter().enumerate() {
            let answer: Answer = get(lane.answers.bytes(), i);
            draw::answer(row, &answer, self.info.vocab_size, out).map_err(|why| format!("row {i}: {why}"))?;
        }
        for (drawn, row) in lane.drawn.iter_mut().zip(&out.rows) {
            *drawn &= row.token.id != NO_TOKEN;
        }
        self.logits_rows = 0;
        if lane.wants_logits() {
            let len = lane.rows.len() * self.info.vocab_size as usize;
            let bytes = bytes_of(&mut self.logits[..len]);
            self.ring
                .download(&mut *self.driver, self.logits_at, bytes)
                .map_err(|e| format!("copying logits: {e}"))?;
            self.logits_rows = lane.rows.len();
        }
        Ok(())
    }
}

impl Engine for CudaEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn bind(&mut self, slot: Slot, state: SlotState<'_>) -> Result<(), EngineError> {
        self.alive()?;
        self.check.slot(slot, &state)?;
        let (submitted, collected) = (self.submitted, self.collected);
        let bound = self.slots.bind(&mut *self.driver, slot, &state, submitted, collected);
        bound.map_err(|e| self.fail(submitted, format!("binding slot {}: {e}", slot.0)))
    }

    fn submit(&mut self, step: &StepPlan) -> Result<Ticket, EngineError> {
        self.alive()?;
        let before = &self.lanes[lane_of(self.submitted)];
        if matches!(before.phase, Phase::Submitted) {
            return Err(request("the step before was not sampled"));
        }
        if self.submitted > self.collected && before.wants_logits() {
            return Err(request("the step before wants logits and was not collected"));
        }
        if self.submitted > self.collected + 1 {
            return Err(request("two steps are under way and the older one was not collected"));
        }
        if self.sampling.is_empty() && step.rows.iter().any(|row| row.wanted != Wanted::Logits) {
            return Err(request("the program draws no tokens: its rows give logits alone"));
        }
        self.check.step(step, |row| before.drawn.get(row as usize).is_some_and(|drawn| *drawn))?;
        self.submitted += 1;
        let lane = &mut self.lanes[lane_of(self.submitted)];
        lane.rows.clear();
        lane.rows.extend_from_slice(&step.rows);
        lane.drawn.clear();
        lane.drawn.extend(step.rows.iter().map(|row| row.wanted == Wanted::Sample));
        lane.phase = Phase::Submitted;
        self.enqueue(step).map_err(|why| self.fail(self.submitted, why))?;
        Ok(Ticket(self.submitted))
    }

    fn sample(&mut self, ticket: Ticket, masks: Option<TokenMasks<'_>>) -> Result<(), EngineError> {
        self.alive()?;
        let lane = &self.lanes[lane_of(ticket.0)];
        if ticket.0 != self.submitted || !matches!(lane.phase, Phase::Submitted) {
            return Err(request(format!("ticket {} is not a submitted step", ticket.0)));
        }
        if let Some(masks) = &masks {
            self.check.masks(masks, lane.rows.len())?;
        }
        let event = self.draw(masks).map_err(|why| self.fail(ticket.0, why))?;
        self.lanes[lane_of(ticket.0)].phase = Phase::Sampled(event);
        Ok(())
    }

    fn collect(&mut self, ticket: Ticket, out: &mut StepOutput) -> Result<(), EngineError> {
        self.alive()?;
        let lane = &mut self.lanes[lane_of(ticket.0)];
        let event = match lane.phase {
            Phase::Sampled(event) if ticket.0 == self.collected + 1 => event,
            _ => return Err(request(format!("ticket {} is not the oldest sampled step", ticket.0))),
        };
        lane.phase = Phase::Idle;
        if let Err(e) = self.driver.wait(event) {
            let (nodes, sampling) = (self.nodes.iter(), self.sampling.iter());
            let nodes = nodes.zip(std::iter::repeat(&lane.launched));
            let mut all = nodes.chain(sampling.zip(std::iter::repeat(&lane.symbols)));
            let made = all.find_map(|(bound, symbols)| bound.of_fault(&e, symbols));
            let made = made.map_or_else(String::new, |how| format!("; {how}"));
            return Err(self.fail(ticket.0, format!("{e}{made}")));
        }
        self.answers(ticket.0, out).map_err(|why| self.fail(ticket.0, why))?;
        self.collected = ticket.0;
        Ok(())
    }

    fn logits(&self) -> &[f32] {
        &self.logits[..self.logits_rows * self.info.vocab_size as usize]
    }
}

impl Drop for CudaEngine {
    fn drop(&mut self) {
        // Host buffers must outlive the copies that name them.
        settle(&mut *self.driver);
    }
}

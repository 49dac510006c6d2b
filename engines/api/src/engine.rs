//! The engine trait.

use crate::{BlockGroup, EngineError, Slot, SlotState, StepPlan, TokenMasks};

/// Names a submitted step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(pub u64);

/// A token with its log probability under the raw logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Token id.
    pub id: u32,
    /// Natural logarithm of its probability, before any penalty, mask or temperature.
    pub logprob: f32,
    /// Rank among all tokens, 1 is the most likely.
    pub rank: u32,
}

/// Answer for one `SampleRow`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowOutput {
    /// The drawn (or scored) token; logprob and rank are NaN and 0 where no logprobs were asked for.
    pub token: TokenLogprob,
    /// This row's alternatives in `StepOutput::top`: start and number.
    pub top_start: u32,
    /// See `top_start`.
    pub top_len: u32,
}

/// Answers of one step, in the order of `StepPlan::rows`. Reused from step to step.
#[derive(Clone, Debug, Default)]
pub struct StepOutput {
    /// `[r]`.
    pub rows: Vec<RowOutput>,
    /// Alternatives of all rows, most likely first within a row.
    pub top: Vec<TokenLogprob>,
}

impl StepOutput {
    /// Room for `r` rows with the largest number of alternatives each.
    pub fn with_capacity(r: usize) -> Self {
        StepOutput { rows: Vec::with_capacity(r), top: Vec::with_capacity(r * crate::MAX_TOP_LOGPROBS) }
    }
}

/// A named amount of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLine {
    /// What it is for.
    pub name: &'static str,
    /// Bytes.
    pub bytes: u64,
    /// True for pages of the plan's map, which the system may drop and read again.
    pub mapped: bool,
    /// True for what the device took besides, measured: code, graphs. No report knows it before.
    pub measured: bool,
}

/// All memory that an engine holds, fixed at load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// One line per purpose.
    pub lines: Vec<MemoryLine>,
}

impl Memory {
    /// Bytes that are allocated as planned: mapped pages and what was only measured left out.
    pub fn allocated(&self) -> u64 {
        self.lines.iter().filter(|l| !l.mapped && !l.measured).map(|l| l.bytes).sum()
    }
}

/// What an engine is.
#[derive(Clone, Debug)]
pub struct EngineInfo {
    /// The path that results depend on, e.g. `cpu/avx512`.
    pub path: String,
    /// Worker threads.
    pub threads: usize,
    /// Steps that may be submitted and sampled before the first of them is collected, less one: 0 takes them one by
    /// one, 1 lets the next be prepared while one runs.
    pub steps_ahead: u32,
    /// Columns of the logits.
    pub vocab_size: u32,
    /// Sequences in a step.
    pub max_batch: u32,
    /// Tokens in a step.
    pub max_num_tokens: u32,
    /// Rows of logits in a step.
    pub max_sample_rows: u32,
    /// Positions of one sequence.
    pub max_seq_len: u32,
    /// KV blocks by cache group, in the plan's order.
    pub groups: Vec<BlockGroup>,
    /// Positions per block, in every group.
    pub block_tokens: u32,
    /// What it holds.
    pub memory: Memory,
}

/// Runs steps of one plan. Calls come from one thread; `submit` may run ahead of `collect` by one step.
///
/// An error of `bind` or `submit` leaves the engine as it was; an error of `sample` or `collect` other than
/// `EngineError::Request` means the engine has failed and must be dropped.
pub trait Engine: Send {
    /// What this engine is.
    fn info(&self) -> &EngineInfo;

    /// Starts background work that first steps need not wait for, e.g. taking fresh pages. Called once, before serving.
    ///
    /// # Errors
    /// `Fit` when the system gives no thread.
    fn warm(&self) -> Result<(), EngineError> {
        Ok(())
    }

    /// Prepares a slot for a sequence that enters or re-enters it.
    fn bind(&mut self, slot: Slot, state: SlotState<'_>) -> Result<(), EngineError>;

    /// Starts a step. Every id, position, block and slot is checked; KV of the step's positions is written.
    fn submit(&mut self, step: &StepPlan) -> Result<Ticket, EngineError>;

    /// Draws tokens for all rows of a submitted step; `masks` has one bitset per row.
    fn sample(&mut self, ticket: Ticket, masks: Option<TokenMasks<'_>>) -> Result<(), EngineError>;

    /// Waits for the step and hands its answers over.
    fn collect(&mut self, ticket: Ticket, out: &mut StepOutput) -> Result<(), EngineError>;

    /// Raw logits `f32[r, vocab_size]` of the step last collected. Only a step in which some row is
    /// [`Wanted::Logits`](crate::Wanted) promises them: an engine may give nothing for others.
    fn logits(&self) -> &[f32];
}

//! Engine trait and batch schema: all that a scheduler and an engine say to each other.
//!
//! Pure data, no async. Nothing here allocates once `StepPlan::with_capacity` and `StepOutput::with_capacity` have.

mod batch;
mod blocks;
mod check;
mod engine;
mod error;
mod sampling;

pub use batch::{SampleRow, SeqStep, StepPlan, TokenSource, Wanted};
pub use blocks::BlockGroup;
pub use check::{StepCheck, StepLimits};
pub use engine::{Engine, EngineInfo, Memory, MemoryLine, RowOutput, StepOutput, Ticket, TokenLogprob};
pub use error::EngineError;
pub use lathe_numerics::window::NO_BLOCK;
pub use sampling::{SamplingParams, SlotState, TokenMasks};

/// A place for one running sequence in the engine, `0..max_batch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

/// Id of a row for which no token may be drawn: all are masked or suppressed. That request fails, no other.
pub const NO_TOKEN: u32 = u32::MAX;

/// Most alternatives that a logprob report may hold.
pub const MAX_TOP_LOGPROBS: usize = 20;

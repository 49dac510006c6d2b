//! In-flight batching: queue, scheduler, block pool; pure, no clock, no I/O.
//!
//! The caller owns the loop: [`Scheduler::add`] requests, [`Scheduler::schedule`] a [`Step`], run it on the
//! engine, then [`Scheduler::commit`], [`Scheduler::finish`] or [`Scheduler::abort`] every sequence of the step.
//! The scheduler counts tokens; it never sees them. Positions, lengths and budgets are in tokens.

mod error;
mod group;
mod limits;
mod pool;
mod scheduler;
mod sequence;
mod step;

pub use error::{LimitsError, Misuse, Refusal};
pub use limits::{GroupLimits, Limits};
pub use pool::BlockPool;
pub use scheduler::{Progress, Scheduler, Stats};
pub use sequence::NewSequence;
pub use step::{Scheduled, Step};

/// One sequence (one choice of one request), named by the caller; ids must grow with every `add`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u64);

/// The engine's per-sequence state index, `0..max_batch`; held from admission to end or preemption.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

/// One KV block of a group's pool, `0..n_blocks`, or [`BlockId::NONE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

impl BlockId {
    /// The table entry of positions that no row to come sees.
    pub const NONE: BlockId = BlockId(lathe_numerics::window::NO_BLOCK);
}

impl std::fmt::Display for SeqId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sequence {}", self.0)
    }
}

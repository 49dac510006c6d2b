//! What one step computes.

use crate::{SeqId, Slot};
use std::ops::Range;

/// One sequence's share of a step: positions `start..start + len`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheduled {
    /// The sequence.
    pub id: SeqId,
    /// Its state index; its KV blocks are `Scheduler::block_table(slot)`.
    pub slot: Slot,
    /// First position computed. Everything before is in the KV cache.
    pub start: u32,
    /// Positions computed, at least 1.
    pub len: u32,
    /// Positions whose logits rows are wanted, within `start..start + len`; may be empty.
    pub sample_rows: Range<u32>,
    /// The last position's row yields the next token: commit with one token. Otherwise commit with none.
    pub samples: bool,
    /// The slot was given to this sequence just now: bind it. After preemption this happens again, and `start`
    /// is again the first position that is not shared.
    pub newly_admitted: bool,
}

/// A step, filled by `Scheduler::schedule`; keep one and reuse it, so that it stops allocating.
#[derive(Debug, Clone, Default)]
pub struct Step {
    /// Decodes first, then prefill chunks, then the newly admitted, each in arrival order.
    pub sequences: Vec<Scheduled>,
    /// Sequences that lost their slot and blocks and wait again; they come back with `newly_admitted`.
    pub preempted: Vec<SeqId>,
    /// Sum of `len`.
    pub n_tokens: u32,
    /// Sum of the lengths of `sample_rows`.
    pub n_rows: u32,
}

impl Step {
    /// A step that holds `max_batch` sequences without allocating.
    pub fn with_capacity(max_batch: u32) -> Self {
        let n = max_batch as usize;
        Self { sequences: Vec::with_capacity(n), preempted: Vec::with_capacity(n), n_tokens: 0, n_rows: 0 }
    }

    pub(crate) fn clear(&mut self) {
        self.sequences.clear();
        self.preempted.clear();
        self.n_tokens = 0;
        self.n_rows = 0;
    }
}

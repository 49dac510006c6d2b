//! The scheduler: which positions of which sequences the next step computes.
//!
//! One order rules everything: arrival, which is id order. All running sequences are older than all waiting
//! ones, because admission takes the queue's head only and preemption takes the youngest running one and puts
//! it back at the front. So the oldest live sequence is never preempted while another runs, gets a token of
//! every step, and ends; then the next one is the oldest. That is the proof against starvation and livelock.

use crate::group::{Admission, Group};
use crate::sequence::Sequence;
use crate::{BlockId, Limits, LimitsError, Misuse, NewSequence, Refusal, Scheduled, SeqId, Slot, Step};
use std::collections::VecDeque;

/// What a sequence does after a committed step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Its next tokens will be scheduled.
    Continues,
    /// It has all the tokens it may have and is not scheduled again: `finish` it.
    Length,
}

/// Counters for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Sequences waiting, the preempted among them.
    pub n_queued: usize,
    /// Sequences with a slot.
    pub n_running: usize,
    /// Blocks with a reference in the group whose pool is fullest.
    pub n_blocks_used: u32,
    /// Blocks of that pool.
    pub n_blocks: u32,
    /// Preemptions since the start.
    pub n_preemptions: u64,
    /// Prompt tokens taken from another sequence's blocks since the start.
    pub n_shared_tokens: u64,
}

struct Budget {
    tokens: u32,
    rows: u32,
}

/// Queue, running sequences and their blocks.
#[derive(Debug, Clone)]
pub struct Scheduler {
    limits: Limits,
    groups: Vec<Group>,
    free_slots: Vec<Slot>,
    /// Sorted by id; all ids here are smaller than all in `queue`.
    running: Vec<Sequence>,
    /// Sorted by id.
    queue: VecDeque<Sequence>,
    last_id: Option<SeqId>,
    n_preemptions: u64,
    n_shared_tokens: u64,
}

impl Scheduler {
    /// An empty scheduler. Allocates for the full batch and queue.
    ///
    /// # Errors
    /// Limits under which progress could not be promised.
    pub fn new(limits: Limits) -> Result<Self, LimitsError> {
        limits.check()?;
        let max_batch = limits.max_batch as usize;
        Ok(Self {
            groups: limits.groups.iter().map(|group| Group::new(&limits, group)).collect(),
            free_slots: (0..limits.max_batch).rev().map(Slot).collect(),
            running: Vec::with_capacity(max_batch),
            queue: VecDeque::with_capacity(limits.max_queue.saturating_add(max_batch).min(1 << 16)),
            last_id: None,
            n_preemptions: 0,
            n_shared_tokens: 0,
            limits,
        })
    }

    /// The limits given at the start.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Puts a sequence at the end of the queue.
    ///
    /// # Errors
    /// The reason why it can never run, or cannot wait now; nothing is changed then.
    pub fn add(&mut self, new: NewSequence) -> Result<(), Refusal> {
        let limits = &self.limits;
        if self.last_id.is_some_and(|last| new.id <= last) {
            return Err(Refusal::IdNotNew { id: new.id });
        }
        if new.prompt_len == 0 {
            return Err(Refusal::EmptyPrompt);
        }
        let needed = u64::from(new.prompt_len) + u64::from(new.max_new_tokens.min(1));
        if needed > u64::from(limits.max_seq_len) {
            return Err(Refusal::TooLong { needed, max_seq_len: limits.max_seq_len });
        }
        let pool_tokens = limits.pool_tokens();
        if needed > pool_tokens {
            return Err(Refusal::PoolTooSmall { needed, pool_tokens });
        }
        if let Some(parent) = new.share_prefix_of.and_then(|parent| self.find(parent))
            && parent.prompt_len != new.prompt_len
        {
            let (id, prompt_len, parent_len) = (new.id, new.prompt_len, parent.prompt_len);
            return Err(Refusal::PrefixDiffers { id, prompt_len, parent_len });
        }
        if self.queue.len() >= limits.max_queue {
            return Err(Refusal::QueueFull { max_queue: limits.max_queue });
        }
        let asked = new.prompt_len.saturating_add(new.max_new_tokens);
        let pool_cap = u32::try_from(pool_tokens).unwrap_or(u32::MAX);
        self.last_id = Some(new.id);
        self.queue.push_back(Sequence {
            id: new.id,
            prompt_len: new.prompt_len,
            token_cap: asked.min(limits.max_seq_len).min(pool_cap),
            score_prompt: new.score_prompt,
            share_prefix_of: new.share_prefix_of,
            slot: Slot(0),
            num_tokens: new.prompt_len,
            num_computed: 0,
            num_scored: 0,
            in_flight: 0,
            in_flight_samples: false,
        });
        Ok(())
    }

    /// Fills `step` with the next step. Sequences whose last step is not committed yet sit out. Nothing is
    /// allocated once `step` has held a full batch.
    pub fn schedule(&mut self, step: &mut Step) {
        step.clear();
        let mut budget = Budget { tokens: self.limits.max_num_tokens, rows: self.limits.max_sample_rows };
        self.schedule_decodes(step, &mut budget);
        self.schedule_prefills(step, &mut budget);
        self.admit(step, &mut budget);
    }

    /// Records that the sequence's scheduled tokens are computed and `appended` tokens (1 when the step
    /// samples, else 0) were added. A sequence that stops at its sampled token is finished instead.
    ///
    /// # Errors
    /// No such step, or the wrong number of tokens. An aborted sequence gives `Ended`; skip it.
    pub fn commit(&mut self, id: SeqId, appended: u32) -> Result<Progress, Misuse> {
        let Ok(at) = self.running.binary_search_by_key(&id, |seq| seq.id) else {
            return Err(self.absent(id));
        };
        let seq = &mut self.running[at];
        if seq.in_flight == 0 {
            return Err(Misuse::NotScheduled(id));
        }
        let expected = u32::from(seq.in_flight_samples);
        if appended != expected {
            return Err(Misuse::WrongAppend { id, appended, expected });
        }
        seq.num_computed += seq.in_flight;
        seq.num_tokens += appended;
        seq.in_flight = 0;
        seq.in_flight_samples = false;
        seq.num_scored = seq.num_scored.max(seq.num_computed.min(seq.prompt_len));
        let kept_from = seq.kept_from(self.limits.block_tokens);
        let prompt_tokens = (appended == 0 && seq.remaining() > 0).then(|| seq.tokens_with_next());
        for group in &mut self.groups {
            group.advance(seq.slot, kept_from, prompt_tokens);
        }
        Ok(if seq.at_length() { Progress::Length } else { Progress::Continues })
    }

    /// Ends a sequence that stopped or reached its length; blocks and slot are free at once.
    ///
    /// # Errors
    /// It has ended before, or never was.
    pub fn finish(&mut self, id: SeqId) -> Result<(), Misuse> {
        self.end(id)
    }

    /// Ends a sequence in any state, also while its step is in flight: engines run steps in order, so what the
    /// flying step writes comes before anything a new owner of the blocks writes.
    ///
    /// # Errors
    /// It has ended before, or never was.
    pub fn abort(&mut self, id: SeqId) -> Result<(), Misuse> {
        self.end(id)
    }

    /// KV blocks of a slot in one cache group, in position order: entry `i` is that of positions `i * block_tokens..`,
    /// [`BlockId::NONE`] where no row to come sees it. It covers what is scheduled, in some groups more. Empty when the
    /// slot is free.
    pub fn block_table(&self, group: usize, slot: Slot) -> &[BlockId] {
        self.groups.get(group).map_or(&[], |group| group.table(slot))
    }

    /// No sequence waits or runs.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.queue.is_empty()
    }

    /// Counters for metrics.
    pub fn stats(&self) -> Stats {
        let used = |group: &Group| (group.pool().n_blocks() - group.pool().n_free(), group.pool().n_blocks());
        let fuller = |a: (u32, u32), b: (u32, u32)| {
            let is_fuller = u64::from(b.0) * u64::from(a.1) > u64::from(a.0) * u64::from(b.1);
            if is_fuller { b } else { a }
        };
        let (n_blocks_used, n_blocks) = self.groups.iter().map(used).reduce(fuller).unwrap_or_default();
        Stats {
            n_queued: self.queue.len(),
            n_running: self.running.len(),
            n_blocks_used,
            n_blocks,
            n_preemptions: self.n_preemptions,
            n_shared_tokens: self.n_shared_tokens,
        }
    }

    /// Checks what must hold between any two calls: references sum, no leak, promises can be kept, no sequence holds
    /// more than it may, slots and ids are unique, the arrival order of running and waiting, tables cover what is
    /// computed and what is still seen. Allocates; for tests.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn verify(&self) -> Result<(), String> {
        for (index, group) in self.groups.iter().enumerate() {
            group.verify().map_err(|why| format!("group {index}: {why}"))?;
        }
        let ids: Vec<_> = self.running.iter().chain(&self.queue).map(|seq| seq.id).collect();
        if !ids.is_sorted_by(|a, b| a < b) {
            return Err(format!("arrival order broken: {ids:?}"));
        }
        let mut slots: Vec<_> =
            self.running.iter().map(|seq| seq.slot).chain(self.free_slots.clone()).collect();
        slots.sort();
        if !slots.iter().copied().eq((0..self.limits.max_batch).map(Slot)) {
            return Err(format!("slots lost or shared: {slots:?}"));
        }
        let has_blocks = |slot: Slot| self.groups.iter().any(|group| !group.table(slot).is_empty());
        if let Some(slot) = self.free_slots.iter().find(|slot| has_blocks(**slot)) {
            return Err(format!("slot {}: free with blocks", slot.0));
        }
        for seq in &self.running {
            let end = seq.num_computed + seq.in_flight;
            if !self.groups.iter().all(|group| group.holds(seq.slot, seq.num_computed, end)) {
                return Err(format!("{}: its blocks do not cover what is computed or seen", seq.id));
            }
        }
        match self.queue.iter().find(|seq| seq.num_computed + seq.in_flight > 0) {
            Some(seq) => Err(format!("{}: waits with computed tokens", seq.id)),
            None => Ok(()),
        }
    }

    fn schedule_decodes(&mut self, step: &mut Step, budget: &mut Budget) {
        let mut at = 0;
        while at < self.running.len() {
            let seq = &self.running[at];
            if seq.is_ready() && seq.remaining() == 1 && self.grow(at, step) {
                self.push(at, 1, false, step, budget);
            }
            at += 1;
        }
    }

    fn schedule_prefills(&mut self, step: &mut Step, budget: &mut Budget) {
        for at in 0..self.running.len() {
            // A decode that is still ready found no block.
            if self.running[at].is_ready() && self.running[at].remaining() > 1 {
                let len = self.chunk(&self.running[at], budget);
                // Blocks for it were promised at admission.
                if len > 0 && self.cover(at, len) {
                    self.push(at, len, false, step, budget);
                }
            }
        }
    }

    /// Gives a sequence blocks for its next `len` positions. False: a group has too few.
    fn cover(&mut self, at: usize, len: u32) -> bool {
        let seq = &self.running[at];
        let end = seq.num_computed + len;
        let with_next = if end == seq.num_tokens { seq.tokens_with_next() } else { end };
        self.groups.iter_mut().all(|group| group.cover(seq.slot, end, with_next))
    }

    /// Admits from the head of the queue while a slot, budget and blocks are there. A head that must wait makes
    /// all wait.
    fn admit(&mut self, step: &mut Step, budget: &mut Budget) {
        while let Some(&head) = self.queue.front() {
            let Some(&slot) = self.free_slots.last() else { return };
            let Ok(parent) = self.prefix(&head) else { return };
            let (n_shared, parent_slot) = parent.unwrap_or((0, slot));
            let mut seq = Sequence { slot, num_computed: n_shared * self.limits.block_tokens, ..head };
            let len = self.chunk(&seq, budget);
            // The whole prompt and the next token get or are promised their blocks now: a prompt under way never waits
            // for blocks, so only decodes can cause preemption.
            let new = Admission {
                n_shared,
                kept_from: seq.kept_from(self.limits.block_tokens),
                n_tokens: seq.tokens_with_next(),
            };
            let alone = self.running.is_empty();
            if len == 0 || !self.groups.iter().all(|group| group.admits(new, alone)) {
                return;
            }
            self.queue.pop_front();
            self.free_slots.pop();
            for group in &mut self.groups {
                group.admit(slot, parent_slot, new);
            }
            self.n_shared_tokens += u64::from(seq.num_computed);
            seq.in_flight = 0;
            self.running.push(seq);
            let at = self.running.len() - 1;
            self.cover(at, len);
            self.push(at, len, true, step, budget);
        }
    }

    /// The number of blocks to share and the slot that has them; `Ok(None)`: nothing to share; `Err`: the
    /// parent is still computing them. The parent is older, so it runs or has ended.
    fn prefix(&self, child: &Sequence) -> Result<Option<(u32, Slot)>, ()> {
        let shared_len = child.shared_len(self.limits.block_tokens);
        let n_shared = shared_len / self.limits.block_tokens;
        let Some(parent) = child.share_prefix_of.filter(|_| n_shared > 0 && !child.score_prompt) else {
            return Ok(None);
        };
        match self.running.binary_search_by_key(&parent, |seq| seq.id) {
            Ok(at) if self.running[at].num_computed >= self.running[at].prompt_len => {
                let parent = &self.running[at];
                // A parent whose window has moved on has no longer what the child would see. One of the two that
                // recomputes an answer is promised the blocks that leave its window: they must not stay with the other.
                let recompute = parent.remaining() > 1 || child.num_tokens > child.prompt_len;
                let shares = |group: &Group| {
                    !group.is_windowed() || !recompute && group.has_prefix(parent.slot, shared_len)
                };
                Ok(self.groups.iter().all(shares).then_some((n_shared, parent.slot)))
            }
            Ok(_) => Err(()),
            Err(_) => Ok(None),
        }
    }

    fn chunk(&self, seq: &Sequence, budget: &Budget) -> u32 {
        let max_tokens = budget.tokens.min(self.limits.chunk_limit.unwrap_or(u32::MAX));
        seq.chunk(max_tokens, budget.rows)
    }

    /// Gives a decode the blocks for its token, at the price of the youngest running sequences. False: it
    /// cannot run in this step, or was itself the youngest and is preempted.
    fn grow(&mut self, at: usize, step: &mut Step) -> bool {
        while !self.cover(at, 1) {
            let youngest = self.running.len() - 1;
            if self.running[youngest].in_flight > 0 {
                return false;
            }
            self.preempt(youngest, step);
            if youngest == at {
                return false;
            }
        }
        true
    }

    fn preempt(&mut self, at: usize, step: &mut Step) {
        let mut seq = self.running.remove(at);
        self.free_slot(seq.slot);
        seq.num_computed = 0;
        step.preempted.push(seq.id);
        self.queue.push_front(seq);
        self.n_preemptions += 1;
    }

    fn push(&mut self, at: usize, len: u32, newly_admitted: bool, step: &mut Step, budget: &mut Budget) {
        let seq = &mut self.running[at];
        let (samples, sample_rows) = (seq.samples(len), seq.rows(len));
        seq.in_flight = len;
        seq.in_flight_samples = samples;
        let n_rows = sample_rows.len() as u32;
        budget.tokens -= len;
        budget.rows -= n_rows;
        step.n_tokens += len;
        step.n_rows += n_rows;
        let (id, slot, start) = (seq.id, seq.slot, seq.num_computed);
        step.sequences.push(Scheduled { id, slot, start, len, sample_rows, samples, newly_admitted });
    }

    fn end(&mut self, id: SeqId) -> Result<(), Misuse> {
        if let Ok(at) = self.running.binary_search_by_key(&id, |seq| seq.id) {
            let seq = self.running.remove(at);
            self.free_slot(seq.slot);
        } else if let Ok(at) = self.queue.binary_search_by_key(&id, |seq| seq.id) {
            self.queue.remove(at);
        } else {
            return Err(self.absent(id));
        }
        Ok(())
    }

    fn free_slot(&mut self, slot: Slot) {
        for group in &mut self.groups {
            group.free(slot);
        }
        self.free_slots.push(slot);
    }

    fn find(&self, id: SeqId) -> Option<&Sequence> {
        match self.running.binary_search_by_key(&id, |seq| seq.id) {
            Ok(at) => Some(&self.running[at]),
            Err(_) => self.queue.binary_search_by_key(&id, |seq| seq.id).ok().map(|at| &self.queue[at]),
        }
    }

    fn absent(&self, id: SeqId) -> Misuse {
        if self.find(id).is_some() {
            Misuse::NotScheduled(id)
        } else if self.last_id.is_some_and(|last| id <= last) {
            Misuse::Ended(id)
        } else {
            Misuse::Unknown(id)
        }
    }
}

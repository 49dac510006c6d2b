//! One step's work: a ragged batch of prefill chunks, decodes and verifications.

use crate::{SamplingParams, Slot};

/// Where a token id comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// Known when the step is made.
    Literal(u32),
    /// Sampled row `row` of the step submitted just before; lets a step be made while that one runs.
    Row(u32),
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqStep {
    /// The engine's state for this sequence.
    pub slot: Slot,
    /// First row of this sequence in the step.
    pub q_start: u32,
    /// Rows of this sequence in the step.
    pub q_len: u32,
    /// Positions in the cache after this step; the rows' positions are `kv_len - q_len .. kv_len`.
    pub kv_len: u32,
    /// Start of this sequence's block ids in the list of every group of `StepPlan::blocks`, and their number; covers at
    /// least `kv_len` positions.
    pub blocks_start: u32,
    /// See `blocks_start`.
    pub blocks_len: u32,
    /// Adapter, for when plans hold several.
    pub adapter: Option<u32>,
}

/// What is wanted of a row of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Draw the next token; it is added to the slot's output counts.
    Sample,
    /// Report the logprob of a token that is already known (prompt scoring).
    Score(u32),
    /// Only keep the logits for `Engine::logits`.
    Logits,
}

/// A row whose logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleRow {
    /// Row of the step.
    pub row: u32,
    /// Sequence whose slot state applies.
    pub slot: Slot,
    /// Absolute position of the token to draw; counter of the random number.
    pub position: u32,
    /// What to do with the row.
    pub wanted: Wanted,
    /// How to draw.
    pub params: SamplingParams,
    /// Alternatives to report, at most `MAX_TOP_LOGPROBS`; `None` reports no logprobs at all.
    pub top_logprobs: Option<u8>,
    /// True while fewer than `min_tokens` were generated: the slot's stop ids are not drawn.
    pub suppress_stops: bool,
}

/// One step. Buffers are reused from step to step.
#[derive(Clone, Debug)]
pub struct StepPlan {
    /// `[t]` token ids, sequence after sequence.
    pub tokens: Vec<TokenSource>,
    /// `[t, axes]` absolute positions; one axis now.
    pub positions: Vec<u32>,
    /// `[s]`.
    pub seqs: Vec<SeqStep>,
    /// Block ids of all sequences, a list per cache group; in each a sequence has the same place. Entry `i` of a sequence
    /// holds its positions `i * block..`; [`NO_BLOCK`](crate::NO_BLOCK) where none of its rows sees any of them.
    pub blocks: Vec<Vec<u32>>,
    /// `[r]`, ascending by `row`.
    pub rows: Vec<SampleRow>,
}

impl Default for StepPlan {
    /// An empty step of one cache group.
    fn default() -> Self {
        Self::with_capacity(0, 0, 0, 0, 1)
    }
}

impl StepPlan {
    /// An empty step that holds `t` tokens, `s` sequences, `r` rows and `blocks` block ids in each of `groups` cache
    /// groups without allocating again.
    pub fn with_capacity(t: usize, s: usize, r: usize, blocks: usize, groups: usize) -> Self {
        StepPlan {
            tokens: Vec::with_capacity(t),
            positions: Vec::with_capacity(t),
            seqs: Vec::with_capacity(s),
            blocks: (0..groups).map(|_| Vec::with_capacity(blocks)).collect(),
            rows: Vec::with_capacity(r),
        }
    }

    /// Empties all lists, keeping their memory and the number of groups.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.seqs.clear();
        self.blocks.iter_mut().for_each(Vec::clear);
        self.rows.clear();
    }
}

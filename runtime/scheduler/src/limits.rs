//! The fixed sizes that a scheduler works within.

use crate::LimitsError;

/// Sizes fixed at load. Tokens unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that may run at once.
    pub max_batch: u32,
    /// Tokens computed in one step, over all sequences; at least `max_batch`.
    pub max_num_tokens: u32,
    /// Rows of logits in one step, over all sequences; at least `max_batch`.
    pub max_sample_rows: u32,
    /// Prompt and answer of one sequence.
    pub max_seq_len: u32,
    /// Cache groups, at least one: each has a pool and a table per sequence.
    pub groups: Vec<GroupLimits>,
    /// Tokens in one block, in every group.
    pub block_tokens: u32,
    /// Largest prefill chunk of one sequence in one step; `None`: what the budget leaves.
    pub chunk_limit: Option<u32>,
    /// Sequences that may wait. Preempted ones wait too, and may pass this limit.
    pub max_queue: usize,
}

/// Sizes of one cache group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupLimits {
    /// Blocks of its pool.
    pub n_blocks: u32,
    /// Positions that a row sees, its own included; `None`: all up to its own.
    pub window: Option<u32>,
}

impl Limits {
    pub(crate) fn check(&self) -> Result<(), LimitsError> {
        let at_least_one = [
            ("max_batch", self.max_batch),
            ("max_seq_len", self.max_seq_len),
            ("groups", self.groups.len() as u32),
            ("block_tokens", self.block_tokens),
            ("chunk_limit", self.chunk_limit.unwrap_or(1)),
        ];
        let of_groups =
            self.groups.iter().flat_map(|g| [("n_blocks", g.n_blocks), ("window", g.window.unwrap_or(1))]);
        if let Some((name, _)) = at_least_one.into_iter().chain(of_groups).find(|(_, value)| *value == 0) {
            return Err(LimitsError::Zero { name });
        }
        for (name, value) in
            [("max_num_tokens", self.max_num_tokens), ("max_sample_rows", self.max_sample_rows)]
        {
            if value < self.max_batch {
                return Err(LimitsError::BelowBatch { name, value, max_batch: self.max_batch });
            }
        }
        Ok(())
    }

    pub(crate) fn blocks_for(&self, n_tokens: u32) -> u32 {
        n_tokens.div_ceil(self.block_tokens)
    }

    /// Tokens that one sequence may have in every group's pool.
    pub(crate) fn pool_tokens(&self) -> u64 {
        let tokens = |group: &GroupLimits| match group.n_blocks >= self.at_once(group) {
            true => u64::MAX,
            false => u64::from(group.n_blocks) * u64::from(self.block_tokens),
        };
        self.groups.iter().map(tokens).min().unwrap_or(0)
    }
}

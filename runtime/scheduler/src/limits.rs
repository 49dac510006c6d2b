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
    /// Blocks of the KV pool.
    pub n_blocks: u32,
    /// Tokens in one block.
    pub block_tokens: u32,
    /// Largest prefill chunk of one sequence in one step; `None`: what the budget leaves.
    pub chunk_limit: Option<u32>,
    /// Sequences that may wait. Preempted ones wait too, and may pass this limit.
    pub max_queue: usize,
}

impl Limits {
    pub(crate) fn check(&self) -> Result<(), LimitsError> {
        let at_least_one = [
            ("max_batch", self.max_batch),
            ("max_seq_len", self.max_seq_len),
            ("n_blocks", self.n_blocks),
            ("block_tokens", self.block_tokens),
            ("chunk_limit", self.chunk_limit.unwrap_or(1)),
        ];
        if let Some(&(name, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
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

    pub(crate) fn pool_tokens(&self) -> u64 {
        u64::from(self.n_blocks) * u64::from(self.block_tokens)
    }

    /// Blocks kept free at admission while others run, so that they can grow a little before anyone must be
    /// preempted: one in a hundred, at least one.
    pub(crate) fn watermark(&self) -> u32 {
        (self.n_blocks / 100).max(1)
    }
}

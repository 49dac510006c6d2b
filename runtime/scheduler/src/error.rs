//! What can be wrong: with the limits, with a request, with a call.

use crate::SeqId;

/// Limits under which the scheduler could not promise progress.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// A limit that must be at least one is zero.
    #[error("{name}: is 0, must be at least 1")]
    Zero {
        /// The field of `Limits`.
        name: &'static str,
    },
    /// A per-step budget that could not serve one token to every sequence of a full batch.
    #[error("{name}: {value} is below max_batch {max_batch}; raise it or lower max_batch")]
    BelowBatch {
        /// The field of `Limits`.
        name: &'static str,
        /// Its value.
        value: u32,
        /// The batch it must reach.
        max_batch: u32,
    },
}

/// Why a request was not taken; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The queue holds `max_queue` sequences; try again later.
    #[error("queue: full with {max_queue} sequences")]
    QueueFull {
        /// The limit.
        max_queue: usize,
    },
    /// No token to compute.
    #[error("prompt: has no token")]
    EmptyPrompt,
    /// The prompt, with the new tokens that must fit at least, is longer than any sequence may be.
    #[error("prompt: {needed} tokens with the first new one, max_seq_len is {max_seq_len}")]
    TooLong {
        /// Prompt tokens, plus one when a new token is asked for.
        needed: u64,
        /// The limit.
        max_seq_len: u32,
    },
    /// The whole pool could not hold it.
    #[error("prompt: {needed} tokens with the first new one, the KV pool holds {pool_tokens}")]
    PoolTooSmall {
        /// Prompt tokens, plus one when a new token is asked for.
        needed: u64,
        /// Blocks times tokens per block.
        pool_tokens: u64,
    },
    /// Ids must grow, so that arrival order is id order and a used id is known as used.
    #[error("{id}: id must be greater than every id added before")]
    IdNotNew {
        /// The id offered.
        id: SeqId,
    },
    /// A prefix can only be shared between equal prompts.
    #[error("{id}: prompt has {prompt_len} tokens, that of its prefix parent {parent_len}")]
    PrefixDiffers {
        /// The id offered.
        id: SeqId,
        /// Its prompt length.
        prompt_len: u32,
        /// The parent's prompt length.
        parent_len: u32,
    },
}

/// A call that does not fit the sequence's state; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// The sequence has ended already.
    #[error("{0}: has ended already")]
    Ended(SeqId),
    /// No such sequence was ever added.
    #[error("{0}: never added")]
    Unknown(SeqId),
    /// A commit without a scheduled step.
    #[error("{0}: has no step to commit")]
    NotScheduled(SeqId),
    /// A step that samples yields one token, any other none.
    #[error("{id}: {appended} tokens appended, the step yields {expected}")]
    WrongAppend {
        /// The sequence.
        id: SeqId,
        /// Tokens the caller appended.
        appended: u32,
        /// Tokens the step yields.
        expected: u32,
    },
}

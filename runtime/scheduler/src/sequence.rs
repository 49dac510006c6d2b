//! The counts that one sequence is.

use crate::{SeqId, Slot};
use std::ops::Range;

/// A request for one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSequence {
    /// Greater than every id before.
    pub id: SeqId,
    /// Prompt tokens, at least 1.
    pub prompt_len: u32,
    /// New tokens at most; also bounded by `max_seq_len` and the pool. 0: the prompt is computed, nothing is
    /// sampled.
    pub max_new_tokens: u32,
    /// The logits of every prompt position are wanted, once each.
    pub score_prompt: bool,
    /// A sequence with the same prompt, whose full prompt blocks this one takes by reference once they are
    /// computed. If that one has ended by then, or `score_prompt` is set, all is computed anew.
    pub share_prefix_of: Option<SeqId>,
}

/// `num_computed <= num_tokens <= token_cap`. `in_flight` tokens are scheduled and not committed, so a later
/// step can be scheduled before this one is collected.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sequence {
    pub id: SeqId,
    pub prompt_len: u32,
    pub token_cap: u32,
    pub score_prompt: bool,
    pub share_prefix_of: Option<SeqId>,
    /// Meaningful while running.
    pub slot: Slot,
    pub num_tokens: u32,
    pub num_computed: u32,
    /// Prompt positions whose rows were delivered; survives preemption.
    pub num_scored: u32,
    pub in_flight: u32,
    pub in_flight_samples: bool,
}

impl Sequence {
    pub fn remaining(&self) -> u32 {
        self.num_tokens - self.num_computed
    }

    /// Every token that may be sampled was sampled, and nothing is left to compute for anyone.
    pub fn at_length(&self) -> bool {
        self.num_tokens == self.token_cap
            && (self.num_tokens > self.prompt_len || self.num_computed == self.num_tokens)
    }

    pub fn is_ready(&self) -> bool {
        self.in_flight == 0 && self.remaining() > 0 && !self.at_length()
    }

    /// Tokens that need a place in the cache before the next one is sampled, and that one.
    pub fn tokens_with_next(&self) -> u32 {
        (self.num_tokens + 1).min(self.token_cap)
    }

    /// Where the part of a prompt ends that others with the same prompt take by reference: its full blocks, but for the
    /// last token, which everyone computes for itself because its row gives the first token.
    pub fn shared_len(&self, block_tokens: u32) -> u32 {
        (self.prompt_len - 1) / block_tokens * block_tokens
    }

    /// First position whose row is still to come, of this sequence or of one that takes its prompt over: what that row
    /// sees is kept. Others get their chance in the step after the prompt, then its blocks may go.
    pub fn kept_from(&self, block_tokens: u32) -> u32 {
        let is_fresh = self.num_computed <= self.prompt_len && self.num_tokens <= self.prompt_len + 1;
        if is_fresh { self.num_computed.min(self.shared_len(block_tokens)) } else { self.num_computed }
    }

    pub fn samples(&self, len: u32) -> bool {
        len == self.remaining() && self.num_tokens < self.token_cap
    }

    /// The rows wanted of the next `len` positions. One range always suffices: a sequence that has sampled has
    /// had its whole prompt scored.
    pub fn rows(&self, len: u32) -> Range<u32> {
        let end = self.num_computed + len;
        let scored_to = end.min(self.prompt_len);
        let unscored = self.num_computed.max(self.num_scored);
        if self.score_prompt && unscored < scored_to {
            unscored..scored_to
        } else if self.samples(len) {
            end - 1..end
        } else {
            end..end
        }
    }

    /// The longest next chunk within the limits, perhaps 0.
    pub fn chunk(&self, max_tokens: u32, max_rows: u32) -> u32 {
        let mut len = self.remaining().min(max_tokens);
        let unscored = self.num_computed.max(self.num_scored);
        if self.score_prompt && unscored < self.prompt_len {
            len = len.min((unscored - self.num_computed).saturating_add(max_rows));
        }
        // Only the sampling row can still be too many.
        if len > 0 && self.rows(len).len() as u32 > max_rows { len - 1 } else { len }
    }
}

//! The seam between the HTTP side and whatever runs sequences: token ids in, a stream of tokens out.

use std::sync::Arc;

use lathe_api::{SamplingParams, TokenLogprob};

use crate::engine_thread::Running;

/// One choice of one request, ready to run: ids, limits and how to draw.
#[derive(Clone, Debug)]
pub struct SequenceRequest {
    /// Prompt ids, at least one, all below the vocabulary size.
    pub prompt: Arc<[u32]>,
    /// Tokens to draw at most; 0 only computes (and scores) the prompt.
    pub max_new_tokens: u32,
    /// Tokens before which no id of `stop_ids` is drawn.
    pub min_new_tokens: u32,
    /// How tokens are drawn.
    pub params: SamplingParams,
    /// Added to the logits, ids below the vocabulary size.
    pub logit_bias: Arc<[(u32, f32)]>,
    /// Ids that end the sequence when drawn.
    pub stop_ids: Arc<[u32]>,
    /// Alternatives to report per token; `None` reports no logprobs.
    pub top_logprobs: Option<u8>,
    /// Report logprobs of the prompt's own tokens too.
    pub score_prompt: bool,
    /// Index of an earlier sequence of the same submission with the same prompt, whose cache blocks may be shared.
    pub share_with: Option<usize>,
}

/// A token's logprob with its alternatives, most likely first.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenScore {
    /// The token itself.
    pub token: TokenLogprob,
    /// At most as many as asked for.
    pub top: Box<[TokenLogprob]>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// It drew this stop id.
    StopId(u32),
    /// It has all the tokens that it may have.
    Length,
}

/// What happens to the sequences of a submission; `choice` indexes the submitted list.
#[derive(Clone, Debug)]
pub enum Event {
    /// All sequences are queued. Comes first.
    Accepted,
    /// None was queued. Comes first and last.
    Refused(Refused),
    /// Logprobs of prompt tokens `first..first + scores.len()`; the token at position 0 has none.
    Scored {
        /// Index of the sequence.
        choice: usize,
        /// Position of the first scored token.
        first: u32,
        /// One per token.
        scores: Vec<TokenScore>,
    },
    /// A drawn token.
    Token {
        /// Index of the sequence.
        choice: usize,
        /// Token id.
        id: u32,
        /// Where logprobs were asked for.
        score: Option<TokenScore>,
        /// Set with the last token of a sequence.
        finish: Option<Finish>,
    },
    /// A sequence without new tokens is through.
    Finished {
        /// Index of the sequence.
        choice: usize,
        /// Always `Length` now.
        finish: Finish,
    },
    /// The engine refused this one sequence; the others go on.
    Rejected {
        /// Index of the sequence.
        choice: usize,
        /// The engine's reason.
        reason: String,
    },
    /// The engine is gone, and every sequence with it.
    Failed(String),
}

/// Why a submission was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Waiting room is used up; later may work.
    #[error("{0}")]
    QueueFull(String),
    /// A prompt can never run under these limits.
    #[error("{0}")]
    Never(String),
    /// More sequences at once than may ever wait.
    #[error("request: has {asked} prompts and choices, the queue holds {max_queue}")]
    TooMany {
        /// Sequences of the request.
        asked: usize,
        /// Places in the queue.
        max_queue: usize,
    },
    /// No new work is taken any more.
    #[error("the server is shutting down")]
    Draining,
    /// The engine has failed.
    #[error("the engine has failed: {0}")]
    Failed(String),
}

/// Whether work is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Yes.
    Serving,
    /// Only what is already running goes on.
    Draining,
    /// Never again; why.
    Failed(String),
}

/// What the HTTP side knows of an engine.
pub trait Backend: Send + Sync + 'static {
    /// The path that answers depend on, e.g. `cpu/avx512`.
    fn name(&self) -> &str;

    /// Whether work is taken.
    fn health(&self) -> Health;

    /// Hands sequences over; either all are queued or none. The first event tells. Dropping the answer aborts.
    fn submit(&self, sequences: Vec<SequenceRequest>) -> Running;
}

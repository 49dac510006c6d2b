//! The bodies of answers, whole and in chunks, with fields in OpenAI's order.

use serde::Serialize;

use super::logprobs::{ChatLogprobs, CompletionLogprobs};

/// Token counts of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
}

impl Usage {
    /// Counts of prompt and answer.
    pub fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        Usage { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }
}

/// What all bodies of one request begin with.
#[derive(Clone, Debug, Serialize)]
pub struct Head {
    /// Id of the answer.
    pub id: String,
    /// Kind of the body.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// Name of the model.
    pub model: String,
    /// The path that the numbers depend on.
    pub system_fingerprint: String,
}

/// A body: the head, choices, counts.
#[derive(Serialize)]
pub struct Body<'a, C> {
    /// Same for all bodies of a request.
    #[serde(flatten)]
    pub head: &'a Head,
    /// One per choice, or of one choice in a chunk.
    pub choices: &'a [C],
    /// Left out, null, or the counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// A choice of /v1/completions, whole or in part.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct CompletionChoice {
    pub index: usize,
    pub text: String,
    pub logprobs: Option<CompletionLogprobs>,
    pub finish_reason: Option<&'static str>,
}

/// A choice of /v1/chat/completions.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct ChatChoice {
    pub index: usize,
    pub message: Message,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: Option<&'static str>,
}

/// The answer of the assistant.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Message {
    pub role: &'static str,
    pub content: String,
    pub refusal: Option<()>,
}

/// Part of a choice of /v1/chat/completions.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct ChatChunkChoice {
    pub index: usize,
    pub delta: Delta,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: Option<&'static str>,
}

/// What a chunk adds to the message.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

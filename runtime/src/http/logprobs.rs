//! Logprobs in the two shapes of OpenAI's API.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::backend::TokenScore;
use crate::model::Text;

/// Logprobs below this, as of tokens that a bias rules out, have no JSON number.
const LOWEST: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { LOWEST }
}

/// /v1/completions: parallel lists.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    /// Null where no alternatives exist.
    top_logprobs: Vec<Option<Alternatives>>,
    text_offset: Vec<usize>,
}

/// A JSON object in the order of the list. Its numbers are written as those of `token_logprobs` are: clients compare
/// them.
#[derive(Clone, Debug, Default, PartialEq)]
struct Alternatives(Vec<(String, f32)>);

impl Serialize for Alternatives {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, logprob) in &self.0 {
            map.serialize_entry(token, logprob)?;
        }
        map.end()
    }
}

impl CompletionLogprobs {
    /// Adds a token, with its score unless it is a prompt's first; `offset` counts characters and moves on.
    pub fn push(&mut self, text: &Text, id: u32, score: Option<&TokenScore>, offset: &mut usize) {
        let token = text.spelling(id);
        self.text_offset.push(*offset);
        *offset += token.chars().count();
        self.token_logprobs.push(score.map(|s| finite(s.token.logprob)));
        self.top_logprobs.push(score.map(|s| {
            let mut top = Alternatives::default();
            // The token itself is always among them. Two ids of one spelling keep the likelier one's value.
            for alternative in s.top.iter().chain([&s.token]) {
                let token = text.spelling(alternative.id);
                if top.0.iter().all(|(known, _)| *known != token) {
                    top.0.push((token, finite(alternative.logprob)));
                }
            }
            top
        }));
        self.tokens.push(token);
    }
}

/// /v1/chat/completions: one entry per token.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ChatLogprobs {
    content: Vec<ChatToken>,
    refusal: Option<()>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct ChatToken {
    #[serde(flatten)]
    token: Scored,
    top_logprobs: Vec<Scored>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Scored {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl Scored {
    fn new(text: &Text, id: u32, logprob: f32) -> Self {
        Scored { token: text.spelling(id), logprob: finite(logprob), bytes: text.bytes(id) }
    }
}

impl ChatLogprobs {
    /// Adds a token.
    pub fn push(&mut self, text: &Text, score: &TokenScore) {
        self.content.push(ChatToken {
            token: Scored::new(text, score.token.id, score.token.logprob),
            top_logprobs: score.top.iter().map(|t| Scored::new(text, t.id, t.logprob)).collect(),
        });
    }
}

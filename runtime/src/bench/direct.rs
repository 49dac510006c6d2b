//! Asks the engine thread of this process, without HTTP in between.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::dataset::{Ask, Prompt};
use super::watch::{Failure, Watch};
use crate::engine_thread::EngineHandle;
use crate::generation::{Generation, GenerationError, Job};
use crate::http::{ApiError, Conversation, Fields, room};
use crate::model::Model;
use crate::sampling::Sampling;

/// The engine and what is asked of it.
#[derive(Clone)]
pub struct Direct {
    /// Runs sequences.
    pub handle: EngineHandle,
    /// Tokenizer, template, defaults.
    pub model: Arc<Model>,
    /// Renders text prompts as conversations.
    pub chat: bool,
    /// Sampling fields, as a request would hold them.
    pub fields: Map<String, Value>,
}

impl Direct {
    /// Asks and tells `watch` of everything that comes.
    ///
    /// # Errors
    /// The prompt cannot be encoded or does not fit, or the engine refuses or fails.
    pub async fn ask(&self, ask: Ask, watch: &mut Watch) -> Result<(), Failure> {
        let this = self.clone();
        // Encoding a long prompt takes a while; tokens of others must not wait for it.
        let job = tokio::task::spawn_blocking(move || this.job(ask)).await;
        let job = job.map_err(|e| Failure::Refused(format!("reading the request: {e}")))?;
        let job = job.map_err(|e| Failure::Refused(e.message))?;
        let input = job.n_prompt_tokens() as u64;
        let mut generation =
            Generation::start(&self.handle, &self.model, &job).await.map_err(|e| failure(&e))?;
        let mut output = 0;
        while let Some(piece) = generation.next().await.map_err(|e| failure(&e))? {
            if !piece.tokens.is_empty() {
                watch.tokens();
            }
            output += piece.tokens.len() as u64;
            if piece.end.is_some() {
                watch.finish();
            }
        }
        watch.usage(input, output);
        Ok(())
    }

    fn job(&self, ask: Ask) -> Result<Job, ApiError> {
        let model = &self.model;
        let encode = |messages| Conversation::new(messages).encode(model).map_err(ApiError::from);
        let prompt = match ask.prompt {
            Prompt::Ids(ids) => {
                let vocab = model.defaults.vocab_size;
                if let Some(id) = ids.iter().find(|id| **id >= vocab) {
                    return Err(ApiError::invalid("prompt", format!("prompt: id {id} is not below {vocab}")));
                }
                ids
            }
            Prompt::Messages(messages) => encode(messages)?,
            Prompt::Text(text) if self.chat => encode(vec![json!({"role": "user", "content": text})])?,
            Prompt::Text(text) => model
                .text
                .encode(&text, true)
                .map_err(|e| ApiError::invalid("prompt", format!("prompt: {e}")))?,
        };
        let mut fields = Fields::of(self.fields.clone());
        let sampling = Sampling::from_fields(&mut fields, &model.defaults)?;
        fields.finish()?;
        let room = room("prompt", prompt.len(), Some(ask.max_tokens), None, model.max_seq_len)?;
        Ok(Job {
            prompts: vec![prompt.into()],
            max_tokens: vec![room],
            sampling,
            top_logprobs: None,
            score_prompt: false,
        })
    }
}

fn failure(error: &GenerationError) -> Failure {
    match error {
        GenerationError::Refused(_) | GenerationError::Rejected(_) => Failure::Refused(error.to_string()),
        GenerationError::Failed(_) => Failure::Stream(error.to_string()),
    }
}

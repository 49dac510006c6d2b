//! POST /v1/chat/completions.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use lathe_text::{ChatError, ChatInput};
use serde_json::{Map, Value};

use super::completions::{Wishes, blocking, check_model, head, record};
use super::logprobs::ChatLogprobs;
use super::middleware::read_body;
use super::prompt::room;
use super::reply::{Body as Reply, ChatChoice, ChatChunkChoice, Delta, Head, Message, Usage};
use super::sse::{self, Chunks, Deadline};
use super::trace::Trace;
use super::{ApiError, Fields, Server};
use crate::generation::{Generation, Job, Piece};
use crate::model::Model;
use crate::sampling::{Sampling, chat_logprobs};

impl From<ChatError> for ApiError {
    fn from(error: ChatError) -> Self {
        ApiError::invalid("messages", error.to_string())
    }
}

/// What a request gives to the chat template.
pub struct Conversation {
    messages: Vec<Value>,
    tools: Option<Value>,
    documents: Option<Value>,
    kwargs: Option<Map<String, Value>>,
    add_generation_prompt: bool,
    continue_final_message: bool,
}

impl Conversation {
    /// A conversation that the assistant answers next.
    pub fn new(messages: Vec<Value>) -> Self {
        Conversation {
            messages,
            tools: None,
            documents: None,
            kwargs: None,
            add_generation_prompt: true,
            continue_final_message: false,
        }
    }

    /// Takes what the template needs.
    ///
    /// # Errors
    /// Wrong types, and tools that the model might call: their calls are not parsed yet, so that they would come
    /// back as text.
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let invalid = |why: &str| ApiError::invalid("messages", format!("messages: {why}"));
        let messages = match fields.take("messages") {
            None => return Err(invalid("is required")),
            Some(Value::Array(list)) if list.is_empty() => return Err(invalid("is an empty list")),
            Some(Value::Array(list)) => list,
            Some(_) => return Err(invalid("must be a list")),
        };
        let tools = list(fields, "tools")?;
        match fields.take("tool_choice") {
            None if tools.is_none() => {}
            Some(Value::String(choice)) if choice == "none" || (choice == "auto" && tools.is_none()) => {}
            Some(_) if tools.is_none() => {
                return Err(ApiError::unsupported("tool_choice", "tool_choice: only none is supported yet"));
            }
            _ => {
                return Err(ApiError::unsupported(
                    "tools",
                    "tools: calls are not parsed yet; send tool_choice \"none\" to only show them to the model",
                ));
            }
        }
        let continue_final_message = fields.boolean("continue_final_message")?.unwrap_or(false);
        let add = fields.boolean("add_generation_prompt")?;
        if continue_final_message && add == Some(true) {
            return Err(ApiError::invalid(
                "add_generation_prompt",
                "add_generation_prompt: excludes continue_final_message",
            ));
        }
        Ok(Conversation {
            messages,
            tools,
            documents: list(fields, "documents")?,
            kwargs: fields.object("chat_template_kwargs")?,
            add_generation_prompt: add.unwrap_or(!continue_final_message),
            continue_final_message,
        })
    }

    /// The prompt's ids.
    ///
    /// # Errors
    /// No template, a template that refuses, messages of a wrong shape.
    pub fn encode(&self, model: &Model) -> Result<Vec<u32>, ChatError> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let input = ChatInput {
            messages: &self.messages,
            tools: self.tools.as_ref(),
            documents: self.documents.as_ref(),
            add_generation_prompt: self.add_generation_prompt,
            continue_final_message: self.continue_final_message,
            kwargs: self.kwargs.as_ref(),
            template: None,
            now: now.map_or(0, |t| t.as_secs() as i64),
        };
        model.text.chat(&input)
    }
}

/// A list, which counts as absent when it is empty.
fn list(fields: &mut Fields, name: &str) -> Result<Option<Value>, ApiError> {
    match fields.take(name) {
        None => Ok(None),
        Some(Value::Array(list)) => Ok((!list.is_empty()).then_some(Value::Array(list))),
        Some(_) => Err(ApiError::invalid(name, format!("{name}: must be a list"))),
    }
}

struct Request {
    job: Job,
    wishes: Wishes,
}

fn parse(model: &Model, body: &[u8]) -> Result<Request, ApiError> {
    let mut fields = Fields::parse(body)?;
    check_model(&mut fields, model)?;
    let conversation = Conversation::take(&mut fields)?;
    let sampling = Sampling::from_fields(&mut fields, &model.defaults)?;
    let top_logprobs = chat_logprobs(&mut fields)?;
    let wishes = Wishes::take(&mut fields)?;
    let max_tokens = fields.integer_in("max_tokens", 1, u32::MAX.into())?;
    let newer = fields.integer_in("max_completion_tokens", 1, u32::MAX.into())?;
    fields.finish()?;
    let ids = conversation.encode(model)?;
    let asked = newer.or(max_tokens).map(|n| n as u32);
    let max_tokens = vec![room("messages", ids.len(), asked, None, model.max_seq_len)?];
    let job = Job { prompts: vec![ids.into()], max_tokens, sampling, top_logprobs, score_prompt: false };
    Ok(Request { job, wishes })
}

fn logprobs(model: &Model, piece: &Piece) -> Option<ChatLogprobs> {
    let mut logprobs = None;
    for score in piece.tokens.iter().filter_map(|t| t.score.as_ref()) {
        logprobs.get_or_insert_with(ChatLogprobs::default).push(&model.text, score);
    }
    logprobs
}

struct ChatChunks {
    head: Head,
    model: Arc<Model>,
    wishes: Wishes,
    n_choices: usize,
    n_prompt_tokens: usize,
    n_tokens: usize,
}

impl ChatChunks {
    fn event(&self, choice: ChatChunkChoice) -> String {
        let counts = Usage::new(self.n_prompt_tokens, self.n_tokens);
        let usage = self.wishes.include_usage.then_some(self.wishes.continuous_usage.then_some(counts));
        sse::event(&Reply { head: &self.head, choices: &[choice], usage })
    }
}

impl Chunks for ChatChunks {
    fn start(&mut self) -> String {
        (0..self.n_choices)
            .map(|index| {
                let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
                self.event(ChatChunkChoice { index, delta, logprobs: None, finish_reason: None })
            })
            .collect()
    }

    fn piece(&mut self, piece: Piece) -> String {
        self.n_tokens += piece.tokens.len();
        let (index, logprobs) = (piece.choice, logprobs(&self.model, &piece));
        let mut events = String::new();
        // The last token may bring no text, but its logprobs belong to some delta.
        if !piece.text.is_empty() || logprobs.is_some() {
            let delta = Delta { role: None, content: Some(piece.text) };
            events.push_str(&self.event(ChatChunkChoice { index, delta, logprobs, finish_reason: None }));
        }
        if let Some(end) = piece.end {
            let finish_reason = Some(end.name());
            let delta = Delta::default();
            events.push_str(&self.event(ChatChunkChoice { index, delta, logprobs: None, finish_reason }));
        }
        events
    }

    fn end(&mut self, usage: Usage) -> String {
        if !self.wishes.include_usage {
            return String::new();
        }
        sse::event(&Reply::<ChatChunkChoice> { head: &self.head, choices: &[], usage: Some(Some(usage)) })
    }
}

/// POST /v1/chat/completions.
pub async fn handle(
    State(server): State<Arc<Server>>,
    Extension(trace): Extension<Arc<Trace>>,
    body: Body,
) -> Result<Response, ApiError> {
    let deadline = Deadline::new(server.options.request_timeout);
    let body = read_body(&server, body).await?;
    let model = server.model.clone();
    let Request { job, wishes } = blocking(move || parse(&model, &body)).await?;
    let n_prompt_tokens = job.n_prompt_tokens();
    trace.set_prompt_tokens(n_prompt_tokens as u32);
    record(&server, &job);
    let mut generation =
        deadline.run(Generation::start(server.backend.as_ref(), &server.model, &job)).await?;
    let n_choices = job.n_choices();
    if wishes.stream {
        let chunks = ChatChunks {
            head: head(&server, "chatcmpl-", "chat.completion.chunk"),
            model: server.model.clone(),
            wishes,
            n_choices,
            n_prompt_tokens,
            n_tokens: 0,
        };
        return Ok(sse::response(generation, chunks, n_prompt_tokens, deadline, trace));
    }
    let head = head(&server, "chatcmpl-", "chat.completion");
    let mut choices: Vec<_> = (0..n_choices)
        .map(|index| ChatChoice {
            index,
            message: Message { role: "assistant", content: String::new(), refusal: None },
            logprobs: job.top_logprobs.map(|_| ChatLogprobs::default()),
            finish_reason: None,
        })
        .collect();
    let mut n_tokens = 0;
    while let Some(piece) = deadline.run(generation.next()).await? {
        n_tokens += piece.tokens.len();
        trace.add_tokens(piece.tokens.len() as u32);
        let choice = &mut choices[piece.choice];
        choice.message.content.push_str(&piece.text);
        if let Some(logprobs) = &mut choice.logprobs {
            for score in piece.tokens.iter().filter_map(|t| t.score.as_ref()) {
                logprobs.push(&server.model.text, score);
            }
        }
        choice.finish_reason = piece.end.map(|e| e.name());
    }
    let usage = Some(Some(Usage::new(n_prompt_tokens, n_tokens)));
    Ok(axum::Json(Reply { head: &head, choices: &choices, usage }).into_response())
}

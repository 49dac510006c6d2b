//! Server-sent events: `data: JSON`, an empty line, and `data: [DONE]` at the end.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use serde::Serialize;

use super::ApiError;
use super::reply::Usage;
use super::trace::Trace;
use crate::generation::{Generation, GenerationError, Piece};

/// Ends every stream.
const DONE: &str = "data: [DONE]\n\n";

/// One event. Serialising our own types cannot fail; if it did, the client would see an error event.
pub fn event(value: &impl Serialize) -> String {
    match serde_json::to_string(value) {
        Ok(json) => format!("data: {json}\n\n"),
        Err(e) => format!("data: {}\n\n", ApiError::internal(e.to_string()).body()),
    }
}

/// Turns pieces into the chunks of one API.
pub trait Chunks: Send + 'static {
    /// Events before the first piece.
    fn start(&mut self) -> String;
    /// Events of a piece.
    fn piece(&mut self, piece: Piece) -> String;
    /// Events after the last piece.
    fn end(&mut self, usage: Usage) -> String;
}

struct Stream<C> {
    generation: Generation,
    chunks: C,
    queue: VecDeque<String>,
    n_prompt_tokens: usize,
    n_tokens: usize,
    deadline: Deadline,
    trace: Arc<Trace>,
    started: bool,
    done: bool,
}

/// When a request must be through.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Option<tokio::time::Instant>,
    seconds: f64,
}

impl Deadline {
    /// `timeout` from now.
    pub fn new(timeout: Option<std::time::Duration>) -> Self {
        Deadline {
            at: timeout.and_then(|t| tokio::time::Instant::now().checked_add(t)),
            seconds: timeout.map_or(0.0, |t| t.as_secs_f64()),
        }
    }

    /// Runs `work` up to the deadline.
    ///
    /// # Errors
    /// Its own, or 504.
    pub async fn run<T>(self, work: impl Future<Output = Result<T, GenerationError>>) -> Result<T, ApiError> {
        let outcome = match self.at {
            Some(at) => {
                tokio::time::timeout_at(at, work).await.map_err(|_| ApiError::timeout(self.seconds))?
            }
            None => work.await,
        };
        outcome.map_err(ApiError::from)
    }
}

impl From<GenerationError> for ApiError {
    fn from(error: GenerationError) -> Self {
        match error {
            GenerationError::Refused(refused) => refused.into(),
            GenerationError::Rejected(_) => ApiError::bad_request(error.to_string()),
            GenerationError::Failed(_) => ApiError::internal(error.to_string()),
        }
    }
}

impl<C: Chunks> Stream<C> {
    async fn next(&mut self) -> Option<String> {
        if !self.started {
            self.started = true;
            let start = self.chunks.start();
            if !start.is_empty() {
                return Some(start);
            }
        }
        while !self.done && self.queue.is_empty() {
            match self.deadline.run(self.generation.next()).await {
                Ok(Some(piece)) => {
                    self.n_tokens += piece.tokens.len();
                    self.trace.add_tokens(piece.tokens.len() as u32);
                    self.queue.push_back(self.chunks.piece(piece));
                }
                Ok(None) => {
                    self.done = true;
                    let mut end = self.chunks.end(Usage::new(self.n_prompt_tokens, self.n_tokens));
                    end.push_str(DONE);
                    self.queue.push_back(end);
                }
                Err(error) => {
                    self.done = true;
                    // The status line is long gone: the error travels as an event.
                    self.trace.set_status(error.status);
                    self.queue.push_back(event(&error.body()) + DONE);
                }
            }
        }
        self.queue.pop_front()
    }
}

/// A streamed answer. Dropping the response, as when the client goes away, aborts the generation.
pub fn response<C: Chunks>(
    generation: Generation,
    chunks: C,
    n_prompt_tokens: usize,
    deadline: Deadline,
    trace: Arc<Trace>,
) -> Response {
    let stream = Stream {
        generation,
        chunks,
        queue: VecDeque::new(),
        n_prompt_tokens,
        n_tokens: 0,
        deadline,
        trace,
        started: false,
        done: false,
    };
    let events = futures::stream::unfold(stream, async |mut stream| {
        let text = stream.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(text)), stream))
    });
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

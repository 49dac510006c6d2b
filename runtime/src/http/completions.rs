//! POST /v1/completions.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};

use super::logprobs::CompletionLogprobs;
use super::middleware::{random_id, read_body};
use super::prompt::{Prompt, room, take_prompts};
use super::reply::{Body as Reply, CompletionChoice, Head, Usage};
use super::sse::{self, Chunks, Deadline};
use super::trace::Trace;
use super::{ApiError, Fields, Server};
use crate::generation::{Drawn, Generation, Job, Piece};
use crate::model::{Model, Text};
use crate::sampling::{Sampling, completion_logprobs};

/// Tokens drawn unless the request says otherwise.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Most choices of all prompts of a request.
const MAX_SEQUENCES: usize = 4096;

/// What a request asks for beside its job.
pub struct Wishes {
    /// Answer in chunks.
    pub stream: bool,
    /// Counts in a last chunk.
    pub include_usage: bool,
    /// Counts in every chunk.
    pub continuous_usage: bool,
}

impl Wishes {
    /// Takes `stream` and `stream_options`.
    ///
    /// # Errors
    /// Wrong types, or options without a stream.
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let (mut include_usage, mut continuous_usage) = (false, false);
        if let Some(options) = fields.object("stream_options")? {
            if !stream {
                return Err(ApiError::invalid("stream_options", "stream_options: needs stream to be true"));
            }
            let mut options = Fields::of(options);
            include_usage = options.boolean("include_usage")?.unwrap_or(false);
            continuous_usage = options.boolean("continuous_usage_stats")?.unwrap_or(false);
        }
        Ok(Wishes { stream, include_usage, continuous_usage: include_usage && continuous_usage })
    }
}

/// Takes `model` and compares it with the one served; absent is fine.
///
/// # Errors
/// Another model.
pub fn check_model(fields: &mut Fields, model: &Model) -> Result<(), ApiError> {
    match fields.string("model")? {
        Some(asked) if asked != model.name => Err(ApiError::unknown_model(&asked, &model.name)),
        _ => Ok(()),
    }
}

struct Request {
    job: Job,
    wishes: Wishes,
    /// By prompt, where it is to be echoed.
    echo: Option<Vec<String>>,
}

fn parse(model: &Model, body: &[u8]) -> Result<Request, ApiError> {
    let mut fields = Fields::parse(body)?;
    check_model(&mut fields, model)?;
    let given = take_prompts(&mut fields, model.defaults.vocab_size)?;
    let add_special = fields.boolean("add_special_tokens")?.unwrap_or(true);
    let sampling = Sampling::from_fields(&mut fields, &model.defaults)?;
    if given.len() * sampling.n as usize > MAX_SEQUENCES {
        let why = format!(
            "prompt: {} prompts of {} choices; at most {MAX_SEQUENCES} in all",
            given.len(),
            sampling.n
        );
        return Err(ApiError::invalid("prompt", why));
    }
    let top_logprobs = completion_logprobs(&mut fields)?;
    let wishes = Wishes::take(&mut fields)?;
    let echo = fields.boolean("echo")?.unwrap_or(false);
    let asked = fields.integer_in("max_tokens", 0, u32::MAX.into())?.map(|n| n as u32);
    fields.finish()?;
    if asked == Some(0) && !echo {
        return Err(ApiError::invalid("max_tokens", "max_tokens: 0 gives nothing unless echo is true"));
    }
    let (mut prompts, mut max_tokens, mut texts) = (Vec::new(), Vec::new(), Vec::new());
    for prompt in given {
        let ids = match &prompt {
            Prompt::Text(text) => {
                let encoded = model.text.encode(text, add_special);
                encoded.map_err(|e| ApiError::invalid("prompt", e.to_string()))?
            }
            Prompt::Ids(ids) => ids.clone(),
        };
        max_tokens.push(room("prompt", ids.len(), asked, Some(DEFAULT_MAX_TOKENS), model.max_seq_len)?);
        if echo {
            texts.push(match prompt {
                Prompt::Text(text) => text,
                Prompt::Ids(ids) => model.text.decode(&ids, sampling.skip_special),
            });
        }
        prompts.push(ids.into());
    }
    let score_prompt = echo && top_logprobs.is_some();
    let job = Job { prompts, max_tokens, sampling, top_logprobs, score_prompt };
    Ok(Request { job, wishes, echo: echo.then_some(texts) })
}

/// Logprobs of the parts of one choice.
struct Scores {
    offset: usize,
    wanted: bool,
}

impl Scores {
    fn prompt(&mut self, text: &Text, ids: &[u32], piece: &Piece, into: &mut CompletionLogprobs) {
        let scores = piece.prompt_scores.as_deref().unwrap_or_default();
        for (at, &id) in ids.iter().enumerate() {
            let score = at.checked_sub(1).and_then(|before| scores.get(before));
            into.push(text, id, score, &mut self.offset);
        }
    }

    fn drawn(&mut self, text: &Text, tokens: &[Drawn], into: &mut CompletionLogprobs) {
        for token in tokens {
            into.push(text, token.id, token.score.as_ref(), &mut self.offset);
        }
    }
}

/// Turns pieces into choices or parts of them.
struct Pieces {
    model: Arc<Model>,
    prompts: Vec<Arc<[u32]>>,
    n: usize,
    echo: Option<Vec<String>>,
    scores: Vec<Scores>,
    /// By choice: the prompt is echoed.
    begun: Vec<bool>,
}

impl Pieces {
    fn new(model: Arc<Model>, request: &mut Request) -> Self {
        let job = &request.job;
        Pieces {
            model,
            prompts: job.prompts.clone(),
            n: job.sampling.n as usize,
            echo: request.echo.take(),
            scores: (0..job.n_choices())
                .map(|_| Scores { offset: 0, wanted: job.top_logprobs.is_some() })
                .collect(),
            begun: vec![false; job.n_choices()],
        }
    }

    /// Adds a piece to `choice`, which may be new or hold what came before.
    fn add(&mut self, piece: &Piece, choice: &mut CompletionChoice) {
        let (at, prompt) = (piece.choice, piece.choice / self.n);
        let scores = &mut self.scores[at];
        let text = &self.model.text;
        if scores.wanted && choice.logprobs.is_none() && !piece.tokens.is_empty() {
            choice.logprobs = Some(CompletionLogprobs::default());
        }
        if let Some(echo) = &self.echo
            && !std::mem::replace(&mut self.begun[at], true)
        {
            choice.text.push_str(&echo[prompt]);
            if scores.wanted {
                let logprobs = choice.logprobs.get_or_insert_default();
                scores.prompt(text, &self.prompts[prompt], piece, logprobs);
            }
        }
        choice.text.push_str(&piece.text);
        if let Some(logprobs) = &mut choice.logprobs {
            scores.drawn(text, &piece.tokens, logprobs);
        }
        choice.finish_reason = piece.end.map(|e| e.name());
    }
}

struct CompletionChunks {
    head: Head,
    pieces: Pieces,
    wishes: Wishes,
    n_prompt_tokens: usize,
    n_tokens: usize,
}

impl CompletionChunks {
    fn usage(&self) -> Option<Option<Usage>> {
        let counts = Usage::new(self.n_prompt_tokens, self.n_tokens);
        self.wishes.include_usage.then_some(self.wishes.continuous_usage.then_some(counts))
    }
}

impl Chunks for CompletionChunks {
    fn start(&mut self) -> String {
        String::new()
    }

    fn piece(&mut self, piece: Piece) -> String {
        self.n_tokens += piece.tokens.len();
        let mut choice = CompletionChoice { index: piece.choice, ..Default::default() };
        self.pieces.add(&piece, &mut choice);
        sse::event(&Reply { head: &self.head, choices: &[choice], usage: self.usage() })
    }

    fn end(&mut self, usage: Usage) -> String {
        if !self.wishes.include_usage {
            return String::new();
        }
        sse::event(&Reply::<CompletionChoice> { head: &self.head, choices: &[], usage: Some(Some(usage)) })
    }
}

/// POST /v1/completions.
pub async fn handle(
    State(server): State<Arc<Server>>,
    Extension(trace): Extension<Arc<Trace>>,
    body: Body,
) -> Result<Response, ApiError> {
    let deadline = Deadline::new(server.options.request_timeout);
    let body = read_body(&server, body).await?;
    let model = server.model.clone();
    let mut request = blocking(move || parse(&model, &body)).await?;
    let job = &request.job;
    let n_prompt_tokens = job.n_prompt_tokens();
    trace.set_prompt_tokens(n_prompt_tokens as u32);
    record(&server, job);
    let mut generation = deadline.run(Generation::start(server.backend.as_ref(), &server.model, job)).await?;
    let n_choices = job.n_choices();
    let head = head(&server, "cmpl-", "text_completion");
    let mut pieces = Pieces::new(server.model.clone(), &mut request);
    if request.wishes.stream {
        let chunks = CompletionChunks { head, pieces, wishes: request.wishes, n_prompt_tokens, n_tokens: 0 };
        return Ok(sse::response(generation, chunks, n_prompt_tokens, deadline, trace));
    }
    let mut choices: Vec<_> =
        (0..n_choices).map(|index| CompletionChoice { index, ..Default::default() }).collect();
    let mut n_tokens = 0;
    while let Some(piece) = deadline.run(generation.next()).await? {
        n_tokens += piece.tokens.len();
        trace.add_tokens(piece.tokens.len() as u32);
        pieces.add(&piece, &mut choices[piece.choice]);
    }
    let usage = Some(Some(Usage::new(n_prompt_tokens, n_tokens)));
    Ok(axum::Json(Reply { head: &head, choices: &choices, usage }).into_response())
}

/// Runs what may take long, as encoding a large prompt does, where it holds nobody up.
///
/// # Errors
/// Its own; a panic is a 500.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(e) => {
            tracing::error!(error = %e, "reading a request panicked");
            Err(ApiError::internal("the server failed on this request"))
        }
    }
}

/// What bodies of an answer begin with.
pub fn head(server: &Server, prefix: &str, object: &'static str) -> Head {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Head {
        id: random_id(prefix),
        object,
        created: now.map_or(0, |t| t.as_secs()),
        model: server.model.name.clone(),
        system_fingerprint: server.backend.name().to_owned(),
    }
}

/// Counts what was asked for.
pub fn record(server: &Server, job: &Job) {
    for max_tokens in &job.max_tokens {
        server.metrics.params_n.record(f64::from(job.sampling.n));
        server.metrics.params_max_tokens.record(f64::from(*max_tokens));
    }
}

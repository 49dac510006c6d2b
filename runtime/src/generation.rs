//! A request under way, as text: token events in, pieces of UTF-8 text out.
//!
//! Runs in the request's own task, so that detokenising and searching stop strings never hold up a step. When a stop
//! string matches, the engine may have drawn a few tokens more; they are neither shown nor counted.

use std::sync::Arc;

use lathe_text::{Detokenizer, StopMatcher};

use crate::backend::{Backend, Event, Finish, Refused, SequenceRequest, TokenScore};
use crate::engine_thread::Running;
use crate::model::Model;
use crate::sampling::Sampling;

/// A resolved request: prompts and how to go on from them.
#[derive(Clone, Debug)]
pub struct Job {
    /// At least one, none empty.
    pub prompts: Vec<Arc<[u32]>>,
    /// Tokens to draw at most, per choice, by prompt.
    pub max_tokens: Vec<u32>,
    /// How tokens are drawn and what stops them.
    pub sampling: Sampling,
    /// Alternatives per token; `None` reports no logprobs.
    pub top_logprobs: Option<u8>,
    /// Report the prompt's logprobs too.
    pub score_prompt: bool,
}

impl Job {
    /// Choices of all prompts; choice `i` belongs to prompt `i / n`.
    pub fn n_choices(&self) -> usize {
        self.prompts.len() * self.sampling.n as usize
    }

    /// Tokens of all prompts.
    pub fn n_prompt_tokens(&self) -> usize {
        self.prompts.iter().map(|p| p.len()).sum()
    }

    fn sequences(&self) -> Vec<SequenceRequest> {
        let n = self.sampling.n;
        let mut sequences = Vec::with_capacity(self.n_choices());
        for (prompt, max_new_tokens) in self.prompts.iter().zip(&self.max_tokens) {
            let first = sequences.len();
            for choice in 0..n {
                let mut params = self.sampling.params;
                params.choice = choice;
                sequences.push(SequenceRequest {
                    prompt: prompt.clone(),
                    max_new_tokens: *max_new_tokens,
                    min_new_tokens: self.sampling.min_tokens,
                    params,
                    logit_bias: self.sampling.logit_bias.clone(),
                    stop_ids: self.sampling.stop_ids.clone(),
                    top_logprobs: self.top_logprobs,
                    score_prompt: self.score_prompt,
                    share_with: (choice > 0).then_some(first),
                });
            }
        }
        sequences
    }
}

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// Token id.
    pub id: u32,
    /// Where logprobs were asked for.
    pub score: Option<TokenScore>,
}

/// Why a choice ended, in OpenAI's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A stop id or a stop string.
    Stop,
    /// It has all the tokens that it may have.
    Length,
}

impl End {
    /// `stop` or `length`.
    pub fn name(self) -> &'static str {
        match self {
            End::Stop => "stop",
            End::Length => "length",
        }
    }
}

/// The next part of a choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Index of the choice.
    pub choice: usize,
    /// Text that is certain now; whole characters.
    pub text: String,
    /// Tokens since the last piece.
    pub tokens: Vec<Drawn>,
    /// With the first piece, where prompt scores were asked for: those of prompt tokens 1, 2, ...
    pub prompt_scores: Option<Vec<TokenScore>>,
    /// Set in the last piece of a choice.
    pub end: Option<End>,
}

/// Why a request under way cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenerationError {
    /// It was not taken.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The engine refused a sequence.
    #[error("the engine refused the request: {0}")]
    Rejected(String),
    /// The engine is gone.
    #[error("the engine has failed: {0}")]
    Failed(String),
}

/// One choice's text side.
struct Choice {
    /// None where the plan speaks token ids only.
    detokenizer: Option<Detokenizer>,
    stop: Option<StopMatcher>,
    /// Tokens before which stop strings are not searched.
    min_tokens: u32,
    include_stop: bool,
    n_tokens: u32,
    pending: Vec<Drawn>,
    scores: Option<Vec<TokenScore>>,
    ended: bool,
}

impl Choice {
    /// Takes a token; gives text and whether a stop string matched.
    fn push(&mut self, drawn: Drawn, finish: Option<Finish>) -> (String, bool) {
        let id = drawn.id;
        self.n_tokens += 1;
        self.pending.push(drawn);
        let hidden = matches!(finish, Some(Finish::StopId(_))) && !self.include_stop;
        let mut delta = String::new();
        if let Some(detokenizer) = &mut self.detokenizer {
            if !hidden {
                detokenizer.push_into(id, &mut delta);
            }
            if finish.is_some() {
                delta.push_str(&detokenizer.flush().unwrap_or_default());
            }
        }
        let Some(stop) = self.stop.as_mut().filter(|_| self.n_tokens > self.min_tokens) else {
            return (delta, false);
        };
        let mut emitted = stop.push(&delta);
        if emitted.stop.is_none() && finish.is_some() {
            emitted.text.push_str(&stop.flush());
        }
        (emitted.text, emitted.stop.is_some())
    }
}

/// A request under way. Dropping it aborts what still runs.
pub struct Generation {
    running: Running,
    choices: Vec<Choice>,
    n_open: usize,
}

impl Generation {
    /// Submits a job and waits until it is queued.
    ///
    /// # Errors
    /// It was refused, or the engine is gone.
    pub async fn start(backend: &dyn Backend, model: &Model, job: &Job) -> Result<Self, GenerationError> {
        let mut running = backend.submit(job.sequences());
        match running.next().await {
            Some(Event::Accepted) => {}
            Some(Event::Refused(refused)) => return Err(refused.into()),
            Some(Event::Failed(reason)) => return Err(GenerationError::Failed(reason)),
            other => return Err(GenerationError::Failed(format!("unexpected first event {other:?}"))),
        }
        let sampling = &job.sampling;
        let choices = (0..job.n_choices())
            .map(|_| Choice {
                detokenizer: model.text.detokenizer(sampling.skip_special),
                // Empty strings are left out where requests are read.
                stop: StopMatcher::new(sampling.stop.clone(), sampling.include_stop)
                    .ok()
                    .filter(|_| !sampling.stop.is_empty()),
                min_tokens: sampling.min_tokens,
                include_stop: sampling.include_stop,
                n_tokens: 0,
                pending: Vec::new(),
                scores: job.score_prompt.then(Vec::new),
                ended: false,
            })
            .collect::<Vec<_>>();
        let n_open = choices.len();
        Ok(Generation { running, choices, n_open })
    }

    /// The next piece of any choice; none when all have ended.
    ///
    /// # Errors
    /// The request cannot go on; nothing follows.
    pub async fn next(&mut self) -> Result<Option<Piece>, GenerationError> {
        while self.n_open > 0 {
            let piece = match self.running.next().await {
                Some(Event::Scored { choice, scores, .. }) => {
                    if let Some(all) = &mut self.choices[choice].scores {
                        all.extend(scores);
                    }
                    None
                }
                Some(Event::Token { choice, id, score, finish }) => {
                    self.token(choice, Drawn { id, score }, finish)
                }
                Some(Event::Finished { choice, .. }) => {
                    Some(self.piece(choice, String::new(), Some(End::Length)))
                }
                Some(Event::Rejected { reason, .. }) => {
                    self.n_open = 0;
                    return Err(GenerationError::Rejected(reason));
                }
                Some(Event::Failed(reason)) => {
                    self.n_open = 0;
                    return Err(GenerationError::Failed(reason));
                }
                Some(Event::Accepted | Event::Refused(_)) | None => {
                    self.n_open = 0;
                    return Err(GenerationError::Failed("its events ended early".to_owned()));
                }
            };
            if piece.is_some() {
                return Ok(piece);
            }
        }
        Ok(None)
    }

    fn token(&mut self, choice: usize, drawn: Drawn, finish: Option<Finish>) -> Option<Piece> {
        let (text, stopped) = self.choices[choice].push(drawn, finish);
        if stopped {
            self.running.abort(choice);
        }
        let end = match finish {
            _ if stopped => Some(End::Stop),
            Some(Finish::StopId(_)) => Some(End::Stop),
            Some(Finish::Length) => Some(End::Length),
            None => None,
        };
        // Text that is held back holds its tokens back too, so that logprobs stay beside their text.
        let is_due = !text.is_empty() || end.is_some() || self.choices[choice].detokenizer.is_none();
        is_due.then(|| self.piece(choice, text, end))
    }

    fn piece(&mut self, choice: usize, text: String, end: Option<End>) -> Piece {
        let state = &mut self.choices[choice];
        if end.is_some() && !state.ended {
            state.ended = true;
            self.n_open -= 1;
        }
        Piece {
            choice,
            text,
            tokens: std::mem::take(&mut state.pending),
            prompt_scores: state.scores.take(),
            end,
        }
    }
}

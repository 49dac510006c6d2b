//! One request as its user sees it: when tokens came, how many there were, what went wrong.

use std::time::{Duration, Instant};

/// Notes what comes of one request.
#[derive(Debug)]
pub struct Watch {
    due: Instant,
    lag: Duration,
    first: Option<Instant>,
    last: Instant,
    gaps: Vec<Duration>,
    n_deltas: u64,
    ended: Option<Instant>,
    usage: Option<(u64, u64)>,
}

/// How output tokens were counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Counted {
    /// As the server said.
    #[default]
    Usage,
    /// One per chunk that held text: the server said nothing.
    Chunks,
}

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// From due to the first token.
    pub ttft: Duration,
    /// From due to the end.
    pub e2e: Duration,
    /// Times between chunks that held tokens.
    pub gaps: Vec<Duration>,
    /// From due to sent: what the load generator itself was late.
    pub lag: Duration,
    /// Tokens of the prompt, where the server said.
    pub input_tokens: Option<u64>,
    /// Tokens of the answer.
    pub output_tokens: u64,
    /// Where `output_tokens` is from.
    pub counted: Counted,
}

impl Answer {
    /// Mean time per output token after the first; none for a single token.
    pub fn tpot(&self) -> Option<Duration> {
        let after_first = u32::try_from(self.output_tokens.saturating_sub(1)).unwrap_or(u32::MAX);
        (after_first > 0).then(|| self.e2e.saturating_sub(self.ttft) / after_first)
    }
}

/// Why there is no whole answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Failure {
    /// Nobody answers at the address.
    #[error("no connection: {0}")]
    Connect(String),
    /// An error status, with what the server said.
    #[error("HTTP {status}: {message}")]
    Status {
        /// Status code.
        status: u16,
        /// The body's message.
        message: String,
    },
    /// The stream carried an error.
    #[error("error in the stream: {0}")]
    Stream(String),
    /// The stream ended without saying that it was through.
    #[error("the stream was cut: {0}")]
    Cut(String),
    /// Something that is no answer of this API.
    #[error("not an OpenAI answer: {0}")]
    Malformed(String),
    /// No end within the time that a request may take.
    #[error("no end within {0}")]
    Timeout(String),
    /// The request cannot be asked at all.
    #[error("{0}")]
    Refused(String),
}

impl Watch {
    /// A request that is due at `due` and is about to be sent.
    pub fn new(due: Instant) -> Self {
        let now = Instant::now();
        Watch {
            due,
            lag: now.saturating_duration_since(due),
            first: None,
            last: due,
            gaps: Vec::new(),
            n_deltas: 0,
            ended: None,
            usage: None,
        }
    }

    /// Tokens came.
    pub fn tokens(&mut self) {
        self.tokens_at(Instant::now());
    }

    fn tokens_at(&mut self, now: Instant) {
        if self.first.is_some() {
            self.gaps.push(now.saturating_duration_since(self.last));
        }
        self.first.get_or_insert(now);
        self.last = now;
        self.n_deltas += 1;
    }

    /// The choice says that it has ended.
    pub fn finish(&mut self) {
        self.ended.get_or_insert_with(Instant::now);
    }

    /// The server counts tokens of prompt and answer.
    pub fn usage(&mut self, input: u64, output: u64) {
        self.usage = Some((input, output));
    }

    /// Whether the end came.
    pub fn is_finished(&self) -> bool {
        self.ended.is_some()
    }

    /// The whole answer; `None` when its end did not come.
    pub fn answer(self) -> Option<Answer> {
        let ended = self.ended?;
        // An answer of control tokens alone, or of ids without text, shows with its end only.
        let first = self.first.unwrap_or(ended);
        Some(Answer {
            ttft: first.saturating_duration_since(self.due),
            e2e: ended.max(self.last).saturating_duration_since(self.due),
            gaps: self.gaps,
            lag: self.lag,
            input_tokens: self.usage.map(|(input, _)| input),
            output_tokens: self.usage.map_or(self.n_deltas, |(_, output)| output),
            counted: if self.usage.is_some() { Counted::Usage } else { Counted::Chunks },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn latency_counts_from_when_the_request_was_due() {
        let due = Instant::now() - ms(500);
        let mut watch = Watch::new(due);
        watch.tokens_at(due + ms(700));
        watch.tokens_at(due + ms(710));
        watch.tokens_at(due + ms(750));
        watch.ended = Some(due + ms(751));
        let answer = watch.answer().unwrap();
        assert_eq!((answer.ttft, answer.e2e), (ms(700), ms(751)));
        assert_eq!(answer.gaps, [ms(10), ms(40)]);
        assert!(answer.lag >= ms(500));
        assert_eq!((answer.output_tokens, answer.counted), (3, Counted::Chunks));
        assert_eq!(answer.tpot(), Some(ms(51) / 2));
    }

    #[test]
    fn the_server_s_count_goes_first() {
        let due = Instant::now();
        let mut watch = Watch::new(due);
        watch.tokens_at(due + ms(1));
        watch.usage(12, 9);
        watch.ended = Some(due + ms(9));
        let answer = watch.answer().unwrap();
        assert_eq!(
            (answer.input_tokens, answer.output_tokens, answer.counted),
            (Some(12), 9, Counted::Usage)
        );
        assert_eq!(answer.tpot(), Some(ms(1)));
    }

    #[test]
    fn an_answer_without_its_end_is_none() {
        let due = Instant::now();
        let mut watch = Watch::new(due);
        watch.tokens_at(due + ms(1));
        assert_eq!(watch.answer(), None);
        // One that only ends, as an answer of one control token does, has its first token there.
        let mut watch = Watch::new(due);
        watch.ended = Some(due + ms(4));
        let answer = watch.answer().unwrap();
        assert_eq!((answer.ttft, answer.e2e, answer.tpot()), (ms(4), ms(4), None));
    }
}

//! One live sequence as the engine thread sees it.

use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use crate::backend::{Event, Finish, SequenceRequest};

/// Tokens, limits and times of one sequence. Its buffers are as large as they will ever be from the start.
pub(crate) struct Sequence {
    pub request: u64,
    pub choice: usize,
    pub spec: SequenceRequest,
    /// Prompt, then drawn tokens.
    pub tokens: Vec<u32>,
    pub events: UnboundedSender<Event>,
    pub arrived: Instant,
    /// First time in a step.
    pub scheduled: Option<Instant>,
    pub first_token: Option<Instant>,
    pub last_token: Option<Instant>,
    pub n_preemptions: u32,
    /// Prompt and recomputed positions that were really computed before the first token.
    pub n_prefilled: u32,
    /// The scheduler knows it; not any more once its last token is under way.
    pub scheduling: bool,
}

impl Sequence {
    pub fn new(
        request: u64,
        choice: usize,
        spec: SequenceRequest,
        max_seq_len: u32,
        events: UnboundedSender<Event>,
        now: Instant,
    ) -> Self {
        let longest = (spec.prompt.len() + spec.max_new_tokens as usize).min(max_seq_len as usize);
        let mut tokens = Vec::with_capacity(longest.max(spec.prompt.len()));
        tokens.extend_from_slice(&spec.prompt);
        Sequence {
            request,
            choice,
            spec,
            tokens,
            events,
            arrived: now,
            scheduled: None,
            first_token: None,
            last_token: None,
            n_preemptions: 0,
            n_prefilled: 0,
            scheduling: true,
        }
    }

    pub fn prompt_len(&self) -> usize {
        self.spec.prompt.len()
    }

    pub fn output(&self) -> &[u32] {
        &self.tokens[self.prompt_len()..]
    }

    /// While true, stop ids are not drawn. `n_drawing` tokens are under way.
    pub fn suppress_stops(&self, n_drawing: u32) -> bool {
        self.output().len() as u32 + n_drawing < self.spec.min_new_tokens
    }

    /// Takes the drawn token; says whether it ends the sequence. `at_length` is the scheduler's word that no token
    /// may follow.
    pub fn append(&mut self, id: u32, at_length: bool) -> Option<Finish> {
        let may_stop = !self.suppress_stops(0);
        self.tokens.push(id);
        if may_stop && self.spec.stop_ids.contains(&id) {
            Some(Finish::StopId(id))
        } else if at_length {
            Some(Finish::Length)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lathe_api::SamplingParams;

    fn sequence(min: u32) -> Sequence {
        let spec = SequenceRequest {
            prompt: [1, 2, 3].into(),
            max_new_tokens: 4,
            min_new_tokens: min,
            params: SamplingParams::default(),
            logit_bias: [].into(),
            stop_ids: [9].into(),
            top_logprobs: None,
            score_prompt: false,
            share_with: None,
        };
        Sequence::new(0, 0, spec, 100, tokio::sync::mpsc::unbounded_channel().0, Instant::now())
    }

    #[test]
    fn a_stop_id_wins_over_length() {
        let mut seq = sequence(0);
        assert_eq!(seq.append(5, false), None);
        assert_eq!(seq.append(9, true), Some(Finish::StopId(9)));
        assert_eq!(seq.output(), [5, 9]);
    }

    #[test]
    fn length_ends_without_a_stop_id() {
        assert_eq!(sequence(0).append(5, true), Some(Finish::Length));
    }

    #[test]
    fn stops_are_suppressed_below_the_minimum() {
        let mut seq = sequence(2);
        assert!(seq.suppress_stops(0));
        assert_eq!(seq.append(9, false), None, "drawn all the same, as by a bias: not a stop yet");
        assert_eq!(seq.append(5, false), None);
        assert!(!seq.suppress_stops(0));
        assert_eq!(seq.append(9, false), Some(Finish::StopId(9)));
    }

    #[test]
    fn memory_for_all_tokens_is_there_from_the_start() {
        let mut seq = sequence(0);
        let before = seq.tokens.as_ptr();
        for _ in 0..4 {
            seq.append(5, false);
        }
        assert_eq!(seq.tokens.as_ptr(), before);
    }
}

//! Stop strings over a stream of deltas.

use crate::TextError;

/// What a delta lets out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Emitted {
    /// Text that no stop string can take back any more.
    pub text: String,
    /// Index of the stop string that ended the stream.
    pub stop: Option<usize>,
}

/// Finds the stop string that is complete first; of those that end at the same character the longest. The
/// result does not depend on how the text is cut into deltas. Text that could begin a stop string is held back.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    include_stop: bool,
    held: String,
    done: bool,
}

impl StopMatcher {
    /// With `include_stop` the stop string itself is the end of the text.
    ///
    /// # Errors
    /// An empty stop string.
    pub fn new(stops: Vec<String>, include_stop: bool) -> Result<Self, TextError> {
        match stops.iter().position(String::is_empty) {
            Some(at) => Err(TextError::EmptyStop(at)),
            None => Ok(Self { stops, include_stop, held: String::new(), done: false }),
        }
    }

    /// Adds a delta. After a stop nothing comes out any more.
    pub fn push(&mut self, delta: &str) -> Emitted {
        if self.done {
            return Emitted::default();
        }
        self.held.push_str(delta);
        let found = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            let start = self.held.find(stop)?;
            Some((start + stop.len(), start, index))
        });
        if let Some((end, start, index)) = found.min() {
            self.done = true;
            let mut text = std::mem::take(&mut self.held);
            text.truncate(if self.include_stop { end } else { start });
            return Emitted { text, stop: Some(index) };
        }
        let begin = self.held.len() - self.open_len();
        let rest = self.held.split_off(begin);
        Emitted { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// Ends the stream: what was held back.
    pub fn flush(&mut self) -> String {
        self.done = true;
        std::mem::take(&mut self.held)
    }

    /// Length of the longest end of `held` that begins a stop string.
    fn open_len(&self) -> usize {
        let begins = |stop: &String| {
            let longest = self.held.len().min(stop.len() - 1);
            (1..=longest).rev().find(|&n| self.held.as_bytes().ends_with(&stop.as_bytes()[..n]))
        };
        // A match by bytes starts with a character's first byte, so the cut is at a character.
        self.stops.iter().filter_map(begins).max().unwrap_or(0)
    }
}

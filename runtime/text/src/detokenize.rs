//! Token ids to text, one at a time.

use crate::vocabulary::{TextStart, Vocabulary};
use std::sync::Arc;

/// Turns one stream of ids into text deltas. The deltas and the flush together are `TextModel::decode` of all
/// ids. A character is held until all its bytes are there; constant work per token.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    vocabulary: Arc<Vocabulary>,
    skip_special: bool,
    /// Not the whole of a character yet.
    held: Vec<u8>,
    start: TextStart,
}

impl Detokenizer {
    pub(crate) fn new(vocabulary: Arc<Vocabulary>, skip_special: bool, continues: bool) -> Self {
        let start = if continues { TextStart::Keep } else { vocabulary.start };
        Self { vocabulary, skip_special, held: Vec::with_capacity(16), start }
    }

    /// Adds a token; the text that is now certain, if any. Ids outside of the vocabulary add nothing.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let mut text = String::new();
        self.push_into(id, &mut text);
        (!text.is_empty()).then_some(text)
    }

    /// As [`Detokenizer::push`], appending to `text`.
    pub fn push_into(&mut self, id: u32, text: &mut String) {
        if self.skip_special && self.vocabulary.is_special(id) {
            return;
        }
        let Some(bytes) = self.vocabulary.bytes(id).filter(|bytes| !bytes.is_empty()) else { return };
        if self.start == TextStart::DropSpaces {
            self.held.extend(bytes.iter().filter(|byte| **byte != b' '));
            self.start = TextStart::Keep;
        } else {
            self.held.extend_from_slice(bytes);
        }
        let begin = text.len();
        self.release(text);
        self.strip(text, begin);
    }

    /// Ends the stream: an unfinished character becomes U+FFFD.
    pub fn flush(&mut self) -> Option<String> {
        let unfinished = !self.held.is_empty();
        self.held.clear();
        unfinished.then(|| char::REPLACEMENT_CHARACTER.to_string())
    }

    /// Moves what is certain out of `held`; what can never become a character turns into U+FFFD, one for each
    /// maximal wrong part, as everywhere in Rust and on the web.
    fn release(&mut self, text: &mut String) {
        let mut done = 0;
        loop {
            match std::str::from_utf8(&self.held[done..]) {
                Ok(valid) => {
                    text.push_str(valid);
                    done = self.held.len();
                    break;
                }
                Err(error) => {
                    let valid_to = done + error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.held[done..valid_to]));
                    done = valid_to;
                    let Some(wrong) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    done += wrong;
                }
            }
        }
        self.held.drain(..done);
    }

    fn strip(&mut self, text: &mut String, begin: usize) {
        while let TextStart::Strip(content, n) = self.start {
            let Some(first) = text[begin..].chars().next() else { return };
            if first == content && n > 0 {
                text.remove(begin);
                self.start = TextStart::Strip(content, n - 1);
            } else {
                self.start = TextStart::Keep;
            }
        }
    }
}

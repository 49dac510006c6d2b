//! Marks in a caller's strings, so that the control tokens they spell are still known as text after a template
//! has rendered them.
//!
//! A mark is one private-use character. It stands inside every spelling of a special token, and at the edge of a
//! string that could complete a spelling together with what comes next to it. Marks leave the rendered text
//! before it is encoded; their places say which spellings are only text.

use serde_json::Value;
use std::collections::BTreeSet;

/// Roles whose name a template may make part of a control token (`<|user|>`). Any other role is a caller's string.
const ROLES: [&str; 7] = ["system", "developer", "user", "assistant", "tool", "function", "ipython"];

/// Special tokens and their beginnings and ends.
#[derive(Debug)]
pub(crate) struct Marker {
    tokens: Vec<String>,
    /// Can a spelling (of either case) start with this byte?
    is_first: Vec<bool>,
    prefixes: Vec<String>,
    suffixes: Vec<String>,
}

/// Which strings may get a mark although they are only a piece of a spelling.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    /// Beginnings and ends.
    Edge,
    /// Also any inner piece: template text on both sides could complete it.
    Inner,
}

impl Marker {
    pub fn new(special: impl Iterator<Item = String>) -> Self {
        let tokens: Vec<String> = special.filter(|token| token.chars().count() > 1).collect();
        let (mut prefixes, mut suffixes) = (BTreeSet::new(), BTreeSet::new());
        let mut is_first = vec![false; 256];
        for token in &tokens {
            let first = token.as_bytes()[0];
            is_first[first.to_ascii_lowercase() as usize] = true;
            is_first[first.to_ascii_uppercase() as usize] = true;
            for (at, _) in token.char_indices().skip(1) {
                prefixes.insert(token[..at].to_owned());
                suffixes.insert(token[at..].to_owned());
            }
        }
        Self {
            tokens,
            is_first,
            prefixes: prefixes.into_iter().collect(),
            suffixes: suffixes.into_iter().collect(),
        }
    }

    /// Marks a message; true when anything was marked.
    pub fn message(&self, message: &mut Value, mark: char) -> bool {
        let Value::Object(fields) = message else { return self.value(message, mark, Piece::Inner) };
        let mut marked = false;
        for (name, value) in fields.iter_mut() {
            let is_role = name == "role" && value.as_str().is_some_and(|role| ROLES.contains(&role));
            if !is_role {
                let piece = if value.is_string() || name == "content" { Piece::Inner } else { Piece::Edge };
                marked |= self.value(value, mark, piece);
            }
        }
        marked | self.keys(message, mark)
    }

    /// Marks tools, documents or template arguments; true when anything was marked.
    pub fn other(&self, value: &mut Value, mark: char) -> bool {
        self.value(value, mark, Piece::Edge)
    }

    fn value(&self, value: &mut Value, mark: char, piece: Piece) -> bool {
        match value {
            Value::String(text) => self.text(text, mark, piece),
            Value::Array(items) => {
                items.iter_mut().fold(false, |any, item| self.value(item, mark, piece) | any)
            }
            Value::Object(fields) => {
                let mut marked = false;
                for (name, field) in fields.iter_mut() {
                    // Part kinds and JSON schema types are compared by templates, and never printed bare.
                    let plain = |kind: &str| kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
                    if !(name == "type" && field.as_str().is_some_and(plain)) {
                        marked |= self.value(field, mark, piece);
                    }
                }
                marked | self.keys(value, mark)
            }
            _ => false,
        }
    }

    fn keys(&self, value: &mut Value, mark: char) -> bool {
        let Value::Object(fields) = value else { return false };
        if !fields.keys().any(|key| !self.spellings(key).is_empty()) {
            return false;
        }
        *fields = std::mem::take(fields)
            .into_iter()
            .map(|(mut key, field)| {
                let places = self.spellings(&key);
                self.insert(&mut key, places, mark);
                (key, field)
            })
            .collect();
        true
    }

    fn text(&self, text: &mut String, mark: char, piece: Piece) -> bool {
        let mut places = self.spellings(text);
        let trimmed = text.trim();
        let begin = text.len() - text.trim_start().len();
        if !trimmed.is_empty() {
            let inner = || piece == Piece::Inner && self.tokens.iter().any(|token| token.contains(trimmed));
            if self.suffixes.iter().any(|suffix| trimmed.starts_with(suffix)) || inner() {
                places.push(begin);
            }
            if self.prefixes.iter().any(|prefix| trimmed.ends_with(prefix)) {
                places.push(begin + trimmed.len());
            }
        }
        self.insert(text, places, mark)
    }

    fn insert(&self, text: &mut String, mut places: Vec<usize>, mark: char) -> bool {
        places.sort_unstable();
        places.dedup();
        for &place in places.iter().rev() {
            text.insert(place, mark);
        }
        !places.is_empty()
    }

    /// One place inside each spelling. Case is ignored: templates may change it.
    fn spellings(&self, text: &str) -> Vec<usize> {
        let starts = text.char_indices().filter(|(at, _)| self.is_first[text.as_bytes()[*at] as usize]);
        let spelled = starts.filter(|(at, _)| {
            let rest = &text.as_bytes()[*at..];
            let begins = |token: &String| {
                rest.get(..token.len()).is_some_and(|piece| piece.eq_ignore_ascii_case(token.as_bytes()))
            };
            self.tokens.iter().any(begins)
        });
        spelled.map(|(at, first)| at + first.len_utf8()).collect()
    }
}

/// Takes the marks out; their places in the text that is left, ascending.
pub(crate) fn take_marks(text: &str, mark: char) -> (String, Vec<usize>) {
    let (mut plain, mut places) = (String::with_capacity(text.len()), Vec::new());
    for (index, piece) in text.split(mark).enumerate() {
        if index > 0 {
            places.push(plain.len());
        }
        plain.push_str(piece);
    }
    (plain, places)
}

/// A private-use character that occurs in none of the texts.
pub(crate) fn unused_mark(texts: &[&str]) -> Option<char> {
    ('\u{e000}'..='\u{f8ff}').find(|mark| texts.iter().all(|text| !text.contains(*mark)))
}

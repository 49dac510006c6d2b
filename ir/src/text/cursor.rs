//! Characters with line and column, and the few shapes of word that the text form has.

use crate::error::IrError;
use crate::facts::INTEGER_LIMIT;

/// A place in the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    at: usize,
    pub line: u32,
    column: u32,
}

/// Reads a text from left to right, skipping blanks and comments before each word.
pub(super) struct Cursor<'a> {
    text: &'a str,
    place: Place,
}

impl<'a> Cursor<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, place: Place { at: 0, line: 1, column: 1 } }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.place.at..]
    }

    fn advance(&mut self, bytes: usize) {
        for c in self.rest()[..bytes].chars() {
            if c == '\n' {
                self.place.line += 1;
                self.place.column = 1;
            } else {
                self.place.column += 1;
            }
        }
        self.place.at += bytes;
    }

    fn skip_blanks(&mut self) {
        loop {
            let rest = self.rest();
            let blanks = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_whitespace()).len();
            self.advance(blanks);
            if !self.rest().starts_with("//") {
                return;
            }
            let line = self.rest().find('\n').unwrap_or(self.rest().len());
            self.advance(line);
        }
    }

    /// The place of the next word.
    pub fn here(&mut self) -> Place {
        self.skip_blanks();
        self.place
    }

    pub fn go_back(&mut self, place: Place) {
        self.place = place;
    }

    pub fn error<T>(&self, at: Place, reason: impl Into<String>) -> Result<T, IrError> {
        Err(IrError::Parse { line: at.line, column: at.column, reason: reason.into() })
    }

    /// An error that says what stands here instead of `what`.
    pub fn expected<T>(&mut self, what: &str) -> Result<T, IrError> {
        let at = self.here();
        let found: String = self.rest().chars().take_while(|c| !c.is_ascii_whitespace()).take(20).collect();
        let found = if found.is_empty() { "the end".into() } else { format!("{found:?}") };
        self.error(at, format!("expected {what}, found {found}"))
    }

    /// Takes `mark` if it stands here.
    pub fn take(&mut self, mark: &str) -> bool {
        self.skip_blanks();
        let found = self.rest().starts_with(mark);
        if found {
            self.advance(mark.len());
        }
        found
    }

    pub fn expect(&mut self, mark: &str) -> Result<(), IrError> {
        if self.take(mark) { Ok(()) } else { self.expected(&format!("{mark:?}")) }
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let word = &rest[..rest.find(|c| !accept(c)).unwrap_or(rest.len())];
        self.advance(word.len());
        word
    }

    /// A word of letters, digits and `_` that does not start with a digit.
    pub fn word(&mut self, what: &str) -> Result<&'a str, IrError> {
        self.skip_blanks();
        if !self.rest().starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            return self.expected(what);
        }
        Ok(self.take_while(|c| c.is_ascii_alphanumeric() || c == '_'))
    }

    /// Takes the word `keyword` if it stands here whole.
    pub fn take_word(&mut self, keyword: &str) -> bool {
        let start = self.here();
        if self.word("a word").is_ok_and(|w| w == keyword) {
            return true;
        }
        self.place = start;
        false
    }

    /// A name after its sigil.
    pub fn name(&mut self, sigil: &str) -> Result<&'a str, IrError> {
        self.skip_blanks();
        if !self.rest().starts_with(sigil) {
            return self.expected(&format!("a name with {sigil}"));
        }
        self.advance(sigil.len());
        let name = self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if name.is_empty() { self.expected("a name") } else { Ok(name) }
    }

    /// An integer without sign, at most [`INTEGER_LIMIT`].
    pub fn integer(&mut self) -> Result<usize, IrError> {
        let start = self.here();
        let digits = self.take_while(|c| c.is_ascii_digit());
        if digits.is_empty() {
            return self.expected("an integer");
        }
        match digits.parse() {
            Ok(n) if n <= INTEGER_LIMIT => Ok(n),
            _ => self.error(start, format!("integer {digits:.40} exceeds {INTEGER_LIMIT}")),
        }
    }

    /// An attribute's value: a word or a number, as text.
    pub fn attribute(&mut self) -> Result<&'a str, IrError> {
        self.skip_blanks();
        let value =
            self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '+' | ':'));
        if value.is_empty() { self.expected("a word or number") } else { Ok(value) }
    }

    /// A quoted string of printable ASCII characters without quotes and backslashes.
    pub fn string(&mut self) -> Result<&'a str, IrError> {
        self.skip_blanks();
        if !self.rest().starts_with('"') {
            return self.expected("a quoted name");
        }
        self.advance(1);
        let text = self.take_while(|c| matches!(c, ' '..='~') && c != '"' && c != '\\');
        if self.rest().starts_with('"') {
            self.advance(1);
            Ok(text)
        } else {
            self.expected("the closing quote after printable ASCII")
        }
    }

    pub fn at_end(&mut self) -> bool {
        self.skip_blanks();
        self.rest().is_empty()
    }
}

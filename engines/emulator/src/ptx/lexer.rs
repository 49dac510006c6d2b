//! PTX text to tokens.

use super::PtxError;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Token<'a> {
    /// Opcode with its modifiers, directive, register, symbol or label.
    Word(&'a str),
    /// Integer; negative numbers have a `-` token before them.
    Int(u64),
    /// `0f`, as bits.
    F32(u32),
    /// `0d` or a decimal fraction, as bits.
    F64(u64),
    /// String without its quotes.
    Text(&'a str),
    /// Any other character.
    Mark(u8),
}

/// A token and its line, counted from 1.
#[derive(Clone, Copy, Debug)]
pub struct Lexed<'a> {
    /// The token.
    pub token: Token<'a>,
    /// Its line.
    pub line: u32,
}

fn starts_word(c: u8) -> bool {
    c.is_ascii_alphabetic() || matches!(c, b'.' | b'%' | b'$' | b'_')
}

fn in_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'.' | b'%' | b'$' | b'_')
}

/// Cuts `text` into tokens.
///
/// # Errors
/// A number or string that does not end as it should, with its line.
pub fn lex(text: &str) -> Result<Vec<Lexed<'_>>, PtxError> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::with_capacity(text.len() / 4);
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let c = bytes[at];
        let start = at;
        if c == b'\n' {
            line += 1;
            at += 1;
            continue;
        }
        if c.is_ascii_whitespace() || c == 0 {
            at += 1;
            continue;
        }
        if c == b'/' && bytes.get(at + 1) == Some(&b'/') {
            while at < bytes.len() && bytes[at] != b'\n' {
                at += 1;
            }
            continue;
        }
        if c == b'/' && bytes.get(at + 1) == Some(&b'*') {
            at += 2;
            while at < bytes.len() && !bytes[at..].starts_with(b"*/") {
                line += u32::from(bytes[at] == b'\n');
                at += 1;
            }
            at = (at + 2).min(bytes.len());
            continue;
        }
        let token = if c == b'"' {
            let Some(end) = bytes[at + 1..].iter().position(|b| *b == b'"') else {
                return Err(PtxError::at(
                    line,
                    &text[start..(start + 20).min(text.len())],
                    "string without end",
                ));
            };
            at += end + 2;
            Token::Text(&text[start + 1..at - 1])
        } else if c.is_ascii_digit() {
            while at < bytes.len() && (bytes[at].is_ascii_alphanumeric() || bytes[at] == b'.') {
                at += 1;
            }
            let word = &text[start..at];
            number(word).ok_or_else(|| PtxError::at(line, word, "not a number"))?
        } else if starts_word(c) {
            while at < bytes.len() {
                if in_word(bytes[at]) {
                    at += 1;
                } else if bytes[at..].starts_with(b"::") {
                    at += 2;
                } else {
                    break;
                }
            }
            Token::Word(&text[start..at])
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
            Token::Mark(c)
        };
        tokens.push(Lexed { token, line });
    }
    Ok(tokens)
}

fn number(word: &str) -> Option<Token<'static>> {
    if let Some(hex) = word.strip_prefix("0f").or_else(|| word.strip_prefix("0F")) {
        return u32::from_str_radix(hex, 16).ok().map(Token::F32);
    }
    if let Some(hex) = word.strip_prefix("0d").or_else(|| word.strip_prefix("0D")) {
        return u64::from_str_radix(hex, 16).ok().map(Token::F64);
    }
    let whole = word.strip_suffix('U').unwrap_or(word);
    if let Some(hex) = whole.strip_prefix("0x").or_else(|| whole.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok().map(Token::Int);
    }
    if let Some(bits) = whole.strip_prefix("0b") {
        return u64::from_str_radix(bits, 2).ok().map(Token::Int);
    }
    if whole.contains('.') || whole.contains('e') {
        return whole.parse::<f64>().ok().map(|x| Token::F64(x.to_bits()));
    }
    if whole.len() > 1 && whole.starts_with('0') {
        return u64::from_str_radix(whole, 8).ok().map(Token::Int);
    }
    whole.parse().ok().map(Token::Int)
}

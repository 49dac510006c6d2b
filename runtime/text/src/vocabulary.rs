//! The bytes of every token, so that decoding is a concatenation.

use crate::LoadError;
use serde_json::Value;
use tokenizers::{Model, Tokenizer};

/// What happens to the very first token of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextStart {
    Keep,
    /// Up to so many of this character are dropped from the front.
    Strip(char, usize),
    /// The first token loses all its spaces.
    DropSpaces,
}

/// Token bytes by id. Equal to the decoder of tokenizer.json run on all tokens, with one exception: where a
/// byte-fallback run is not UTF-8, valid characters in it survive here and are lost there.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    bytes: Vec<u8>,
    /// End of token `id` in `bytes`.
    ends: Vec<u32>,
    special: Vec<bool>,
    pub start: TextStart,
}

#[derive(Default)]
struct Rules {
    byte_level: bool,
    byte_fallback: bool,
    replace: Vec<(String, String)>,
    start: Option<TextStart>,
}

impl Vocabulary {
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, LoadError> {
        let decoder = serde_json::to_value(tokenizer.get_decoder())
            .map_err(|error| LoadError::Tokenizer(error.to_string()))?;
        let rules = Rules::new(&decoder)?;
        let byte_of = byte_level_map();
        let added = tokenizer.get_added_vocabulary();
        let beyond = added.get_added_tokens_decoder().keys().max().map_or(0, |id| id + 1);
        let n_tokens = beyond.max(tokenizer.get_vocab_size(true) as u32);
        let mut table = Self {
            bytes: Vec::with_capacity(n_tokens as usize * 8),
            ends: Vec::with_capacity(n_tokens as usize),
            special: Vec::with_capacity(n_tokens as usize),
            start: rules.start.unwrap_or(TextStart::Keep),
        };
        let model = tokenizer.get_model();
        for id in 0..n_tokens {
            // What the decoder sees: added tokens in their normalised form.
            let seen = added.simple_id_to_token(id);
            table.special.push(seen.as_ref().is_some_and(|token| added.is_special_token(token)));
            if let Some(token) = seen.or_else(|| model.id_to_token(id)) {
                rules.push_bytes(&token, &byte_of, &mut table.bytes);
            }
            table.ends.push(table.bytes.len() as u32);
        }
        Ok(table)
    }

    /// `None` beyond the vocabulary; empty where an id has no token.
    pub fn bytes(&self, id: u32) -> Option<&[u8]> {
        let at = id as usize;
        let end = *self.ends.get(at)? as usize;
        let begin = at.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        Some(&self.bytes[begin..end])
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    pub fn len(&self) -> u32 {
        self.ends.len() as u32
    }
}

impl Rules {
    fn new(decoder: &Value) -> Result<Self, LoadError> {
        let mut rules = Self::default();
        let stages = match decoder["type"].as_str() {
            Some("Sequence") => decoder["decoders"].as_array().map_or(&[][..], Vec::as_slice),
            _ => std::slice::from_ref(decoder),
        };
        let mut fused = false;
        for stage in stages {
            let unsupported = |what: &str| Err(LoadError::UnsupportedDecoder { what: what.to_owned() });
            match stage["type"].as_str().unwrap_or("none") {
                "ByteLevel" if stages.len() == 1 => rules.byte_level = true,
                "ByteFallback" => rules.byte_fallback = true,
                "Fuse" => fused = true,
                "Replace" => {
                    let Some(pattern) = stage["pattern"]["String"].as_str().filter(|_| !fused) else {
                        return unsupported("Replace by expression");
                    };
                    let content = stage["content"].as_str().unwrap_or_default();
                    rules.replace.push((pattern.to_owned(), content.to_owned()));
                }
                "Strip" => {
                    let content = stage["content"].as_str().and_then(|text| text.chars().next());
                    let (Some(content), Some(n), Some(0)) =
                        (content, stage["start"].as_u64(), stage["stop"].as_u64())
                    else {
                        return unsupported("Strip at the end");
                    };
                    if !fused {
                        return unsupported("Strip without Fuse before it");
                    }
                    rules.start = Some(TextStart::Strip(content, n as usize));
                }
                "Metaspace" => {
                    let replacement = stage["replacement"].as_str().unwrap_or("\u{2581}");
                    rules.replace.push((replacement.to_owned(), " ".to_owned()));
                    if stage["prepend_scheme"].as_str() != Some("never") {
                        rules.start = Some(TextStart::DropSpaces);
                    }
                }
                other => return unsupported(other),
            }
        }
        Ok(rules)
    }

    fn push_bytes(&self, token: &str, byte_of: &[Option<u8>; N_MAPPED], into: &mut Vec<u8>) {
        if self.byte_level {
            let begin = into.len();
            for c in token.chars() {
                match byte_of.get(c as usize).copied().flatten() {
                    Some(byte) => into.push(byte),
                    None => {
                        into.truncate(begin);
                        into.extend_from_slice(token.as_bytes());
                        return;
                    }
                }
            }
            return;
        }
        if self.byte_fallback
            && let Some(hex) = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'))
            && hex.len() == 2
            && let Ok(byte) = u8::from_str_radix(hex, 16)
        {
            into.push(byte);
            return;
        }
        if self.replace.iter().any(|(pattern, _)| token.contains(pattern)) {
            let replaced =
                self.replace.iter().fold(token.to_owned(), |text, (from, to)| text.replace(from, to));
            into.extend_from_slice(replaced.as_bytes());
        } else {
            into.extend_from_slice(token.as_bytes());
        }
    }
}

/// One past the largest character that GPT-2's byte map uses.
const N_MAPPED: usize = 256 + 68;

/// GPT-2's map from characters back to bytes: printable Latin-1 stands for itself, the other 68 bytes are
/// numbered from U+0100 in order.
fn byte_level_map() -> [Option<u8>; N_MAPPED] {
    let mut map = [None; N_MAPPED];
    let mut next = 256;
    for byte in 0..=255u8 {
        let at = if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            byte as usize
        } else {
            next += 1;
            next - 1
        };
        map[at] = Some(byte);
    }
    map
}

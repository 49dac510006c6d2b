//! Added tokens in a text: where a spelling is a token, and where it is only text.
//!
//! The tokenizers crate can switch off special tokens for a whole text, not for a part of it. So the split is done
//! here, step by step as that crate does it (`AddedVocabulary::extract_and_normalize`), with one more question
//! for each match. Tests hold the two against each other.

use std::ops::Range;
use tokenizers::normalizer::Range as Of;
use tokenizers::{AddedToken, NormalizedString, Normalizer, Token, Tokenizer};

type Part = (NormalizedString, Option<Vec<Token>>);

/// All added tokens, by the form in which they are looked for.
#[derive(Debug)]
pub(crate) struct Controls {
    /// Looked for in the text as it is.
    pub raw: Spellings,
    /// Looked for after normalisation.
    pub normalized: Spellings,
}

/// Added tokens by first byte, longest first.
#[derive(Debug)]
pub(crate) struct Spellings {
    by_first: Vec<Vec<Spelling>>,
}

#[derive(Debug)]
struct Spelling {
    text: String,
    id: u32,
    token: AddedToken,
}

impl Controls {
    pub fn new(tokenizer: &Tokenizer) -> tokenizers::Result<Self> {
        let (mut raw, mut normalized) = (Spellings::empty(), Spellings::empty());
        for (id, token) in tokenizer.get_added_vocabulary().get_added_tokens_decoder() {
            let mut text = token.content.clone();
            if token.normalized
                && let Some(normalizer) = tokenizer.get_normalizer()
            {
                let mut form = NormalizedString::from(text.as_str());
                normalizer.normalize(&mut form)?;
                text = form.get().to_owned();
            }
            if let Some(&first) = text.as_bytes().first() {
                let set = if token.normalized { &mut normalized } else { &mut raw };
                set.by_first[first as usize].push(Spelling { text, id: *id, token: token.clone() });
            }
        }
        for set in [&mut raw, &mut normalized] {
            for list in &mut set.by_first {
                list.sort_by(|a, b| b.text.len().cmp(&a.text.len()).then(a.id.cmp(&b.id)));
            }
        }
        Ok(Self { raw, normalized })
    }
}

impl Spellings {
    fn empty() -> Self {
        Self { by_first: (0..256).map(|_| Vec::new()).collect() }
    }

    /// Cuts `sentence` at the added tokens in it. `is_text` tells by its place in the original text that a
    /// special token's spelling is only text.
    pub fn split(&self, sentence: NormalizedString, is_text: &dyn Fn(Range<usize>) -> bool) -> Vec<Part> {
        let base = sentence.offsets_original().0;
        let is_text_here = |range: Range<usize>| {
            let place = sentence.convert_offsets(Of::Normalized(range)).unwrap_or(0..sentence.len_original());
            is_text(base + place.start..base + place.end)
        };
        let slice = |range: Range<usize>| sentence.slice(Of::Normalized(range));
        let mut parts = Vec::new();
        let mut begin = 0;
        for (range, id) in self.find(sentence.get(), &is_text_here) {
            if begin < range.start {
                parts.extend(slice(begin..range.start).map(|text| (text, None)));
            }
            begin = range.end;
            parts.extend(slice(range).map(|text| {
                let (value, len) = (text.get().to_owned(), text.get().len());
                (text, Some(vec![Token::new(id, value, (0, len))]))
            }));
        }
        if begin < sentence.len() {
            parts.extend(slice(begin..sentence.len()).map(|text| (text, None)));
        }
        parts
    }

    fn find(&self, text: &str, is_text: &dyn Fn(Range<usize>) -> bool) -> Vec<(Range<usize>, u32)> {
        let bytes = text.as_bytes();
        let (mut found, mut at, mut taken) = (Vec::new(), 0, 0);
        while at < bytes.len() {
            let matching = self.by_first[bytes[at] as usize].iter().find(|spelling| {
                bytes[at..].starts_with(spelling.text.as_bytes())
                    && !(spelling.token.special && is_text(at..at + spelling.text.len()))
            });
            let Some(Spelling { text: spelled, id, token }) = matching else {
                at += 1;
                continue;
            };
            let (mut start, mut stop) = (at, at + spelled.len());
            at = stop;
            let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            if token.single_word
                && (is_word(text[..start].chars().next_back()) || is_word(text[stop..].chars().next()))
            {
                continue;
            }
            if token.lstrip {
                start = text[..start].trim_end().len().max(taken);
            }
            if token.rstrip {
                stop = text.len() - text[stop..].trim_start().len();
            }
            taken = stop;
            found.push((start..stop, *id));
        }
        found
    }
}

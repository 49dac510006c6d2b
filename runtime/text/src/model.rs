//! A model's text side: tokenizer, vocabulary, templates.

use crate::chat::Chat;
use crate::controls::Controls;
use crate::vocabulary::Vocabulary;
use crate::{ChatError, ChatInput, ChatPrompt, Detokenizer, LoadError, TextError, TokenizerConfig};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use tokenizers::models::bpe::BPE;
use tokenizers::{
    DecoderWrapper, Model, Normalizer, NormalizerWrapper, OffsetType, PostProcessorWrapper,
    PreTokenizedString, PreTokenizer, PreTokenizerWrapper, Tokenizer, TokenizerImpl,
};

/// A tokenizer of the kind that nearly all models have. Read as such it takes half the time: read as any kind, the library
/// holds two trees of its vocabulary before it knows the kind.
type BpeTokenizer =
    TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// Text to ids and back. Shared by all requests; nothing in it changes after load.
#[derive(Debug)]
pub struct TextModel {
    tokenizer: Tokenizer,
    controls: Controls,
    vocabulary: Arc<Vocabulary>,
    chat: Chat,
}

impl TextModel {
    /// Reads tokenizer.json. Truncation and padding in it are left out: they belong to training.
    ///
    /// # Errors
    /// A broken file, a decoder that cannot run token by token, a template that does not parse.
    pub fn load(tokenizer_json: &[u8], config: &TokenizerConfig) -> Result<Self, LoadError> {
        let broken = |error: tokenizers::Error| LoadError::Tokenizer(error.to_string());
        let mut tokenizer = match serde_json::from_slice::<BpeTokenizer>(tokenizer_json) {
            Ok(bpe) => Tokenizer::from(bpe),
            // Another kind, or broken: the library says which.
            Err(_) => Tokenizer::from_bytes(tokenizer_json).map_err(broken)?,
        };
        tokenizer.with_truncation(None).map_err(broken)?;
        tokenizer.with_padding(None);
        let controls = Controls::new(&tokenizer).map_err(broken)?;
        let vocabulary = Arc::new(Vocabulary::new(&tokenizer)?);
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let special = added.values().filter(|token| token.special).map(|token| token.content.clone());
        let chat = Chat::new(config, special)?;
        Ok(Self { tokenizer, controls, vocabulary, chat })
    }

    /// Ids of a trusted text: spellings of special tokens become those tokens. `add_special`: what the tokenizer
    /// puts around a text, as a rule the begin token.
    ///
    /// # Errors
    /// The tokenizer cannot express the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self.tokenizer.encode_fast(text, add_special).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// As [`TextModel::encode`], but a special token's spelling is only text and gives no special id.
    ///
    /// # Errors
    /// The tokenizer cannot express the text.
    pub fn encode_untrusted(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        self.encode_where(text, add_special, &|_| true)
    }

    /// Renders a conversation and encodes it. What the caller's strings spell gives no special id.
    ///
    /// # Errors
    /// No template, a template that fails or refuses, messages of a wrong shape.
    pub fn chat(&self, input: &ChatInput<'_>) -> Result<ChatPrompt, ChatError> {
        let (text, places) = self.chat.render(input)?;
        let ids = if places.is_empty() {
            self.encode(&text, false)?
        } else {
            // A spelling around such a place was put together from what a caller wrote.
            let is_text = |range: Range<usize>| {
                let next = places.partition_point(|place| *place <= range.start);
                places.get(next).is_some_and(|place| *place < range.end)
            };
            self.encode_where(&text, false, &is_text)?
        };
        Ok(ChatPrompt { text, ids })
    }

    /// Does the model have a chat template?
    pub fn has_chat_template(&self) -> bool {
        self.chat.has_template()
    }

    /// Text of all ids; what is not UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut stream = Detokenizer::new(Arc::clone(&self.vocabulary), skip_special, false);
        let mut text = String::new();
        ids.iter().for_each(|id| stream.push_into(*id, &mut text));
        text.extend(stream.flush());
        text
    }

    /// A stream of ids. `continues`: the ids follow other text, so the space that some tokenizers put before the
    /// first word of a text stays.
    pub fn detokenizer(&self, skip_special: bool, continues: bool) -> Detokenizer {
        Detokenizer::new(Arc::clone(&self.vocabulary), skip_special, continues)
    }

    /// The bytes that a token adds to a text; `None` beyond the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.vocabulary.bytes(id)
    }

    /// [`TextModel::token_bytes`] as text, with U+FFFD for pieces of characters.
    pub fn token_text(&self, id: u32) -> Option<Cow<'_, str>> {
        self.vocabulary.bytes(id).map(String::from_utf8_lossy)
    }

    /// The id of a token as tokenizer.json spells it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Is this id a special (control) token?
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary.is_special(id)
    }

    /// One more than the largest id that has a token; the model's own vocabulary may be larger.
    pub fn n_tokens(&self) -> u32 {
        self.vocabulary.len()
    }

    /// The tokenizers crate's own pipeline, with the split at added tokens replaced by ours.
    fn encode_where(
        &self,
        text: &str,
        add_special: bool,
        is_text: &dyn Fn(Range<usize>) -> bool,
    ) -> Result<Vec<u32>, TextError> {
        let run = || {
            let mut pieces = PreTokenizedString::from(text);
            pieces.split(|_, piece| Ok(self.controls.raw.split(piece, is_text)))?;
            pieces.split(|_, mut piece| {
                if let Some(normalizer) = self.tokenizer.get_normalizer() {
                    normalizer.normalize(&mut piece)?;
                }
                Ok(self.controls.normalized.split(piece, is_text))
            })?;
            if let Some(pre_tokenizer) = self.tokenizer.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            pieces.tokenize(|piece| self.tokenizer.get_model().tokenize(piece.get()))?;
            let encoding = pieces.into_encoding(None, 0, OffsetType::None)?;
            self.tokenizer.post_process(encoding, None, add_special)
        };
        Ok(run().map_err(failed)?.get_ids().to_vec())
    }
}

fn failed(error: tokenizers::Error) -> TextError {
    TextError::Encode(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokenizer_of_another_kind_than_bpe_loads() {
        let json = br#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
            "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},
            "model":{"type":"WordLevel","vocab":{"one":0,"two":1,"?":2},"unk_token":"?"}}"#;
        let model = TextModel::load(json, &TokenizerConfig::default()).unwrap();
        assert_eq!(model.encode("two one three", false).unwrap(), [1, 0, 2]);
    }

    #[test]
    fn a_broken_tokenizer_is_refused_with_the_reason() {
        let json = br#"{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":[["a","b"]]}}"#;
        let error = TextModel::load(json, &TokenizerConfig::default()).unwrap_err();
        assert!(error.to_string().contains("`b` out of vocabulary"), "{error}");
    }
}

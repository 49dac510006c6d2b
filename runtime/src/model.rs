//! What the server knows of the model beside its weights.

use lathe_text::{ChatError, ChatInput, Detokenizer, TextError, TextModel};

use crate::sampling::SamplingDefaults;

/// Name, text side and limits of the served model.
pub struct Model {
    /// Name that requests give.
    pub name: String,
    /// Tokenizer and chat template.
    pub text: Text,
    /// Defaults that requests leave open.
    pub defaults: SamplingDefaults,
    /// Prompt and answer of one sequence, in tokens.
    pub max_seq_len: u32,
    /// Seconds since 1970 at which it was loaded.
    pub created: u64,
}

/// The text side of a plan. A plan without a tokenizer speaks token ids only: texts of its answers are empty.
pub struct Text(pub Option<TextModel>);

impl Text {
    /// Ids of a text; `add_special` adds what the tokenizer puts around texts.
    ///
    /// # Errors
    /// No tokenizer, or one that cannot express the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        match &self.0 {
            Some(model) => model.encode(text, add_special),
            None => Err(TextError::Encode("the plan holds none; send token ids".to_owned())),
        }
    }

    /// Ids of a conversation.
    ///
    /// # Errors
    /// No template, a template that refuses, messages of a wrong shape.
    pub fn chat(&self, input: &ChatInput<'_>) -> Result<Vec<u32>, ChatError> {
        Ok(self.0.as_ref().ok_or(ChatError::NoTemplate)?.chat(input)?.ids)
    }

    /// Text of ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        self.0.as_ref().map(|model| model.decode(ids, skip_special)).unwrap_or_default()
    }

    /// A stream of ids that continues a prompt, so that the space before its first word stays.
    pub fn detokenizer(&self, skip_special: bool) -> Option<Detokenizer> {
        self.0.as_ref().map(|model| model.detokenizer(skip_special, true))
    }

    /// A token as text; `token_id:N` where there is no text.
    pub fn spelling(&self, id: u32) -> String {
        let text = self.0.as_ref().and_then(|model| model.token_text(id));
        text.map_or_else(|| format!("token_id:{id}"), |text| text.into_owned())
    }

    /// A token's bytes; none where there is no text.
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        self.0.as_ref().and_then(|model| model.token_bytes(id)).unwrap_or_default().to_vec()
    }

    /// Whether conversations can be encoded.
    pub fn has_chat_template(&self) -> bool {
        self.0.as_ref().is_some_and(TextModel::has_chat_template)
    }
}

//! What the server knows of the model beside its weights.

use lathe_text::TextModel;

use crate::sampling::SamplingDefaults;

/// Name, text side and limits of the served model.
pub struct Model {
    /// Name that requests give.
    pub name: String,
    /// Tokenizer and chat template.
    pub text: TextModel,
    /// Defaults that requests leave open.
    pub defaults: SamplingDefaults,
    /// Prompt and answer of one sequence, in tokens.
    pub max_seq_len: u32,
    /// Seconds since 1970 at which it was loaded.
    pub created: u64,
}

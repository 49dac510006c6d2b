//! What can be wrong: with the files of a model, with a text, with a chat request.

/// The tokenizer or its configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// tokenizer.json is broken.
    #[error("tokenizer.json: {0}")]
    Tokenizer(String),
    /// tokenizer_config.json is broken.
    #[error("tokenizer_config.json: {0}")]
    Config(String),
    /// The decoder cannot be run token by token.
    #[error(
        "tokenizer.json: decoder {what} is not supported; supported are ByteLevel, Metaspace and the sequence Replace, ByteFallback, Fuse, Strip"
    )]
    UnsupportedDecoder {
        /// The decoder or the field that was seen.
        what: String,
    },
    /// A chat template does not parse.
    #[error("chat template {name}, line {line}: {reason}")]
    Template {
        /// `default` or its name in the list.
        name: String,
        /// Line of the fault, 0 when unknown.
        line: usize,
        /// The parser's words.
        reason: String,
    },
}

/// A text or a list of stop strings cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The tokenizer failed on a text.
    #[error("tokenizer: {0}")]
    Encode(String),
    /// An empty stop string would end every answer before it starts.
    #[error("stop: string {0} is empty")]
    EmptyStop(usize),
}

/// A chat request cannot be rendered. All are faults of the request or of the template, never of the server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    /// The model has no template.
    #[error(
        "chat template: the model has none; use /v1/completions or compile with a checkpoint that has one"
    )]
    NoTemplate,
    /// The model has no template of this name.
    #[error("chat template: no template is named {name}; there are {known}")]
    UnknownTemplate {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The template refused the conversation by `raise_exception`.
    #[error("chat template: {0}")]
    Raised(String),
    /// The template failed.
    #[error("chat template {name}, line {line}: {reason}")]
    Template {
        /// `default` or its name in the list.
        name: String,
        /// Line of the fault, 0 when unknown.
        line: usize,
        /// The engine's words.
        reason: String,
    },
    /// A message is not of OpenAI's shape.
    #[error("messages[{message}]: {reason}")]
    Message {
        /// Index of the message.
        message: usize,
        /// What is wrong.
        reason: String,
    },
    /// The conversation spells a control token, and the template's output depends on that spelling, so the
    /// spelling cannot be told from a real one.
    #[error("messages: a text spells a control token, and the chat template acts on it; remove the spelling")]
    ControlSpelling,
    /// The rendered text cannot be encoded.
    #[error(transparent)]
    Text(#[from] TextError),
}

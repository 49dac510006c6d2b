//! Tokenizer, chat template, incremental detokenisation, stop strings; pure: bytes and values in, no files, no
//! network, no clock.

mod chat;
mod config;
mod controls;
mod detokenize;
mod error;
mod mark;
mod model;
mod python;
mod stop;
mod template;
mod vocabulary;

pub use chat::{ChatInput, ChatPrompt};
pub use config::TokenizerConfig;
pub use detokenize::Detokenizer;
pub use error::{ChatError, LoadError, TextError};
pub use model::TextModel;
pub use stop::{Emitted, StopMatcher};

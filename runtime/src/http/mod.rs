//! The OpenAI-compatible server.
//!
//! Needs: a [`Backend`](crate::backend::Backend) and a [`Model`](crate::model::Model). Keeps: an error of a request
//! ends that request alone, also a panic. Gives up: nothing; it answers 503 and 500 when the engine is gone.

mod chat;
mod completions;
mod connections;
mod error;
mod fields;
mod keys;
mod logprobs;
mod middleware;
mod probes;
mod prompt;
mod reply;
mod router;
mod sse;
mod tokens;
mod trace;

pub use chat::Conversation;
pub use connections::listen;
pub use error::ApiError;
pub use fields::Fields;
pub use keys::{KeyError, Keys};
pub use prompt::room;
pub use router::{Options, Server};

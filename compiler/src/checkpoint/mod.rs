//! Checkpoints as they are published: config, tokenizer, generation defaults and tensors.

mod source;

pub use source::{TensorInfo, TensorSource};

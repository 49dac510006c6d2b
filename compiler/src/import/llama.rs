//! `LlamaForCausalLM`: Llama 2, 3, 3.1, 3.2 and models of their shape.

use super::decoder::Decoder;
use super::{Importer, Model};
use crate::checkpoint::Config;
use crate::error::{CompileError, Result};

/// The registry's entry.
pub const IMPORTER: Importer = Importer { architecture: "LlamaForCausalLM", read };

fn read(config: &Config) -> Result<Box<dyn Model>> {
    if let Some(window) = config.get("sliding_window") {
        return Err(CompileError::unsupported(
            format!("sliding_window {window}"),
            "supported: full attention",
        ));
    }
    Ok(Box::new(Decoder::read(config)?))
}

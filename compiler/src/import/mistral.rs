//! `MistralForCausalLM`: Mistral 7B, Nemo, Small: Llama, where every layer may have a sliding window.

use super::Importer;
use super::decoder::Decoder;
use super::llama::{self, Biases};
use super::shape::windows;
use crate::checkpoint::Config;
use crate::error::Result;

/// The registry's entry.
pub const IMPORTER: Importer = Importer {
    architecture: "MistralForCausalLM",
    families: "Mistral 7B, Nemo, Small",
    features: "sliding window",
    read: |config| Ok(Box::new(read(config)?)),
};

fn read(config: &Config) -> Result<Decoder> {
    let mut decoder = llama::decoder(config, Biases::default())?;
    set_windows(config, &mut decoder)?;
    Ok(decoder)
}

/// `sliding_window` in every layer, or in those that `layer_types` names.
///
/// # Errors
/// As [`windows`].
pub fn set_windows(config: &Config, decoder: &mut Decoder) -> Result<()> {
    let window = config.opt_size("sliding_window")?;
    let windows = windows(config, decoder.layers.len(), window, |_| window.is_some())?;
    for (layer, window) in decoder.layers.iter_mut().zip(windows) {
        layer.attention.window = window;
    }
    Ok(())
}

//! `Qwen2ForCausalLM`: Qwen 2 and 2.5: Llama with biases of query, key and value; later layers may have a sliding window.

use super::Importer;
use super::decoder::Decoder;
use super::llama::{self, Biases};
use super::shape::windows;
use crate::checkpoint::Config;
use crate::error::Result;

/// The registry's entry.
pub const IMPORTER: Importer = Importer {
    architecture: "Qwen2ForCausalLM",
    families: "Qwen 2, 2.5, QwQ",
    features: "QKV bias, sliding window by layer",
    read: |config| Ok(Box::new(read(config)?)),
};

fn read(config: &Config) -> Result<Decoder> {
    let mut decoder = llama::decoder(config, Biases { qkv: true, ..Biases::default() })?;
    set_windows(config, &mut decoder)?;
    Ok(decoder)
}

/// Windows as Qwen configs spell them: a switch, a size, and the first layer that has one.
///
/// # Errors
/// As [`windows`].
pub fn set_windows(config: &Config, decoder: &mut Decoder) -> Result<()> {
    let window = match config.flag("use_sliding_window", false)? {
        true => config.opt_size("sliding_window")?,
        false => None,
    };
    // The field counts the layers without a window, and may be 0.
    let first = config.number("max_window_layers", 28.0)? as usize;
    let windows = windows(config, decoder.layers.len(), window, |at| window.is_some() && at >= first)?;
    for (layer, window) in decoder.layers.iter_mut().zip(windows) {
        layer.attention.window = window;
    }
    Ok(())
}

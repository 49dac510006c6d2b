//! `GraniteForCausalLM`: Granite 3: Llama with multipliers of embedding, attention and residual, and a divisor of logits.

use super::Importer;
use super::decoder::Decoder;
use super::llama::{self, Biases};
use super::shape::positive;
use crate::checkpoint::Config;
use crate::error::Result;

/// The registry's entry.
pub const IMPORTER: Importer = Importer {
    architecture: "GraniteForCausalLM",
    families: "Granite 3, 3.1, 3.2, 3.3",
    features: "multipliers of embedding, attention, residual and logits",
    read: |config| Ok(Box::new(read(config)?)),
};

fn read(config: &Config) -> Result<Decoder> {
    let bias = config.flag("attention_bias", false)?;
    let biases = Biases { qkv: bias, o: bias, mlp: config.flag("mlp_bias", false)? };
    let mut decoder = llama::decoder(config, biases)?;
    decoder.embedding.scale = positive(config, "embedding_multiplier", 1.0)? as f32;
    decoder.logits_scale = (1.0 / positive(config, "logits_scaling", 1.0)?) as f32;
    let attention_scale = positive(config, "attention_multiplier", 1.0)? as f32;
    let residual_scale = positive(config, "residual_multiplier", 1.0)? as f32;
    for layer in &mut decoder.layers {
        layer.attention.scale = attention_scale;
        layer.residual_scale = residual_scale;
    }
    Ok(decoder)
}

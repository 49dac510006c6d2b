//! `Qwen3ForCausalLM`: Llama with a norm of each head of query and key; later layers may have a sliding window.

use super::Importer;
use super::decoder::Decoder;
use super::llama::{self, Biases};
use super::param::Norm;
use super::qwen2::set_windows;
use super::shape::eps;
use crate::checkpoint::Config;
use crate::error::Result;

/// The registry's entry.
pub const IMPORTER: Importer = Importer {
    architecture: "Qwen3ForCausalLM",
    families: "Qwen 3",
    features: "norms of query and key by head, sliding window by layer",
    read: |config| Ok(Box::new(read(config)?)),
};

/// As the registry's entry.
///
/// # Errors
/// A field that is missing or does not fit another.
pub fn read(config: &Config) -> Result<Decoder> {
    let bias = config.flag("attention_bias", false)?;
    let mut decoder = llama::decoder(config, Biases { qkv: bias, o: bias, mlp: false })?;
    let (shape, eps) = (decoder.shape, eps(config, "rms_norm_eps", 1e-6)?);
    for (at, layer) in decoder.layers.iter_mut().enumerate() {
        let norm = |name: &str, heads| {
            Norm::rms(&format!("model.layers.{at}.self_attn.{name}"), shape.head_dim, eps).by_groups(heads)
        };
        layer.attention.qk_norm = Some((norm("q_norm", shape.heads), norm("k_norm", shape.kv_heads)));
    }
    set_windows(config, &mut decoder)?;
    Ok(decoder)
}

//! `Olmo2ForCausalLM`: OLMo 2: Llama with norms behind attention and network instead of before them, and norms of the whole
//! rows of query and key.

use super::Importer;
use super::decoder::Decoder;
use super::llama::{self, Biases};
use super::param::Norm;
use super::shape::eps;
use crate::checkpoint::Config;
use crate::error::Result;

/// The registry's entry.
pub const IMPORTER: Importer = Importer {
    architecture: "Olmo2ForCausalLM",
    families: "OLMo 2",
    features: "norms behind attention and network, norms of query and key by row",
    read: |config| Ok(Box::new(read(config)?)),
};

fn read(config: &Config) -> Result<Decoder> {
    let bias = config.flag("attention_bias", false)?;
    let mut decoder = llama::decoder(config, Biases { qkv: bias, o: bias, mlp: false })?;
    let (shape, eps) = (decoder.shape, eps(config, "rms_norm_eps", 1e-5)?);
    for (at, layer) in decoder.layers.iter_mut().enumerate() {
        let norm = |name: &str, n| Norm::rms(&format!("model.layers.{at}.{name}"), n, eps);
        layer.attention_norm = None;
        layer.mlp_norm = None;
        layer.attention.qk_norm =
            Some((norm("self_attn.q_norm", shape.q()), norm("self_attn.k_norm", shape.kv())));
        layer.attention_post_norm = Some(norm("post_attention_layernorm", shape.hidden));
        layer.mlp_post_norm = Some(norm("post_feedforward_layernorm", shape.hidden));
    }
    Ok(decoder)
}

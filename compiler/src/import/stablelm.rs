//! `StableLmForCausalLM`: Llama with layer norms, part of a head rotated, and as options biases of query, key and value, layer
//! norms of every head of query and key, attention and network side by side.

use super::Importer;
use super::decoder::Decoder;
use super::llama::{self, Biases};
use super::param::{Norm, Param};
use super::shape::eps;
use crate::checkpoint::Config;
use crate::error::Result;

/// The registry's entry.
pub const IMPORTER: Importer = Importer {
    architecture: "StableLmForCausalLM",
    families: "StableLM 3B, StableLM 2",
    features: "LayerNorm, partial rotary embedding, QKV bias, LayerNorm of each head, parallel residual",
    read: |config| Ok(Box::new(read(config)?)),
};

fn read(config: &Config) -> Result<Decoder> {
    let biases = Biases { qkv: config.flag("use_qkv_bias", false)?, ..Biases::default() };
    let mut decoder = llama::decoder_with(config, biases, 0.25)?;
    let (shape, eps) = (decoder.shape, eps(config, "layer_norm_eps", 1e-5)?);
    let parallel = config.flag("use_parallel_residual", false)?;
    let normed_heads = config.flag("qk_layernorm", false)?;
    for (at, layer) in decoder.layers.iter_mut().enumerate() {
        let prefix = format!("model.layers.{at}");
        let norm = |name: &str| Norm::layer(&format!("{prefix}.{name}"), shape.hidden, eps, true);
        layer.attention_norm = Some(norm("input_layernorm"));
        layer.mlp_norm = (!parallel).then(|| norm("post_attention_layernorm"));
        layer.parallel = parallel;
        let by_head = |name: &str, heads: usize| {
            let of = |head| {
                Norm::layer(&format!("{prefix}.self_attn.{name}.norms.{head}"), shape.head_dim, eps, false)
            };
            let weights = (0..heads).map(|head| of(head).weight).collect();
            Norm { weight: Param::Joined(weights), ..of(0).by_groups(heads) }
        };
        layer.attention.qk_norm = normed_heads
            .then(|| (by_head("q_layernorm", shape.heads), by_head("k_layernorm", shape.kv_heads)));
    }
    decoder.norm = Norm::layer("model.norm", shape.hidden, eps, true);
    Ok(decoder)
}

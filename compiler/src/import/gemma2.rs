//! `Gemma2ForCausalLM`: norms before and behind attention and network, soft caps of scores and logits, a sliding window in
//! every other layer; and what Gemma 3 shares with it.

use lathe_numerics::Activation;

use super::Importer;
use super::decoder::{Decoder, Embedded, Layer};
use super::llama::{self, Biases};
use super::names::Names;
use super::param::{Norm, Param, Projection};
use super::shape::{Shape, activation, eps, positive, refuse_flag, windows};
use crate::checkpoint::{Config, RopeDefaults};
use crate::error::Result;

/// The registry's entry.
pub const IMPORTER: Importer = Importer {
    architecture: "Gemma2ForCausalLM",
    families: "Gemma 2",
    features: "soft caps, norms before and behind, alternating sliding window, GeGLU",
    read: |config| Ok(Box::new(read(config)?)),
};

fn read(config: &Config) -> Result<Decoder> {
    let mut shape = shape(config, 256_000, 8192)?;
    let rope = shape.rope(config, RopeDefaults::default())?;
    let mut decoder = decoder(config, shape, |at| at % 2 == 0)?;
    let softcap = optional_cap(config, "attn_logit_softcapping", 50.0)?;
    for layer in &mut decoder.layers {
        layer.attention.rope = Some(rope.clone());
        layer.attention.softcap = softcap;
    }
    decoder.logits_softcap = optional_cap(config, "final_logit_softcapping", 30.0)?;
    Ok(decoder)
}

/// Extents; published text configs leave out what the class says.
///
/// # Errors
/// A field that does not fit another.
pub fn shape(config: &Config, vocab: usize, max_position: usize) -> Result<Shape> {
    let size = |key: &str, default| config.opt_size(key).map(|n| n.unwrap_or(default));
    Shape {
        hidden: size("hidden_size", 2304)?,
        layers: size("num_hidden_layers", 26)?,
        heads: size("num_attention_heads", 8)?,
        kv_heads: size("num_key_value_heads", 4)?,
        head_dim: size("head_dim", 256)?,
        vocab: size("vocab_size", vocab)?,
        max_position: size("max_position_embeddings", max_position)?,
    }
    .checked()
}

/// A soft cap that null turns off; `default` is for configs that do not speak of it.
fn optional_cap(config: &Config, key: &str, default: f64) -> Result<f32> {
    Ok(if config.is_null(key) { 0.0 } else { positive(config, key, default)? as f32 })
}

/// A Gemma without rotations and soft caps; `slides` says which layers have a window where the config does not.
///
/// # Errors
/// A field that is missing or does not fit another.
pub fn decoder(config: &Config, shape: Shape, slides: impl Fn(usize) -> bool) -> Result<Decoder> {
    refuse_flag(config, "use_bidirectional_attention", "causal attention")?;
    let act = activation(config, "hidden_activation", "gelu_pytorch_tanh", &[Activation::GeluTanh])?;
    let bias = config.flag("attention_bias", false)?;
    let biases = Biases { qkv: bias, o: bias, mlp: false };
    let intermediate = config.opt_size("intermediate_size")?.unwrap_or(9216);
    let eps = eps(config, "rms_norm_eps", 1e-6)?;
    let scale = (1.0 / positive(config, "query_pre_attn_scalar", 256.0)?.sqrt()) as f32;
    let window = config.opt_size("sliding_window")?.unwrap_or(4096);
    let windows = windows(config, shape.layers, Some(window), slides)?;
    let layer = |(at, window)| {
        let prefix = format!("model.layers.{at}");
        let norm = |name: &str| Some(Norm::rms_one_plus(&format!("{prefix}.{name}"), shape.hidden, eps));
        let mut attention = llama::attention(&format!("{prefix}.self_attn"), &shape, biases);
        attention.scale = scale;
        attention.window = window;
        Layer {
            attention_norm: norm("input_layernorm"),
            attention,
            attention_post_norm: norm("post_attention_layernorm"),
            mlp_norm: norm("pre_feedforward_layernorm"),
            mlp: llama::gated_mlp(&format!("{prefix}.mlp"), shape.hidden, intermediate, false, act),
            mlp_post_norm: norm("post_feedforward_layernorm"),
            residual_scale: 1.0,
            parallel: false,
        }
    };
    let tied = config.flag("tie_word_embeddings", true)?;
    Ok(Decoder {
        shape,
        embedding: Embedded {
            tokens: Param::matrix("model.embed_tokens.weight", shape.vocab, shape.hidden),
            positions: None,
            scale: (shape.hidden as f64).sqrt() as f32,
            scale_is_rounded: true,
        },
        layers: windows.into_iter().enumerate().map(layer).collect(),
        norm: Norm::rms_one_plus("model.norm", shape.hidden, eps),
        head: (!tied).then(|| Projection::new("lm_head", shape.vocab, shape.hidden, false)),
        logits_scale: 1.0,
        logits_softcap: 0.0,
        names: Names::default(),
        ignored: &[".rotary_emb.inv_freq"],
    })
}

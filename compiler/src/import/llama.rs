//! `LlamaForCausalLM`: Llama 2, 3, 3.1, 3.2 and models of their shape; and what the many architectures that are Llama with
//! a few differences start from.

use lathe_numerics::Activation;

use super::Importer;
use super::decoder::{Attention, Decoder, Embedded, Layer, Mlp};
use super::names::Names;
use super::param::{Norm, Param, Projection};
use super::shape::{Shape, activation, eps};
use crate::checkpoint::{Config, RopeDefaults};
use crate::error::{CompileError, Result};

/// The registry's entry.
pub const IMPORTER: Importer = Importer {
    architecture: "LlamaForCausalLM",
    families: "Llama 2, 3, 3.1, 3.2, and models of their shape",
    features: "grouped-query attention, biases, tied embeddings",
    read: |config| Ok(Box::new(read(config)?)),
};

fn read(config: &Config) -> Result<Decoder> {
    if let Some(window) = config.get("sliding_window") {
        return Err(CompileError::unsupported(
            format!("sliding_window {window}"),
            "supported in this architecture: full attention",
        ));
    }
    let attention_bias = config.flag("attention_bias", false)?;
    let biases = Biases { qkv: attention_bias, o: attention_bias, mlp: config.flag("mlp_bias", false)? };
    decoder(config, biases)
}

/// Which projections of a Llama's shape have biases.
#[derive(Clone, Copy, Debug, Default)]
pub struct Biases {
    /// Query, key and value.
    pub qkv: bool,
    /// What the heads give.
    pub o: bool,
    /// The feed-forward network.
    pub mlp: bool,
}

/// A decoder of Llama's shape and names.
///
/// # Errors
/// A field that is missing or does not fit another.
pub fn decoder(config: &Config, biases: Biases) -> Result<Decoder> {
    decoder_with(config, biases, 1.0)
}

/// The same where `partial_rotary_factor` of a head rotates unless the config says another share.
///
/// # Errors
/// As [`decoder`].
pub fn decoder_with(config: &Config, biases: Biases, partial_rotary_factor: f64) -> Result<Decoder> {
    let mut shape = Shape::read(config)?;
    let rope = shape.rope(config, RopeDefaults { partial_rotary_factor, ..RopeDefaults::default() })?;
    let act = activation(config, "hidden_act", "silu", &[Activation::Silu])?;
    let intermediate = config.size("intermediate_size")?;
    let eps = eps(config, "rms_norm_eps", 1e-6)?;
    let layer = |at: usize| {
        let prefix = format!("model.layers.{at}");
        Layer {
            attention_norm: Some(Norm::rms(&format!("{prefix}.input_layernorm"), shape.hidden, eps)),
            attention: Attention {
                rope: Some(rope.clone()),
                ..attention(&format!("{prefix}.self_attn"), &shape, biases)
            },
            attention_post_norm: None,
            mlp_norm: Some(Norm::rms(&format!("{prefix}.post_attention_layernorm"), shape.hidden, eps)),
            mlp: gated_mlp(&format!("{prefix}.mlp"), shape.hidden, intermediate, biases.mlp, act),
            mlp_post_norm: None,
            residual_scale: 1.0,
            parallel: false,
        }
    };
    let tied = config.flag("tie_word_embeddings", false)?;
    Ok(Decoder {
        shape,
        embedding: Embedded {
            tokens: Param::matrix("model.embed_tokens.weight", shape.vocab, shape.hidden),
            positions: None,
            scale: 1.0,
            scale_is_rounded: false,
        },
        layers: (0..shape.layers).map(layer).collect(),
        norm: Norm::rms("model.norm", shape.hidden, eps),
        head: (!tied).then(|| Projection::new("lm_head", shape.vocab, shape.hidden, false)),
        logits_scale: 1.0,
        logits_softcap: 0.0,
        names: Names::default(),
        // Old exports hold the frequencies, which are recomputed.
        ignored: &[".rotary_emb.inv_freq"],
    })
}

/// `PREFIX.q_proj`, `k_proj`, `v_proj`, `o_proj`; no norms, no rotation, the usual scale, no window.
pub fn attention(prefix: &str, shape: &Shape, biases: Biases) -> Attention {
    let part = |name: &str, rows, cols, bias| Projection::new(&format!("{prefix}.{name}"), rows, cols, bias);
    Attention {
        q: part("q_proj", shape.q(), shape.hidden, biases.qkv),
        k: part("k_proj", shape.kv(), shape.hidden, biases.qkv),
        v: part("v_proj", shape.kv(), shape.hidden, biases.qkv),
        o: part("o_proj", shape.hidden, shape.q(), biases.o),
        qk_norm: None,
        rope: None,
        scale: shape.attention_scale(),
        window: 0,
        softcap: 0.0,
        sinks: None,
    }
}

/// `PREFIX.gate_proj`, `up_proj`, `down_proj`.
pub fn gated_mlp(prefix: &str, hidden: usize, intermediate: usize, bias: bool, act: Activation) -> Mlp {
    let part = |name: &str, rows, cols| Projection::new(&format!("{prefix}.{name}"), rows, cols, bias);
    Mlp::Gated {
        gate: part("gate_proj", intermediate, hidden),
        up: part("up_proj", intermediate, hidden),
        down: part("down_proj", hidden, intermediate),
        act,
    }
}

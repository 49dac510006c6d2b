//! `GPT2LMHeadModel`: learned positions, layer norms, weights stored as `Conv1D` does, a plain network (GPT-2 2019).

use lathe_ir::weight::RowPick;
use lathe_numerics::Activation;

use super::Importer;
use super::decoder::{Attention, Decoder, Embedded, Layer, Mlp};
use super::names::Names;
use super::param::{Norm, Param, Projection};
use super::shape::{Shape, activation, eps, refuse_flag};
use crate::checkpoint::Config;
use crate::error::{CompileError, Result};

/// The registry's entry.
pub const IMPORTER: Importer = Importer {
    architecture: "GPT2LMHeadModel",
    families: "GPT-2, DistilGPT2, and models of their shape",
    features: "learned positions, LayerNorm, biases, GELU",
    read: |config| Ok(Box::new(read(config)?)),
};

fn read(config: &Config) -> Result<Decoder> {
    refuse_flag(config, "scale_attn_by_inverse_layer_idx", "the same scale of scores in every layer")?;
    refuse_flag(config, "add_cross_attention", "decoders without an encoder")?;
    if !config.flag("scale_attn_weights", true)? {
        return Err(CompileError::unsupported(
            "scale_attn_weights false",
            "supported: scores divided by the root of the head's size",
        ));
    }
    let heads = config.size("n_head")?;
    let shape = Shape {
        hidden: config.size("n_embd")?,
        layers: config.size("n_layer")?,
        heads,
        kv_heads: heads,
        head_dim: 0,
        vocab: config.size("vocab_size")?,
        max_position: config.size("n_positions")?,
    }
    .checked()?;
    let (hidden, eps) = (shape.hidden, eps(config, "layer_norm_epsilon", 1e-5)?);
    let inner = config.opt_size("n_inner")?.unwrap_or(4 * hidden);
    let known = [Activation::GeluTanh, Activation::Gelu, Activation::Silu];
    let act = activation(config, "activation_function", "gelu_new", &known)?;
    let layer = |at: usize| {
        let prefix = format!("transformer.h.{at}");
        let norm = |name: &str| Some(Norm::layer(&format!("{prefix}.{name}"), hidden, eps, true));
        let conv =
            |name: &str, rows, cols| Projection::transposed(&format!("{prefix}.{name}"), rows, cols, true);
        let qkv = conv("attn.c_attn", 3 * hidden, hidden);
        Layer {
            attention_norm: norm("ln_1"),
            attention: Attention {
                q: qkv.part("q", RowPick::run(0, hidden)),
                k: qkv.part("k", RowPick::run(hidden, hidden)),
                v: qkv.part("v", RowPick::run(2 * hidden, hidden)),
                o: conv("attn.c_proj", hidden, hidden),
                qk_norm: None,
                rope: None,
                scale: shape.attention_scale(),
                window: 0,
                softcap: 0.0,
                sinks: None,
            },
            attention_post_norm: None,
            mlp_norm: norm("ln_2"),
            mlp: Mlp::Plain {
                up: conv("mlp.c_fc", inner, hidden),
                down: conv("mlp.c_proj", hidden, inner),
                act,
            },
            mlp_post_norm: None,
            residual_scale: 1.0,
            parallel: false,
        }
    };
    let tied = config.flag("tie_word_embeddings", true)?;
    Ok(Decoder {
        shape,
        embedding: Embedded {
            tokens: Param::matrix("transformer.wte.weight", shape.vocab, hidden),
            positions: Some(Param::matrix("transformer.wpe.weight", shape.max_position, hidden)),
            scale: 1.0,
            scale_is_rounded: false,
        },
        layers: (0..shape.layers).map(layer).collect(),
        norm: Norm::layer("transformer.ln_f", hidden, eps, true),
        head: (!tied).then(|| Projection::new("lm_head", shape.vocab, hidden, false)),
        logits_scale: 1.0,
        logits_softcap: 0.0,
        names: Names(&[("transformer.", "")]),
        // The causal mask, as old exports store it.
        ignored: &[".attn.bias", ".attn.masked_bias"],
    })
}

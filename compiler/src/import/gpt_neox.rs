//! `GPTNeoXForCausalLM`: attention and network side by side or one after the other, fused QKV by heads, part of a head rotated
//! (arXiv 2204.06745).

use lathe_ir::weight::RowPick;
use lathe_numerics::Activation;

use super::Importer;
use super::decoder::{Attention, Decoder, Embedded, Layer, Mlp};
use super::names::Names;
use super::param::{Norm, Param, Projection};
use super::shape::{Shape, activation, eps};
use crate::checkpoint::{Config, RopeDefaults};
use crate::error::Result;

/// The registry's entry.
pub const IMPORTER: Importer = Importer {
    architecture: "GPTNeoXForCausalLM",
    families: "GPT-NeoX, Pythia, RedPajama-INCITE",
    features: "parallel residual, fused QKV by heads, partial rotary embedding, LayerNorm",
    read: |config| Ok(Box::new(read(config)?)),
};

fn read(config: &Config) -> Result<Decoder> {
    let mut shape = Shape::read(config)?;
    let rope = shape.rope(config, RopeDefaults { partial_rotary_factor: 0.25, ..RopeDefaults::default() })?;
    let known = [Activation::Gelu, Activation::GeluTanh, Activation::Silu];
    let act = activation(config, "hidden_act", "gelu", &known)?;
    let (hidden, d) = (shape.hidden, shape.head_dim);
    let intermediate = config.size("intermediate_size")?;
    let eps = eps(config, "layer_norm_eps", 1e-5)?;
    let bias = config.flag("attention_bias", true)?;
    let parallel = config.flag("use_parallel_residual", true)?;
    let layer = |at: usize| {
        let prefix = format!("gpt_neox.layers.{at}");
        let norm = |name: &str| Some(Norm::layer(&format!("{prefix}.{name}"), hidden, eps, true));
        let linear =
            |name: &str, rows, cols, bias| Projection::new(&format!("{prefix}.{name}"), rows, cols, bias);
        let qkv = linear("attention.query_key_value", 3 * hidden, hidden, bias);
        // Query, key and value of a head follow each other.
        let of_each_head = |start| RowPick { start, len: d, stride: 3 * d, count: shape.heads };
        Layer {
            attention_norm: norm("input_layernorm"),
            attention: Attention {
                q: qkv.part("q", of_each_head(0)),
                k: qkv.part("k", of_each_head(d)),
                v: qkv.part("v", of_each_head(2 * d)),
                o: linear("attention.dense", hidden, hidden, bias),
                qk_norm: None,
                rope: Some(rope.clone()),
                scale: shape.attention_scale(),
                window: 0,
                softcap: 0.0,
                sinks: None,
            },
            attention_post_norm: None,
            mlp_norm: norm("post_attention_layernorm"),
            mlp: Mlp::Plain {
                up: linear("mlp.dense_h_to_4h", intermediate, hidden, true),
                down: linear("mlp.dense_4h_to_h", hidden, intermediate, true),
                act,
            },
            mlp_post_norm: None,
            residual_scale: 1.0,
            parallel,
        }
    };
    let tied = config.flag("tie_word_embeddings", false)?;
    Ok(Decoder {
        shape,
        embedding: Embedded {
            tokens: Param::matrix("gpt_neox.embed_in.weight", shape.vocab, hidden),
            positions: None,
            scale: 1.0,
            scale_is_rounded: false,
        },
        layers: (0..shape.layers).map(layer).collect(),
        norm: Norm::layer("gpt_neox.final_layer_norm", hidden, eps, true),
        head: (!tied).then(|| Projection::new(HEAD, shape.vocab, hidden, false)),
        logits_scale: 1.0,
        logits_softcap: 0.0,
        names: Names(&[("lm_head.", "embed_out.")]),
        ignored: &[".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq", "embed_out.weight"],
    })
}

/// What transformers 5 calls `embed_out`.
const HEAD: &str = "lm_head";

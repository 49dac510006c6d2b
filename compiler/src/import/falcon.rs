//! `FalconForCausalLM`: fused QKV in three layouts, multi-query and grouped attention, attention and network side by side
//! with one norm or two (arXiv 2311.16867).

use lathe_ir::weight::RowPick;
use lathe_numerics::Activation;

use super::Importer;
use super::decoder::{Attention, Decoder, Embedded, Layer, Mlp};
use super::names::Names;
use super::param::{Norm, Param, Projection};
use super::shape::{Shape, activation, eps, refuse_flag};
use crate::checkpoint::{Config, RopeDefaults};
use crate::error::{CompileError, Result};

/// The registry's entry.
pub const IMPORTER: Importer = Importer {
    architecture: "FalconForCausalLM",
    families: "Falcon 7B, 40B, 180B, Falcon 2 11B",
    features: "parallel attention, multi-query, fused QKV by groups, LayerNorm",
    read: |config| Ok(Box::new(read(config)?)),
};

fn read(config: &Config) -> Result<Decoder> {
    refuse_flag(config, "alibi", "rotary embedding; attention biases by distance (ALiBi) are missing")?;
    let grouped = config.flag("new_decoder_architecture", false)?;
    let multi_query = config.flag("multi_query", true)?;
    let size = |key: &str, older: &str| match config.opt_size(key)? {
        Some(n) => Ok(n),
        None => config.opt_size(older)?.map_or_else(|| config.size(key), Ok),
    };
    let heads = size("num_attention_heads", "n_head")?;
    let kv_heads = match (grouped, multi_query) {
        (true, _) => size("num_kv_heads", "n_head_kv")?,
        (false, true) => 1,
        (false, false) => heads,
    };
    let mut shape = Shape {
        hidden: config.size("hidden_size")?,
        layers: size("num_hidden_layers", "n_layer")?,
        heads,
        kv_heads,
        head_dim: 0,
        vocab: config.size("vocab_size")?,
        max_position: config.opt_size("max_position_embeddings")?.unwrap_or(2048),
    }
    .checked()?;
    let rope = shape.rope(config, RopeDefaults::default())?;
    let known = [Activation::Gelu, Activation::GeluTanh, Activation::Silu];
    let act = activation(config, "activation", "gelu", &known)?;
    let (hidden, d) = (shape.hidden, shape.head_dim);
    let inner = config.opt_size("ffn_hidden_size")?.unwrap_or(4 * hidden);
    let eps = eps(config, "layer_norm_epsilon", 1e-5)?;
    let bias = config.flag("bias", false)?;
    let parallel = grouped || config.flag("parallel_attn", true)?;
    let n_norms = config.opt_size("num_ln_in_parallel_attn")?.unwrap_or(if grouped { 2 } else { 1 });
    if n_norms > 2 || (n_norms == 2 && !grouped) {
        return Err(CompileError::unsupported(
            format!("num_ln_in_parallel_attn {n_norms}"),
            "supported: 1, and 2 with new_decoder_architecture",
        ));
    }
    let layer = |at: usize| {
        let prefix = format!("transformer.h.{at}");
        let norm = |name: &str| Some(Norm::layer(&format!("{prefix}.{name}"), hidden, eps, true));
        let linear = |name: &str, rows, cols| Projection::new(&format!("{prefix}.{name}"), rows, cols, bias);
        let qkv = linear("self_attention.query_key_value", shape.q() + 2 * shape.kv(), hidden);
        // For each KV head: the query heads that read it, then key and value. Multi-query is the case of one group,
        // and attention without sharing that of groups of one.
        let group = shape.heads / shape.kv_heads;
        let of_each_group = |first: usize, n: usize| RowPick {
            start: first * d,
            len: n * d,
            stride: (group + 2) * d,
            count: shape.kv_heads,
        };
        let (attention_norm, mlp_norm) = match (parallel, n_norms) {
            (true, 2) => (norm("ln_attn"), norm("ln_mlp")),
            (true, _) => (norm("input_layernorm"), None),
            (false, _) => (norm("input_layernorm"), norm("post_attention_layernorm")),
        };
        Layer {
            attention_norm,
            attention: Attention {
                q: qkv.part("q", of_each_group(0, group)),
                k: qkv.part("k", of_each_group(group, 1)),
                v: qkv.part("v", of_each_group(group + 1, 1)),
                o: linear("self_attention.dense", hidden, hidden),
                qk_norm: None,
                rope: Some(rope.clone()),
                scale: shape.attention_scale(),
                window: 0,
                softcap: 0.0,
                sinks: None,
            },
            attention_post_norm: None,
            mlp_norm,
            mlp: Mlp::Plain {
                up: linear("mlp.dense_h_to_4h", inner, hidden),
                down: linear("mlp.dense_4h_to_h", hidden, inner),
                act,
            },
            mlp_post_norm: None,
            residual_scale: 1.0,
            parallel,
        }
    };
    let tied = config.flag("tie_word_embeddings", true)?;
    Ok(Decoder {
        shape,
        embedding: Embedded {
            tokens: Param::matrix("transformer.word_embeddings.weight", shape.vocab, hidden),
            positions: None,
            scale: 1.0,
            scale_is_rounded: false,
        },
        layers: (0..shape.layers).map(layer).collect(),
        norm: Norm::layer("transformer.ln_f", hidden, eps, true),
        head: (!tied).then(|| Projection::new("lm_head", shape.vocab, hidden, false)),
        logits_scale: 1.0,
        logits_softcap: 0.0,
        names: Names::default(),
        ignored: &[".rotary_emb.inv_freq"],
    })
}

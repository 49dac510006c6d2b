//! `Gemma3ForCausalLM`, and the text part of `Gemma3ForConditionalGeneration`: Gemma 2 with norms of query and key, rotary
//! bases of their own in layers with a window, and caps only where the config asks for them.

use super::Importer;
use super::decoder::Decoder;
use super::gemma2;
use super::names::Names;
use super::param::Norm;
use super::shape::{eps, positive};
use crate::checkpoint::{Config, RopeDefaults};
use crate::error::Result;

const FEATURES: &str =
    "norms of query and key, local and global layers with two rotary bases, norms before and behind, GeGLU";

/// The registry's entry of text models.
pub const IMPORTER: Importer = Importer {
    architecture: "Gemma3ForCausalLM",
    families: "Gemma 3 270M, 1B",
    features: FEATURES,
    read: |config| Ok(Box::new(read(config)?)),
};

/// The registry's entry of models that also see; the plan has no vision part.
pub const MULTIMODAL: Importer = Importer {
    architecture: "Gemma3ForConditionalGeneration",
    families: "Gemma 3 4B, 12B, 27B: text part",
    features: FEATURES,
    read: |config| {
        let mut decoder = read(&config.nested("text_config")?)?;
        decoder.names = Names(&[
            ("model.", "language_model.model."),
            ("model.", "model.language_model."),
            ("lm_head.", "language_model.lm_head."),
        ]);
        Ok(Box::new(decoder))
    },
};

fn read(config: &Config) -> Result<Decoder> {
    let shape = gemma2::shape(config, 262_208, 131_072)?;
    let pattern = config.opt_size("sliding_window_pattern")?.unwrap_or(6);
    let mut decoder = gemma2::decoder(config, shape, |at| !(at + 1).is_multiple_of(pattern))?;
    let rope = |layer_type, theta| {
        let defaults = RopeDefaults { theta, ..RopeDefaults::default() };
        let rope = config.rope(Some(layer_type), shape.max_position, defaults)?;
        rope.rotary_dim(shape.head_dim).map(|_| rope)
    };
    let (local, global) = (rope("sliding_attention", 1e4)?, rope("full_attention", 1e6)?);
    decoder.shape.max_position = global.longest(shape.max_position);
    let eps = eps(config, "rms_norm_eps", 1e-6)?;
    let cap = |key: &str| config.get(key).map_or(Ok(0.0), |_| positive(config, key, 1.0));
    let softcap = cap("attn_logit_softcapping")? as f32;
    decoder.logits_softcap = cap("final_logit_softcapping")? as f32;
    for (at, layer) in decoder.layers.iter_mut().enumerate() {
        let norm = |name: &str, heads| {
            Norm::rms_one_plus(&format!("model.layers.{at}.self_attn.{name}"), shape.head_dim, eps)
                .by_groups(heads)
        };
        layer.attention.qk_norm = Some((norm("q_norm", shape.heads), norm("k_norm", shape.kv_heads)));
        layer.attention.rope = Some(if layer.attention.window > 0 { local.clone() } else { global.clone() });
        layer.attention.softcap = softcap;
    }
    Ok(decoder)
}

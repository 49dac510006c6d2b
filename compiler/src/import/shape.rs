//! Extents of a decoder and other facts that configs of most architectures spell alike.

use lathe_numerics::Activation;

use crate::checkpoint::{Config, Rope, RopeDefaults};
use crate::error::{CompileError, Result};

/// Extents of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Width of the residual.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Columns of the logits.
    pub vocab: usize,
    /// Longest context that the model was made for.
    pub max_position: usize,
}

impl Shape {
    /// From the fields that most architectures use.
    ///
    /// # Errors
    /// A field that is missing or does not fit another.
    pub fn read(config: &Config) -> Result<Self> {
        let heads = config.size("num_attention_heads")?;
        Shape {
            hidden: config.size("hidden_size")?,
            layers: config.size("num_hidden_layers")?,
            heads,
            kv_heads: config.opt_size("num_key_value_heads")?.unwrap_or(heads),
            head_dim: config.opt_size("head_dim")?.unwrap_or(0),
            vocab: config.size("vocab_size")?,
            max_position: config.opt_size("max_position_embeddings")?.unwrap_or(2048),
        }
        .checked()
    }

    /// The shape, with a `head_dim` of 0 replaced by an equal share of the hidden width.
    ///
    /// # Errors
    /// Heads that do not divide what they should.
    pub fn checked(self) -> Result<Self> {
        let Shape { hidden, heads, kv_heads, head_dim, .. } = self;
        if !heads.is_multiple_of(kv_heads) {
            return Err(CompileError::input(
                "config.json: num_key_value_heads",
                format!("is {kv_heads}, which does not divide num_attention_heads {heads}"),
            ));
        }
        match head_dim {
            0 if hidden.is_multiple_of(heads) => Ok(Shape { head_dim: hidden / heads, ..self }),
            0 => Err(CompileError::input(
                "config.json: num_attention_heads",
                format!("is {heads}, which does not divide hidden_size {hidden}, and head_dim is missing"),
            )),
            _ => Ok(self),
        }
    }

    /// Width of the query.
    pub fn q(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of key and of value.
    pub fn kv(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// `1 / sqrt(head_dim)`.
    pub fn attention_scale(&self) -> f32 {
        (1.0 / (self.head_dim as f64).sqrt()) as f32
    }

    /// The rotary embedding of all layers; a scaling that reaches further than the model's context lengthens it.
    ///
    /// # Errors
    /// As [`Config::rope`] and [`Rope::rotary_dim`].
    pub fn rope(&mut self, config: &Config, defaults: RopeDefaults) -> Result<Rope> {
        let rope = config.rope(None, self.max_position, defaults)?;
        rope.rotary_dim(self.head_dim)?;
        self.max_position = rope.longest(self.max_position);
        Ok(rope)
    }
}

/// What is added to a norm's mean square.
///
/// # Errors
/// A number below 0 or not finite.
pub fn eps(config: &Config, key: &str, default: f64) -> Result<f32> {
    let eps = config.number(key, default)?;
    if eps >= 0.0 && (eps as f32).is_finite() {
        return Ok(eps as f32);
    }
    Err(CompileError::input(format!("config.json: {key}"), format!("is {eps}, expected 0 or more")))
}

/// A number that must be positive.
///
/// # Errors
/// Any other.
pub fn positive(config: &Config, key: &str, default: f64) -> Result<f64> {
    let value = config.number(key, default)?;
    if value > 0.0 && (value as f32).is_finite() {
        return Ok(value);
    }
    Err(CompileError::input(format!("config.json: {key}"), format!("is {value}, expected a positive number")))
}

/// The activation that a config names under `key`, of those in `supported`.
///
/// # Errors
/// Another function.
pub fn activation(config: &Config, key: &str, default: &str, supported: &[Activation]) -> Result<Activation> {
    let name = config.text(key)?.unwrap_or(default);
    let known = match name {
        "silu" | "swish" => Some(Activation::Silu),
        "gelu" => Some(Activation::Gelu),
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Some(Activation::GeluTanh),
        _ => None,
    };
    known.filter(|act| supported.contains(act)).ok_or_else(|| {
        let spelt = |act: &Activation| match act {
            Activation::Silu => "silu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_new, gelu_pytorch_tanh",
        };
        let names: Vec<_> = supported.iter().map(spelt).collect();
        CompileError::unsupported(format!("{key} {name}"), format!("supported: {}", names.join(", ")))
    })
}

/// The window of each layer, 0 for full attention, from `layer_types`; without it `slides` says which layers have one.
///
/// # Errors
/// A kind of layer that is neither full nor sliding, another number of them than of layers, a missing window.
pub fn windows(
    config: &Config,
    layers: usize,
    window: Option<usize>,
    slides: impl Fn(usize) -> bool,
) -> Result<Vec<usize>> {
    let sliding: Vec<bool> = match config.get("layer_types") {
        None => (0..layers).map(slides).collect(),
        Some(types) => {
            let types = types.as_array().map_or(&[][..], Vec::as_slice);
            if types.len() != layers {
                return Err(CompileError::input(
                    "config.json: layer_types",
                    format!("has {} entries, and num_hidden_layers is {layers}", types.len()),
                ));
            }
            let sliding = |t: &serde_json::Value| match t.as_str() {
                Some("full_attention") => Ok(false),
                Some("sliding_attention") => Ok(true),
                _ => Err(CompileError::unsupported(
                    format!("layer type {t}"),
                    "supported: full_attention, sliding_attention",
                )),
            };
            types.iter().map(sliding).collect::<Result<_>>()?
        }
    };
    match window {
        Some(window) => Ok(sliding.into_iter().map(|s| if s { window } else { 0 }).collect()),
        None if sliding.contains(&true) => Err(CompileError::input(
            "config.json: sliding_window",
            "is missing, and layer_types has sliding layers",
        )),
        None => Ok(vec![0; layers]),
    }
}

/// Refuses a flag that asks for something no graph here computes.
///
/// # Errors
/// If it is true.
pub fn refuse_flag(config: &Config, key: &str, supported: &str) -> Result<()> {
    match config.flag(key, false)? {
        true => Err(CompileError::unsupported(format!("{key} true"), format!("supported: {supported}"))),
        false => Ok(()),
    }
}

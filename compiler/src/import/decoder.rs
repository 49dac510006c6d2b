//! Decoders of the form that Llama has: norm, attention, residual, norm, MLP or experts, residual. An importer reads a config
//! into a [`Decoder`] and changes what its architecture has different.
//!
//! Rounding points, with `D` the plan's type: the residual, normed rows, rotated queries, attention, gated products and
//! what an expert gives are `D`; what another linear layer gives stays f32 until then; keys and values are rounded to the
//! cache's type.

use lathe_ir::entity::ValueId;
use lathe_ir::facts::{Cache, Facts};
use lathe_ir::graph::Graph;
use lathe_ir::ops::{Activate, Add, Attention, Embedding, GatherRows, KvAppend, Linear, Mul, RmsNorm, Rope};
use lathe_ir::rope_table::{RopeScaling as TableScaling, RopeTable};
use lathe_ir::weight::WeightExpr;
use lathe_numerics::{Activation, DType};
use lathe_plan::schema::Limits;

use super::builder::Builder;
use super::experts::Experts;
use super::{Model, TensorSpec};
use crate::checkpoint::{Config, Rope as RopeConfig, RopeScaling, TensorSource};
use crate::error::{CompileError, Result};

/// What config.json says of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoder {
    /// Width of the residual.
    pub hidden: usize,
    /// One per layer.
    pub layers: Vec<Layer>,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Longest context that the model was made for.
    pub max_position: usize,
    /// Of all norms.
    pub eps: f64,
    /// The embedding is the head.
    pub tied: bool,
    /// Queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// The attention's output has a bias.
    pub o_bias: bool,
    /// Every head of queries and keys is normed before it rotates.
    pub qk_norm: bool,
    /// Every head has a logit of its own that takes part in the softmax (`self_attn.sinks`).
    pub sinks: bool,
    /// Rotary embedding.
    pub rope: RopeConfig,
}

/// What layers differ in.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Positions that a row sees, its own included; 0 for all.
    pub window: usize,
    /// What stands behind the attention.
    pub mlp: Mlp,
}

/// The second half of a layer.
#[derive(Clone, Debug, PartialEq)]
pub enum Mlp {
    /// `down(silu(gate(x)) * up(x))`.
    Gated {
        /// Rows of gate and up.
        intermediate: usize,
        /// All three have biases.
        bias: bool,
    },
    /// A router and experts.
    Experts(Experts),
}

impl Decoder {
    /// Reads the fields that all such decoders have: full attention, one gated MLP per layer, biases as `attention_bias` and
    /// `mlp_bias` say.
    ///
    /// # Errors
    /// A malformed field, or a value that no such decoder can have.
    pub fn read(config: &Config) -> Result<Self> {
        let act = config.text("hidden_act")?.unwrap_or("silu");
        if !matches!(act, "silu" | "swish") {
            return Err(CompileError::unsupported(format!("hidden_act {act}"), "supported: silu"));
        }
        let hidden = config.size("hidden_size")?;
        let heads = config.size("num_attention_heads")?;
        let kv_heads = config.opt_size("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(CompileError::input(
                "config.json: num_key_value_heads",
                format!("is {kv_heads}, which does not divide num_attention_heads {heads}"),
            ));
        }
        let head_dim = match config.opt_size("head_dim")? {
            Some(d) => d,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(CompileError::input(
                    "config.json: num_attention_heads",
                    format!(
                        "is {heads}, which does not divide hidden_size {hidden}, and head_dim is missing"
                    ),
                ));
            }
        };
        if !head_dim.is_multiple_of(2) {
            return Err(CompileError::unsupported(
                format!("head_dim {head_dim}"),
                "supported: even head_dim, as rotary embedding turns pairs",
            ));
        }
        let max_position = config.opt_size("max_position_embeddings")?.unwrap_or(2048);
        let rope = config.rope(max_position)?;
        if rope.partial_rotary_factor != 1.0 {
            return Err(CompileError::unsupported(
                format!("partial_rotary_factor {}", rope.partial_rotary_factor),
                "supported: 1, the whole head rotates",
            ));
        }
        let eps = config.number("rms_norm_eps", 1e-6)?;
        if !(eps >= 0.0 && (eps as f32).is_finite()) {
            return Err(CompileError::input(
                "config.json: rms_norm_eps",
                format!("is {eps}, expected 0 or more"),
            ));
        }
        let mlp = Mlp::Gated {
            intermediate: config.size("intermediate_size")?,
            bias: config.flag("mlp_bias", false)?,
        };
        let attention_bias = config.flag("attention_bias", false)?;
        Ok(Decoder {
            hidden,
            layers: vec![Layer { window: 0, mlp }; config.size("num_hidden_layers")?],
            heads,
            kv_heads,
            head_dim,
            vocab: config.size("vocab_size")?,
            max_position,
            eps,
            tied: config.flag("tie_word_embeddings", false)?,
            qkv_bias: attention_bias,
            o_bias: attention_bias,
            qk_norm: false,
            sinks: false,
            rope,
        })
    }

    fn rope_table(&self, positions: usize) -> RopeTable {
        let plain = RopeTable::plain(positions, self.head_dim, self.rope.theta);
        match self.rope.scaling {
            RopeScaling::Default => plain,
            RopeScaling::Linear { factor } => RopeTable { scaling: TableScaling::Linear, factor, ..plain },
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                RopeTable {
                    scaling: TableScaling::Llama3,
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    original: original_max_position,
                    ..plain
                }
            }
        }
    }
}

impl Model for Decoder {
    fn vocab_size(&self) -> usize {
        self.vocab
    }

    fn max_position(&self) -> usize {
        self.max_position
    }

    fn cache(&self, kv_dtype: DType) -> Cache {
        Cache {
            name: "kv".into(),
            dtype: kv_dtype,
            layers: self.layers.len(),
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        }
    }

    fn tensors(&self) -> Vec<TensorSpec> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut specs = vec![TensorSpec::matrix("model.embed_tokens.weight", self.vocab, self.hidden)];
        for (layer, kind) in self.layers.iter().enumerate() {
            let prefix = format!("model.layers.{layer}");
            let mut linear = |name: &str, rows: usize, cols: usize, bias: bool| {
                specs.push(TensorSpec::matrix(format!("{prefix}.{name}.weight"), rows, cols));
                if bias {
                    specs.push(TensorSpec::vector(format!("{prefix}.{name}.bias"), rows));
                }
            };
            linear("self_attn.q_proj", q, self.hidden, self.qkv_bias);
            linear("self_attn.k_proj", kv, self.hidden, self.qkv_bias);
            linear("self_attn.v_proj", kv, self.hidden, self.qkv_bias);
            linear("self_attn.o_proj", self.hidden, q, self.o_bias);
            match &kind.mlp {
                Mlp::Gated { intermediate, bias } => {
                    linear("mlp.gate_proj", *intermediate, self.hidden, *bias);
                    linear("mlp.up_proj", *intermediate, self.hidden, *bias);
                    linear("mlp.down_proj", self.hidden, *intermediate, *bias);
                }
                Mlp::Experts(experts) => specs.extend(experts.tensors(&prefix, self.hidden)),
            }
            if self.qk_norm {
                specs.push(TensorSpec::norm(format!("{prefix}.self_attn.q_norm.weight"), self.head_dim));
                specs.push(TensorSpec::norm(format!("{prefix}.self_attn.k_norm.weight"), self.head_dim));
            }
            if self.sinks {
                specs.push(TensorSpec::vector(format!("{prefix}.self_attn.sinks"), self.heads));
            }
            specs.push(TensorSpec::norm(format!("{prefix}.input_layernorm.weight"), self.hidden));
            specs.push(TensorSpec::norm(format!("{prefix}.post_attention_layernorm.weight"), self.hidden));
        }
        specs.push(TensorSpec::norm("model.norm.weight", self.hidden));
        if !self.tied {
            specs.push(TensorSpec::matrix("lm_head.weight", self.vocab, self.hidden));
        }
        specs
    }

    fn ignores(&self, tensor: &str) -> bool {
        // Old exports hold the frequencies, which are recomputed, and tied ones may repeat the embedding.
        tensor.ends_with(".rotary_emb.inv_freq") || (self.tied && tensor == "lm_head.weight")
    }

    fn build(
        &self,
        source: &dyn TensorSource,
        limits: Limits,
        dtype: DType,
        kv_dtype: DType,
    ) -> Result<Graph> {
        let mut b = Builder::decoder(source, limits, dtype, self.cache(kv_dtype))?;
        let eps = self.eps as f32;
        let table = self.rope_table(limits.max_seq_len as usize);
        let facts = Facts::fixed(DType::F32, &[table.positions, table.dim]);
        let table = b.graph.weight("rope_table", facts, WeightExpr::RopeTable(table))?;
        let embedding = b.weight("model.embed_tokens.weight")?;
        let mut state = b.state;
        let mut h = b.op(Embedding {}, &[b.tokens, embedding], "embed")?;

        for (layer, kind) in self.layers.iter().enumerate() {
            let prefix = format!("model.layers.{layer}");
            let named = |name: &str| format!("l{layer}.{name}");
            let norm = b.weight(&format!("{prefix}.input_layernorm.weight"))?;
            let normed = b.op(RmsNorm { eps, groups: 1 }, &[h, norm], &named("attn_norm"))?;
            let (o, after) = self.attention(&mut b, layer, normed, table, state)?;
            state = after;
            h = b.op(Add { out: dtype }, &[o, h], &named("h_attn"))?;

            let norm = b.weight(&format!("{prefix}.post_attention_layernorm.weight"))?;
            let normed = b.op(RmsNorm { eps, groups: 1 }, &[h, norm], &named("mlp_norm"))?;
            let delta = match &kind.mlp {
                Mlp::Gated { bias, .. } => gated_mlp(&mut b, &format!("{prefix}.mlp"), layer, normed, *bias)?,
                Mlp::Experts(experts) => experts.build(&mut b, &prefix, layer, normed)?,
            };
            h = b.op(Add { out: dtype }, &[delta, h], &named("h"))?;
        }

        let norm = b.weight("model.norm.weight")?;
        let normed = b.op(RmsNorm { eps, groups: 1 }, &[h, norm], "norm")?;
        let head = if self.tied { embedding } else { b.weight("lm_head.weight")? };
        let logits = b.op(Linear { act: None, out: DType::F32 }, &[normed, head], "logits_all")?;
        let logits = b.op(GatherRows {}, &[logits, b.rows], "logits")?;
        b.graph.set_outputs(&[logits]);
        Ok(b.graph)
    }
}

impl Decoder {
    /// The attention of one layer: what its output projection gives, and the state after its append.
    fn attention(
        &self,
        b: &mut Builder<'_>,
        layer: usize,
        x: ValueId,
        table: ValueId,
        state: ValueId,
    ) -> Result<(ValueId, ValueId)> {
        let prefix = format!("model.layers.{layer}.self_attn");
        let named = |name: &str| format!("l{layer}.{name}");
        let (head_dim, dtype) = (self.head_dim, b.dtype);
        let part = |b: &mut Builder<'_>, name: &str| {
            b.linear(x, &format!("{prefix}.{name}_proj"), self.qkv_bias, &named(name))
        };
        let (mut q, mut k, v) = (part(b, "q")?, part(b, "k")?, part(b, "v")?);
        if self.qk_norm {
            let eps = self.eps as f32;
            for (x, name, groups) in [(&mut q, "q", self.heads), (&mut k, "k", self.kv_heads)] {
                let norm = b.weight(&format!("{prefix}.{name}_norm.weight"))?;
                *x = b.op(RmsNorm { eps, groups }, &[*x, norm], &named(&format!("{name}_norm")))?;
            }
        }
        let rope = |heads, out| Rope { heads, head_dim, rotary_dim: head_dim, out };
        let q = b.op(rope(self.heads, dtype), &[q, b.positions, table], &named("q_rope"))?;
        let k = b.op(rope(self.kv_heads, DType::F32), &[k, b.positions, table], &named("k_rope"))?;
        let state = b.op(KvAppend { layer }, &[k, v, state], &named("state"))?;
        let attention = Attention {
            layer,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim,
            scale: (1.0 / (head_dim as f64).sqrt()) as f32,
            window: self.layers[layer].window,
            softcap: 0.0,
            out: dtype,
        };
        let mut operands = vec![q, state];
        if self.sinks {
            operands.push(b.weight(&format!("{prefix}.sinks"))?);
        }
        let attn = b.op(attention, &operands, &named("attn"))?;
        Ok((b.linear(attn, &format!("{prefix}.o_proj"), self.o_bias, &named("o"))?, state))
    }
}

/// `down(silu(gate(x)) * up(x))` with the weights of `prefix`, in f32.
pub fn gated_mlp(b: &mut Builder<'_>, prefix: &str, layer: usize, x: ValueId, bias: bool) -> Result<ValueId> {
    let named = |name: &str| format!("l{layer}.{name}");
    let gate = b.linear(x, &format!("{prefix}.gate_proj"), bias, &named("gate"))?;
    let up = b.linear(x, &format!("{prefix}.up_proj"), bias, &named("up"))?;
    let act = b.op(Activate { act: Activation::Silu, out: DType::F32 }, &[gate], &named("act"))?;
    let mlp = b.op(Mul { out: b.dtype }, &[act, up], &named("mlp"))?;
    b.linear(mlp, &format!("{prefix}.down_proj"), bias, &named("down"))
}

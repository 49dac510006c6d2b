//! `LlamaForCausalLM`: Llama 2, 3, 3.1, 3.2 and models of their shape.
//!
//! Rounding points, with `D` the plan's type: the residual, normed rows, rotated queries, attention and `silu(gate) *
//! up` are `D`; what a linear layer gives stays f32 until then; keys and values are rounded to the cache's type.

use lathe_ir::facts::{Cache, Facts};
use lathe_ir::graph::Graph;
use lathe_ir::ops::{Activate, Add, Attention, Embedding, GatherRows, KvAppend, Linear, Mul, RmsNorm, Rope};
use lathe_ir::rope_table::{RopeScaling as TableScaling, RopeTable};
use lathe_ir::weight::WeightExpr;
use lathe_numerics::{Activation, DType};
use lathe_plan::schema::Limits;

use super::builder::Builder;
use super::{Importer, Model, TensorSpec};
use crate::checkpoint::{Config, Rope as RopeConfig, RopeScaling, TensorSource};
use crate::error::{CompileError, Result};

/// The registry's entry.
pub const IMPORTER: Importer = Importer { architecture: "LlamaForCausalLM", read };

/// What config.json says of a Llama.
#[derive(Clone, Debug, PartialEq)]
pub struct Llama {
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
    max_position: usize,
    eps: f64,
    tied: bool,
    attention_bias: bool,
    mlp_bias: bool,
    rope: RopeConfig,
    /// By layer, 0 for none.
    windows: Vec<usize>,
}

fn read(config: &Config) -> Result<Box<dyn Model>> {
    Ok(Box::new(Llama::read(config)?))
}

impl Llama {
    fn read(config: &Config) -> Result<Self> {
        let act = config.text("hidden_act")?.unwrap_or("silu");
        if !matches!(act, "silu" | "swish") {
            return Err(CompileError::unsupported(format!("hidden_act {act}"), "supported: silu"));
        }
        let layers = config.size("num_hidden_layers")?;
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
        Ok(Llama {
            hidden,
            intermediate: config.size("intermediate_size")?,
            layers,
            windows: config.windows(layers)?,
            heads,
            kv_heads,
            head_dim,
            vocab: config.size("vocab_size")?,
            max_position,
            eps,
            tied: config.flag("tie_word_embeddings", false)?,
            attention_bias: config.flag("attention_bias", false)?,
            mlp_bias: config.flag("mlp_bias", false)?,
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

impl Model for Llama {
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
            layers: self.layers,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        }
    }

    fn tensors(&self) -> Vec<TensorSpec> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut specs = vec![TensorSpec::matrix("model.embed_tokens.weight", self.vocab, self.hidden)];
        for layer in 0..self.layers {
            let prefix = format!("model.layers.{layer}");
            let mut linear = |name: &str, rows: usize, cols: usize, bias: bool| {
                specs.push(TensorSpec::matrix(format!("{prefix}.{name}.weight"), rows, cols));
                if bias {
                    specs.push(TensorSpec::vector(format!("{prefix}.{name}.bias"), rows));
                }
            };
            linear("self_attn.q_proj", q, self.hidden, self.attention_bias);
            linear("self_attn.k_proj", kv, self.hidden, self.attention_bias);
            linear("self_attn.v_proj", kv, self.hidden, self.attention_bias);
            linear("self_attn.o_proj", self.hidden, q, self.attention_bias);
            linear("mlp.gate_proj", self.intermediate, self.hidden, self.mlp_bias);
            linear("mlp.up_proj", self.intermediate, self.hidden, self.mlp_bias);
            linear("mlp.down_proj", self.hidden, self.intermediate, self.mlp_bias);
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

        for layer in 0..self.layers {
            let prefix = format!("model.layers.{layer}");
            let named = |name: &str| format!("l{layer}.{name}");
            let linear = |b: &mut Builder<'_>, x, part: &str, bias, name: &str| -> Result<_> {
                let mut operands = vec![x];
                operands.extend(b.layer_weights(&format!("{prefix}.{part}"), bias)?);
                b.op(Linear { act: None, out: DType::F32 }, &operands, &named(name))
            };

            let norm = b.weight(&format!("{prefix}.input_layernorm.weight"))?;
            let normed = b.op(RmsNorm { eps, groups: 1 }, &[h, norm], &named("attn_norm"))?;
            let q = linear(&mut b, normed, "self_attn.q_proj", self.attention_bias, "q")?;
            let k = linear(&mut b, normed, "self_attn.k_proj", self.attention_bias, "k")?;
            let v = linear(&mut b, normed, "self_attn.v_proj", self.attention_bias, "v")?;
            let rope = |heads, out| Rope { heads, head_dim: self.head_dim, rotary_dim: self.head_dim, out };
            let q = b.op(rope(self.heads, dtype), &[q, b.positions, table], &named("q_rope"))?;
            let k = b.op(rope(self.kv_heads, DType::F32), &[k, b.positions, table], &named("k_rope"))?;
            state = b.op(KvAppend { layer }, &[k, v, state], &named("state"))?;
            let attention = Attention {
                layer,
                heads: self.heads,
                kv_heads: self.kv_heads,
                head_dim: self.head_dim,
                scale: (1.0 / (self.head_dim as f64).sqrt()) as f32,
                window: self.windows[layer],
                softcap: 0.0,
                out: dtype,
            };
            let attn = b.op(attention, &[q, state], &named("attn"))?;
            let o = linear(&mut b, attn, "self_attn.o_proj", self.attention_bias, "o")?;
            h = b.op(Add { out: dtype }, &[o, h], &named("h_attn"))?;

            let norm = b.weight(&format!("{prefix}.post_attention_layernorm.weight"))?;
            let normed = b.op(RmsNorm { eps, groups: 1 }, &[h, norm], &named("mlp_norm"))?;
            let gate = linear(&mut b, normed, "mlp.gate_proj", self.mlp_bias, "gate")?;
            let up = linear(&mut b, normed, "mlp.up_proj", self.mlp_bias, "up")?;
            let act = b.op(Activate { act: Activation::Silu, out: DType::F32 }, &[gate], &named("act"))?;
            let mlp = b.op(Mul { out: dtype }, &[act, up], &named("mlp"))?;
            let down = linear(&mut b, mlp, "mlp.down_proj", self.mlp_bias, "down")?;
            h = b.op(Add { out: dtype }, &[down, h], &named("h"))?;
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

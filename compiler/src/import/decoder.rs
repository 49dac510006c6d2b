//! A decoder as importers describe it, and the graph of such a description.
//!
//! Rounding points, with `D` the plan's type: embeddings, the residual, normed rows, rotated queries, attention and what
//! comes out of an activation are `D`; what a linear layer gives, and what is done to it before it joins the residual,
//! stays f32 until then; keys and values are rounded to the cache's type.

use lathe_ir::entity::ValueId;
use lathe_ir::facts::Cache;
use lathe_ir::graph::Graph;
use lathe_ir::ops::{
    Activate, Add, Attention as AttentionOp, Cast, Embedding, GatherRows, KvAppend, Mul, Rope as RopeOp,
    Scale, Softcap,
};
use lathe_ir::rope_table::RopeTable;
use lathe_ir::weight::WeightExpr;
use lathe_numerics::{Activation, DType};
use lathe_plan::schema::Limits;

use super::builder::Builder;
use super::experts::Experts;
use super::names::Names;
use super::param::{Norm, Param, Projection};
use super::shape::Shape;
use super::{Model, TensorSpec};
use crate::checkpoint::{Rope, TensorSource};
use crate::error::{CompileError, Result};

/// A decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoder {
    /// Extents.
    pub shape: Shape,
    /// What token ids become.
    pub embedding: Embedded,
    /// The layers, first to last.
    pub layers: Vec<Layer>,
    /// Before the head.
    pub norm: Norm,
    /// The head; without one the embedding's table is the head.
    pub head: Option<Projection>,
    /// What logits are multiplied by.
    pub logits_scale: f32,
    /// Bound that logits are squashed into, after the scale; 0 for none.
    pub logits_softcap: f32,
    /// Other names of tensors.
    pub names: Names,
    /// Ends of the names of tensors that published checkpoints hold and no graph needs.
    pub ignored: &'static [&'static str],
}

/// What token ids become.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedded {
    /// `[vocab, hidden]`.
    pub tokens: Param,
    /// `[positions, hidden]` of learned positions, added.
    pub positions: Option<Param>,
    /// What the tokens' rows are multiplied by.
    pub scale: f32,
    /// The scale is rounded to the plan's type before it is used.
    pub scale_is_rounded: bool,
}

/// One layer: `h + attention(norm(h))`, then `h + mlp(norm(h))`.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Of what the attention reads.
    pub attention_norm: Option<Norm>,
    /// The attention.
    pub attention: Attention,
    /// Of what the attention gives.
    pub attention_post_norm: Option<Norm>,
    /// Of what the feed-forward network reads; in a parallel layer without it the attention's normed rows.
    pub mlp_norm: Option<Norm>,
    /// The feed-forward network.
    pub mlp: Mlp,
    /// Of what the feed-forward network gives.
    pub mlp_post_norm: Option<Norm>,
    /// What attention and network give is multiplied by this before it joins the residual.
    pub residual_scale: f32,
    /// Both read the layer's input: `h + attention(norm(h)) + mlp(norm(h))`.
    pub parallel: bool,
}

/// Attention with its projections. Heads are those of the decoder's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Query.
    pub q: Projection,
    /// Key.
    pub k: Projection,
    /// Value.
    pub v: Projection,
    /// Of what the heads give.
    pub o: Projection,
    /// Norms of query and key, before the rotation.
    pub qk_norm: Option<(Norm, Norm)>,
    /// Rotary embedding.
    pub rope: Option<Rope>,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Positions that a row sees, its own included; 0 for all.
    pub window: usize,
    /// Bound that scores are squashed into; 0 for none.
    pub softcap: f32,
    /// `[heads]`: a score of each head that takes part in its sum and has no value.
    pub sinks: Option<Param>,
}

/// A feed-forward network.
#[derive(Clone, Debug, PartialEq)]
pub enum Mlp {
    /// `down(act(gate(x)) * up(x))`.
    Gated {
        /// Through the activation.
        gate: Projection,
        /// Multiplied with it.
        up: Projection,
        /// Back to the hidden width.
        down: Projection,
        /// Of the gate.
        act: Activation,
    },
    /// `down(act(up(x)))`.
    Plain {
        /// Through the activation.
        up: Projection,
        /// Back to the hidden width.
        down: Projection,
        /// Between the two.
        act: Activation,
    },
    /// Some of many, chosen for each row.
    Experts(Experts),
}

impl Mlp {
    /// Every projection.
    pub fn projections(&self) -> Vec<&Projection> {
        match self {
            Mlp::Gated { gate, up, down, .. } => vec![gate, up, down],
            Mlp::Plain { up, down, .. } => vec![up, down],
            Mlp::Experts(experts) => experts.projections(),
        }
    }
}

impl Layer {
    fn norms(&self) -> impl Iterator<Item = &Norm> {
        let all = [&self.attention_norm, &self.attention_post_norm, &self.mlp_norm, &self.mlp_post_norm];
        let qk = self.attention.qk_norm.iter().flat_map(|(q, k)| [q, k]);
        all.into_iter().flatten().chain(qk)
    }

    fn projections(&self) -> Vec<&Projection> {
        let Attention { q, k, v, o, .. } = &self.attention;
        let mut all = vec![q, k, v, o];
        all.extend(self.mlp.projections());
        all
    }
}

impl Model for Decoder {
    fn vocab_size(&self) -> usize {
        self.shape.vocab
    }

    fn max_position(&self) -> usize {
        self.shape.max_position
    }

    fn cache(&self, kv_dtype: DType) -> Cache {
        Cache {
            name: "kv".into(),
            dtype: kv_dtype,
            layers: self.layers.len(),
            kv_heads: self.shape.kv_heads,
            head_dim: self.shape.head_dim,
        }
    }

    fn tensors(&self) -> Vec<TensorSpec> {
        let mut specs: Vec<&TensorSpec> = Vec::new();
        let mut visit = |spec| specs.push(spec);
        self.embedding.tokens.stored(&mut visit);
        self.embedding.positions.iter().for_each(|p| p.stored(&mut visit));
        for layer in &self.layers {
            layer.projections().into_iter().for_each(|p| p.stored(&mut visit));
            layer.norms().for_each(|n| n.stored(&mut visit));
            layer.attention.sinks.iter().for_each(|s| s.stored(&mut visit));
        }
        self.norm.stored(&mut visit);
        self.head.iter().for_each(|h| h.stored(&mut visit));
        // Parts of a fused tensor ask for it one by one.
        let mut seen = std::collections::HashSet::new();
        specs.into_iter().filter(|s| seen.insert(s.name.as_str())).cloned().collect()
    }

    fn names(&self) -> Names {
        self.names
    }

    fn ignores(&self, tensor: &str) -> bool {
        // Tied exports may repeat the embedding.
        let head = self.head.is_none() && (tensor == "lm_head.weight" || tensor.ends_with(".lm_head.weight"));
        head || self.ignored.iter().any(|end| tensor.ends_with(end))
    }

    fn build(
        &self,
        source: &dyn TensorSource,
        limits: Limits,
        dtype: DType,
        kv_dtype: DType,
    ) -> Result<Graph> {
        let b = Builder::decoder(source, self.names, limits, dtype, self.cache(kv_dtype))?;
        let mut build = Build { b, decoder: self, max_seq_len: limits.max_seq_len as usize, tables: vec![] };
        build.rope_tables()?;
        let (mut h, table) = build.embed()?;
        for (at, layer) in self.layers.iter().enumerate() {
            h = build.layer(h, at, layer)?;
        }
        let logits = build.head(h, table)?;
        let Builder { mut graph, rows, .. } = build.b;
        let logits = graph.push1(GatherRows {}, &[logits, rows], "logits")?;
        graph.set_outputs(&[logits]);
        Ok(graph)
    }
}

/// A graph under way.
struct Build<'a> {
    b: Builder<'a>,
    decoder: &'a Decoder,
    max_seq_len: usize,
    tables: Vec<(&'a Rope, RopeTable, ValueId)>,
}

impl<'a> Build<'a> {
    /// One table for each kind of rotation.
    fn rope_tables(&mut self) -> Result<()> {
        for rope in self.decoder.layers.iter().filter_map(|l| l.attention.rope.as_ref()) {
            if self.tables.iter().any(|(known, ..)| *known == rope) {
                continue;
            }
            let table = rope.table(self.max_seq_len, self.decoder.shape.head_dim)?;
            let name = match self.tables.len() {
                0 => "rope_table".to_owned(),
                n => format!("rope_table.{n}"),
            };
            let value = self.b.made(name, WeightExpr::RopeTable(table.clone()))?;
            self.tables.push((rope, table, value));
        }
        Ok(())
    }

    /// The first residual, and the table that it was looked up in.
    fn embed(&mut self) -> Result<(ValueId, ValueId)> {
        let (b, embedding) = (&mut self.b, &self.decoder.embedding);
        let dtype = b.dtype;
        let table = b.param(&embedding.tokens)?;
        let mut h = b.op(Embedding {}, &[b.tokens, table], "embed")?;
        if embedding.scale != 1.0 {
            let factor =
                if embedding.scale_is_rounded { dtype.round(embedding.scale) } else { embedding.scale };
            h = b.op(Scale { factor, out: dtype }, &[h], "embed_scaled")?;
        }
        if let Some(positions) = &embedding.positions {
            let positions = b.param(positions)?;
            let learned = b.op(Embedding {}, &[b.positions, positions], "embed_positions")?;
            h = b.op(Add { out: dtype }, &[learned, h], "embed_sum")?;
        }
        Ok((h, table))
    }

    fn layer(&mut self, h: ValueId, at: usize, layer: &Layer) -> Result<ValueId> {
        let dtype = self.b.dtype;
        let named = |name: &str| format!("l{at}.{name}");
        let x = self.normed(h, layer.attention_norm.as_ref(), &named("attn_norm"))?;
        let o = self.attention(x, at, &layer.attention)?;
        let o = self.delta(o, layer.attention_post_norm.as_ref(), layer.residual_scale, &named("o"))?;
        let out = if layer.parallel { DType::F32 } else { dtype };
        let h_attn = self.b.op(Add { out }, &[o, h], &named("h_attn"))?;
        let x = match (&layer.mlp_norm, layer.parallel) {
            (None, true) => x,
            (norm, parallel) => {
                self.normed(if parallel { h } else { h_attn }, norm.as_ref(), &named("mlp_norm"))?
            }
        };
        let down = self.mlp(x, at, &layer.mlp)?;
        let down = self.delta(down, layer.mlp_post_norm.as_ref(), layer.residual_scale, &named("down"))?;
        self.b.op(Add { out: dtype }, &[down, h_attn], &named("h"))
    }

    fn normed(&mut self, x: ValueId, norm: Option<&Norm>, name: &str) -> Result<ValueId> {
        norm.map_or(Ok(x), |norm| self.b.norm(x, norm, name))
    }

    /// What joins the residual, unrounded.
    fn delta(&mut self, x: ValueId, norm: Option<&Norm>, scale: f32, name: &str) -> Result<ValueId> {
        let x = self.normed(x, norm, &format!("{name}_norm"))?;
        if scale == 1.0 {
            return Ok(x);
        }
        self.b.op(Scale { factor: scale, out: DType::F32 }, &[x], &format!("{name}_scaled"))
    }

    fn attention(&mut self, x: ValueId, layer: usize, attention: &Attention) -> Result<ValueId> {
        let Shape { heads, kv_heads, head_dim, .. } = self.decoder.shape;
        let table = match &attention.rope {
            Some(rope) => self.tables.iter().find(|(known, ..)| *known == rope).map(|t| (t.1.dim, t.2)),
            None => None,
        };
        let window = if attention.window < self.max_seq_len { attention.window } else { 0 };
        let b = &mut self.b;
        let dtype = b.dtype;
        let named = |name: &str| format!("l{layer}.{name}");
        let mut q = b.linear(x, &attention.q, &named("q"))?;
        let mut k = b.linear(x, &attention.k, &named("k"))?;
        let v = b.linear(x, &attention.v, &named("v"))?;
        if let Some((q_norm, k_norm)) = &attention.qk_norm {
            q = b.norm(q, q_norm, &named("q_norm"))?;
            k = b.norm(k, k_norm, &named("k_norm"))?;
        }
        if let Some((rotary_dim, table)) = table {
            let rope = |heads, out| RopeOp { heads, head_dim, rotary_dim, out };
            q = b.op(rope(heads, dtype), &[q, b.positions, table], &named("q_rope"))?;
            k = b.op(rope(kv_heads, DType::F32), &[k, b.positions, table], &named("k_rope"))?;
        } else if dtype != DType::F32 {
            q = b.op(Cast { out: dtype }, &[q], &named("q_cast"))?;
        }
        b.state = b.op(KvAppend { layer }, &[k, v, b.state], &named("state"))?;
        let op = AttentionOp {
            layer,
            heads,
            kv_heads,
            head_dim,
            scale: attention.scale,
            window,
            softcap: attention.softcap,
            out: dtype,
        };
        let mut operands = vec![q, b.state];
        if let Some(sinks) = &attention.sinks {
            operands.push(b.param(sinks)?);
        }
        let attended = b.op(op, &operands, &named("attn"))?;
        b.linear(attended, &attention.o, &named("o"))
    }

    fn mlp(&mut self, x: ValueId, layer: usize, mlp: &Mlp) -> Result<ValueId> {
        let named = |name: &str| format!("l{layer}.{name}");
        if let Mlp::Experts(experts) = mlp {
            let shared = experts.shared.as_ref().map(|s| self.mlp(x, layer, &s.mlp)).transpose()?;
            return experts.build(&mut self.b, layer, x, shared);
        }
        let b = &mut self.b;
        let dtype = b.dtype;
        match mlp {
            Mlp::Gated { gate, up, down, act } => {
                let gate = b.linear(x, gate, &named("gate"))?;
                let up = b.linear(x, up, &named("up"))?;
                let act = b.op(Activate { act: *act, out: DType::F32 }, &[gate], &named("act"))?;
                let x = b.op(Mul { out: dtype }, &[act, up], &named("mlp"))?;
                b.linear(x, down, &named("down"))
            }
            Mlp::Plain { up, down, act } => {
                let up = b.linear(x, up, &named("up"))?;
                let x = b.op(Activate { act: *act, out: dtype }, &[up], &named("mlp"))?;
                b.linear(x, down, &named("down"))
            }
            Mlp::Experts(_) => Err(CompileError::Bug("experts inside of experts".into())),
        }
    }

    fn head(&mut self, h: ValueId, table: ValueId) -> Result<ValueId> {
        let (b, decoder) = (&mut self.b, self.decoder);
        let normed = b.norm(h, &decoder.norm, "norm")?;
        let mut logits = match &decoder.head {
            Some(head) => b.linear(normed, head, "logits_all")?,
            None => {
                let op = lathe_ir::ops::Linear { act: None, out: DType::F32 };
                b.op(op, &[normed, table], "logits_all")?
            }
        };
        if decoder.logits_scale != 1.0 {
            let op = Scale { factor: decoder.logits_scale, out: DType::F32 };
            logits = b.op(op, &[logits], "logits_scaled")?;
        }
        if decoder.logits_softcap != 0.0 {
            let op = Softcap { cap: decoder.logits_softcap, out: DType::F32 };
            logits = b.op(op, &[logits], "logits_capped")?;
        }
        Ok(logits)
    }
}

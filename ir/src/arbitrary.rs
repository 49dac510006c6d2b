//! Random decoder graphs, weights and batches, to hold a rewrite to the interpreter.
//!
//! The graphs have the patterns that passes look for, in the import form, and on request further users of inner values,
//! so that a rule must give up there.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use lathe_numerics::philox::uniform;
use lathe_numerics::{Activation, DType};
use proptest::prelude::*;

use crate::driver::Precision;
use crate::entity::ValueId;
use crate::error::IrError;
use crate::facts::{Cache, Dim, Facts};
use crate::graph::Graph;
use crate::interp::{Batch, BatchSequence, Interpreter};
use crate::kv::KvState;
use crate::ops::{
    Activate, Add, Attention, Cast, Embedding, GatherRows, KvAppend, LayerNorm, Linear, Mul, QkNorm, RmsNorm,
    Rope, Scale, Softcap,
};
use crate::rope_table::RopeTable;
use crate::tensor::{Data, Tensor};
use crate::weight::WeightExpr;

/// Largest number of tokens in a step of the random graphs.
const MAX_TOKENS: usize = 64;
/// Largest number of sequences.
const MAX_SEQUENCES: usize = 4;
/// Rows of the rotary table.
const MAX_POSITIONS: usize = 512;

/// What families of decoders differ in.
#[derive(Clone, Debug, PartialEq)]
pub struct Style {
    /// Layer norms instead of RMS norms, and whether they have biases.
    pub layer_norm: Option<bool>,
    /// Norm weights are stored as the difference from 1, and are f32.
    pub norm_plus_one: bool,
    /// Norms of query and key.
    pub qk_norm: QkNorm,
    /// Positions are embedded, nothing rotates.
    pub learned_positions: bool,
    /// Norms behind attention and MLP as well.
    pub post_norms: bool,
    /// Attention and MLP read the same residual.
    pub parallel: bool,
    /// A gate in the MLP.
    pub gated: bool,
    /// The MLP's activation.
    pub act: Activation,
    /// What embeddings are multiplied by.
    pub embedding_scale: Option<f32>,
    /// Soft cap of the logits.
    pub logit_cap: Option<f32>,
}

impl Default for Style {
    /// Llama's.
    fn default() -> Self {
        Style {
            layer_norm: None,
            norm_plus_one: false,
            qk_norm: QkNorm::None,
            learned_positions: false,
            post_norms: false,
            parallel: false,
            gated: true,
            act: Activation::Silu,
            embedding_scale: None,
            logit_cap: None,
        }
    }
}

/// Random styles; most differ from Llama's in several ways.
pub fn styles() -> impl Strategy<Value = Style> {
    let norms = (
        prop_oneof![3 => Just(None), 1 => Just(Some(false)), 1 => Just(Some(true))],
        any::<bool>(),
        prop_oneof![Just(QkNorm::None), Just(QkNorm::Head), Just(QkNorm::Row)],
        any::<bool>(),
    );
    let act = proptest::sample::select(&Activation::ALL);
    let layer = (proptest::bool::weighted(0.3), proptest::bool::weighted(0.3), any::<bool>(), act);
    let ends = (proptest::option::of(0.5..4.0_f32), proptest::option::of(2.0..30.0_f32));
    let any_style = (norms, layer, ends).prop_map(|(norms, layer, ends)| {
        let (layer_norm, norm_plus_one, qk_norm, post_norms) = norms;
        let (learned_positions, parallel, gated, act) = layer;
        let (embedding_scale, logit_cap) = ends;
        Style {
            layer_norm,
            norm_plus_one,
            qk_norm,
            learned_positions,
            post_norms,
            parallel,
            gated,
            act,
            embedding_scale,
            logit_cap,
        }
    });
    prop_oneof![1 => Just(Style::default()), 2 => any_style]
}

/// A random decoder.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// Number of layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads per KV head.
    pub group: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Elements per head; even.
    pub head_dim: usize,
    /// Rotated elements per head; even.
    pub rotary_dim: usize,
    /// Width of the MLP.
    pub ffn: usize,
    /// Number of tokens.
    pub vocab: usize,
    /// Type of weights and activations.
    pub dtype: DType,
    /// Type of the cache.
    pub cache: DType,
    /// Biases on q, k and v.
    pub attention_bias: bool,
    /// Biases on gate, up and down.
    pub mlp_bias: bool,
    /// Logits from the embedding table.
    pub tied: bool,
    /// Norms, positions, activations and what stands at the ends.
    pub style: Style,
    /// Inner values (by number of the node, modulo) that the graph also returns.
    pub returned: Vec<u16>,
    /// Inner values (likewise) that a further node uses, whose result the graph returns.
    pub reused: Vec<u16>,
    /// Seed of weights and batches.
    pub seed: u64,
}

fn float() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::F32), Just(DType::BF16), Just(DType::F16)]
}

fn even(range: RangeInclusive<usize>) -> impl Strategy<Value = usize> {
    range.prop_map(|n| n * 2)
}

/// Random decoders of at most two layers.
pub fn decoders() -> impl Strategy<Value = Decoder> {
    let sizes =
        (1..=2_usize, 1..=40_usize, 1..=3_usize, 1..=2_usize, even(1..=4), 1..=40_usize, 2..=40_usize);
    let flags = (float(), float(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let users = prop_oneof![
        2 => Just(Vec::new()).boxed(),
        1 => proptest::collection::vec(any::<u16>(), 1..4).boxed(),
    ];
    let random = (sizes, flags, styles(), users.clone(), users, any::<u64>());
    random.prop_map(|(sizes, flags, style, returned, reused, seed)| {
        let (layers, hidden, group, kv_heads, head_dim, ffn, vocab) = sizes;
        let (dtype, cache, attention_bias, mlp_bias, tied, partial) = flags;
        let rotary_dim = if partial { 2 } else { head_dim };
        Decoder {
            layers,
            hidden,
            group,
            kv_heads,
            head_dim,
            rotary_dim,
            ffn,
            vocab,
            dtype,
            cache,
            attention_bias,
            mlp_bias,
            tied,
            style,
            returned,
            reused,
            seed,
        }
    })
}

impl Decoder {
    /// A small bf16 decoder without biases or further users.
    pub fn plain(seed: u64) -> Self {
        Decoder {
            layers: 2,
            hidden: 24,
            group: 2,
            kv_heads: 2,
            head_dim: 8,
            rotary_dim: 8,
            ffn: 20,
            vocab: 30,
            dtype: DType::BF16,
            cache: DType::BF16,
            attention_bias: false,
            mlp_bias: false,
            tied: false,
            style: Style::default(),
            returned: Vec::new(),
            reused: Vec::new(),
            seed,
        }
    }

    /// The graph, in the form that importers emit.
    ///
    /// # Errors
    /// Only for sizes that make no decoder.
    pub fn graph(&self) -> Result<Graph, IrError> {
        let mut b = Builder { g: Graph::new("decoder"), d: self };
        let t = b.g.symbol("t", 1, MAX_TOKENS)?;
        b.g.symbol("s", 1, MAX_SEQUENCES)?;
        let r = b.g.symbol("r", 0, MAX_TOKENS)?;
        let (layers, kv_heads, head_dim) = (self.layers, self.kv_heads, self.head_dim);
        b.g.set_cache(Cache { name: "kv".into(), dtype: self.cache, layers, kv_heads, head_dim })?;
        let ints = |symbol| Facts::tensor(DType::I32, [Dim::symbol(symbol)]);
        let tokens = b.g.input("tokens", ints(t))?;
        let positions = b.g.input("positions", ints(t))?;
        let rows = b.g.input("rows", ints(r))?;
        let mut state = b.g.input("state", Facts::State)?;

        let embed = b.matrix("embed", self.vocab, self.hidden)?;
        let rope = RopeTable::plain(MAX_POSITIONS, self.rotary_dim, 10_000.0);
        let rope = b.g.weight("rope", rope.infer().map_err(IrError::Bug)?, WeightExpr::RopeTable(rope))?;
        let mut h = b.g.push1(Embedding {}, &[tokens, embed], "h")?;
        let style = &self.style;
        if let Some(factor) = style.embedding_scale {
            h = b.g.push1(Scale { factor, out: self.dtype }, &[h], "scaled")?;
        }
        if style.learned_positions {
            let learned = b.matrix("learned", MAX_POSITIONS, self.hidden)?;
            let learned = b.g.push1(Embedding {}, &[positions, learned], "learned")?;
            h = b.g.push1(Add { out: self.dtype }, &[h, learned], "placed")?;
        }
        for layer in 0..self.layers {
            (h, state) = b.layer(layer, h, state, positions, rope)?;
        }
        let head = if self.tied { embed } else { b.matrix("head", self.vocab, self.hidden)? };
        let normed = b.norm("norm", h)?;
        let mut logits = b.g.push1(Linear::default(), &[normed, head], "logits")?;
        if let Some(cap) = style.logit_cap {
            logits = b.g.push1(Softcap { cap, out: DType::F32 }, &[logits], "capped")?;
        }
        let out = b.g.push1(GatherRows {}, &[logits, rows], "out")?;
        b.share(out)?;
        Ok(b.g)
    }

    /// Checkpoint tensors for the graph.
    pub fn weights(&self, g: &Graph) -> BTreeMap<String, Tensor> {
        random_weights(g, self.seed)
    }

    /// A few steps of up to four ragged sequences that continue one another.
    pub fn steps(&self) -> Vec<Batch> {
        let mut draw = 0_u32;
        let mut random = |n: usize| {
            draw += 1;
            (uniform(self.seed, 1, draw) * n as f32) as usize
        };
        let n_sequences = 1 + random(MAX_SEQUENCES);
        let mut lengths = vec![0; n_sequences];
        let mut steps = Vec::new();
        for _ in 0..3 {
            let mut sequences = Vec::new();
            for (slot, length) in lengths.iter_mut().enumerate() {
                let n = random(MAX_TOKENS / MAX_SEQUENCES / 2);
                if n == 0 {
                    continue;
                }
                let tokens = (0..n).map(|_| random(self.vocab) as i32).collect();
                let rows = (0..n).filter(|_| random(2) == 0).collect();
                sequences.push(BatchSequence { slot, start: *length, tokens, rows });
                *length += n;
            }
            if !sequences.is_empty() {
                steps.push(Batch::new(sequences));
            }
        }
        steps
    }
}

struct Builder<'a> {
    g: Graph,
    d: &'a Decoder,
}

type Built = Result<ValueId, IrError>;

impl Builder<'_> {
    fn matrix(&mut self, name: &str, n: usize, k: usize) -> Built {
        self.g.tensor(name, Facts::fixed(self.d.dtype, &[n, k]))
    }

    fn linear(&mut self, name: &str, x: ValueId, n: usize, k: usize, bias: bool) -> Built {
        let mut inputs = vec![x, self.matrix(&format!("{name}.weight"), n, k)?];
        if bias {
            inputs.push(self.g.tensor(&format!("{name}.bias"), Facts::fixed(self.d.dtype, &[n]))?);
        }
        self.g.push1(Linear::default(), &inputs, name)
    }

    /// Weights of a norm over `n` columns.
    fn norm_weight(&mut self, name: &str, n: usize) -> Built {
        let w = self.g.tensor(&format!("{name}.weight"), Facts::fixed(self.d.dtype, &[n]))?;
        match self.g.as_weight(w) {
            Some(of) if self.d.style.norm_plus_one => {
                let plus = WeightExpr::Plus { of, addend: 1.0 };
                self.g.weight(&format!("{name}.weight.plus"), Facts::fixed(DType::F32, &[n]), plus)
            }
            _ => Ok(w),
        }
    }

    fn norm(&mut self, name: &str, x: ValueId) -> Built {
        let w = self.norm_weight(name, self.d.hidden)?;
        let Some(bias) = self.d.style.layer_norm else {
            return self.g.push1(RmsNorm { eps: 1e-5, groups: 1 }, &[x, w], name);
        };
        let mut inputs = vec![x, w];
        if bias {
            inputs
                .push(self.g.tensor(&format!("{name}.bias"), Facts::fixed(self.d.dtype, &[self.d.hidden]))?);
        }
        self.g.push1(LayerNorm { eps: 1e-5, groups: 1 }, &inputs, name)
    }

    /// The norm of a query or key of `heads` heads.
    fn qk_norm(&mut self, name: &str, x: ValueId, heads: usize) -> Built {
        let (len, groups) = match self.d.style.qk_norm {
            QkNorm::None => return Ok(x),
            QkNorm::Head => (self.d.head_dim, heads),
            QkNorm::Row => (self.d.head_dim * heads, 1),
        };
        let w = self.norm_weight(name, len)?;
        self.g.push1(RmsNorm { eps: 1e-6, groups }, &[x, w], name)
    }

    /// A part's result as it is added: normalised in the model's type if there is a norm behind it.
    fn behind(&mut self, name: &str, x: ValueId) -> Built {
        if !self.d.style.post_norms {
            return Ok(x);
        }
        let x = self.g.push1(Cast { out: self.d.dtype }, &[x], &format!("{name}_rounded"))?;
        self.norm(name, x)
    }

    fn mlp(&mut self, layer: usize, x: ValueId) -> Built {
        let d = self.d;
        let name = |n: &str| format!("l{layer}.{n}");
        let gate = self.linear(&name("gate"), x, d.ffn, d.hidden, d.mlp_bias)?;
        let m = if d.style.gated {
            let up = self.linear(&name("up"), x, d.ffn, d.hidden, d.mlp_bias)?;
            let a = self.g.push1(Activate { act: d.style.act, out: DType::F32 }, &[gate], &name("act"))?;
            self.g.push1(Mul { out: d.dtype }, &[a, up], &name("mul"))?
        } else {
            self.g.push1(Activate { act: d.style.act, out: d.dtype }, &[gate], &name("act"))?
        };
        let down = self.linear(&name("down"), m, d.hidden, d.ffn, d.mlp_bias)?;
        self.behind(&name("norm4"), down)
    }

    fn layer(
        &mut self,
        layer: usize,
        h: ValueId,
        state: ValueId,
        positions: ValueId,
        rope: ValueId,
    ) -> Result<(ValueId, ValueId), IrError> {
        let d = self.d;
        let (hidden, kv_heads, head_dim, rotary_dim) = (d.hidden, d.kv_heads, d.head_dim, d.rotary_dim);
        let (heads, width) = (kv_heads * d.group, kv_heads * head_dim);
        let name = |n: &str| format!("l{layer}.{n}");
        let x = self.norm(&name("norm1"), h)?;
        let q = self.linear(&name("q"), x, heads * head_dim, hidden, d.attention_bias)?;
        let k = self.linear(&name("k"), x, width, hidden, d.attention_bias)?;
        let v = self.linear(&name("v"), x, width, hidden, d.attention_bias)?;
        let q = self.qk_norm(&name("q_norm"), q, heads)?;
        let k = self.qk_norm(&name("k_norm"), k, kv_heads)?;
        let (q, k) = if d.style.learned_positions {
            (self.g.push1(Cast { out: d.dtype }, &[q], &name("q_rounded"))?, k)
        } else {
            let turn = |heads, out| Rope { heads, head_dim, rotary_dim, out };
            let q = self.g.push1(turn(heads, d.dtype), &[q, positions, rope], &name("q_rope"))?;
            (q, self.g.push1(turn(kv_heads, DType::F32), &[k, positions, rope], &name("k_rope"))?)
        };
        let state = self.g.push1(KvAppend { layer }, &[k, v, state], &name("state"))?;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let attention =
            Attention { layer, heads, kv_heads, head_dim, scale, out: d.dtype, ..Attention::default() };
        let a = self.g.push1(attention, &[q, state], &name("attention"))?;
        let o = self.linear(&name("o"), a, hidden, heads * head_dim, false)?;
        let o = self.behind(&name("norm3"), o)?;
        if d.style.parallel {
            let x = self.norm(&name("norm2"), h)?;
            let down = self.mlp(layer, x)?;
            let both = self.g.push1(Add { out: DType::F32 }, &[o, down], &name("both"))?;
            return Ok((self.g.push1(Add { out: d.dtype }, &[both, h], &name("h2"))?, state));
        }
        let h = self.g.push1(Add { out: d.dtype }, &[o, h], &name("h1"))?;
        let x = self.norm(&name("norm2"), h)?;
        let down = self.mlp(layer, x)?;
        Ok((self.g.push1(Add { out: d.dtype }, &[down, h], &name("h2"))?, state))
    }

    /// Adds the further users and sets the outputs.
    fn share(&mut self, out: ValueId) -> Result<(), IrError> {
        let is_tensor = |g: &Graph, v: &ValueId| !g.facts(*v).is_state();
        let inner: Vec<ValueId> =
            self.g.nodes().map(|(_, n)| n.outputs[0]).filter(|v| is_tensor(&self.g, v)).collect();
        let mut outputs = vec![out];
        outputs.extend(self.d.returned.iter().map(|&i| inner[usize::from(i) % inner.len()]));
        for &i in &self.d.reused {
            let v = inner[usize::from(i) % inner.len()];
            let name = self.g.fresh_name("reuse");
            outputs.push(self.g.push1(Add::default(), &[v, v], &name)?);
        }
        self.g.set_outputs(&outputs);
        Ok(())
    }
}

/// A random tensor for every checkpoint tensor of the graph, at a scale that keeps activations near 1.
pub fn random_weights(g: &Graph, seed: u64) -> BTreeMap<String, Tensor> {
    let mut tensors = BTreeMap::new();
    for (id, weight) in g.weights() {
        let WeightExpr::Tensor(source) = &weight.expr else { continue };
        let facts = g.weight_facts(id);
        let (Some(shape), Some(dtype)) = (facts.fixed_shape(), facts.dtype()) else { continue };
        let choice = 2 + tensors.len() as u32;
        let n: usize = shape.iter().product();
        let norm = shape.len() == 1 && !source.ends_with("bias");
        let spread = if shape.len() == 2 { 2.0 / (shape[1] as f32).sqrt() } else { 1.0 };
        let draw =
            |i: usize| (uniform(seed, choice, i as u32) - 0.5) * 2.0 * spread + f32::from(u8::from(norm));
        tensors.insert(source.clone(), Tensor::float(dtype, shape, (0..n).map(draw).collect()));
    }
    tensors
}

/// Runs both graphs over the same steps and compares everything they return, and the cache: by bits for `Exact`.
///
/// # Errors
/// The first difference, or an interpreter error, as text.
pub fn compare(
    before: &Graph,
    after: &Graph,
    weights: &BTreeMap<String, Tensor>,
    steps: &[Batch],
    precision: Precision,
) -> Result<(), String> {
    let text = |e: IrError| e.to_string();
    let runs = [
        Interpreter::new(before, weights).map_err(|e| format!("before: {e}"))?,
        Interpreter::new(after, weights).map_err(|e| format!("after: {e}"))?,
    ];
    let mut caches = [KvState::new(before.cache()), KvState::new(after.cache())];
    for (number, step) in steps.iter().enumerate() {
        let a = runs[0].run(step, &mut caches[0]).map_err(text)?;
        let b = runs[1].run(step, &mut caches[1]).map_err(text)?;
        if a.tensors.len() != b.tensors.len() {
            return Err(format!("{} results before, {} after", a.tensors.len(), b.tensors.len()));
        }
        for ((name, x), (_, y)) in a.tensors.iter().zip(&b.tensors) {
            agree(x, y, precision).map_err(|why| format!("step {number}, %{name}: {why}"))?;
        }
    }
    match precision {
        Precision::Exact if caches[0] != caches[1] => Err("the caches differ".into()),
        _ => Ok(()),
    }
}

fn agree(a: &Tensor, b: &Tensor, precision: Precision) -> Result<(), String> {
    if (a.dtype, &a.shape) != (b.dtype, &b.shape) {
        return Err(format!("{}{:?} before, {}{:?} after", a.dtype, a.shape, b.dtype, b.shape));
    }
    let (Data::Float(x), Data::Float(y), Precision::Numeric { bound }) = (&a.data, &b.data, precision) else {
        return if a.same_bits(b) { Ok(()) } else { Err("bits differ".into()) };
    };
    let largest = x.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let worst = x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0_f32, f32::max);
    if worst <= bound * largest {
        Ok(())
    } else {
        Err(format!("differ by {worst}, largest magnitude {largest}"))
    }
}

//! `attention(q, state, [@sinks]) {head_dim, heads, kv_heads, layer, out, scale, softcap, window}`: causal attention of
//! each row over the positions of its own sequence up to and including its own, of a window only the last `window`
//! ones; head `h` reads KV head `h / (heads / kv_heads)`.
//!
//! Score: `(q . k) * scale`, the dot product in f32 in ascending element order; with a soft cap `softcap(score, cap)`
//! of that. Positions are cut into leaves of 128, at multiples of 128 whatever the window; positions before the window
//! take no part, and leaves that lie before it do not exist. In a leaf `p = exp(score - max)` with the leaf's own maximum,
//! `sum(p)` by the contract's 16 lanes (position modulo 16) and tree, and `sum(p * v)` from zero in ascending position;
//! leaves are folded left by `fold_leaf`. A sink is one more leaf, folded last: maximum `sinks[h]`, sum 1, no value
//! (arXiv 2309.17453, in the form of gpt-oss). One division by the sum at the end, one rounding, to `out`. Which sequence
//! and position a row has is the batch's knowledge, an implicit operand.

use lathe_numerics::activation::softcap;
use lathe_numerics::contract::{ATTENTION_LEAF, LeafState, TREE_LANES, fold_leaf, tree16};
use lathe_numerics::{DType, exp};

use crate::facts::{Dim, Facts};
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Operation, dim_is, float_out};
use crate::parallel;
use crate::tensor::Value;

/// `q: float[t, heads * head_dim]`, the state after this layer's append, and `sinks: float[heads]` if there are any, give
/// `out[t, heads * head_dim]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Cache layer.
    pub layer: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Positions that a row sees, its own included; 0 for all.
    pub window: usize,
    /// Bound that scores are squashed into; 0 for none.
    pub softcap: f32,
    /// Result type; f32 unless stated.
    pub out: DType,
}

impl Default for Attention {
    fn default() -> Self {
        Self {
            layer: 0,
            heads: 0,
            kv_heads: 0,
            head_dim: 0,
            scale: 1.0,
            window: 0,
            softcap: 0.0,
            out: DType::F32,
        }
    }
}

/// Checks that the heads of an op are those of the cache and divide.
pub(super) fn check_heads(
    cache: &crate::facts::Cache,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
) -> Result<(), String> {
    if (cache.kv_heads, cache.head_dim) != (kv_heads, head_dim) {
        let (h, d) = (cache.kv_heads, cache.head_dim);
        return Err(format!("{kv_heads} KV heads of {head_dim}, the cache has {h} of {d}"));
    }
    if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(format!("{heads} heads are not a multiple of {kv_heads} KV heads"));
    }
    Ok(())
}

impl Attention {
    /// One head of one row. `keys` and `values` start at the head's first element of position 0 and have `stride`
    /// elements per position; both end with the row's own position.
    fn attend(&self, q: &[f32], keys: &[f32], values: &[f32], stride: usize, sink: Option<f32>) -> Vec<f32> {
        let d = q.len();
        let visible = keys.len().div_ceil(stride);
        let first = if self.window == 0 { 0 } else { visible.saturating_sub(self.window) };
        let mut state: Option<(LeafState, Vec<f32>)> = None;
        let leaf_elements = ATTENTION_LEAF * stride;
        for (leaf, (ks, vs)) in keys.chunks(leaf_elements).zip(values.chunks(leaf_elements)).enumerate() {
            let skip = first.saturating_sub(leaf * ATTENTION_LEAF);
            if skip >= ATTENTION_LEAF {
                continue;
            }
            let dot = |k: &[f32]| q.iter().zip(k).fold(0.0_f32, |sum, (a, b)| sum + a * b);
            let scores: Vec<f32> =
                ks.chunks(stride).skip(skip).map(|k| self.capped(dot(&k[..d]) * self.scale)).collect();
            let max = scores.iter().fold(f32::NEG_INFINITY, |m, &s| if s > m { s } else { m });
            let mut lanes = [0.0; TREE_LANES];
            let mut acc = vec![0.0; d];
            for (i, (score, v)) in scores.iter().zip(vs.chunks(stride).skip(skip)).enumerate() {
                let p = exp::exp(score - max);
                lanes[(skip + i) % TREE_LANES] += p;
                acc.iter_mut().zip(v).for_each(|(a, v)| *a += p * v);
            }
            state = Some(fold(state, LeafState { max, sum: tree16(&lanes) }, acc));
        }
        if let Some(max) = sink {
            state = Some(fold(state, LeafState { max, sum: 1.0 }, vec![0.0; d]));
        }
        let Some((leaf, mut acc)) = state else { return vec![0.0; d] };
        acc.iter_mut().for_each(|a| *a /= leaf.sum);
        acc
    }

    fn capped(&self, score: f32) -> f32 {
        if self.softcap == 0.0 { score } else { softcap(score, self.softcap) }
    }
}

fn fold(state: Option<(LeafState, Vec<f32>)>, leaf: LeafState, acc: Vec<f32>) -> (LeafState, Vec<f32>) {
    let Some((before, mut total)) = state else { return (leaf, acc) };
    let (folded, fa, fb) = fold_leaf(before, leaf);
    total.iter_mut().zip(&acc).for_each(|(a, b)| *a = *a * fa + b * fb);
    (folded, total)
}

impl Operation for Attention {
    const NAME: &'static str = "attention";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("layer", &mut self.layer);
        a.required("heads", &mut self.heads);
        a.required("kv_heads", &mut self.kv_heads);
        a.required("head_dim", &mut self.head_dim);
        a.required("scale", &mut self.scale);
        a.optional("softcap", &mut self.softcap, 0.0);
        a.optional("window", &mut self.window, 0);
        a.out(&mut self.out);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        args.expect(2, 3)?;
        if args.len() == 3 {
            let (_, sinks) = args.float(2, "sinks", 1)?;
            dim_is(&sinks[0], "length of sinks", self.heads)?;
        }
        if self.softcap < 0.0 {
            return Err("softcap is negative".into());
        }
        let (_, q) = args.float(0, "q", 2)?;
        check_heads(args.state(1, self.layer)?, self.heads, self.kv_heads, self.head_dim)?;
        let width = self.heads * self.head_dim;
        dim_is(&q[1], "columns of q", width)?;
        float_out(self.out)?;
        Ok(vec![Facts::tensor(self.out, [q[0].clone(), Dim::from(width)])])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        let (d, stride) = (self.head_dim, self.kv_heads * self.head_dim);
        let q = inputs[0].floats()?;
        let sinks = inputs.get(2).map(|s| s.floats()).transpose()?;
        let width = self.heads * d;
        let seen: Vec<_> =
            (0..q.len() / width).map(|i| cx.visible(self.layer, i)).collect::<Result<_, _>>()?;
        let mut out = vec![0.0; q.len()];
        let rows = out.chunks_exact_mut(width).zip(q.chunks_exact(width)).zip(seen);
        parallel::for_each(cx.threads, rows, |((out, row), (keys, values))| {
            for (h, (out, head)) in out.chunks_exact_mut(d).zip(row.chunks_exact(d)).enumerate() {
                let first = h / (self.heads / self.kv_heads) * d;
                let sink = sinks.map(|s| s[h]);
                out.copy_from_slice(&self.attend(head, &keys[first..], &values[first..], stride, sink));
            }
        });
        Ok(vec![cx.finish(0, out)])
    }

    fn is_weight(&self, input: usize) -> bool {
        input == 2
    }

    fn cache_layer(&self) -> Option<usize> {
        Some(self.layer)
    }
}

#[cfg(test)]
mod tests {
    use lathe_numerics::philox::uniform;

    use super::*;

    /// Softmax in f64 without leaves, over positions that are `stride` elements apart.
    fn naive(
        op: &Attention,
        q: &[f32],
        keys: &[f32],
        values: &[f32],
        stride: usize,
        sink: Option<f32>,
    ) -> Vec<f64> {
        let d = q.len();
        let n = keys.len().div_ceil(stride);
        let skip = if op.window == 0 { 0 } else { n.saturating_sub(op.window) };
        let score = |k: &[f32]| {
            let dot: f64 = q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let (score, cap) = (dot * f64::from(op.scale), f64::from(op.softcap));
            if cap == 0.0 { score } else { cap * (score / cap).tanh() }
        };
        let scores: Vec<f64> = keys.chunks(stride).skip(skip).map(|k| score(&k[..d])).collect();
        let max = scores.iter().copied().fold(sink.map_or(f64::NEG_INFINITY, f64::from), f64::max);
        let p: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let sum: f64 = p.iter().sum::<f64>() + sink.map_or(0.0, |s| (f64::from(s) - max).exp());
        let values = || values.chunks(stride).skip(skip);
        (0..d).map(|j| p.iter().zip(values()).map(|(p, v)| p * f64::from(v[j])).sum::<f64>() / sum).collect()
    }

    #[test]
    fn agrees_with_a_plain_softmax() {
        let (d, stride) = (8, 24);
        let random = |n: usize, seed: u64| -> Vec<f32> {
            (0..n).map(|i| uniform(seed, 0, i as u32) * 4.0 - 2.0).collect()
        };
        let plain = Attention { scale: 0.7, ..Attention::default() };
        let ops = [
            (plain.clone(), None),
            (Attention { window: 1, ..plain.clone() }, None),
            (Attention { window: 129, ..plain.clone() }, Some(0.5)),
            (Attention { softcap: 2.0, ..plain.clone() }, None),
            (Attention { window: 40, softcap: 1.5, ..plain }, Some(-3.0)),
        ];
        for (op, sink) in ops {
            for n in [1, 2, 127, 128, 129, 300, 512] {
                let (keys, values) = (random(n * stride, 1), random(n * stride, 2));
                for first in [0, 8, 16] {
                    let q = random(d, 3 + first as u64);
                    let (keys, values) = (&keys[first..], &values[first..]);
                    let got = op.attend(&q, keys, values, stride, sink);
                    for (got, want) in got.iter().zip(naive(&op, &q, keys, values, stride, sink)) {
                        assert!((f64::from(*got) - want).abs() < 2e-6, "{op:?} {n}: {got}, want {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn one_position_gives_its_value() {
        let op = Attention::default();
        assert_eq!(op.attend(&[1.0, 2.0], &[3.0, 4.0], &[5.0, 6.0], 2, None), [5.0, 6.0]);
    }
}

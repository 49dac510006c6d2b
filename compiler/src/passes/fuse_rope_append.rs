//! Fuses norms and rotations of query and key and the append to the KV cache into one `rope_append` on the merged projection.
//! Needs: `attention(rope(rms_norm(q)), kv_append(rope(rms_norm(k)), v))`, norms or rotations of both or of none, where q, k
//! and v are adjacent column slices of one f32 value, in this order. Keeps: facts, roundings, bits. Gives up: the
//! rotations differ in positions, table or head size, the norms in eps or in what they are over, the key is rounded
//! before the cache rounds it, or a value between has a second user.

use lathe_ir::driver::{Cx, Precision, Rule};
use lathe_ir::ops::{Op, RopeAppend, SliceCols};
use lathe_ir::patch::Patch;
use lathe_ir::{Graph, IrError, NodeId, ValueId};
use lathe_numerics::DType;

use super::attention_inputs::{AttentionInputs, qk_norm};

/// Runs after `merge-qkv`, which makes its pattern.
pub const FUSE_ROPE_APPEND: Rule =
    Rule { name: "fuse-rope-append", precision: Precision::Exact, root: "attention", apply };

fn apply<'g>(g: &'g Graph, node: NodeId, cx: &Cx) -> Result<Option<Patch<'g>>, IrError> {
    let Some(found) = matched(g, node, cx) else { return Ok(None) };
    let mut patch = Patch::new(g);
    let fused = patch.add_all(found.op, &found.inputs)?;
    patch.replace(found.q, fused[0])?;
    patch.replace(found.state, fused[1])?;
    Ok(Some(patch))
}

struct Match {
    op: RopeAppend,
    inputs: Vec<ValueId>,
    q: ValueId,
    state: ValueId,
}

fn matched(g: &Graph, node: NodeId, cx: &Cx) -> Option<Match> {
    let Op::Attention(attention) = g.op(node) else { return None };
    let (heads, kv_heads, head_dim) = (attention.heads, attention.kv_heads, attention.head_dim);
    let found = AttentionInputs::of(g, node)?;
    let Op::KvAppend(append) = g.op(found.append) else { return None };
    let (q, k) = (&found.q, &found.k);
    cx.uses.only_user(k.value)?;
    for value in q.between(g).chain(k.between(g)) {
        cx.uses.only_user(value)?;
    }
    if g.facts(k.value).dtype() != Some(DType::F32) || g.facts(q.source).dtype() != Some(DType::F32) {
        return None;
    }
    let (positions, table) = match (q.rope, k.rope) {
        (Some((q_rope, q_op)), Some((k_rope, k_op))) => {
            let [q_in, k_in] = [q_rope, k_rope].map(|n| &g.node(n).inputs);
            let same = q_in[1..] == k_in[1..] && (q_op.head_dim, k_op.head_dim) == (head_dim, head_dim);
            if !same || (q_op.heads, k_op.heads) != (heads, kv_heads) {
                return None;
            }
            (q_in[1], Some(q_in[2]))
        }
        (None, None) => (g.inputs().iter().copied().find(|&v| g.value_name(v) == "positions")?, None),
        _ => return None,
    };
    let (qkv, q_cols) = slice(g, q.source)?;
    let (k_of, k_cols) = slice(g, k.source)?;
    let (v_of, v_cols) = slice(g, found.v)?;
    let (q_width, kv_width) = (heads * head_dim, kv_heads * head_dim);
    let adjacent = (q_cols.start, q_cols.len) == (0, q_width)
        && (k_cols.start, k_cols.len) == (q_width, kv_width)
        && (v_cols.start, v_cols.len) == (q_width + kv_width, kv_width)
        && g.facts(qkv).shape().get(1)?.as_const() == Some(q_width + 2 * kv_width);
    if !adjacent || k_of != qkv || v_of != qkv {
        return None;
    }
    let (qk_norm, eps) = qk_norm(g, &found, (heads, kv_heads, head_dim))?;
    let out = g.facts(q.value).dtype()?;
    let op = RopeAppend { layer: append.layer, heads, kv_heads, head_dim, qk_norm, eps, out };
    let mut inputs = vec![qkv, positions, g.input_of(found.append, 2)];
    inputs.extend(table);
    inputs.extend([q.norm_weight(g), k.norm_weight(g)].into_iter().flatten());
    Some(Match { op, inputs, q: q.value, state: found.state })
}

fn slice(g: &Graph, value: ValueId) -> Option<(ValueId, &SliceCols)> {
    let node = g.producer(value)?;
    match g.op(node) {
        Op::SliceCols(op) => Some((g.input_of(node, 0), op)),
        _ => None,
    }
}

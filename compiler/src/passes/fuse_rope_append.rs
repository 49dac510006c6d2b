//! Fuses the rotations of query and key and the append to the KV cache into one `rope_append` on the merged projection.
//! Needs: `attention(rope(q), kv_append(rope(k), v))` where q, k and v are adjacent column slices of one value, in this
//! order. Keeps: facts, roundings, bits. Gives up: the rotations differ in positions, table or head size, the rotated
//! key is rounded before the cache rounds it, or has a second user.

use lathe_ir::driver::{Cx, Precision, Rule};
use lathe_ir::ops::{Op, Rope, RopeAppend, SliceCols};
use lathe_ir::patch::Patch;
use lathe_ir::{Graph, IrError, NodeId, ValueId};
use lathe_numerics::DType;

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
    inputs: [ValueId; 4],
    q: ValueId,
    state: ValueId,
}

fn matched(g: &Graph, node: NodeId, cx: &Cx) -> Option<Match> {
    let Op::Attention(attention) = g.op(node) else { return None };
    let (heads, kv_heads, head_dim) = (attention.heads, attention.kv_heads, attention.head_dim);
    let (q, state) = (g.input_of(node, 0), g.input_of(node, 1));
    let append = g.producer(state)?;
    let Op::KvAppend(op) = g.op(append) else { return None };
    let (k, v) = (g.input_of(append, 0), g.input_of(append, 1));
    cx.uses.only_user(k)?;

    let (q_rope, q_op) = rope(g, q)?;
    let (k_rope, k_op) = rope(g, k)?;
    let [q_in, k_in] = [q_rope, k_rope].map(|n| &g.node(n).inputs);
    let same_rotation = q_in[1..] == k_in[1..] && (q_op.head_dim, k_op.head_dim) == (head_dim, head_dim);
    if !same_rotation || (q_op.heads, k_op.heads) != (heads, kv_heads) || k_op.out != DType::F32 {
        return None;
    }
    let (qkv, q_cols) = slice(g, q_in[0])?;
    let (k_of, k_cols) = slice(g, k_in[0])?;
    let (v_of, v_cols) = slice(g, v)?;
    let (q_width, kv_width) = (heads * head_dim, kv_heads * head_dim);
    let adjacent = (q_cols.start, q_cols.len) == (0, q_width)
        && (k_cols.start, k_cols.len) == (q_width, kv_width)
        && (v_cols.start, v_cols.len) == (q_width + kv_width, kv_width)
        && g.facts(qkv).shape().get(1)?.as_const() == Some(q_width + 2 * kv_width);
    if !adjacent || k_of != qkv || v_of != qkv {
        return None;
    }
    let op = RopeAppend { layer: op.layer, heads, kv_heads, head_dim, out: q_op.out };
    Some(Match { op, inputs: [qkv, q_in[1], q_in[2], g.input_of(append, 2)], q, state })
}

fn rope(g: &Graph, value: ValueId) -> Option<(NodeId, &Rope)> {
    let node = g.producer(value)?;
    match g.op(node) {
        Op::Rope(op) => Some((node, op)),
        _ => None,
    }
}

fn slice(g: &Graph, value: ValueId) -> Option<(ValueId, &SliceCols)> {
    let node = g.producer(value)?;
    match g.op(node) {
        Op::SliceCols(op) => Some((g.input_of(node, 0), op)),
        _ => None,
    }
}

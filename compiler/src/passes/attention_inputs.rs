//! What stands between the projections and an attention: norms of query and key, their rotations, and the append.

use lathe_ir::ops::{Op, QkNorm, RmsNorm, Rope};
use lathe_ir::{Graph, NodeId, ValueId};
use lathe_numerics::DType;

/// The operands of an attention, traced back to where q, k and v come from.
pub struct AttentionInputs<'g> {
    /// The query as the attention reads it.
    pub q: Chain<'g>,
    /// The key as the append reads it.
    pub k: Chain<'g>,
    /// What the append reads as value.
    pub v: ValueId,
    /// The append.
    pub append: NodeId,
    /// The attention's state operand.
    pub state: ValueId,
}

/// A value and what was done to it, read from its end.
pub struct Chain<'g> {
    /// Where it begins: a projection, or a slice of one.
    pub source: ValueId,
    /// The norm's node, if there is one.
    pub norm: Option<(NodeId, &'g RmsNorm)>,
    /// The rotation's node, if there is one.
    pub rope: Option<(NodeId, &'g Rope)>,
    /// Where it ends.
    pub value: ValueId,
}

impl<'g> AttentionInputs<'g> {
    /// The operands of node `attention`, if it is one and its state comes from an append.
    pub fn of(g: &'g Graph, attention: NodeId) -> Option<Self> {
        let Op::Attention(_) = g.op(attention) else { return None };
        let (q, state) = (g.input_of(attention, 0), g.input_of(attention, 1));
        let append = g.producer(state).filter(|&n| matches!(g.op(n), Op::KvAppend(_)))?;
        let k = Chain::of(g, g.input_of(append, 0));
        Some(AttentionInputs { q: Chain::of(g, q), k, v: g.input_of(append, 1), append, state })
    }
}

impl<'g> Chain<'g> {
    /// Peels a rounding or a rotation, then a norm. Only the rotation of a query rounds; what is rounded before the
    /// rotation is no part of the chain.
    fn of(g: &'g Graph, value: ValueId) -> Self {
        let mut chain = Chain { source: value, norm: None, rope: None, value };
        if let Some(node) = g.producer(chain.source) {
            match g.op(node) {
                Op::Rope(op) => (chain.rope, chain.source) = (Some((node, op)), g.input_of(node, 0)),
                Op::Cast(_) => chain.source = g.input_of(node, 0),
                _ => {}
            }
        }
        if let Some(node) = g.producer(chain.source)
            && let Op::RmsNorm(op) = g.op(node)
            && g.facts(chain.source).dtype() == Some(DType::F32)
        {
            (chain.norm, chain.source) = (Some((node, op)), g.input_of(node, 0));
        }
        chain
    }

    /// Every value between source and end, the end left out.
    pub fn between(&self, g: &Graph) -> impl Iterator<Item = ValueId> {
        let norm = self.norm.map(|(node, _)| g.output_of(node));
        [Some(self.source), norm].into_iter().flatten().filter(|&v| v != self.value)
    }

    /// The norm's weight.
    pub fn norm_weight(&self, g: &Graph) -> Option<ValueId> {
        self.norm.map(|(node, _)| g.input_of(node, 1))
    }
}

/// The norm that stands before both rotations, with its eps; `None` if `rope_append` has no such norm.
pub fn qk_norm(
    g: &Graph,
    inputs: &AttentionInputs<'_>,
    (heads, kv_heads, head_dim): (usize, usize, usize),
) -> Option<(QkNorm, f32)> {
    let (Some((_, q)), Some((_, k))) = (inputs.q.norm, inputs.k.norm) else {
        return (inputs.q.norm.is_none() && inputs.k.norm.is_none()).then_some((QkNorm::None, 0.0));
    };
    let len = |chain: &Chain<'_>| g.facts(chain.norm_weight(g)?).shape().first()?.as_const();
    let (q_len, k_len) = (len(&inputs.q)?, len(&inputs.k)?);
    let fits = |q_groups, q_want, k_groups, k_want| {
        (q.groups, q_len, k.groups, k_len) == (q_groups, q_want, k_groups, k_want)
    };
    let kind = if fits(heads, head_dim, kv_heads, head_dim) {
        QkNorm::Head
    } else if fits(1, heads * head_dim, 1, kv_heads * head_dim) {
        QkNorm::Row
    } else {
        return None;
    };
    (q.eps == k.eps).then_some((kind, q.eps))
}

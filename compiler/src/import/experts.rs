//! Mixtures of experts in place of a layer's feed-forward network: a router picks some experts for each row, their results
//! are summed by the router's weights, beside them may stand a network that all rows share.

use lathe_ir::entity::{ValueId, WeightId};
use lathe_ir::ops::{Combine, ExpertLinear, ExpertLinearGlu, Over, TopK};
use lathe_ir::weight::WeightExpr;
use lathe_numerics::contract::PANEL;
use lathe_numerics::{DType, Gating};

use super::builder::Builder;
use super::decoder::Mlp;
use super::param::{Param, Projection};
use crate::checkpoint::Config;
use crate::error::{CompileError, Result};

/// The experts of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    /// `[experts, hidden]`.
    pub router: Projection,
    /// Each of the same widths.
    pub experts: Vec<Expert>,
    /// How many a row takes.
    pub choices: usize,
    /// What the router's weights add up to.
    pub over: Over,
    /// How gate and up are joined.
    pub act: Gating,
    /// What all rows share.
    pub shared: Option<Shared>,
}

/// One expert: `down(gate(x), up(x))`.
#[derive(Clone, Debug, PartialEq)]
pub struct Expert {
    /// Through the activation.
    pub gate: Projection,
    /// Multiplied with it.
    pub up: Projection,
    /// Back to the hidden width.
    pub down: Projection,
}

/// `sigmoid(gate(x)) * mlp(x)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Shared {
    /// The network.
    pub mlp: Box<Mlp>,
    /// `[1, hidden]`.
    pub gate: Projection,
}

impl Expert {
    /// `PREFIX.GATE`, `PREFIX.UP`, `PREFIX.DOWN` without biases.
    pub fn new(prefix: &str, [gate, up, down]: [&str; 3], hidden: usize, intermediate: usize) -> Self {
        let part = |name: &str, rows, cols| Projection::new(&format!("{prefix}.{name}"), rows, cols, false);
        Expert {
            gate: part(gate, intermediate, hidden),
            up: part(up, intermediate, hidden),
            down: part(down, hidden, intermediate),
        }
    }
}

/// The number of experts and of choices from fields of these names.
///
/// # Errors
/// Missing or malformed fields, more choices than experts.
pub fn counts(config: &Config, experts: &str, choices: &str) -> Result<(usize, usize)> {
    let (n, k) = (config.size(experts)?, config.size(choices)?);
    if k == 0 || k > n {
        let why = format!("is {k}, expected 1 to {experts} {n}");
        return Err(CompileError::input(format!("config.json: {choices}"), why));
    }
    Ok((n, k))
}

impl Experts {
    /// Every projection.
    pub fn projections(&self) -> Vec<&Projection> {
        let experts = self.experts.iter().flat_map(|e| [&e.gate, &e.up, &e.down]);
        let mut all: Vec<&Projection> = std::iter::once(&self.router).chain(experts).collect();
        if let Some(shared) = &self.shared {
            all.extend(shared.mlp.projections());
            all.push(&shared.gate);
        }
        all
    }

    /// The layer's experts on normed rows `x`: their weighted sum, unrounded. `shared` is what the shared network gave.
    ///
    /// # Errors
    /// Operands that do not fit: a fault of the importer.
    pub fn build(
        &self,
        b: &mut Builder<'_>,
        layer: usize,
        x: ValueId,
        shared: Option<ValueId>,
    ) -> Result<ValueId> {
        let named = |name: &str| format!("l{layer}.{name}");
        let (experts, dtype) = (self.experts.len(), b.dtype);
        let logits = b.linear(x, &self.router, &named("router"))?;
        let choice = TopK { k: self.choices, over: self.over };
        let [ids, weights] = b.ops(choice, &[logits], [&named("experts"), &named("expert_weights")])?;

        let (mut inner, mut outer) = (vec![x, ids], Vec::new());
        inner.push(self.stacked(b, layer, "gate_up", |e| vec![&e.gate.weight, &e.up.weight])?);
        outer.push(self.stacked(b, layer, "down", |e| vec![&e.down.weight])?);
        if self.experts.iter().all(|e| e.gate.bias.is_some()) {
            inner.push(
                self.stacked(b, layer, "gate_up_bias", |e| e.gate.bias.iter().chain(&e.up.bias).collect())?,
            );
            outer.push(self.stacked(b, layer, "down_bias", |e| e.down.bias.iter().collect())?);
        }
        let gate =
            &self.experts.first().ok_or_else(|| CompileError::Bug("a layer of no experts".into()))?.gate;
        let value = b.param(&gate.weight)?;
        let cols = b.graph.facts(value).fixed_shape().map_or(0, |shape| shape[0]);
        let glu = ExpertLinearGlu { act: self.act, cols, experts, interleave: PANEL, out: dtype };
        let mlp = b.op(glu, &inner, &named("expert_mlp"))?;
        let operands = [&[mlp, ids], &outer[..]].concat();
        let y = b.op(ExpertLinear { experts, out: dtype }, &operands, &named("expert_down"))?;
        let mut operands = vec![y, weights];
        if let (Some(part), Some(shared)) = (&self.shared, shared) {
            operands.extend([shared, b.linear(x, &part.gate, &named("shared_gate"))?]);
        }
        b.op(Combine { out: DType::F32 }, &operands, &named("moe"))
    }

    /// What `parts` names of every expert, one below the other; two parts alternate by panels.
    fn stacked<'a>(
        &'a self,
        b: &mut Builder<'_>,
        layer: usize,
        name: &str,
        parts: impl Fn(&'a Expert) -> Vec<&'a Param>,
    ) -> Result<ValueId> {
        let mut all: Vec<WeightId> = Vec::new();
        for (at, expert) in self.experts.iter().enumerate() {
            let of = parts(expert).into_iter().map(|p| b.param_id(p)).collect::<Result<Vec<_>>>()?;
            all.push(match of[..] {
                [only] => only,
                _ => {
                    let pair = WeightExpr::Interleave { of, group: PANEL };
                    let pair = b.made(format!("l{layer}.experts.{at}.{name}"), pair)?;
                    b.weight_id(pair)?
                }
            });
        }
        b.made(format!("l{layer}.experts.{name}"), WeightExpr::Concat(all))
    }
}

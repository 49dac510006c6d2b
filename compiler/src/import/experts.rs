//! Mixtures of experts as a layer's second half: a router picks some experts for each row, their results are summed by the
//! router's weights, beside them may stand an expert that all rows share.

use lathe_ir::entity::ValueId;
use lathe_ir::ops::{Combine, ExpertLinear, ExpertLinearGlu, Linear, Over, TopK};
use lathe_ir::weight::WeightExpr;
use lathe_numerics::contract::PANEL;
use lathe_numerics::{Activation, DType, Gating};

use super::TensorSpec;
use super::builder::Builder;
use super::decoder::gated_mlp;
use crate::checkpoint::Config;
use crate::error::{CompileError, Result};

/// What config.json says of a layer's experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    /// How many there are.
    pub experts: usize,
    /// How many a row takes.
    pub choices: usize,
    /// Rows of an expert's gate and up.
    pub intermediate: usize,
    /// What the router's weights add up to.
    pub over: Over,
    /// Intermediate size of the expert that all rows share, which has a gate of its own.
    pub shared: Option<usize>,
    /// Where their tensors are.
    pub names: &'static Names,
}

/// Names of tensors behind a layer's prefix; `{}` is the expert.
#[derive(Debug, PartialEq, Eq)]
pub struct Names {
    /// The router.
    pub router: &'static str,
    /// Before and behind an expert's number.
    pub expert: (&'static str, [&'static str; 3]),
}

impl Experts {
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

    fn expert(&self, prefix: &str, expert: usize, part: usize) -> String {
        let (before, parts) = self.names.expert;
        format!("{prefix}.{before}.{expert}.{}.weight", parts[part])
    }

    /// Every tensor of a layer.
    pub fn tensors(&self, prefix: &str, hidden: usize) -> Vec<TensorSpec> {
        let inter = self.intermediate;
        let mut specs =
            vec![TensorSpec::matrix(format!("{prefix}.{}.weight", self.names.router), self.experts, hidden)];
        for expert in 0..self.experts {
            for (part, (rows, cols)) in
                [(inter, hidden), (inter, hidden), (hidden, inter)].into_iter().enumerate()
            {
                specs.push(TensorSpec::matrix(self.expert(prefix, expert, part), rows, cols));
            }
        }
        if let Some(shared) = self.shared {
            for (part, rows, cols) in
                [("gate", shared, hidden), ("up", shared, hidden), ("down", hidden, shared)]
            {
                specs.push(TensorSpec::matrix(
                    format!("{prefix}.mlp.shared_expert.{part}_proj.weight"),
                    rows,
                    cols,
                ));
            }
            specs.push(TensorSpec::matrix(format!("{prefix}.mlp.shared_expert_gate.weight"), 1, hidden));
        }
        specs
    }

    /// The layer's experts on normed rows `x`: their weighted sum, in f32.
    ///
    /// # Errors
    /// As [`Builder::weight`].
    pub fn build(&self, b: &mut Builder<'_>, prefix: &str, layer: usize, x: ValueId) -> Result<ValueId> {
        let named = |name: &str| format!("l{layer}.{name}");
        let (experts, inter, dtype) = (self.experts, self.intermediate, b.dtype);
        let router = b.weight(&format!("{prefix}.{}.weight", self.names.router))?;
        let logits = b.op(Linear { act: None, out: DType::F32 }, &[x, router], &named("router"))?;
        let choice = TopK { k: self.choices, over: self.over };
        let [ids, weights] = b.ops(choice, &[logits], [&named("experts"), &named("expert_weights")])?;

        let (mut gate_up, mut down) = (Vec::new(), Vec::new());
        for expert in 0..experts {
            let [gate, up, out] = [0, 1, 2].map(|part| self.expert(prefix, expert, part));
            let (gate, up) = (b.weight(&gate)?, b.weight(&up)?);
            let hidden = b.graph.facts(gate).fixed_shape().map_or(0, |s| s[1]);
            let pair = WeightExpr::Interleave { of: vec![b.id(gate)?, b.id(up)?], group: PANEL };
            let shape = [2 * inter.next_multiple_of(PANEL), hidden];
            let pair = b.recipe(&format!("{prefix}.experts.{expert}.gate_up"), &shape, pair)?;
            gate_up.push(b.id(pair)?);
            let out = b.weight(&out)?;
            down.push(b.id(out)?);
        }
        let gate_up = b.concat(&format!("{prefix}.experts.gate_up"), gate_up)?;
        let down = b.concat(&format!("{prefix}.experts.down"), down)?;
        let act = Gating::Plain(Activation::Silu);
        let glu = ExpertLinearGlu { act, cols: inter, experts, interleave: PANEL, out: dtype };
        let inner = b.op(glu, &[x, ids, gate_up], &named("expert_mlp"))?;
        let y = b.op(ExpertLinear { experts, out: dtype }, &[inner, ids, down], &named("expert_down"))?;
        let mut operands = vec![y, weights];
        if self.shared.is_some() {
            let shared = gated_mlp(b, &format!("{prefix}.mlp.shared_expert"), layer, x, false)?;
            let gate =
                b.linear(x, &format!("{prefix}.mlp.shared_expert_gate"), false, &named("shared_gate"))?;
            operands.extend([shared, gate]);
        }
        b.op(Combine { out: DType::F32 }, &operands, &named("moe"))
    }
}

//! Routers that decide clearly.
//!
//! A router that is nearly undecided picks other experts after any rounding, and then the logits of two correct programs are
//! far apart. A question that met one would fail on an engine without fault. Here is when a router decides, and a search
//! for tokens whose routers all do.

use std::collections::HashMap;

use lathe_ir::ops::Op;
use lathe_ir::{Batch, BatchSequence, Graph, KvState, Node, Tensor};

use super::excerpt;
use super::question::{LARGEST_STEP, Question};
use crate::checkpoint::TensorSource;
use crate::error::Result;

/// How far a router's logit may be from that of another correct program: `bound`, that of logits, times the row's largest.
pub fn reach(row: &[f32], bound: f32) -> f32 {
    bound * row.iter().fold(0.0_f32, |m, x| m.max(x.abs()))
}

/// True if the `k` largest of a row stay the `k` largest wherever each logit goes within its reach.
fn decides(row: &[f32], k: usize, bound: f32) -> bool {
    let mut sorted = row.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    match sorted.get(k) {
        Some(next) => row.iter().all(|x| x.is_finite()) && sorted[k - 1] - next > 2.0 * reach(row, bound),
        None => true,
    }
}

/// Tokens times their length that are tried for a place in the question, at the first router. Of the wide routers of today's
/// models one in fifty decides so clearly, and a question meets two of them at least.
const TRIED_ROWS: usize = 2048;
/// Of those that are left, as many are tried at all routers.
const ASKED: usize = 64;

/// The routers of a graph.
pub struct Routers<'a> {
    graph: &'a Graph,
    /// How many experts are chosen, by the name of the logits.
    chosen: HashMap<&'a str, usize>,
    bound: f32,
}

impl<'a> Routers<'a> {
    /// Those of `graph`; `bound` is that of logits.
    pub fn of(graph: &'a Graph, bound: f32) -> Self {
        let router = |(_, node): (_, &'a Node)| match &node.op {
            Op::TopK(op) => Some((graph.value_name(node.inputs[0]), op.k)),
            _ => None,
        };
        Routers { graph, chosen: graph.nodes().filter_map(router).collect(), bound }
    }

    /// Whether the router whose logits are `name` decides in each row of them; `None` for any other value.
    pub fn decide(&self, name: &str, logits: &Tensor) -> Option<Vec<bool>> {
        let (k, row_len) = (*self.chosen.get(name)?, logits.row_len().max(1));
        let rows = logits.floats().ok()?.chunks_exact(row_len);
        Some(rows.map(|row| decides(row, k, self.bound)).collect())
    }

    /// Makes `tokens`, whose routers all decide, longer by others of which that holds too: up to `wanted`, or until none of
    /// those that are tried does, which are from all over the vocabulary.
    ///
    /// # Errors
    /// A tensor that cannot be read, or a graph that the interpreter cannot run.
    pub fn extend(
        &self,
        tokens: &mut Vec<u32>,
        wanted: usize,
        source: &dyn TensorSource,
        vocab_size: u32,
    ) -> Result<()> {
        let Some(first_router) = excerpt::first_router(self.graph)? else { return Ok(()) };
        let logits = first_router.outputs().first().map(|&v| first_router.facts(v).shape());
        let n_experts = logits.and_then(|shape| shape.last()?.as_const()).unwrap_or(0);
        let experts: Vec<u32> = (0..n_experts as u32).collect();
        while tokens.len() < wanted {
            let vocab = u64::from(vocab_size);
            let n = ((TRIED_ROWS / (tokens.len() + 1)) as u64).min(vocab);
            // Each place begins elsewhere, so that a question is not of neighbours.
            let first = vocab * tokens.len() as u64 / wanted as u64;
            let tried: Vec<u32> = (0..n).map(|i| ((i * vocab / n + first) % vocab) as u32).collect();
            // Most fail at the first router, which takes no expert's weight to ask.
            let mut left = self.deciding(&first_router, &experts, source, tokens, &tried)?;
            left.truncate(ASKED);
            match self.deciding(self.graph, &[0], source, tokens, &left)?.first() {
                Some(&found) => tokens.push(found),
                None => break,
            }
        }
        Ok(())
    }

    /// Those of `tried` that behind `prefix` have all routers of `graph` decide. That is this graph or its beginning, of
    /// whose result `columns` are needed.
    fn deciding(
        &self,
        graph: &Graph,
        columns: &[u32],
        source: &dyn TensorSource,
        prefix: &[u32],
        tried: &[u32],
    ) -> Result<Vec<u32>> {
        let length = prefix.len() + 1;
        let mut deciding = Vec::new();
        for tried in tried.chunks(LARGEST_STEP / length) {
            let question = Question::new(graph, source, &[prefix, tried].concat(), columns)?;
            let (before, last) = question.tokens.split_at(prefix.len());
            let sequence = |(slot, last): (usize, &i32)| {
                let tokens = before.iter().chain([last]).copied().collect();
                BatchSequence { slot, start: 0, tokens, rows: vec![length - 1] }
            };
            let batch = Batch::new(last.iter().enumerate().map(sequence).collect());
            let mut all_decide = vec![true; tried.len()];
            let mut kv = KvState::new(question.graph.cache());
            question.interpreter()?.run_watched(&batch, &mut kv, &mut |name, value| {
                let decided = self.decide(name, value).unwrap_or_default();
                for (all, decided) in all_decide.iter_mut().zip(decided.chunks(length)) {
                    *all &= decided.iter().all(|decides| *decides);
                }
            })?;
            deciding.extend(tried.iter().zip(all_decide).filter(|(_, all)| *all).map(|(&id, _)| id));
        }
        Ok(deciding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_decides_by_more_than_both_may_move() {
        // The largest is 2, so each may move by 0.1 at a bound of 0.05.
        for (row, k, decided) in [
            (&[2.0, 1.0, 0.79][..], 2, true),
            (&[2.0, 1.0, 0.81], 2, false),
            (&[1.0, -2.0, 0.79], 1, true),
            (&[1.0, -2.0, 0.81], 1, false),
            (&[0.5, 0.5, 0.5], 3, true),
            (&[0.5, 0.5, 0.5], 1, false),
            (&[0.0, 0.0], 1, false),
            (&[1.0, f32::NAN, 0.0], 2, false),
            (&[f32::INFINITY, 1.0], 1, false),
        ] {
            assert_eq!(decides(row, k, 0.05), decided, "{row:?} {k}");
        }
    }
}

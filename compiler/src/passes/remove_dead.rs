//! Removes nodes whose results nobody needs and which have no effects, and weights that nothing refers to.
//! Needs: a graph. Keeps: everything that reaches a result or the KV cache.

use lathe_ir::driver::{Pass, Precision};

/// Counts nodes and weights that went.
pub const REMOVE_DEAD: Pass = Pass {
    name: "remove-dead",
    precision: Precision::Exact,
    run: |graph| {
        let (nodes, weights) = graph.remove_dead();
        Ok(nodes + weights)
    },
};

//! What a compilation did, for people and as JSON.

use serde::Serialize;

/// How often a rewrite rule applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleCount {
    /// Phase in which it ran.
    pub phase: &'static str,
    /// The rule's or pass's name.
    pub rule: String,
    /// `exact` or `numeric`.
    pub precision: &'static str,
    /// Applications.
    pub applied: usize,
}

/// Weights of a finished plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WeightTotals {
    /// Stored weights.
    pub count: usize,
    /// Their bytes, layout padding included.
    pub bytes: u64,
    /// Bytes of weights that are stored again in a second layout.
    pub duplicated_bytes: u64,
}

/// What the pipeline hands back.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Rules that were tried, in pipeline order, those that never applied included.
    pub rules: Vec<RuleCount>,
    /// Weights, once emitted.
    pub weights: Option<WeightTotals>,
    /// Kernel launches of the decoder program, once selected.
    pub launches: Option<usize>,
    /// Bytes of the plan file, once written.
    pub plan_bytes: Option<u64>,
    /// The IR's text at the last phase whose product is a graph.
    pub graph_text: String,
}

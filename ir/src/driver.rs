//! Rules and passes, and the driver that applies rules until none fits.

use std::fmt;

use crate::entity::NodeId;
use crate::error::IrError;
use crate::graph::{Graph, Uses};
use crate::patch::Patch;
use crate::verify::verify;

/// What a rewrite does to results.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Precision {
    /// Every bit of every returned value stays.
    Exact,
    /// Returned values move by at most `bound` times their largest magnitude; named in the plan.
    Numeric {
        /// Relative to the largest magnitude of the value.
        bound: f32,
    },
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Precision::Exact => f.write_str("exact"),
            Precision::Numeric { bound } => write!(f, "numeric within {bound:e}"),
        }
    }
}

/// What a rule may ask besides the graph.
pub struct Cx {
    /// Users of each value.
    pub uses: Uses,
}

/// Proposes a patch for a node whose op is the rule's root, or `None` if the rule does not fit.
pub type Apply = for<'g> fn(&'g Graph, NodeId, &Cx) -> Result<Option<Patch<'g>>, IrError>;

/// A local rewrite. It goes one way: what it makes, it must not match again.
#[derive(Clone, Copy)]
pub struct Rule {
    /// Verb-object, e.g. `fuse-glu`.
    pub name: &'static str,
    /// The weakest precision of its applications.
    pub precision: Precision,
    /// Name of the op that it starts from.
    pub root: &'static str,
    /// Matches and proposes.
    pub apply: Apply,
}

/// Whole-graph work.
#[derive(Clone, Copy)]
pub struct Pass {
    /// Verb-object, e.g. `remove-dead`.
    pub name: &'static str,
    /// What it does to results.
    pub precision: Precision,
    /// Changes the graph and returns how many changes it made.
    pub run: fn(&mut Graph) -> Result<usize, IrError>,
}

/// One application of a rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// The rule.
    pub rule: &'static str,
    /// The root as it was, e.g. `mul %y`.
    pub node: String,
    /// Precision of this application.
    pub precision: Precision,
}

/// What a run of the driver did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Applications in order.
    pub applied: Vec<Applied>,
}

impl Report {
    /// Number of applications of a rule.
    pub fn count(&self, rule: &str) -> usize {
        self.applied.iter().filter(|a| a.rule == rule).count()
    }
}

/// Applies `rules` to nodes in order, the first rule that fits first, until none fits; then verifies the graph.
///
/// # Errors
/// What a rule or a patch reports, with rule and node; [`IrError::Invalid`] if the outcome is not valid;
/// [`IrError::Bug`] if the rules do not come to an end. The graph is then as it was before the failing patch.
pub fn drive(g: &mut Graph, rules: &[&Rule]) -> Result<Report, IrError> {
    let limit = 64 + 16 * g.n_nodes();
    let mut report = Report::default();
    while let Some(applied) = step(g, rules)? {
        report.applied.push(applied);
        if report.applied.len() > limit {
            let last = &report.applied[limit];
            return Err(IrError::Bug(format!(
                "{limit} applications without end, last {} at {}",
                last.rule, last.node
            )));
        }
        if cfg!(debug_assertions) {
            verify(g)?;
        }
    }
    verify(g)?;
    Ok(report)
}

fn step(g: &mut Graph, rules: &[&Rule]) -> Result<Option<Applied>, IrError> {
    let cx = Cx { uses: g.uses() };
    let mut found = None;
    'search: for (id, node) in g.nodes() {
        for rule in rules.iter().filter(|r| r.root == node.op.name()) {
            if let Some(patch) = (rule.apply)(g, id, &cx).map_err(|e| context(rule, g, id, e))? {
                found = Some((*rule, id, patch.finish()));
                break 'search;
            }
        }
    }
    let Some((rule, id, edit)) = found else { return Ok(None) };
    let applied = Applied {
        rule: rule.name,
        node: g.node_label(id),
        precision: edit.precision.unwrap_or(rule.precision),
    };
    edit.apply(g, id).map_err(|e| context(rule, g, id, e))?;
    Ok(Some(applied))
}

fn context(rule: &Rule, g: &Graph, id: NodeId, error: IrError) -> IrError {
    IrError::Refused { subject: format!("{} at {}", rule.name, g.node_label(id)), reason: error.to_string() }
}

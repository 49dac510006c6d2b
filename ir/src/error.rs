//! The crate's error type.

use std::fmt;

/// One thing wrong with a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What it is about: `linear %q`, `weight @w`, `symbol t`, `graph @g`.
    pub subject: String,
    /// 1-based line in the text that the graph was parsed from, else in the text it prints to.
    pub line: u32,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}: {}", self.line, self.subject, self.reason)
    }
}

/// Everything that can go wrong in this crate, by fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IrError {
    /// The text is not a graph.
    #[error("line {line}, column {column}: {reason}")]
    Parse {
        /// 1-based line.
        line: u32,
        /// 1-based column, in characters.
        column: u32,
        /// What was found and what was expected.
        reason: String,
    },
    /// The graph breaks a rule of the verifier; every fault is listed.
    #[error("graph is invalid: {}", join(.0))]
    Invalid(Vec<Fault>),
    /// A name is taken or malformed.
    #[error("{name}: {reason}")]
    Name {
        /// The name, with its sigil.
        name: String,
        /// Why it is refused.
        reason: String,
    },
    /// An op refuses its operands or attributes.
    #[error("{node}: {reason}")]
    Operand {
        /// Op and first result, e.g. `linear %q`.
        node: String,
        /// Why.
        reason: String,
    },
    /// A patch or a rule did something that is not allowed.
    #[error("{subject}: patch refused: {reason}")]
    Refused {
        /// Rule or value.
        subject: String,
        /// Why.
        reason: String,
    },
    /// A weight is missing in its source, or differs from its declaration.
    #[error("weight @{name}: {reason}")]
    Weight {
        /// Name without `@`.
        name: String,
        /// Why.
        reason: String,
    },
    /// The batch given to the interpreter does not fit the graph or the cache state.
    #[error("batch: {0}")]
    Batch(String),
    /// An op failed on the data it was given, e.g. a token id outside the table.
    #[error("{node}: {reason}")]
    Eval {
        /// Op and first result.
        node: String,
        /// Why.
        reason: String,
    },
    /// A fault of Lathe itself.
    #[error("bug: {0}")]
    Bug(String),
}

fn join(faults: &[Fault]) -> String {
    faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("; ")
}

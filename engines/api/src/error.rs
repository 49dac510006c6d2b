//! Engine errors by fault.

/// Why an engine refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The step or slot state breaks a rule of the batch schema; the engine is unharmed.
    #[error("step refused: {0}")]
    Request(String),
    /// The plan's content contradicts itself or names what this engine does not know.
    #[error("plan refused: {what}: {why}")]
    Plan {
        /// Launch, buffer or weight.
        what: String,
        /// The rule that it breaks.
        why: String,
    },
    /// The plan is sound but this machine cannot run it as asked.
    #[error("{what} does not fit: {why}; {remedy}")]
    Fit {
        /// Memory, ISA or limit.
        what: String,
        /// Numbers of both sides.
        why: String,
        /// What the user can do.
        remedy: String,
    },
    /// The device or an invariant failed; the engine is unusable.
    #[error("engine failed: {0}")]
    Failed(String),
}

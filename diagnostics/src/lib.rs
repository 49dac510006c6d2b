//! Faults by kind, exit codes and how both programs report them.
//!
//! Libraries have their own error enums; the two programs turn them into a [`Diagnostic`] at the edge, where it is
//! known what the user asked for.

mod diagnostic;
mod exit;
mod logging;
mod size;
mod version;

pub use diagnostic::Diagnostic;
pub use exit::Exit;
pub use logging::{LogFormat, init_logging};
pub use size::{format_bytes, parse_bytes};
pub use version::{COMMIT, version};

//! The compiler: import, passes, selection, memory plan, plan emission.

pub mod checkpoint;
pub mod error;
pub mod import;
pub mod options;
pub mod report;

//! The compiler: import, passes, selection, memory plan, plan emission.

pub mod checkpoint;
pub mod emit;
pub mod error;
pub mod import;
pub mod memory;
pub mod options;
pub mod passes;
pub mod pipeline;
pub mod report;
pub mod select;
pub mod self_test;
pub mod targets;
pub mod verification;

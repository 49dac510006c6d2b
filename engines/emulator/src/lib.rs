//! Runs the PTX of CUDA programs on the CPU, unchecked and fast or checked to the last byte.

mod check;
pub mod decode;
pub mod monitor;

pub use check::{CheckOptions, CheckedLaunch, Checker};

//! Runs the PTX of CUDA programs on the CPU, unchecked and fast or checked to the last byte.

pub mod decode;
pub mod monitor;

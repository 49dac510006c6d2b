//! The CPU engine: runs a plan's CPU program with the kernels of `lathe-kernels`.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod engine;
mod execute;
mod pages;
mod pool;
mod program;
mod region;
mod sampler;

pub use engine::{CpuEngine, CpuOptions, Observed};
pub use execute::LAUNCH_EVENTS;
pub use lathe_kernels::Isa;

//! The CUDA engine: follows the launches of a plan's CUDA program on any device behind `lathe_device::Driver`, and the
//! driver of a real GPU.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod buckets;
mod draw;
mod engine;
mod gpu;
mod launches;
mod load;
mod memory;
mod plain;
mod slots;
mod tables;
mod target;
mod transfer;

pub use engine::CudaEngine;
pub use gpu::GpuDriver;
pub use launches::LAUNCH_EVENTS;
pub use load::{CudaOptions, DEFAULT_RESERVE};
pub use target::{Choice, arch_of, choose};

//! CUDA C++ to cubin and PTX with NVRTC, and the cache of what it made.
//!
//! NVRTC is opened when something must be compiled, never before: with a full cache no library is needed.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod arch;
mod cache;
mod compiler;
mod device;
mod error;
mod library;
mod places;
mod ptx;
mod report;

pub use arch::supported;
pub use compiler::{Compiled, Compiler, Source};
pub use device::native_arch;
pub use error::NvrtcError;
pub use places::{cache_folder, kit};
pub use report::EntryReport;

/// The NVRTC that plans are made with; another one is allowed and has its own entries in the cache.
pub const VERSION: &str = "13.0.88";

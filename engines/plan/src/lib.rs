//! The engine plan: one file that holds the program, the memory plan and the weights; the only place where the
//! compiler and the runtime meet. FORMAT.md describes every byte.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod blocks;
mod code;
pub mod codec;
pub mod diff;
mod error;
mod foreign;
pub mod header;
pub mod inspect;
pub mod kv;
mod layout;
pub mod memory;
mod older;
pub mod operand;
mod reader;
pub mod schema;
mod strip;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod truncation;
pub mod verify;
mod writer;

pub use code::CodeWriter;
pub use error::{Damage, PlanError};
pub use memory::{DeviceMemory, MemoryReport, MemoryRequest};
pub use reader::Plan;
pub use strip::strip_ptx;
pub use verify::{VerifyError, verify};
pub use writer::{PlanWriter, Tables, WeightSink, WeightSpec, Written};

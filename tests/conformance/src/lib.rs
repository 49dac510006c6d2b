//! Device kernels against their references, on any driver.

pub mod bytes;
pub mod code;
pub mod mutants;
pub mod rig;
pub mod sass;

pub use rig::{Operands, Rig};

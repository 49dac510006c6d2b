//! Device kernels against their references, on any driver.

pub mod attention;
pub mod bytes;
pub mod code;
pub mod draws;
pub mod mutants;
pub mod norms;
pub mod rig;
pub mod sass;
pub mod values;

pub use rig::{Operands, Rig};

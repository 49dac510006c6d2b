//! Runs the PTX of CUDA programs on the CPU, unchecked and fast or checked to the last byte.

mod check;
pub mod decode;
mod device;
mod driver;
pub mod exec;
pub mod fault;
pub mod memory;
pub mod monitor;
mod options;
pub mod ptx;

pub use check::{CheckOptions, CheckedLaunch, Checker};
pub use driver::Emulator;
pub use options::{DeviceModel, EmulatorOptions};

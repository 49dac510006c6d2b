//! What a device launch is, as plans store it, and the trait behind which a GPU or the emulator runs it.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod delegate;
mod driver;
mod launch;
mod tables;

pub use delegate::Delegate;
pub use driver::{
    Arch, ArgValue, DeviceInfo, DevicePtr, Driver, DriverError, Event, Function, FunctionInfo, Graph,
    HostBuffer, Image, LaunchConfig, Module,
};
pub use launch::{Arg, DeviceLaunch, Extent, Symbol, Symbols, Term, When};
pub use tables::{
    Answer, DrawParams, MAX_LOGIT_BIAS, MAX_STOP_IDS, Sequence, StepTable, WANT_LOGITS, WANT_SAMPLE,
    WANT_SCORE,
};

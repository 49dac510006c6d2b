//! Exit codes, the same for both programs.

use std::process::ExitCode;

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// A fault of Lathe.
    Bug = 1,
    /// Flags or arguments are off.
    Usage = 2,
    /// Bad or unsupported input.
    Input = 3,
    /// The plan does not fit this machine.
    Fit = 4,
    /// A file, a disk or a port.
    Io = 5,
    /// What was compared is not the same: `compile verify` found a plan that differs from its checkpoint.
    Differs = 6,
    /// Ctrl-C.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

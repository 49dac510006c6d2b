//! The server and command line that run an engine plan.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

use std::process::ExitCode;

fn main() -> ExitCode {
    lathe_runtime::cli::main().into()
}

//! The server and command line that run an engine plan.

use std::process::ExitCode;

fn main() -> ExitCode {
    lathe_runtime::cli::main().into()
}

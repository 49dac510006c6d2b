//! Results on standard output.

use std::io::{ErrorKind, Write};

use super::faults::{self, Outcome};

/// Writes at once. A reader that has seen enough, as `head` does, is no fault.
///
/// # Errors
/// Any other fault of standard output.
pub fn print(text: &str) -> Outcome<()> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(faults::io("standard output")(e)),
        _ => Ok(()),
    }
}

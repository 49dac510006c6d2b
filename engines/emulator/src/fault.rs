//! What a kernel did wrong, in words.

use std::fmt;

/// A fault with all that is known about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Kernel.
    pub kernel: String,
    /// What happened.
    pub what: String,
    /// Source line, PTX line and text; empty where it is no instruction's fault.
    pub place: String,
    /// Block.
    pub block: [u32; 3],
    /// Thread in the block.
    pub thread: u32,
    /// Address and the allocation at or near it; empty where memory is not concerned.
    pub address: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        if !self.address.is_empty() {
            write!(f, ": {}", self.address)?;
        }
        if !self.place.is_empty() {
            write!(f, "; at {}", self.place)?;
        }
        let [x, y, z] = self.block;
        write!(f, "; block ({x}, {y}, {z}), thread {}", self.thread)
    }
}

//! Instructions as register-slot operations.

/// A kernel ready to run.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Name of the entry.
    pub name: String,
    /// Per instruction: where it comes from.
    pub lines: Vec<Line>,
}

/// Where an instruction comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Line of the CUDA source, 0 where unknown.
    pub source: u32,
    /// Name of the CUDA source, an index into the module's files.
    pub file: u32,
    /// Line of the PTX text.
    pub ptx: u32,
}

impl Kernel {
    /// Where the instruction at `pc` comes from.
    pub fn line(&self, pc: u32) -> Option<&Line> {
        self.lines.get(pc as usize)
    }
}

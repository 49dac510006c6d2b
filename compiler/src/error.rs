//! What can go wrong in a compilation, by whose fault it is.

use std::path::{Path, PathBuf};

/// Fault of a compilation. Messages are lowercase, name the thing first, then the reason; the remedy stands apart.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// A flag that cannot hold, alone or with another.
    #[error("{what}: {why}")]
    Usage {
        /// The flag.
        what: String,
        /// Why it cannot hold.
        why: String,
        /// What to do about it.
        remedy: Option<String>,
    },
    /// The checkpoint, its config or its tokenizer is not what it should be.
    #[error("{what}: {why}")]
    Input {
        /// File, field or tensor.
        what: String,
        /// What is wrong with it.
        why: String,
        /// What to do about it.
        remedy: Option<String>,
    },
    /// Well-formed, and not something that this compiler can do.
    #[error("unsupported {what}: {why}")]
    Unsupported {
        /// What was seen, e.g. `architecture MistralForCausalLM`.
        what: String,
        /// What is supported instead.
        why: String,
        /// The IR node, where there is one.
        node: Option<String>,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
    /// The plan could not be written or read back.
    #[error(transparent)]
    Plan(#[from] lathe_plan::PlanError),
    /// Device code could not be made.
    #[error(transparent)]
    Nvrtc(#[from] lathe_nvrtc::NvrtcError),
    /// A broken invariant of the compiler itself.
    #[error("bug: {0}")]
    Bug(String),
}

/// Result of every fallible step of a compilation.
pub type Result<T, E = CompileError> = std::result::Result<T, E>;

impl CompileError {
    /// Wrong input without a remedy.
    pub fn input(what: impl Into<String>, why: impl Into<String>) -> Self {
        CompileError::Input { what: what.into(), why: why.into(), remedy: None }
    }

    /// A flag that cannot hold.
    pub fn usage(what: impl Into<String>, why: impl Into<String>) -> Self {
        CompileError::Usage { what: what.into(), why: why.into(), remedy: None }
    }

    /// Something seen that is not supported; `why` names what is.
    pub fn unsupported(what: impl Into<String>, why: impl Into<String>) -> Self {
        CompileError::Unsupported { what: what.into(), why: why.into(), node: None }
    }

    /// An operating system error on `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        CompileError::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// The same error with advice. Kinds that carry none keep their message.
    #[must_use]
    pub fn remedy(mut self, advice: impl Into<String>) -> Self {
        if let CompileError::Usage { remedy, .. } | CompileError::Input { remedy, .. } = &mut self {
            *remedy = Some(advice.into());
        }
        self
    }
}

impl From<lathe_ir::error::IrError> for CompileError {
    fn from(error: lathe_ir::error::IrError) -> Self {
        CompileError::Bug(error.to_string())
    }
}

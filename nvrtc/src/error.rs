//! Why nothing was compiled.

/// Why a source did not become code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NvrtcError {
    /// No NVRTC that works.
    #[error("NVRTC: not found; {searched}. Run tools/cuda-kit, or set LATHE_CUDA_HOME to a CUDA 13 toolkit")]
    NotFound {
        /// Every place and what was wrong with it.
        searched: String,
    },
    /// An architecture without kernels.
    #[error("architecture {arch}: {why}; supported: {supported}")]
    Arch {
        /// As asked for.
        arch: String,
        /// Reason.
        why: String,
        /// What could be asked for.
        supported: String,
    },
    /// The source has faults.
    #[error("{source_name} for {arch}: does not compile\n{log}")]
    Compile {
        /// Name of the source.
        source_name: String,
        /// Target.
        arch: String,
        /// What the compiler said.
        log: String,
    },
    /// Something that cannot be handed to NVRTC.
    #[error("{source_name}: {what} holds a NUL byte")]
    Input {
        /// Name of the source.
        source_name: String,
        /// Text, header or macro.
        what: String,
    },
    /// NVRTC failed or answered nonsense.
    #[error("{source_name}: {call} failed: {why}")]
    Failed {
        /// Name of the source.
        source_name: String,
        /// The call.
        call: &'static str,
        /// Its words.
        why: String,
    },
}

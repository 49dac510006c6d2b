//! Sources of kernel families as modules, through the user's cache.

use anyhow::Result;
use lathe_kernels::cuda::{HEADERS, Source};
use lathe_nvrtc::{Compiled, Compiler};

/// The compiler that tests share with `compile`.
pub fn compiler() -> Compiler {
    Compiler::new(lathe_nvrtc::cache_folder().map(|folder| folder.join("kernels")))
}

/// Compiles sources for an architecture, in their order.
///
/// # Errors
/// NVRTC's.
pub fn compile(compiler: &Compiler, sources: &[&Source], arch: &str) -> Result<Vec<Compiled>> {
    let jobs: Vec<_> = sources
        .iter()
        .map(|s| lathe_nvrtc::Source { name: &s.name, text: s.text, headers: HEADERS, defines: &s.defines })
        .map(|source| (source, arch))
        .collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(compiler.compile_all(&jobs, threads)?)
}

//! Sources to modules, through the cache.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::arch::Target;
use crate::cache::{Cache, Key};
use crate::library::{Nvrtc, Unit};
use crate::{EntryReport, NvrtcError, VERSION, ptx, report};

/// What is compiled.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// For messages and `.file` lines of the PTX, which say `name.cu`.
    pub name: &'a str,
    /// CUDA C++.
    pub text: &'a str,
    /// Names and texts of the headers that it may include; nothing else can be included.
    pub headers: &'a [(&'a str, &'a str)],
    /// Macros.
    pub defines: &'a [(&'a str, String)],
}

/// A compiled module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// NVRTC that made it, e.g. `13.0.88`.
    pub version: String,
    /// Machine code without debug information; empty for a target that gives PTX alone.
    pub cubin: Vec<u8>,
    /// PTX with source lines (`.loc`).
    pub ptx: String,
    /// What the compiler warned of; empty if nothing.
    pub warnings: String,
    /// What its kernels need; empty for a target that gives PTX alone.
    pub entries: Vec<EntryReport>,
}

/// NVRTC and a cache before it. NVRTC is opened by the first module that the cache has not.
#[derive(Default)]
pub struct Compiler {
    cache: Option<Cache>,
    nvrtc: OnceLock<Result<Nvrtc, NvrtcError>>,
}

/// Options of every run.
const COMMON: &[&str] = &["--std=c++17", "-default-device"];
/// What the run for machine code has besides, and the run for PTX. Source lines in a cubin would bring the whole PTX
/// with them and more than triple it, so the two come from two runs; they take no part in optimisation.
const CUBIN: &[&str] = &["--ptxas-options=-v"];
const PTX: &[&str] = &["-lineinfo"];

impl Compiler {
    /// A compiler that keeps what it makes in a folder, which is made when needed.
    pub fn new(cache: Option<PathBuf>) -> Self {
        Compiler { cache: cache.map(Cache::new), nvrtc: OnceLock::new() }
    }

    /// Compiles a source for an architecture of [`crate::supported`] or a virtual one (`compute_80`).
    ///
    /// The cache is asked for a module of the pinned version first, without opening NVRTC. Where NVRTC turns out to be
    /// of another version, modules of that version count.
    ///
    /// # Errors
    /// `Arch` before anything else; `NotFound` if something must be compiled and there is no NVRTC; `Compile` with
    /// the log.
    pub fn compile(&self, source: &Source<'_>, arch: &str) -> Result<Compiled, NvrtcError> {
        let target = Target::new(arch)?;
        let cached = |version: &str| self.cache.as_ref()?.get(&key(source, target, version));
        if let Some(compiled) = cached(VERSION) {
            return Ok(compiled);
        }
        let nvrtc = self.nvrtc.get_or_init(Nvrtc::open).as_ref().map_err(Clone::clone)?;
        if nvrtc.version() != VERSION
            && let Some(compiled) = cached(nvrtc.version())
        {
            return Ok(compiled);
        }
        let compiled = make(nvrtc, source, target)?;
        if let Some(cache) = &self.cache {
            cache.put(&key(source, target, nvrtc.version()), &compiled);
        }
        Ok(compiled)
    }

    /// Compiles sources on up to `threads` threads, this one included; results in the order of the jobs.
    ///
    /// # Errors
    /// That of the first job that failed, as `compile`.
    pub fn compile_all(
        &self,
        jobs: &[(Source<'_>, &str)],
        threads: usize,
    ) -> Result<Vec<Compiled>, NvrtcError> {
        // Jobs are taken in order, so whatever precedes the first failure has been done.
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let worker = || {
            let mut done = Vec::new();
            while !failed.load(Ordering::Relaxed) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some((source, arch)) = jobs.get(index) else { break };
                let result = self.compile(source, arch);
                failed.fetch_or(result.is_err(), Ordering::Relaxed);
                done.push((index, result));
            }
            done
        };
        let mut done = thread::scope(|scope| {
            let others: Vec<_> = (1..threads.min(jobs.len())).map(|_| scope.spawn(worker)).collect();
            let mut done = worker();
            for other in others {
                done.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            done
        });
        done.sort_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, result)| result).collect()
    }
}

/// Everything that decides what a module is.
fn key(source: &Source<'_>, target: Target<'_>, version: &str) -> String {
    let mut key = Key::new();
    let mut list = |count: usize, parts: &mut dyn Iterator<Item = &[u8]>| {
        key.part(&(count as u64).to_le_bytes());
        for part in parts {
            key.part(part);
        }
    };
    list(4, &mut [source.name, source.text, target.name(), version].into_iter().map(str::as_bytes));
    list(source.headers.len(), &mut source.headers.iter().flat_map(|(n, t)| [n.as_bytes(), t.as_bytes()]));
    list(source.defines.len(), &mut source.defines.iter().flat_map(|(n, v)| [n.as_bytes(), v.as_bytes()]));
    for flags in [COMMON, CUBIN, PTX] {
        list(flags.len(), &mut flags.iter().map(|f| f.as_bytes()));
    }
    key.finish()
}

fn make(nvrtc: &Nvrtc, source: &Source<'_>, target: Target<'_>) -> Result<Compiled, NvrtcError> {
    let unit = Unit::new(source.name, source.text, source.headers)?;
    let run = |arch: &str, flags: &[&str]| {
        let mut options = vec![format!("--gpu-architecture={arch}")];
        options.extend(COMMON.iter().chain(flags).map(|flag| (*flag).to_owned()));
        options.extend(source.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
        nvrtc.run(&unit, &options).map_err(|error| match error {
            NvrtcError::Compile { source_name, log, .. } => {
                NvrtcError::Compile { source_name, arch: target.name().to_owned(), log }
            }
            other => other,
        })
    };
    let for_ptx = run(&target.virtual_name(), PTX)?;
    let mut compiled = Compiled {
        version: nvrtc.version().to_owned(),
        cubin: Vec::new(),
        ptx: ptx::clean(&for_ptx.ptx),
        warnings: report::parse(&for_ptx.log).warnings,
        entries: Vec::new(),
    };
    if target.is_real() {
        let for_cubin = run(target.name(), CUBIN)?;
        if for_cubin.cubin.is_empty() {
            return Err(NvrtcError::Failed {
                source_name: source.name.to_owned(),
                call: "nvrtcGetCUBIN",
                why: format!("no machine code for {}", target.name()),
            });
        }
        let log = report::parse(&for_cubin.log);
        compiled.cubin = for_cubin.cubin;
        compiled.entries = log.entries;
        compiled.warnings = log.warnings;
    }
    Ok(compiled)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The PTX that is kept is the program that the machine code was made of.
    #[test]
    fn source_lines_change_no_instruction() {
        let text = r#"
__device__ __forceinline__ float half(float x) { return 0.5f * x; }
extern "C" __global__ void sums(const float* x, float* y, int n) {
    __shared__ float s[128];
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += 128) sum += half(x[i]);
    s[threadIdx.x] = sum;
    for (int step = 64; step > 0; step /= 2) {
        __syncthreads();
        if (threadIdx.x < step) s[threadIdx.x] += s[threadIdx.x + step];
    }
    if (threadIdx.x == 0) y[blockIdx.x] = s[0];
}"#;
        let nvrtc = Nvrtc::open().unwrap();
        let unit = Unit::new("sums", text, &[]).unwrap();
        let ptx = |arch: &str, flags: &[&str]| {
            let mut options = vec![format!("--gpu-architecture={arch}")];
            options.extend(COMMON.iter().chain(flags).map(|flag| (*flag).to_owned()));
            nvrtc.run(&unit, &options).unwrap().ptx
        };
        let (kept, coded) = (ptx("compute_80", PTX), ptx("sm_80", CUBIN));
        assert!(kept.contains(".loc") && !coded.contains(".loc"));
        let end = kept.find("\t.file").unwrap();
        let code: Vec<&str> = kept[..end].lines().filter(|line| !line.starts_with("\t.loc")).collect();
        let coded: Vec<&str> = coded.lines().collect();
        assert!(coded.len() > 40);
        assert_eq!(code, &coded[..code.len()]);
        assert!(coded[code.len()..].iter().all(|line| line.is_empty()));
    }
}

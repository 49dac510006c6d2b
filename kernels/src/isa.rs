//! Instruction set paths: detected at run time, forceable, never mixed inside one engine.

use std::fmt;
use std::str::FromStr;

use crate::error::KernelError;

/// A family of kernels that share an instruction set. Answers are bit-identical within one, close across them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Portable Rust; every machine.
    Scalar,
    /// x86-64 AVX2 with FMA and F16C (Haswell and Zen, and later).
    Avx2,
    /// x86-64 AVX-512 F, BW, VL, DQ, BF16 with FMA and F16C (Zen 4, Sapphire Rapids and later).
    Avx512,
    /// AArch64 NEON, which every Linux of that architecture has; widened to f32, with FMA. The bits of AVX2.
    Neon,
}

impl Isa {
    /// Every path, the fastest first.
    pub const ALL: [Isa; 4] = [Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Scalar];

    /// The fastest path of this machine.
    pub fn fastest() -> Self {
        Isa::ALL.into_iter().find(|isa| isa.available()).unwrap_or(Isa::Scalar)
    }

    /// Name as it stands in flags and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Neon => "neon",
        }
    }

    /// True when this machine has the instructions.
    pub fn available(self) -> bool {
        match self {
            Isa::Scalar => true,
            Isa::Avx2 => avx2(),
            Isa::Avx512 => avx512(),
            Isa::Neon => cfg!(all(target_arch = "aarch64", target_feature = "neon")),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") && is_x86_feature_detected!("fma")
}

#[cfg(not(target_arch = "x86_64"))]
fn avx2() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
fn avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("fma")
}

#[cfg(not(target_arch = "x86_64"))]
fn avx512() -> bool {
    false
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = KernelError;

    fn from_str(s: &str) -> Result<Self, KernelError> {
        Isa::ALL.into_iter().find(|isa| isa.name() == s).ok_or_else(|| {
            let known = Isa::ALL.map(Isa::name).join(", ");
            KernelError::Unsupported { kernel: "isa", what: format!("{s:?}; known are {known}") }
        })
    }
}

/// Proof that an [`Isa`] can run here; every problem is built with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IsaPath(Isa);

impl IsaPath {
    /// The fastest path of this machine.
    pub fn detect() -> Self {
        IsaPath(Isa::fastest())
    }

    /// The path that was asked for.
    ///
    /// # Errors
    /// `Unsupported` when the machine lacks the instructions.
    pub fn force(isa: Isa) -> Result<Self, KernelError> {
        if isa.available() {
            return Ok(IsaPath(isa));
        }
        let what = format!("this machine lacks {isa}; use {}", Isa::fastest());
        Err(KernelError::Unsupported { kernel: "isa", what })
    }

    /// Every path of this machine.
    pub fn all() -> impl Iterator<Item = Self> {
        Isa::ALL.into_iter().filter(|i| i.available()).map(IsaPath)
    }

    /// The instruction set.
    pub fn isa(self) -> Isa {
        self.0
    }

    /// Runs portable code compiled for this path. Rust never fuses or reorders float operations, so the bits are
    /// those of the plain call; only the vector width differs. `f` is written `#[inline(always)] || ..` and calls only what
    /// is inlined always: what the compiler leaves as a function of its own is compiled for every machine.
    #[inline(always)]
    pub(crate) fn run<R>(self, f: impl FnOnce() -> R) -> R {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `IsaPath` of Avx512 exists only after the features were detected.
            Isa::Avx512 => unsafe { with_avx512(f) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { with_avx2(f) },
            _ => f(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,f16c,fma")]
fn with_avx512<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c,fma")]
fn with_avx2<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_can_be_forced_and_what_is_not_is_refused_with_its_remedy() {
        for isa in Isa::ALL {
            match IsaPath::force(isa) {
                Ok(path) => assert_eq!(path.isa(), isa),
                Err(e) => {
                    let fastest = IsaPath::detect().isa();
                    assert_eq!(
                        e.to_string(),
                        format!("isa: unsupported: this machine lacks {isa}; use {fastest}")
                    );
                }
            }
        }
    }

    #[test]
    fn names_round_trip() {
        for isa in Isa::ALL {
            assert_eq!(isa.name().parse::<Isa>().unwrap(), isa);
        }
        assert!("sse9".parse::<Isa>().is_err());
    }
}

//! Kernel families: contract, CPU code per ISA, reference, cases.
//!
//! A problem (`Gemm`, `Attention`, ...) is built from views and shapes, which it checks; then any threads run any split
//! of its units. The bits of an output element depend on its own inputs and on weight shapes, never on the split.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
mod avx2;
mod convert;
mod error;
mod isa;
mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod sixteen;
mod view;

pub mod attention;
pub mod combine;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod elementwise;
pub mod embedding;
pub mod expert_gemm;
pub mod gather_rows;
pub mod gemm;
pub mod glu;
pub mod layer_norm;
pub mod paged;
pub mod rms_norm;
pub mod rope_append;
pub mod sampling;
pub mod tolerance;
pub mod top_k;

#[cfg(test)]
mod testing;

pub use convert::Element;
pub use error::KernelError;
pub use isa::{Isa, IsaPath};
pub use view::{Dst, Src};

/// A problem that threads can share.
pub trait Kernel: Sync {
    /// Independent pieces of work; pieces write disjoint elements. Neighbours share loaded data, so contiguous ranges
    /// per thread are fastest.
    fn units(&self) -> usize;

    /// Length of the scratch slice that `run` needs, per thread. Contents need not be kept between calls.
    fn scratch_len(&self) -> usize {
        0
    }

    /// Does the work of `units`; allocates nothing.
    ///
    /// # Panics
    /// When `units` reaches past [`Kernel::units`] or `scratch` is shorter than [`Kernel::scratch_len`].
    ///
    /// # Safety
    /// No unit runs twice at the same time, and while any unit runs nobody else writes what the problem reads, or
    /// touches what it writes.
    unsafe fn run(&self, units: Range<usize>, scratch: &mut [f32]);

    /// As `run`, for ranges one after the other; what is prepared for one of them need not be prepared again.
    ///
    /// # Panics
    /// As `run`.
    ///
    /// # Safety
    /// As `run`.
    unsafe fn run_all(&self, units: &mut dyn Iterator<Item = Range<usize>>, scratch: &mut [f32]) {
        for units in units {
            // SAFETY: passed on.
            unsafe { self.run(units, scratch) }
        }
    }
}

/// Asks memory for the cache line at `line`, which need not be readable, into the second-level cache: a hint.
#[inline(always)]
pub fn prefetch(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, and every x86-64 has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(line.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = line;
}

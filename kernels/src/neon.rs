//! What NEON tiles share: values widened to f32, sixteen to four registers, and hints to memory. No closures: one that
//! is not inlined would take all sums through memory.

use std::arch::aarch64::*;
use std::arch::asm;

pub(crate) const BF16: u8 = 0;
pub(crate) const F16: u8 = 1;
pub(crate) const F32: u8 = 2;

/// Sixteen f32, in four registers.
pub(crate) type Sixteen = [float32x4_t; 4];

/// Sixteen neighbouring elements as f32.
///
/// # Safety
/// `at` points at 16 elements of type `D`, at any alignment.
#[inline(always)]
pub(crate) unsafe fn widen<const D: u8>(at: *const u8) -> Sixteen {
    // SAFETY: passed on.
    unsafe {
        match D {
            BF16 => {
                let [a, b, c, d] = halves(at.cast());
                [bf16(a), bf16(b), bf16(c), bf16(d)]
            }
            F16 => {
                let [a, b, c, d] = halves(at.cast());
                [f16(a), f16(b), f16(c), f16(d)]
            }
            _ => load(at.cast()),
        }
    }
}

/// # Safety
/// `at` points at 16 halves.
#[inline(always)]
unsafe fn halves(at: *const u16) -> [uint16x4_t; 4] {
    // SAFETY: passed on.
    unsafe { [vld1_u16(at), vld1_u16(at.add(4)), vld1_u16(at.add(8)), vld1_u16(at.add(12))] }
}

#[inline(always)]
fn bf16(bits: uint16x4_t) -> float32x4_t {
    // SAFETY: NEON is part of every aarch64 target that this is compiled for.
    unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(bits)) }
}

#[inline(always)]
fn f16(bits: uint16x4_t) -> float32x4_t {
    // SAFETY: as above.
    unsafe { vcvt_f32_f16(vreinterpret_f16_u16(bits)) }
}

/// Sixteen f32.
///
/// # Safety
/// `at` points at them.
#[inline(always)]
pub(crate) unsafe fn load(at: *const f32) -> Sixteen {
    // SAFETY: passed on.
    unsafe { [vld1q_f32(at), vld1q_f32(at.add(4)), vld1q_f32(at.add(8)), vld1q_f32(at.add(12))] }
}

/// # Safety
/// As `load`, to write.
#[inline(always)]
pub(crate) unsafe fn store(at: *mut f32, values: Sixteen) {
    for i in 0..4 {
        // SAFETY: passed on.
        unsafe { vst1q_f32(at.add(4 * i), values[i]) };
    }
}

/// Zeros.
#[inline(always)]
pub(crate) fn zero() -> Sixteen {
    // SAFETY: as above.
    [unsafe { vdupq_n_f32(0.0) }; 4]
}

/// `sums += x * w`, fused.
#[inline(always)]
pub(crate) fn multiply(sums: &mut Sixteen, w: Sixteen, x: f32) {
    for i in 0..4 {
        // SAFETY: as above.
        sums[i] = unsafe { vfmaq_n_f32(sums[i], w[i], x) };
    }
}

/// Asks memory for the line at `at`, which need not be readable, into the second-level cache.
#[inline(always)]
pub(crate) fn prefetch(at: *const u8) {
    // SAFETY: a hint; it faults on no address.
    unsafe { asm!("prfm pldl2keep, [{}]", in(reg) at, options(nostack, preserves_flags, readonly)) };
}

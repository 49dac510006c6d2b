//! Sixteen f32 in four registers of NEON: of 32 registers, a part takes 24 for sums, four for weights, one for x.

use std::arch::aarch64::*;

use lathe_numerics::DType;

use crate::Element;
use crate::sixteen::{Product, Sixteen};

/// Four each.
pub(crate) type Registers = [float32x4_t; 4];

impl Sixteen for Registers {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: passed on.
        [unsafe { vdupq_n_f32(0.0) }; 4]
    }

    #[inline(always)]
    unsafe fn load<T: Element>(at: *const T) -> Self {
        // SAFETY: passed on.
        unsafe { [four(at), four(at.add(4)), four(at.add(8)), four(at.add(12))] }
    }

    #[inline(always)]
    unsafe fn load_half(at: *const u32, upper: bool) -> Self {
        // SAFETY: passed on.
        unsafe { [half(at, upper), half(at.add(4), upper), half(at.add(8), upper), half(at.add(12), upper)] }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        for i in 0..4 {
            // SAFETY: passed on.
            unsafe { vst1q_f32(to.add(4 * i), self[i]) };
        }
    }

    #[inline(always)]
    unsafe fn add(mut self, other: Self) -> Self {
        for i in 0..4 {
            // SAFETY: passed on.
            self[i] = unsafe { vaddq_f32(self[i], other[i]) };
        }
        self
    }

    #[inline(always)]
    unsafe fn add_product(mut self, x: f32, w: Self) -> Self {
        for i in 0..4 {
            // SAFETY: passed on.
            self[i] = unsafe { vfmaq_n_f32(self[i], w[i], x) };
        }
        self
    }

    /// NEON is part of every target that this is compiled for.
    unsafe fn part<const R: usize, const P: usize>(product: &impl Product, row: usize, panel: usize) {
        // SAFETY: passed on.
        unsafe { product.part::<Self, R, P>(row, panel) }
    }
}

/// # Safety
/// As `load`, of four.
#[inline(always)]
unsafe fn four<T: Element>(at: *const T) -> float32x4_t {
    // SAFETY: passed on.
    unsafe {
        match T::DTYPE {
            DType::BF16 => vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(at.cast()))),
            DType::F16 => vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at.cast()))),
            _ => vld1q_f32(at.cast()),
        }
    }
}

/// # Safety
/// As `load_half`, of four.
#[inline(always)]
unsafe fn half(at: *const u32, upper: bool) -> float32x4_t {
    // SAFETY: passed on.
    unsafe {
        let words = vld1q_u32(at);
        vreinterpretq_f32_u32(if upper {
            vandq_u32(words, vdupq_n_u32(0xffff_0000))
        } else {
            vshlq_n_u32::<16>(words)
        })
    }
}
